"""Stack: put one cube on another."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import torch
from torch import Tensor

from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world import World
from visuomotor.envs.tasks.pick_place import PlaceConfig, PlaceTask
from visuomotor.envs.tasks.tabletop import add_box, yaw_quat

__all__ = ["Stack", "StackConfig"]


@dataclass(kw_only=True, slots=True)
class StackConfig(PlaceConfig):
    """Settings of Stack."""


class Stack(PlaceTask):
    """Put the red cube on the green one and let it go; both are at rest then, the green one still on the table."""

    name = "stack"

    @property
    def support_half(self) -> float:
        return self.half

    def add_support(self, spec: mujoco.MjSpec) -> None:
        pos = (self.reach, -0.3 * self.reach, self.half)
        add_box(spec, "base_cube", (self.half,) * 3, pos, (0.2, 0.55, 0.3, 1.0))

    def bind_support(self, world: World) -> None:
        self._base = self.objects["base_cube"] = world.free_body("base_cube")

    def place_support(self, worlds: Selection, xy: Tensor, yaw: Tensor) -> None:
        self._base.place(worlds, torch.cat([xy, torch.full_like(xy[:, :1], self.half)], 1), yaw_quat(yaw))

    def support(self) -> tuple[Tensor, Tensor, Tensor]:
        top = self._base.pos().clone()
        stands = ((top[:, 2] - self.half).abs() < 0.005) & (self._base.linvel().norm(dim=1) < 0.05)
        top[:, 2] += self.half
        return top, self._base.quat(), stands
