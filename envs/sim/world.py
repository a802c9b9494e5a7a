"""What tasks, robots and events see of a simulation: named things instead of indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.random import WorldRandom
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.simulator import Simulator

if TYPE_CHECKING:
    from visuomotor.envs.sim.control import Control

__all__ = ["FreeBody", "Joints", "Site", "World", "find", "names_of"]

_KINDS = {
    "body": (mujoco.mjtObj.mjOBJ_BODY, "nbody"),
    "joint": (mujoco.mjtObj.mjOBJ_JOINT, "njnt"),
    "geom": (mujoco.mjtObj.mjOBJ_GEOM, "ngeom"),
    "site": (mujoco.mjtObj.mjOBJ_SITE, "nsite"),
    "actuator": (mujoco.mjtObj.mjOBJ_ACTUATOR, "nu"),
    "camera": (mujoco.mjtObj.mjOBJ_CAMERA, "ncam"),
    "light": (mujoco.mjtObj.mjOBJ_LIGHT, "nlight"),
    "material": (mujoco.mjtObj.mjOBJ_MATERIAL, "nmat"),
    "sensor": (mujoco.mjtObj.mjOBJ_SENSOR, "nsensor"),
}


def names_of(model: mujoco.MjModel, kind: str) -> list[str]:
    """Names of all things of a kind (``body``, ``joint``, ``geom`` …), '' where there is none."""
    code, count = _KINDS[kind]
    return [mujoco.mj_id2name(model, code, i) or "" for i in range(getattr(model, count))]


def find(model: mujoco.MjModel, kind: str, name: str) -> int:
    """Index of a named thing.

    Raises:
        ConfigError: there is none of that name; the nearest are named.
    """
    index = mujoco.mj_name2id(model, _KINDS[kind][0], name)
    if index < 0:
        raise ConfigError(f"the model has no {kind} {name!r}. {nearest(name, [n for n in names_of(model, kind) if n])}")
    return int(index)


@dataclass(frozen=True)
class World:
    """A simulation with the random numbers of its worlds. ``N`` worlds.

    Attributes:
        sim: the engine.
        random: keys of the worlds' random numbers.
        buffers: what task and control keep of every world, live tensors ``[N, ...]``; as all that follows, there once
            both are bound.
        obs_spec: what the worlds show.
        control: what turns actions into actuator inputs.
        elapsed: control steps since each world's episode began, int64 ``[N]``, live.
        dt: duration of a control step [s].
    """

    sim: Simulator
    random: WorldRandom
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    obs_spec: Mapping[str, ArraySpec] = field(default_factory=dict)
    control: Control | None = None
    elapsed: Tensor | None = None
    dt: float = 0.0

    def joints(self, names: Sequence[str]) -> Joints:
        """Handle of hinge and slide joints."""
        return Joints(self.sim, names)

    def site(self, name: str) -> Site:
        """Handle of a site."""
        return Site(self.sim, name)

    def free_body(self, name: str) -> FreeBody:
        """Handle of a body that hangs on a free joint."""
        return FreeBody(self.sim, name)


def _columns(index: Sequence[int], device: torch.device) -> slice | Tensor:
    first = index[0]
    if list(index) == list(range(first, first + len(index))):
        return slice(first, first + len(index))
    return torch.tensor(index, device=device)


class Joints:
    """Positions and velocities of ``n`` hinge or slide joints, in the order of their names.

    Attributes:
        qpos_columns, dof_columns: their columns in ``qpos`` and ``qvel``.
        low, high: their limits ``[n]``, infinite where there is none.
    """

    def __init__(self, sim: Simulator, names: Sequence[str]) -> None:
        m = sim.model
        ids = [find(m, "joint", n) for n in names]
        for name, i in zip(names, ids, strict=True):
            if m.jnt_type[i] not in (mujoco.mjtJoint.mjJNT_HINGE.value, mujoco.mjtJoint.mjJNT_SLIDE.value):
                raise ConfigError(f"joint {name!r} is free or a ball; expected a hinge or a slide")
        self.names = tuple(names)
        self.qpos_columns = _columns([int(m.jnt_qposadr[i]) for i in ids], sim.device)
        self.dof_columns = _columns([int(m.jnt_dofadr[i]) for i in ids], sim.device)
        limited = np.asarray(m.jnt_limited)[ids].astype(bool)
        limits = np.where(limited[:, None], m.jnt_range[ids], np.array([-np.inf, np.inf]))
        self.low, self.high = (torch.tensor(x, dtype=torch.float32, device=sim.device) for x in limits.T)
        self._qpos, self._qvel = sim.field("qpos"), sim.field("qvel")

    def pos(self) -> Tensor:
        """Float32 ``[N, n]`` [rad or m]."""
        return self._qpos[:, self.qpos_columns].float()

    def vel(self) -> Tensor:
        """Float32 ``[N, n]`` [rad/s or m/s]."""
        return self._qvel[:, self.dof_columns].float()

    def set_pos(self, worlds: Selection, value: Tensor) -> None:
        """Write rows ``[rows, n]`` of positions."""
        worlds.put(self._qpos, value, self.qpos_columns)


class Site:
    """A named point with axes, fixed to a body."""

    def __init__(self, sim: Simulator, name: str) -> None:
        self.index = find(sim.model, "site", name)
        self._pos, self._mat = sim.field("site_xpos"), sim.field("site_xmat")

    def pos(self) -> Tensor:
        """Float32 ``[N, 3]`` [m], world frame."""
        return self._pos[:, self.index].float()

    def matrix(self) -> Tensor:
        """Float32 ``[N, 3, 3]``: its axes are the columns, world frame."""
        return self._mat[:, self.index].reshape(-1, 3, 3).float()


class FreeBody:
    """A body that moves freely."""

    def __init__(self, sim: Simulator, name: str) -> None:
        m = sim.model
        self.index = find(m, "body", name)
        joint = int(m.body_jntadr[self.index])
        if joint < 0 or m.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE.value:
            raise ConfigError(f"body {name!r} has no free joint")
        q, v = int(m.jnt_qposadr[joint]), int(m.jnt_dofadr[joint])
        self._pos_columns, self._quat_columns = slice(q, q + 3), slice(q + 3, q + 7)
        self._qpos, self._qvel = sim.field("qpos"), sim.field("qvel")
        self._mat = sim.field("xmat")
        self._lin, self._ang, self._velocity = slice(v, v + 3), slice(v + 3, v + 6), slice(v, v + 6)

    def pos(self) -> Tensor:
        """Float32 ``[N, 3]`` [m], world frame."""
        return self._qpos[:, self._pos_columns].float()

    def quat(self) -> Tensor:
        """Float32 ``[N, 4]``, ``q_wxyz`` from the body's frame to the world's."""
        return self._qpos[:, self._quat_columns].float()

    def matrix(self) -> Tensor:
        """Float32 ``[N, 3, 3]``: its axes are the columns, world frame. Not current while a reset places things."""
        return self._mat[:, self.index].reshape(-1, 3, 3).float()

    def linvel(self) -> Tensor:
        """Float32 ``[N, 3]`` [m/s], world frame."""
        return self._qvel[:, self._lin].float()

    def angvel(self) -> Tensor:
        """Float32 ``[N, 3]`` [rad/s], the body's frame."""
        return self._qvel[:, self._ang].float()

    def place(self, worlds: Selection, pos: Tensor, quat: Tensor | None = None) -> None:
        """Put it at ``pos [rows, 3]`` [m] with ``quat [rows, 4]`` (wxyz; None keeps what the reset gave), at rest."""
        worlds.put(self._qpos, pos, self._pos_columns)
        if quat is not None:
            worlds.put(self._qpos, quat, self._quat_columns)
        worlds.put(self._qvel, 0.0, self._velocity)

    def add_velocity(self, worlds: Selection, change: Tensor) -> None:
        """Add rows ``[rows, 6]``: linear [m/s], world frame, then angular [rad/s], the body's frame."""
        worlds.put(self._qvel, worlds.take(self._qvel[:, self._velocity]) + change, self._velocity)
