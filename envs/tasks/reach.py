"""Reach: bring the hand to a goal in space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mujoco
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import matrix_to_quat, matrix_to_rot6d, quat_multiply
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.robots.kinematics import rotation_error
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection, constant
from visuomotor.envs.sim.task import Expert, Outcome
from visuomotor.envs.sim.world import World
from visuomotor.envs.tasks.fixtures import Fixture
from visuomotor.envs.tasks.tabletop import TabletopConfig, TabletopTask, object_spec, yaw_quat
from visuomotor.envs.tasks.waypoints import Phase, Pose, WaypointExpert, top_down

__all__ = ["Reach", "ReachConfig"]

_NEAR = 0.02  # [m]


@dataclass(kw_only=True, slots=True)
class ReachConfig(TabletopConfig):
    """Settings of Reach.

    Attributes:
        angle: how well the hand has to be turned as the goal is [rad]; None: only the position counts.
        tilt: largest inclination of the goal, in the vertical plane through the base [rad].
        twist: largest turn of the goal about the hand's axis [rad].
    """

    angle: float | None = None
    tilt: float = 0.4
    twist: float = 0.8

    def __post_init__(self) -> None:
        TabletopConfig.__post_init__(self)
        if self.angle is not None and self.angle <= 0:
            raise ConfigError(f"angle={self.angle}: expected more than 0 rad, or null where only the position counts")


class Reach(TabletopTask):
    """Bring the hand within 2 cm of a goal pose (and, with ``angle``, turned as it is; half a turn is the same).

    Goals lie in a sector before the arm, 0.7 to 1.1 of its reach away, 0.1 to 0.8 of it high, and at least 0.2 of it
    from where the hand starts. Five joints can take all of them up: a goal is inclined only in the vertical plane
    through the base. Without ``angle`` goals point straight down.

    Dense reward: ``1 - tanh(2.5 d / reach)``, times up to 1 for the angle; 1 at the goal. The score is the same.
    """

    name = "reach"
    max_episode_steps = 100
    needs_gripper = False

    def __init__(self, config: ReachConfig) -> None:
        super().__init__(config)
        self._angle = config.angle
        self._tilt, self._twist = (0.0, 0.0) if config.angle is None else (config.tilt, config.twist)

    def add_objects(self, spec: mujoco.MjSpec) -> None:
        """The goal: a ball, the direction of the hand (blue) and that of the fingers (green)."""
        goal = spec.worldbody.add_body(name="goal", pos=(self.reach, 0, 0.4 * self.reach), mocap=True)
        ghost: dict[str, Any] = {"contype": 0, "conaffinity": 0}
        goal.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(0.012, 0, 0), rgba=(0.95, 0.55, 0.1, 1.0), **ghost)
        if self._angle is not None:
            ghost |= {"type": mujoco.mjtGeom.mjGEOM_CAPSULE, "size": (0.004, 0, 0)}
            goal.add_geom(fromto=(0, 0, 0, 0, 0, 0.05), rgba=(0.15, 0.3, 0.9, 1.0), **ghost)
            goal.add_geom(fromto=(0, -0.03, 0, 0, 0.03, 0), rgba=(0.1, 0.7, 0.2, 1.0), **ghost)

    def bind_objects(self, world: World) -> dict[str, ArraySpec]:
        self._goal = Fixture(world.sim, "goal")
        arm = self.arms[0]
        self._home = arm.to_world(*arm.chain.forward(torch.tensor([arm.model.home], device=world.sim.device)))[0]
        return {"goal": object_spec([*(f"goal_{a}" for a in "xyz"), *(f"goal_r{i}" for i in range(6))])}

    def reset(self, worlds: Selection, draws: Draws) -> None:
        r = self.reach
        azimuth, radius = draws.uniform((), -0.6, 0.6), draws.uniform((), 0.7 * r, 1.1 * r)
        height = draws.uniform((), 0.1 * r, 0.8 * r)
        pos = torch.stack([radius * torch.cos(azimuth), radius * torch.sin(azimuth), height], 1)
        way = pos - self._home
        pos = self._home + way * (0.2 * r / way.norm(dim=1, keepdim=True).clamp(min=1e-6)).clamp(min=1.0)
        half, zero = draws.uniform((), -self._tilt, self._tilt) / 2, torch.zeros_like(azimuth)
        lean = torch.stack([torch.cos(half), zero, torch.sin(half), zero], 1)
        down = matrix_to_quat(top_down(draws.uniform((), -self._twist, self._twist) + math.pi / 2))
        self._goal.place_turned(worlds, pos, quat_multiply(quat_multiply(yaw_quat(azimuth), lean), down))

    def observe_objects(self) -> dict[str, Tensor]:
        pos, mat = self.arms[0].to_base(self._goal.pos(), self._goal.matrix())
        return {"goal": torch.cat([pos, matrix_to_rot6d(mat)], 1)}

    def outcome(self) -> Outcome:
        distance = (self.arms[0].tcp.pos() - self._goal.pos()).norm(dim=1)
        success, reward = distance < _NEAR, 1.0 - torch.tanh(2.5 * distance / self.reach)
        if self._angle is not None:
            turn = self._turn()
            success, reward = success & (turn < self._angle), reward * (1.0 - turn / (2 * math.pi))
        reward = torch.where(success, 1.0, reward)
        return Outcome(reward=reward, success=success, score=reward)

    def expert(self, diversity: float = 0.0) -> Expert:
        def goal() -> Pose:
            return self._goal.pos(), self._goal.matrix()

        way = Phase(target=goal, grip=1, symmetry=2, speed=0.4, tolerance=0.1 * self.reach, free=0.15 * self.reach)
        stay = Phase(target=goal, grip=1, symmetry=2, speed=0.4, tolerance=0.005, angle_tolerance=0.03)
        return WaypointExpert(self.arms[0], [way, stay] if diversity else [stay], 1.0 / self.fps, diversity)

    def _turn(self) -> Tensor:
        """Angle ``[N]`` [rad] between hand and goal, the smaller one of the two that are half a turn apart."""
        hand, goal = self.arms[0].tcp.matrix(), self._goal.matrix()
        other = goal * constant((-1.0, -1.0, 1.0), goal.device)
        return torch.minimum(rotation_error(goal, hand).norm(dim=1), rotation_error(other, hand).norm(dim=1))
