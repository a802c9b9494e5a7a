"""The whole state of a world as one row of numbers with names, the same on every engine."""

from __future__ import annotations

import torch
from torch import Tensor

from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world import World

__all__ = ["STATE_KEY", "WorldState"]

STATE_KEY = "sim_state"  # under which stores hold it


class WorldState:
    """Positions, velocities, inputs, fixtures, and what task and control keep of a world, ``S`` numbers.

    Put back, a world goes on from there as it did, but for what the engine's solver starts from: not bit for bit.
    """

    def __init__(self, world: World) -> None:
        self._sim = sim = world.sim
        m = sim.model
        sizes = {"qpos": m.nq, "qvel": m.nv, "act": m.na, "ctrl": m.nu, "mocap_pos": m.nmocap, "mocap_quat": m.nmocap,
                 "eq_active": m.neq}  # fmt: skip
        self._parts = {name: sim.field(name) for name, size in sizes.items() if size} | dict(world.buffers)
        self._sizes = [v[0].numel() for v in self._parts.values()]
        names = [f"{k}.{i}" for k, n in zip(self._parts, self._sizes, strict=True) for i in range(n)]
        self.spec = ArraySpec(shape=(len(names),), dtype="float64", role="privileged", names=tuple(names))

    def read(self) -> Tensor:
        """Float64 ``[N, S]``."""
        return torch.cat([v.reshape(len(v), -1).double() for v in self._parts.values()], 1)

    def write(self, worlds: Selection, rows: Tensor) -> None:
        """Put ``rows [n, S]`` into the chosen worlds and compute their outputs."""
        for part, values in zip(self._parts.values(), rows.split(self._sizes, 1), strict=True):
            worlds.put(part, values.reshape(-1, *part.shape[1:]))
        self._sim.forward(worlds)
