"""Lift: grasp a cube and raise it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import matrix_to_rot6d
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.task import Expert, Outcome
from visuomotor.envs.sim.world import World
from visuomotor.envs.tasks.tabletop import (
    TabletopConfig,
    TabletopTask,
    add_box,
    flat_yaw,
    object_spec,
    uniform_xy,
    yaw_quat,
)
from visuomotor.envs.tasks.waypoints import Phase, Pose, WaypointExpert, top_down

__all__ = ["Lift", "LiftConfig"]


@dataclass(kw_only=True, slots=True)
class LiftConfig(TabletopConfig):
    """Settings of Lift.

    Attributes:
        spread: half the side of the square in which the cube starts, as a share of the arm's reach.
    """

    spread: float = 0.25

    def __post_init__(self) -> None:
        TabletopConfig.__post_init__(self)
        if not 0 <= self.spread <= 0.6:
            raise ConfigError(f"spread={self.spread}: expected 0 to 0.6 of the reach; beyond, the cube is out of it")


class Lift(TabletopTask):
    """Grasp a cube (4 cm for large arms) that lies anywhere in a square before the arm, at any yaw, and raise it 10 cm.

    Dense reward: up to 0.25 for the hand being near the cube, 0.15 for holding it, 0.6 for its height; 1 at the goal.
    The score is the height that is reached, as a share.
    """

    name = "lift"
    max_episode_steps = 150

    def __init__(self, config: LiftConfig) -> None:
        super().__init__(config)
        self._spread = config.spread * self.reach
        self._half = self.grip_half
        self._height = min(0.1, 0.3 * self.reach)  # of the goal [m]

    def add_objects(self, spec: mujoco.MjSpec) -> None:
        add_box(spec, "cube", (self._half,) * 3, (self.reach, 0.0, self._half), (0.85, 0.2, 0.15, 1.0))

    def bind_objects(self, world: World) -> dict[str, ArraySpec]:
        self._cube = self.objects["cube"] = world.free_body("cube")
        return {"object": object_spec([*(f"cube_{a}" for a in "xyz"), *(f"cube_r{i}" for i in range(6))])}

    def reset(self, worlds: Selection, draws: Draws) -> None:
        pos = uniform_xy(draws.uniform((2,)), (self.reach, 0.0), (self._spread, self._spread), self._half)
        self._cube.place(worlds, pos, yaw_quat(draws.uniform((), -math.pi, math.pi)))

    def observe_objects(self) -> dict[str, Tensor]:
        pos, mat = self.arms[0].to_base(self._cube.pos(), self._cube.matrix())
        return {"object": torch.cat([pos, matrix_to_rot6d(mat)], 1)}

    def outcome(self) -> Outcome:
        cube, held = self._cube.pos(), self.holds(self._cube)
        near = 1.0 - torch.tanh(2.5 * (self.arms[0].tcp.pos() - cube).norm(dim=1) / self.reach)
        height = ((cube[:, 2] - self._half) / self._height).clamp(0.0, 1.0)
        success = (height >= 1.0) & held
        reward = 0.25 * near + 0.15 * held + 0.6 * height * held
        return Outcome(reward=torch.where(success, 1.0, reward), success=success, score=height)

    def expert(self, diversity: float = 0.0) -> Expert:
        def grasp() -> Pose:
            return self._cube.pos(), top_down(flat_yaw(self._cube.quat()))

        def here() -> Pose:
            return self.arms[0].tcp.pos(), None

        def held() -> Tensor:
            return self.holds(self._cube)

        def opened() -> Tensor:  # else the fingers would press on the cube
            return self.arms[0].opening()[:, 0] > 0.7

        half = self._half
        phases = [
            Phase(target=grasp, grip=1, above=3 * half, symmetry=4, speed=0.35, tolerance=0.015, free=half),
            Phase(target=grasp, grip=1, symmetry=4, tolerance=0.005, timeout=30, check=opened, watch=True),
            Phase(target=here, grip=0, follow=False, hold=8, timeout=12, check=held),
            Phase(target=here, grip=0, follow=False, above=1.3 * self._height, check=held, watch=True),
        ]
        return WaypointExpert(self.arms[0], phases, 1.0 / self.fps, diversity)
