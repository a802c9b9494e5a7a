"""The CPU engine: ``mujoco.batch.Batch``, C++ threads over worlds with live views of their state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco import batch
from torch import Tensor

from visuomotor.data.errors import ConfigError, UserError, nearest
from visuomotor.envs.sim.alerts import Alerts
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.simulator import HUGE, SETTABLE, Simulator

__all__ = ["BatchSimulator"]

_POSITION_AND_VELOCITY = mujoco.mjtStage.mjSTAGE_VEL.value
_NO_STAGE = mujoco.mjtStage.mjSTAGE_NONE.value


class BatchSimulator(Simulator):
    """``num_envs`` worlds on ``threads`` CPU threads (0: one a core), float64, bit-identical for any number of threads.

    MuJoCo's own reset of unstable worlds is switched off: a world that diverges stays non-finite until it is reset
    (see :meth:`Simulator.diverged`), so that an episode never goes on silently from the default pose. Positions that
    were written and not followed by :meth:`forward` take effect in the next step all the same.

    Without ``outputs`` it is made for tasks that read nothing but the state; whatever else is read costs more time.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int, *, threads: int = 0, outputs: bool = True) -> None:
        if num_envs < 1 or threads < 0:
            raise ConfigError(
                f"num_envs={num_envs}, threads={threads}: expected at least 1 world and 0 threads or more"
            )
        model = copy.copy(model)
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        if model.ntree < 2:  # one mechanism is one island: the same numbers without the search for it, a tenth faster
            model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND
        self.model, self.num_envs = model, num_envs
        self.device, self.dtype = torch.device("cpu"), torch.float64
        # persistent: a world keeps its MjData, so that computing outputs after a step costs nothing extra; without
        # outputs a few MjData that stay in the processor's cache are faster
        self._batch = batch.Batch(model, num_envs, threads, persistent=outputs)
        self._state = torch.from_numpy(self._batch.state)
        self._stage = _NO_STAGE  # what is computed at the new state: nothing until somebody asks for an output
        self._fields: dict[str, Tensor] = {}
        self._model_fields: dict[str, Tensor] = {}
        self._scratch: tuple[mujoco.MjModel, mujoco.MjData] | None = None
        self._alerts = Alerts()
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._do(self._batch.reset, keyframe=0 if model.nkey else -1)

    def field(self, name: str) -> Tensor:
        if name not in self._fields:
            if name not in batch.DATA_FIELDS:
                raise ConfigError(f"MuJoCo has no data field {name!r}. {nearest(name, batch.DATA_FIELDS)}")
            array = self._batch.bind(name)
            self._fields[name] = torch.from_numpy(array if array.flags.writeable else _unlocked(array))
            if name not in SETTABLE:  # outputs are copied out by the calls that follow
                self._stage = _POSITION_AND_VELOCITY
                self._do(self._batch.forward, stage=_POSITION_AND_VELOCITY)
        return self._fields[name]

    def model_field(self, name: str) -> Tensor:
        if name not in self._model_fields:
            if name not in batch.MODEL_FIELDS:
                raise ConfigError(f"MuJoCo has no model field {name!r}. {nearest(name, batch.MODEL_FIELDS)}")
            self._model_fields[name] = torch.from_numpy(self._batch.expand(name))
        return self._model_fields[name]

    def step(self, n: int = 1, active: Tensor | None = None) -> None:
        ids = None if active is None else active.numpy()
        self._do(self._batch.step, ids, nstep=n, stage=self._stage)

    def reset(self, worlds: Selection) -> None:
        self._call(worlds, self._batch.reset, keyframe=0 if self.model.nkey else -1, stage=_NO_STAGE)

    def forward(self, worlds: Selection) -> None:
        if self._stage != _NO_STAGE:
            self._call(worlds, self._batch.forward, stage=self._stage)

    def set_const(self, worlds: Selection) -> None:
        self._constants_differ = True
        self._call(worlds, self._batch.set_const)

    def state(self) -> Tensor:
        return self._state.clone()

    def set_state(self, worlds: Selection, state: Tensor) -> None:
        worlds.put(self._state, state)
        self.forward(worlds)

    def diverged(self) -> Tensor:
        with np.errstate(over="ignore"):
            size = np.abs(self._qpos).sum() + np.abs(self._qvel).sum()
        if size < HUGE:  # as nearly always
            return torch.zeros(self.num_envs, dtype=torch.bool)
        return super().diverged()

    def overflow(self) -> dict[str, int]:
        return self._alerts.counts()

    def mj_state(self, world: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model, data = self._data()
        self._batch.get_model(world, model)
        self._batch.get_data(world, data)
        with self._alerts:
            mujoco.mj_forward(model, data)
        return model, data

    def _data(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        if self._scratch is None:
            self._scratch = (self._batch.get_model(0), mujoco.MjData(self.model))
        return self._scratch

    def _call(self, worlds: Selection, function: Callable[..., None], **settings: Any) -> None:
        if not worlds.is_empty:
            self._do(function, (worlds.mask if worlds.ids is None else worlds.ids).numpy(), **settings)

    def _do(self, function: Callable[..., None], *arguments: Any, **settings: Any) -> None:
        with self._alerts:
            try:
                function(*arguments, **settings)
            except batch.SimulationError as error:
                raise UserError(f"the physics of the scene cannot go on. {error}") from None


def _unlocked(array: np.ndarray) -> np.ndarray:
    """A writable view of the same memory: torch knows no read-only ones. :data:`SETTABLE` says what may be written."""
    interface = dict(array.__array_interface__, data=(array.__array_interface__["data"][0], False))

    class _View:
        __array_interface__ = interface
        owner = array

    return np.asarray(_View())
