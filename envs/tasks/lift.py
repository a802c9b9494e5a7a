"""Lift: grasp a cube and raise it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import torch
from torch import Tensor

from visuomotor.data.rotations import matrix_to_rot6d, quat_to_matrix
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.task import Expert, Outcome
from visuomotor.envs.sim.world import World
from visuomotor.envs.tasks.tabletop import TabletopConfig, TabletopTask, add_box, object_spec, uniform_xy
from visuomotor.envs.tasks.waypoints import Phase, Pose, WaypointExpert, top_down

__all__ = ["Lift", "LiftConfig"]

_HALF = 0.02  # half the cube's side [m]
_HEIGHT = 0.10  # of the goal above the table [m]


@dataclass(kw_only=True, slots=True)
class LiftConfig(TabletopConfig):
    """Settings of Lift.

    Attributes:
        spread: half the side of the square in which the cube starts, as a share of the arm's reach.
    """

    spread: float = 0.25


class Lift(TabletopTask):
    """Grasp a cube of 4 cm that lies anywhere in a square before the arm, at any yaw, and raise it by 10 cm."""

    name = "lift"
    max_episode_steps = 150

    def __init__(self, config: LiftConfig) -> None:
        super().__init__(config)
        self._spread = config.spread * self.reach

    def add_objects(self, spec: mujoco.MjSpec) -> None:
        add_box(spec, "cube", (_HALF,) * 3, (self.reach, 0.0, _HALF), (0.85, 0.2, 0.15, 1.0))

    def bind_objects(self, world: World) -> dict[str, ArraySpec]:
        self._cube = world.free_body("cube")
        names = [*(f"cube_{a}" for a in "xyz"), *(f"cube_r{i}" for i in range(6))]
        return {"object": object_spec(names)}

    def reset(self, worlds: Selection, draws: Draws) -> None:
        pos = uniform_xy(worlds, draws.uniform((2,)), (self.reach, 0.0), (self._spread, self._spread), _HALF)
        half = draws.uniform((), -math.pi / 2, math.pi / 2)
        zero = torch.zeros_like(half)
        self._cube.place(worlds, pos, torch.stack([torch.cos(half), zero, zero, torch.sin(half)], 1))

    def observe_objects(self) -> dict[str, Tensor]:
        pos, mat = self.arms[0].to_base(self._cube.pos(), quat_to_matrix(self._cube.quat()))
        return {"object": torch.cat([pos, matrix_to_rot6d(mat)], 1)}

    def outcome(self) -> Outcome:
        cube = self._cube.pos()
        distance = (self.arms[0].tcp.pos() - cube).norm(dim=1)
        height = ((cube[:, 2] - _HALF) / _HEIGHT).clamp(0.0, 1.0)
        success = (height >= 1.0) & (distance < 0.05)
        reward = 0.3 * (1.0 - torch.tanh(5.0 * distance)) + 0.7 * height * (distance < 0.05)
        return Outcome(reward=torch.where(success, 1.0, reward), success=success, score=height)

    def expert(self, diversity: float = 0.0) -> Expert:
        def grasp(dz: float) -> Pose:
            return self._cube.pos() + torch.tensor([0.0, 0.0, dz], device=self._cube.pos().device), self._grasp_rot()

        def raised() -> Pose:
            pos = self._cube.pos().clone()
            pos[:, 2] = _HALF + _HEIGHT + 0.05
            return pos, self.arms[0].tcp.matrix()

        phases = [
            Phase(target=lambda: grasp(0.10), grip=1.0, free=0.03, tolerance=0.02),
            Phase(target=lambda: grasp(0.0), grip=1.0, speed=0.15, tolerance=0.008),
            Phase(target=lambda: grasp(0.0), grip=0.0, hold=5, timeout=8),
            Phase(target=raised, grip=0.0, speed=0.2),
        ]
        return WaypointExpert(self.arms[0], phases, 1.0 / self.fps, diversity)

    def _grasp_rot(self) -> Tensor:
        """Fingers along the face of the cube that needs the smallest turn of the hand."""
        side = quat_to_matrix(self._cube.quat())[:, :, 0]
        yaw = torch.atan2(side[:, 1], side[:, 0])
        quarter = math.pi / 2
        return top_down(torch.remainder(yaw - math.pi / 4, quarter) + math.pi / 4)  # within 45 degrees of +y
