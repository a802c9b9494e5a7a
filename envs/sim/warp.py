"""The GPU engine: MuJoCo Warp (``mujoco_warp``), float32, with its arrays shared with torch.

It runs on the CPU as well, one world after another: for tests, not for work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields
from functools import partial
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco import batch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.rotations import quat_multiply, quat_to_matrix
from visuomotor.envs.sim.alerts import Alerts
from visuomotor.envs.sim.engines import engine_device
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.simulator import Simulator
from visuomotor.envs.sim.warp_setup import guess_sizes, load_warp, warp_model

__all__ = ["WarpSimulator"]

# mjSTATE_INTEGRATION without plugins, in MuJoCo's order: from these a step is a function.
_STATE = (
    "time", "qpos", "qvel", "act", "history", "plastic", "qacc_warmstart", "ctrl", "qfrc_applied", "xfrc_applied",
    "eq_active", "mocap_pos", "mocap_quat", "userdata",
)  # fmt: skip
# What set_const writes (mujoco_warp, set_const.py). Where one of them has a single value for all worlds, set_const
# silently gives every world the value of the first.
_DERIVED = (
    "body_subtreemass", "body_invweight0", "dof_invweight0", "tendon_invweight0", "tendon_length0", "actuator_acc0",
    "cam_pos0", "cam_poscom0", "cam_mat0", "light_pos0", "light_poscom0", "light_dir0", "eq_data", "geom_aabb",
    "geom_rbound",
)  # fmt: skip
_POSES = {"body_pos", "body_quat", "geom_pos", "geom_quat"}


class WarpSimulator(Simulator):
    """``num_envs`` worlds of ``model`` on one GPU, or on the CPU.

    A step ends with positions and velocities of the new state computed, and the next one begins from them: positions
    and model fields that were written take effect in full only after :meth:`forward`. All worlds are computed in every
    call; what is selected decides whose state changes. Constants that MuJoCo Warp does not derive (actuator lengths,
    flexible edges, springs from ``qpos_spring``) keep their compiled values in :meth:`set_const`.

    Args:
        device: ``auto`` (the GPU if there is one), ``cuda``, ``cuda:1`` … or ``cpu``.
        contacts: room for contacts a world (shared among the worlds); 0 takes :func:`guess_sizes`.
        constraints: room for constraint rows in each world; 0 takes :func:`guess_sizes`.
        graph: record each kind of call once and replay it: in-place writes are seen, replaced tensors are not.

    Attributes:
        warp_model, warp_data: ``mujoco_warp.Model`` and ``Data``, for renderers.

    Raises:
        MissingExtraError: mujoco-warp is not installed.
        ConfigError: no such device, or a model that MuJoCo Warp cannot run.
    """

    def __init__(
        self, model: mujoco.MjModel, num_envs: int, *, device: str = "auto", contacts: int = 0, constraints: int = 0,
        graph: bool = True,
    ) -> None:  # fmt: skip
        if num_envs < 1:
            raise ConfigError(f"num_envs={num_envs}: expected at least 1 world")
        self.device = engine_device(device)
        self._wp, self._mjw = load_warp()
        self.model, self.num_envs, self.dtype = warp_model(model), num_envs, torch.float32
        guess = guess_sizes(self.model)
        contacts, constraints = contacts or guess[0], constraints or guess[1]
        with self.scope():
            try:
                self.warp_model = self._mjw.put_model(self.model)
            except (NotImplementedError, ValueError) as error:
                raise ConfigError(f"MuJoCo Warp cannot run this model: {error}") from None
            self.warp_data = self._mjw.make_data(self.model, nworld=num_envs, nconmax=contacts, njmax=constraints)
        self.warp_model.opt.warn_overflow = False
        self._record = graph
        self._graphs: dict[str, Any] = {}
        self._fields: dict[str, Tensor] = {}
        self._model_fields: dict[str, Tensor] = {}
        self._expanded: dict[str, Tensor] = {}
        self._scratch = (copy.copy(self.model), mujoco.MjData(self.model))
        if model.nkey:
            mujoco.mj_resetDataKeyframe(self.model, self._scratch[1], 0)
        self._state = [v.view(num_envs, -1) for v in map(self.field, _STATE) if v.numel()]
        start = {n: getattr(self._scratch[1], n) for n in _STATE if self.field(n).numel()}
        self._home = [torch.tensor(np.ravel(x), device=self.device, dtype=self.dtype)[None] for x in start.values()]
        self._sensors = self.field("sensordata")
        self._after_step = _columns_after_step(self.model, self.device)
        self._static = _StaticGeoms(self)
        self.reset(Selection.all(num_envs, self.device))
        self._outputs()

    def field(self, name: str) -> Tensor:
        if name not in self._fields:
            array, template = getattr(self.warp_data, name, None), getattr(self._scratch[1], name, None)
            shape = (self.num_envs, *(() if template is None else np.shape(template)))
            known_here = isinstance(array, self._wp.array) and template is not None
            if not known_here or self._torch(array).numel() != np.prod(shape):
                known = [f.name for f in fields(self.warp_data) if hasattr(self._scratch[1], f.name)]
                raise ConfigError(f"MuJoCo Warp has no data field {name!r} by world. {nearest(name, known)}")
            self._fields[name] = self._torch(array).view(shape)
        return self._fields[name]

    def model_field(self, name: str) -> Tensor:
        if name not in self._model_fields:
            known = _batched(self.warp_model) + _batched(self.warp_model.opt)
            if name not in known:
                raise ConfigError(f"MuJoCo Warp cannot vary model field {name!r} by world. {nearest(name, known)}")
            shape = (self.num_envs, *self.nominal(name).shape)
            values = self._expand(name)
            self._model_fields[name] = values.view(shape) if values.numel() == np.prod(shape) else values
        return self._model_fields[name]

    def step(self, n: int = 1, active: Tensor | None = None) -> None:
        kept = [*self._state, self._sensors]
        before = None if active is None else [x.clone() for x in kept]
        if self._after_step is not None:
            self._sensors[:, self._after_step] = 0.0  # forces of contacts are added up there
        self._run(f"step {n}", partial(self._advance, n))
        if active is not None and before is not None:
            for now, old in zip(kept, before, strict=True):
                now.copy_(torch.where(active[:, None], now, old))
        self._outputs()

    def reset(self, worlds: Selection) -> None:
        for value, home in zip(self._state, self._home, strict=True):
            worlds.put(value, home)
        worlds.put(self._sensors, 0.0)

    def forward(self, worlds: Selection) -> None:
        if worlds.is_empty:
            return
        if self._expanded.keys() & _POSES:
            self._run("kinematics", lambda: self._mjw.kinematics(self.warp_model, self.warp_data))
            self._static.place(self._expanded)
        self._outputs()

    def set_const(self, worlds: Selection) -> None:
        if worlds.is_empty:
            return
        if not self._constants_differ:
            for name in _DERIVED:
                self._expand(name)
            self._constants_differ = True
        self._run("set_const", lambda: self._mjw.set_const(self.warp_model, self.warp_data))

    def state(self) -> Tensor:
        return torch.cat([x.float() for x in self._state], 1)

    def set_state(self, worlds: Selection, state: Tensor) -> None:
        for field, value in zip(self._state, state.split([x.shape[1] for x in self._state], 1), strict=True):
            worlds.put(field, value)
        self.forward(worlds)

    def overflow(self) -> dict[str, int]:
        kind, bits = self._mjw.OverflowType, self._wp.to_torch(self.warp_data.overflow)
        full = {"contacts": kind.BROADPHASE | kind.NARROWPHASE | kind.CCD, "constraints": kind.NEFC | kind.NJMAX_NNZ}
        counts = torch.stack([(bits & int(mask) != 0).sum() for mask in full.values()])
        bits.zero_()
        return dict(zip(full, counts.tolist(), strict=True))

    def mj_state(self, world: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model, data = self._scratch
        for name, values in self._expanded.items():
            owner, key = (model.opt, name[4:]) if name.startswith("opt.") else (model, name)
            value = values[world].cpu().numpy()
            if np.ndim(getattr(owner, key)) == 0:
                setattr(owner, key, value.item())
            else:
                getattr(owner, key)[:] = value.reshape(getattr(owner, key).shape)
        mujoco.mj_resetData(model, data)
        for name in _STATE:
            value = self.field(name)[world].cpu().numpy()
            if np.ndim(getattr(data, name)) == 0:
                setattr(data, name, value.item())
            else:
                getattr(data, name)[:] = value
        with Alerts():
            mujoco.mj_forward(model, data)
        return model, data

    # ---- how

    def _advance(self, n: int) -> None:
        """``n`` steps from computed positions and velocities; those of the new state are left to be computed."""
        m, d = self.warp_model, self.warp_data
        for i in range(n):
            if m.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:  # which is not made of these two halves
                self._mjw.step(m, d)
                continue
            if i:
                self._mjw.step1(m, d)
            self._mjw.step2(m, d)

    def _outputs(self) -> None:
        kept = None if self._after_step is None else self._sensors[:, self._after_step]
        self._run("outputs", lambda: self._mjw.step1(self.warp_model, self.warp_data))
        if kept is not None:  # step1 clears them
            self._sensors[:, self._after_step] = kept

    def _run(self, name: str, work: Callable[[], None]) -> None:
        """Do some work: at once the first time, which compiles its kernels, recorded from the second time on."""
        if not self._record or name not in self._graphs:
            with self.scope():
                work()
            self._graphs[name] = None
            return
        if self._graphs[name] is None:
            # on Warp's own stream: torch's default one cannot be recorded
            with self._wp.ScopedDevice(str(self.device)), self._wp.ScopedCapture() as capture:
                work()
            self._graphs[name] = capture.graph
        with self.scope():
            self._wp.capture_launch(self._graphs[name])

    def scope(self) -> AbstractContextManager[Any]:
        """Warp works on torch's device, in torch's current stream: what one writes the other reads in order."""
        if self.device.type == "cpu":
            scope: AbstractContextManager[Any] = self._wp.ScopedDevice("cpu")
        else:
            stream = self._wp.stream_from_torch(torch.cuda.current_stream(self.device))
            scope = self._wp.ScopedStream(stream, sync_enter=False)
        return scope

    def _expand(self, name: str) -> Tensor:
        """Give a field one value a world; recorded work is forgotten, since it reads the old array."""
        if name not in self._expanded:
            owner, key = (self.warp_model.opt, name[4:]) if name.startswith("opt.") else (self.warp_model, name)
            old = getattr(owner, key)
            values = self._torch(old).repeat_interleave(self.num_envs, 0)
            if values.numel():
                setattr(owner, key, self._wp.from_torch(values, dtype=old.dtype))
            self._expanded[name] = values
            self._graphs.clear()
        return self._expanded[name]

    def _torch(self, array: Any) -> Tensor:
        """The same memory; empty arrays have none."""
        if array.size:
            view: Tensor = self._wp.to_torch(array)
            return view
        return torch.zeros(tuple(array.shape), device=self.device)


class _StaticGeoms:
    """Geoms fixed to the world, which MuJoCo Warp places only once, when its data is made (its ``smooth.py``)."""

    def __init__(self, sim: WarpSimulator) -> None:
        m = sim.model
        body = np.asarray(m.geom_bodyid)
        mocap = np.asarray(m.body_mocapid)[np.asarray(m.body_rootid)[body]] >= 0
        ids = np.flatnonzero((np.asarray(m.body_weldid)[body] == 0) & ~mocap)
        self._ids = torch.tensor(ids, device=sim.device)
        self._bodies = torch.tensor(body[ids].astype(np.int64), device=sim.device)
        self._compiled = {n: sim.nominal(n)[None] for n in ("geom_pos", "geom_quat")}
        self._xpos, self._xquat = sim.field("xpos"), sim.field("xquat")
        self._pos, self._mat = sim.field("geom_xpos"), sim.field("geom_xmat")

    def place(self, expanded: dict[str, Tensor]) -> None:
        """Where their bodies are now."""
        pos, quat = (expanded.get(n, self._compiled[n])[:, self._ids] for n in ("geom_pos", "geom_quat"))
        body = self._xquat[:, self._bodies]
        turned = (quat_to_matrix(body) @ pos.expand(body.shape[0], -1, -1)[..., None])[..., 0]
        self._pos[:, self._ids] = self._xpos[:, self._bodies] + turned
        self._mat[:, self._ids] = quat_to_matrix(quat_multiply(body, quat.expand_as(body))).flatten(2)


def _batched(owner: Any) -> list[str]:
    """Array fields of a Warp model, or of its options, that may have one value a world and that MuJoCo has too."""
    prefix = "opt." if hasattr(owner, "gravity") else ""
    names = [prefix + f.name for f in fields(owner) if getattr(f.type, "shape", ())[:1] == ("*",)]
    return [n for n in names if n in batch.MODEL_FIELDS]


def _columns_after_step(model: mujoco.MjModel, device: torch.device) -> Tensor | None:
    """Columns of ``sensordata`` that depend on accelerations."""
    late = np.asarray(model.sensor_needstage) == mujoco.mjtStage.mjSTAGE_ACC.value
    columns = [
        c for i in np.flatnonzero(late) for c in range(model.sensor_adr[i], model.sensor_adr[i] + model.sensor_dim[i])
    ]
    return torch.tensor(columns, device=device) if columns else None
