"""The engine Isaac Gym (Preview 4): PhysX in a process of its own, MuJoCo's names and shapes here.

Never run against Isaac Gym itself so far: see ``docs/isaac.md``.
"""

from __future__ import annotations

import copy
from pathlib import Path

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, UserError, nearest
from visuomotor.envs.sim.alerts import Alerts
from visuomotor.envs.sim.engines import engine_device
from visuomotor.envs.sim.isaac_model import VARIABLE, IsaacModel
from visuomotor.envs.sim.isaac_process import IsaacProcess, isaac_python
from visuomotor.envs.sim.kinematics import POSE_FIELDS, TreeKinematics
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.simulator import Simulator

__all__ = ["IsaacSimulator"]

_STATE = ("time", "qpos", "qvel", "ctrl", "mocap_pos", "mocap_quat")


class IsaacSimulator(Simulator):
    """``num_envs`` worlds of ``model`` in PhysX, float32.

    Positions, velocities and actuator inputs are kept here; each step sends the inputs (and the states of worlds that
    were written since) and brings positions and velocities back. All outputs are computed from them by
    :class:`TreeKinematics`, so what was written shows at once, although Isaac Gym shows it only after the next step.
    A state that is put back continues from the same positions and velocities, not bit for bit: PhysX's contact caches
    are not part of it. Worlds outside ``active`` are put back after the step; a world that is not finite is parked in
    its home pose until it is reset.

    Args:
        device: ``auto``, ``cuda``, ``cuda:1`` … or ``cpu``: of the tensors and of PhysX.
        python: of the Isaac Gym installation; empty: the environment variable ``VISUOMOTOR_ISAAC_PYTHON``.

    Raises:
        ConfigError: no such Python or device, or a model that the engine cannot run.
        IsaacError: Isaac Gym failed; its traceback is the note.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int, *, device: str = "auto", python: str = "") -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs={num_envs}: expected at least 1 world")
        python = isaac_python(python)
        self.model, self.num_envs, self.dtype, self.device = model, num_envs, torch.float32, engine_device(device)
        self._translated = IsaacModel(model)
        self._kinematics = TreeKinematics(model, self.device, self.dtype)
        self._scratch = (copy.copy(model), mujoco.MjData(model))
        if model.nkey:
            mujoco.mj_resetDataKeyframe(model, self._scratch[1], 0)
        home = {n: np.array(getattr(self._scratch[1], n), np.float32) for n in _STATE}
        self._home = {n: torch.tensor(x, device=self.device)[None] for n, x in home.items()}
        self._fields = {n: x.repeat(num_envs, *[1] * (x.ndim - 1)) for n, x in self._home.items()}
        self._outputs: dict[str, Tensor] = {}
        self._model_fields: dict[str, Tensor] = {}
        self._sent: dict[str, np.ndarray] = {}
        self._stale_model = self._written = True  # what Isaac Gym has to be told before the next step
        self._dirty = torch.ones(num_envs, dtype=torch.bool, device=self.device)  # worlds whose state was written
        self._process = self._start(python)

    def field(self, name: str) -> Tensor:
        if name in self._fields:
            return self._fields[name]
        if name not in POSE_FIELDS:
            known = [*_STATE, *POSE_FIELDS]
            raise ConfigError(f"the engine isaac has no data field {name!r}. {nearest(name, known)}")
        if name not in self._outputs:
            shape = self._kinematics.shape(name)
            self._outputs[name] = torch.zeros(self.num_envs, *shape, device=self.device)
            self._compute({name: self._outputs[name]})
        return self._outputs[name]

    def model_field(self, name: str) -> Tensor:
        if name not in VARIABLE:
            raise ConfigError(f"Isaac Gym cannot vary model field {name!r} by world. {nearest(name, VARIABLE)}")
        if name not in self._model_fields:
            self._model_fields[name] = self.nominal(name)[None].repeat(self.num_envs, *[1] * self.nominal(name).ndim)
        return self._model_fields[name]

    def step(self, n: int = 1, active: Tensor | None = None) -> None:
        if self._stale_model:
            self._send_properties()
        kept = None if active is None else {k: v.clone() for k, v in self._fields.items()}
        arrays, parked = self._process.arrays, None
        if self._written:
            parked = self._write()
        arrays["target"][:] = self._translated.targets(self._fields["ctrl"]).cpu().numpy()
        self._process.call("step", n=n, write=self._written)
        self._dirty.zero_()
        self._written = False
        self._read(parked)
        self._fields["time"] += n * self.timestep
        if active is not None and kept is not None:
            for name, value in kept.items():
                mask = active.view(-1, *[1] * (value.ndim - 1))
                self._fields[name].copy_(torch.where(mask, self._fields[name], value))
            self._dirty |= ~active
            self._written = True
        self._compute(self._outputs)

    def reset(self, worlds: Selection) -> None:
        for name, value in self._fields.items():
            worlds.put(value, self._home[name])
        self._mark(worlds)

    def forward(self, worlds: Selection) -> None:
        if not worlds.is_empty:
            self._mark(worlds)
            self._compute(self._outputs)

    def set_const(self, worlds: Selection) -> None:
        """Nothing is derived here: PhysX computes what it needs from masses, inertias and armatures by itself."""
        self._stale_model = True

    def state(self) -> Tensor:
        return torch.cat([v.reshape(self.num_envs, -1) for v in self._fields.values()], 1)

    def set_state(self, worlds: Selection, state: Tensor) -> None:
        sizes = [v[0].numel() for v in self._fields.values()]
        for field, value in zip(self._fields.values(), state.split(sizes, 1), strict=True):
            worlds.put(field, value.reshape(value.shape[0], *field.shape[1:]))
        self.forward(worlds)

    def overflow(self) -> dict[str, int]:
        """All worlds, if PhysX complained of a full buffer in its log: they share the buffers."""
        return {"contacts": self.num_envs if self._process.complaints("overflow") else 0, "constraints": 0}

    def mj_state(self, world: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model, data = self._scratch
        for name, values in self._model_fields.items():
            owner, key = (model.opt, name[4:]) if name.startswith("opt.") else (model, name)
            getattr(owner, key)[:] = values[world].cpu().numpy()
        mujoco.mj_setConst(model, data)
        mujoco.mj_resetData(model, data)
        for name, field in self._fields.items():
            value = field[world].cpu().numpy()
            if name == "time":
                data.time = float(value)
            else:
                getattr(data, name)[:] = value
        with Alerts():
            mujoco.mj_forward(model, data)
        return model, data

    def close(self) -> None:
        self._process.close()

    # ---- how

    def _start(self, python: str) -> IsaacProcess:
        m, n, translated = self.model, self.num_envs, self._translated
        actors, dofs, links, shapes = translated.sizes
        f4 = "float32"
        process = IsaacProcess(
            python,
            {
                "root": (f4, (n, actors, 13)), "dof": (f4, (n, dofs, 2)), "target": (f4, (n, dofs)),
                "write": ("uint8", (n,)), "drive": (f4, (n, dofs, 4)), "body": (f4, (n, links, 10)),
                "friction": (f4, (n, shapes)), "filter": ("int32", (shapes,)), "gravity": (f4, (3,)),
            },
        )  # fmt: skip
        try:
            for i, tree in enumerate(translated.trees):
                Path(process.folder, f"actor{i}.urdf").write_text(tree.urdf, encoding="utf-8")
                for file, text in tree.meshes.items():
                    Path(process.folder, file).write_text(text, encoding="utf-8")
            index = self.device.index or 0
            names = process.build(
                device=index if self.device.type == "cuda" else -1, timestep=self.timestep, ground=translated.ground,
                gravity=[float(x) for x in m.opt.gravity], actors=translated.actors(),
                spacing=max(1.0, float(m.stat.extent)),
            )  # fmt: skip
            translated.arrange(names, self.device)
            process.arrays["filter"][:] = translated.filters
        except BaseException:
            process.close()
            raise
        self._root = torch.zeros(n, actors, 13, device=self.device)
        self._dof = torch.zeros(n, dofs, 2, device=self.device)
        return process

    def _mark(self, worlds: Selection) -> None:
        self._dirty |= worlds.mask
        self._written = True
        self._stale_model |= bool(self._model_fields)

    def _compute(self, out: dict[str, Tensor]) -> None:
        if out:
            f = self._fields
            self._kinematics(f["qpos"], f["mocap_pos"], f["mocap_quat"], out)

    def _write(self) -> np.ndarray:
        """States of the marked worlds for the next step; returns which worlds are parked, bool ``[N]``."""
        arrays, f = self._process.arrays, self._fields
        self._translated.to_isaac(f["qpos"], f["qvel"], f["mocap_pos"], f["mocap_quat"], self._root, self._dof)
        arrays["root"][:], arrays["dof"][:] = self._root.cpu().numpy(), self._dof.cpu().numpy()
        arrays["write"][:] = self._dirty.cpu().numpy()
        finite = np.isfinite(arrays["root"]).all((1, 2)) & np.isfinite(arrays["dof"]).all((1, 2))
        if not finite.all():
            h = self._home
            root, dof = torch.zeros_like(self._root[:1]), torch.zeros_like(self._dof[:1])
            self._translated.to_isaac(h["qpos"], h["qvel"], h["mocap_pos"], h["mocap_quat"], root, dof)
            arrays["root"][~finite], arrays["dof"][~finite] = root.cpu().numpy(), dof.cpu().numpy()
        parked: np.ndarray = ~finite
        return parked

    def _read(self, parked: np.ndarray | None) -> None:
        """Take the new states; worlds that are not finite stay so, and are parked before the next step."""
        arrays, f = self._process.arrays, self._fields
        self._root.copy_(torch.from_numpy(arrays["root"]))
        self._dof.copy_(torch.from_numpy(arrays["dof"]))
        self._translated.from_isaac(self._root, self._dof, f["qpos"], f["qvel"])
        lost = ~(np.isfinite(arrays["root"]).all((1, 2)) & np.isfinite(arrays["dof"]).all((1, 2)))
        lost = lost if parked is None else lost | parked
        if lost.any():
            mask = torch.from_numpy(lost).to(self.device)
            f["qpos"][mask] = torch.nan
            self._dirty |= mask
            self._written = True

    def _send_properties(self) -> None:
        """Tell Isaac Gym the model fields of worlds where they differ from what it was told last."""
        first, arrays = not self._sent, self._process.arrays
        found = self._translated.properties(lambda n: self._model_fields.get(n, self.nominal(n)[None]))
        changed, worlds = [], np.full(self.num_envs, first)
        for name, value in found.items():
            now = value.cpu().numpy()
            if name == "gravity":
                if (now != now[0]).any():
                    raise UserError("Isaac Gym has one gravity for all worlds; opt.gravity differs between them")
                now = now[0]
            now = np.broadcast_to(now, arrays[name].shape)
            if first or (now != self._sent[name]).any():
                changed.append(name)
                if name != "gravity" and not first:
                    worlds |= (now != self._sent[name]).any(tuple(range(1, now.ndim)))
                arrays[name][:] = now
                self._sent[name] = np.array(now)
        if "body" in changed and not first and self.device.type == "cuda":
            raise UserError(
                "Isaac Gym reads masses and inertias once, before the first step, when it runs on a GPU: vary them at "
                "startup (when=startup), or use engine.device=cpu"
            )
        self._refuse_ground()
        if changed:
            arrays["write"][:] = worlds
            self._process.call("properties", fields=changed)
        self._stale_model = False

    def _refuse_ground(self) -> None:
        if "geom_friction" not in self._model_fields:
            return
        planes = np.flatnonzero(np.asarray(self.model.geom_type) == mujoco.mjtGeom.mjGEOM_PLANE.value).tolist()
        if (self._model_fields["geom_friction"][:, planes] != self.nominal("geom_friction")[planes]).any():
            raise UserError("Isaac Gym has one ground for all worlds: the friction of planes cannot differ by world")
