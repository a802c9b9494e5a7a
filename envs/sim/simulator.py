"""The protocol of a physics engine that steps ``N`` worlds of one MuJoCo model.

All engines speak MuJoCo's field names and shapes (``qpos [N, nq]``, ``xpos [N, nbody, 3]``, ``body_mass [N, nbody]``),
so tasks, robots and randomisation are written once. Tensors of state are live: write them in place, never replace them
(a captured CUDA graph keeps reading the old memory), then call :meth:`Simulator.forward`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import mujoco
import torch
from torch import Tensor

from visuomotor.envs.sim.selection import Selection

__all__ = ["SETTABLE", "Simulator", "Snapshot"]

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

    @property
    def timestep(self) -> float:
        """Duration of one physics step [s]."""
        return float(self.model.opt.timestep)

    @abstractmethod
    def field(self, name: str) -> Tensor:
        """Live tensor ``[N, ...]`` of an MjData field; only those of :data:`SETTABLE` may be written.

        Outputs (``xpos``, ``site_xmat``, ``sensordata`` …) are current after :meth:`step` and :meth:`forward`. Call it
        in constructors and keep the tensor: the first call may make the engine copy the field out from then on.

        Raises:
            ConfigError: the engine has no such field.
        """

    @abstractmethod
    def model_field(self, name: str) -> Tensor:
        """Live per-world values ``[N, ...]`` of an MjModel field (options as ``opt.<name>``), to be written in place.

        The first call gives the field a value a world, and the derived fields too where :meth:`set_const` will write
        them. Scale from :meth:`nominal`, never from what is there. Call :meth:`set_const` after writing what it reads
        (masses, inertias, positions of bodies, armature …).

        Raises:
            ConfigError: the engine cannot vary this field by world.
        """

    @abstractmethod
    def nominal(self, name: str) -> Tensor:
        """Value ``[...]`` of an MjModel field as compiled; a copy."""

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

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """State and per-world model fields."""

    @abstractmethod
    def restore(self, snapshot: Snapshot) -> None:
        """Inverse of :meth:`snapshot`."""

    def diverged(self) -> Tensor:
        """Bool ``[N]``: worlds whose state is not finite."""
        qpos, qvel = self.field("qpos"), self.field("qvel")
        return ~(torch.isfinite(qpos.sum(1)) & torch.isfinite(qvel.sum(1)))

    @abstractmethod
    def overflow(self) -> dict[str, int]:
        """Number of worlds in which contacts or constraints did not fit their buffers since the last call, by kind.

        Reads from the device: call it at the end of rollouts, not in every step.
        """

    @abstractmethod
    def mj_state(self, world: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Model (with this world's fields) and data of one world for rendering and inspection, after mj_forward.

        Both are reused: the next call overwrites them.
        """

    def close(self) -> None:  # noqa: B027  (most engines have nothing to release)
        """Release threads and device memory."""
