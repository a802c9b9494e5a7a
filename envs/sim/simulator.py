"""The protocol of a physics engine that steps ``N`` worlds of one MuJoCo model.

All engines speak MuJoCo's field names and shapes (``qpos [N, nq]``, ``xpos [N, nbody, 3]``, ``body_mass [N, nbody]``),
so tasks, robots and randomisation are written once. Rotation matrices are rows of nine numbers as in MuJoCo
(``xmat [N, nbody, 9]``). Tensors of state are live: write them in place, never replace them (a captured CUDA graph
keeps reading the old memory), then call :meth:`Simulator.forward`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco import batch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.sim.selection import Selection

__all__ = ["HUGE", "SETTABLE", "Simulator", "Snapshot"]

# State and inputs that may be written; every other field of MjData is an output of the engine.
SETTABLE = (
    "qpos",
    "qvel",
    "act",
    "ctrl",
    "qfrc_applied",
    "xfrc_applied",
    "mocap_pos",
    "mocap_quat",
    "eq_active",
    "time",
)
HUGE = 1e10  # mjMAXVAL: MuJoCo itself counts positions and velocities beyond as diverged


@dataclass(frozen=True)
class Snapshot:
    """State of all worlds and every per-world model field, copied: what :meth:`Simulator.restore` puts back."""

    state: Tensor  # [N, S], the engine's own layout
    model: dict[str, Tensor]  # {field: [N, ...]}, the fields that have per-world values


class Simulator(ABC):
    """``num_envs`` worlds of ``model``. Engines: ``batch`` (CPU threads), ``warp`` (GPU), ``isaac`` (Isaac Gym).

    Attributes:
        model: the compiled model: names, sizes and nominal values. Never write to it.
        num_envs: number of worlds ``N``.
        device: where the tensors live.
        dtype: of state and model fields (float64 for ``batch``, float32 for the others).
    """

    model: mujoco.MjModel
    num_envs: int
    device: torch.device
    dtype: torch.dtype
    _model_fields: dict[str, Tensor]  # those that model_field has given out
    _constants_differ: bool = False  # set_const has been called

    @property
    def timestep(self) -> float:
        """Duration of one physics step [s]."""
        return float(self.model.opt.timestep)

    @abstractmethod
    def field(self, name: str) -> Tensor:
        """Live tensor ``[N, ...]`` of an MjData field; only those of :data:`SETTABLE` may be written.

        The shape behind ``N`` is that of MjData (``xmat``, ``site_xmat``, ``geom_xmat``: ``[N, n, 9]``). The type is
        :attr:`dtype`, except of flags and integers: ``eq_active`` holds 0 and 1 in the engine's own type. Outputs
        (``xpos``, ``site_xmat``, ``sensordata`` …) are current after :meth:`step` and :meth:`forward`; what depends on
        accelerations (force, touch and acceleration sensors) is that of the last physics step. Call it in
        constructors and keep the tensor: the first call may make the engine copy the field out from then on.

        Raises:
            ConfigError: the engine has no such field.
        """

    @abstractmethod
    def model_field(self, name: str) -> Tensor:
        """Live per-world values ``[N, ...]`` of an MjModel field (options as ``opt.<name>``), to be written in place.

        The first call gives the field a value a world, and the derived fields too where :meth:`set_const` will write
        them. Scale from :meth:`nominal`, never from what is there. Call :meth:`set_const` after writing what it reads
        (masses, inertias, positions of bodies, armature …), then :meth:`forward`: without it ``warp`` computes the next
        physics step from forces that it has already worked out.

        Raises:
            ConfigError: the engine cannot vary this field by world.
        """

    def nominal(self, name: str) -> Tensor:
        """Value ``[...]`` of an MjModel field as compiled; a copy."""
        if name not in batch.MODEL_FIELDS:
            raise ConfigError(f"MuJoCo has no model field {name!r}. {nearest(name, batch.MODEL_FIELDS)}")
        owner: Any = self.model.opt if name.startswith("opt.") else self.model
        value = torch.from_numpy(np.array(getattr(owner, name.removeprefix("opt."))))
        dtype = self.dtype if value.dtype == torch.float64 else value.dtype
        return value.to(self.device, dtype)

    @abstractmethod
    def step(self, n: int = 1, active: Tensor | None = None) -> None:
        """``n`` physics steps; outputs then describe the new state. Worlds outside ``active [N]`` keep theirs."""

    @abstractmethod
    def reset(self, worlds: Selection) -> None:
        """Put worlds into keyframe 0 (else the model's defaults), at rest, time 0; :meth:`forward` gives outputs."""

    @abstractmethod
    def forward(self, worlds: Selection) -> None:
        """Compute the outputs of worlds whose state was written."""

    @abstractmethod
    def set_const(self, worlds: Selection) -> None:
        """Recompute what MuJoCo derives from model fields (``mj_setConst``). State is untouched."""

    @abstractmethod
    def state(self) -> Tensor:
        """Copy of the whole state ``[N, S]``, such that :meth:`set_state` continues as if nothing had happened.

        Bit for bit on the CPU. The layout is the engine's own.
        """

    @abstractmethod
    def set_state(self, worlds: Selection, state: Tensor) -> None:
        """Put back rows ``[n, S]`` of :meth:`state` into the selected worlds and compute their outputs."""

    def snapshot(self) -> Snapshot:
        """State and per-world model fields."""
        return Snapshot(self.state(), {k: v.clone() for k, v in self._model_fields.items()})

    def restore(self, snapshot: Snapshot) -> None:
        """Inverse of :meth:`snapshot`; fields that had no per-world values then get their nominal ones."""
        everything = Selection.all(self.num_envs, self.device)
        for name, value in snapshot.model.items():
            self.model_field(name).copy_(value)
        for name in self._model_fields.keys() - snapshot.model.keys():
            self._model_fields[name].copy_(self.nominal(name))
        if self._constants_differ:
            self.set_const(everything)
        self.set_state(everything, snapshot.state)

    def diverged(self) -> Tensor:
        """Bool ``[N]``: worlds whose state is not finite, or beyond what MuJoCo takes for diverged (1e10)."""
        size = self.field("qpos").abs().sum(1) + self.field("qvel").abs().sum(1)
        return ~(size < HUGE)

    @abstractmethod
    def overflow(self) -> dict[str, int]:
        """In how many worlds ``contacts`` or ``constraints`` did not fit their buffers since the last call.

        ``batch`` counts a world once in an episode. Reads from the device: call it at the end of rollouts, not in
        every step.
        """

    @abstractmethod
    def mj_state(self, world: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Model (with this world's fields) and data of one world for rendering and inspection, after mj_forward.

        Both are reused: the next call overwrites them.
        """

    def close(self) -> None:  # noqa: B027  (most engines have nothing to release)
        """Release threads and device memory."""
