"""Hand-over: one arm takes a stick, hands it to the other, and that one brings it to its goal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import matrix_to_rot6d, quat_to_matrix
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection, constant
from visuomotor.envs.sim.task import Expert, Outcome
from visuomotor.envs.sim.world import FreeBody, World
from visuomotor.envs.tasks.fixtures import Fixture, yaw_of
from visuomotor.envs.tasks.tabletop import (
    Mount,
    TabletopConfig,
    TabletopTask,
    add_camera,
    object_spec,
    uniform_xy,
    yaw_quat,
)
from visuomotor.envs.tasks.waypoints import Phase, Pose, WaypointExpert, top_down

__all__ = ["Handover", "HandoverConfig"]

_LEFT, _RIGHT = 0, 1
_HANDS = 4  # contact bit: the hands of the two arms touch each other, while an arm's own links do not
_NEAR = 0.03  # of the goal [m]


@dataclass(kw_only=True, slots=True)
class HandoverConfig(TabletopConfig):
    """Settings of Handover.

    Attributes:
        spread: half the depth of the area in which the stick lies, as a share of the arm's reach; it is twice as wide.
        turn: how far the stick may be turned to either side [rad].
    """

    spread: float = 0.14
    turn: float = 0.9

    def __post_init__(self) -> None:
        TabletopConfig.__post_init__(self)
        if not (0 <= self.spread <= 0.4 and 0 <= self.turn <= 1.2):
            raise ConfigError(f"spread={self.spread}, turn={self.turn}: expected 0 to 0.4, and 0 to 1.2 rad")


class Handover(TabletopTask):
    """The left arm takes a stick (22 cm for a Panda), the right one takes it over and holds it at a goal in the air.

    The arms face each other. It has succeeded when the middle of the stick is within 3 cm of the goal, held by the
    right hand, with the left hand at least 5 cm away, and was *handed over*: both hands held it at once in the air, and
    it has not touched the table since (the right arm could fetch it from the table by itself). Poses are given in the
    base frame of the left arm. The episode is lost when the stick is out of reach of both.
    """

    name = "handover"
    max_episode_steps = 300

    def __init__(self, config: HandoverConfig) -> None:
        super().__init__(config)
        r = self.reach
        self.apart = 2.5 * r  # distance of the bases [m]
        self.mounts = (Mount(prefix="left_"), Mount(prefix="right_", pos=(self.apart, 0.0, 0.0), yaw=math.pi))
        self._long, self._thick, self._hold = 0.22 * r, 0.6 * self.grip_half, 0.14 * r
        self._meeting = (self.apart / 2, 0.0, 0.45 * r)
        self._area = ((0.95 * r, 0.0), (config.spread * r, 2 * config.spread * r))
        self._turn = config.turn

    def add_objects(self, spec: mujoco.MjSpec) -> None:
        spec.geom("table").pos = (self.apart / 2, 0, 0)
        t, red, blue = self._thick, (0.85, 0.2, 0.15, 1.0), (0.15, 0.35, 0.8, 1.0)
        stick = spec.worldbody.add_body(name="stick", pos=(0.95 * self.reach, 0, t))
        stick.add_freejoint(name="stick")
        for sign, colour in ((-1, red), (1, blue)):
            stick.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX, pos=(sign * self._long / 2, 0, 0), size=(self._long / 2, t, t),
                mass=0.03, rgba=colour, condim=4,
            )  # fmt: skip
        goal = spec.worldbody.add_body(name="goal", pos=(self.apart - self.reach, 0, 0.2), mocap=True)
        goal.add_geom(
            type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(_NEAR, 0, 0), rgba=(0.2, 0.75, 0.3, 0.35), contype=0, conaffinity=0
        )
        for mount, bits in zip(self.mounts, ("contype", "conaffinity"), strict=True):
            hand = spec.site(f"{mount.prefix}robot/{self.robot.tcp}").parent
            for geom in hand.find_all("geom"):
                if geom.contype or geom.conaffinity:
                    setattr(geom, bits, getattr(geom, bits) | _HANDS)

    def bind_objects(self, world: World) -> dict[str, ArraySpec]:
        self._stick = self.objects["stick"] = world.free_body("stick")
        self._goal = Fixture(world.sim, "goal")
        self._meet = torch.tensor(self._meeting, device=world.sim.device)
        self._handed = torch.zeros(world.sim.num_envs, dtype=torch.bool, device=world.sim.device)
        names = [*(f"stick_{a}" for a in "xyz"), *(f"stick_r{i}" for i in range(6)), *(f"goal_{a}" for a in "xyz")]
        return {"object": object_spec(names)}

    def reset(self, worlds: Selection, draws: Draws) -> None:
        pos = uniform_xy(draws.uniform((2,)), *self._area, self._thick)
        self._stick.place(worlds, pos, yaw_quat(draws.uniform((), -self._turn, self._turn)))
        r = self.reach
        low = constant((self.apart - 1.1 * r, -0.3 * r, 0.25 * r), draws.device)
        high = constant((self.apart - 0.85 * r, 0.3 * r, 0.5 * r), draws.device)
        goal = draws.uniform((3,), low, high)
        self._goal.place(worlds, goal, torch.zeros_like(goal[:, 0]))
        worlds.put(self._handed, False)

    def observe_objects(self) -> dict[str, Tensor]:
        left = self.arms[_LEFT]
        pos, mat = left.to_base(self._stick.pos(), quat_to_matrix(self._stick.quat()))
        goal, _ = left.to_base(self._goal.pos(), self._goal.matrix())
        return {"object": torch.cat([pos, matrix_to_rot6d(mat), goal], 1)}

    def holds(self, body: FreeBody, arm: int = 0) -> Tensor:
        """Bool ``[N]``: the stick, anywhere along it, is between the fingers and keeps them open."""
        hand = self.arms[arm]
        return (self._away(arm) < self.grip_half) & ((hand.opening() - hand.grip)[:, 0] > 0.1)

    def outcome(self) -> Outcome:
        stick, given = self._stick.pos(), self.holds(self._stick, _LEFT)
        raised, taken = stick[:, 2] > self._thick + 0.01, self.holds(self._stick, _RIGHT)
        self._handed.logical_or_(given & taken).logical_and_(raised)
        taken = taken & self._handed
        picked = (given | taken) & raised
        alone = taken & (self._away(_LEFT) > 0.05)
        to_goal = (stick - self._goal.pos()).norm(dim=1)
        success = alone & (to_goal < _NEAR)
        left = torch.where(taken, 1.0, self._closeness(self.arms[_LEFT].tcp.pos() - self._end(-1)))
        right = self._closeness(self.arms[_RIGHT].tcp.pos() - self._end(1))
        meeting = torch.where(taken, 1.0, self._closeness(stick - self._meet))
        goal = self._closeness(stick - self._goal.pos())
        reward = 0.1 * left + picked * (0.1 + 0.15 * meeting + 0.15 * right + 0.15 * taken + alone * (0.1 + 0.2 * goal))
        score = (picked.float() + (picked & alone) + success) / 3.0
        x, y, z = stick.unbind(1)
        lost = (torch.minimum(torch.hypot(x, y), torch.hypot(x - self.apart, y)) > 1.7 * self.reach) | (z < -0.05)
        return Outcome(reward=torch.where(success, 1.0, reward), success=success, failure=lost, score=score)

    def privileged(self) -> Tensor:
        """Besides what all tabletop tasks tell: whether the stick was handed over."""
        return torch.cat([super().privileged(), self._handed[:, None].float()], 1)

    def _names_of_privileged(self) -> tuple[str, ...]:
        return (*super()._names_of_privileged(), "handed_over")

    def buffers(self) -> dict[str, Tensor]:
        return {"handed": self._handed}

    def expert(self, diversity: float = 0.0) -> Expert:
        return _HandoverExpert(self, diversity)

    def grasp(self, side: int) -> Pose:
        """Pose of a hand that takes the stick at its end ``side`` (-1: the left arm's, 1: the right arm's)."""
        yaw = yaw_of(quat_to_matrix(self._stick.quat()))
        return self._end(side), top_down(yaw - side * math.pi / 2)

    def meeting(self) -> Pose:
        """Pose of the left hand that offers the stick to the right arm."""
        pos = (self._meet - constant((self._hold, 0.0, 0.0), self._meet.device)).expand(self._stick.pos().shape)
        return pos, top_down(torch.full_like(pos[:, 0], math.pi / 2))

    def delivery(self) -> Pose:
        """Pose of the right hand, turned as it is, that brings the stick to its goal."""
        hand = self.arms[_RIGHT].tcp.pos()
        return self._goal.pos() + hand - self._stick.pos(), top_down(torch.full_like(hand[:, 0], -math.pi / 2))

    def at_meeting(self) -> Tensor:
        """Bool ``[N]``: the left hand holds the stick where it is handed over."""
        return self.holds(self._stick, _LEFT) & ((self._stick.pos() - self._meet).norm(dim=1) < 0.04)

    def _end(self, side: int) -> Tensor:
        """Where an arm is to take the stick ``[N, 3]``."""
        return self._stick.pos() + side * self._hold * quat_to_matrix(self._stick.quat())[:, :, 0]

    def _away(self, arm: int) -> Tensor:
        """Distance of a hand from the line in the middle of the stick ``[N]`` [m]."""
        way = (self.arms[arm].tcp.pos() - self._stick.pos())[:, None]
        local = (way @ quat_to_matrix(self._stick.quat()))[:, 0]
        past = (local[:, 0].abs() - self._long).clamp(min=0.0)
        return torch.stack([past, local[:, 1], local[:, 2]], 1).norm(dim=1)

    def _closeness(self, way: Tensor) -> Tensor:
        return 1.0 - torch.tanh(2.0 * way.norm(dim=1) / self.reach)

    def _add_cameras(self, spec: mujoco.MjSpec) -> None:
        r, middle = self.reach, self.apart / 2
        look = (middle, 0.0, 0.3 * r)
        add_camera(spec, "front", (middle, -2.6 * r, 1.3 * r), look)
        add_camera(spec, "side", (middle, 2.2 * r, 1.6 * r), look)
        add_camera(spec, "top", (middle, -0.2 * r, 3.0 * r), (middle, 0.0, 0.0))
        add_camera(spec, "film", (middle - 1.2 * r, -3.0 * r, 2.2 * r), look)


class _HandoverExpert(Expert):
    """Two experts by waypoints that wait for each other: a leg whose ``check`` fails begins anew."""

    def __init__(self, task: Handover, diversity: float) -> None:
        left, right = task.arms
        stick, lift = task.objects["stick"], 0.12 * task.reach

        def held_left() -> Tensor:
            return task.holds(stick, _LEFT)

        def held_right() -> Tensor:
            return task.holds(stick, _RIGHT)

        def here() -> Pose:
            return right.tcp.pos(), None

        def waiting() -> Pose:
            pos, _ = task.meeting()
            turned = top_down(torch.full_like(pos[:, 0], -math.pi / 2))
            return pos + constant((0.5 * task.reach, 0.0, lift), pos.device), turned

        def back_off() -> Pose:
            pos, _ = task.meeting()
            return pos + constant((-0.3 * task.reach, 0.0, lift), pos.device), None

        self._left = WaypointExpert(
            left,
            [
                Phase(target=lambda: task.grasp(-1), above=lift, grip=1, speed=0.35, tolerance=0.015, free=0.02),
                Phase(target=lambda: task.grasp(-1), grip=1, speed=0.25, tolerance=0.006, timeout=40),
                Phase(target=lambda: task.grasp(-1), grip=0, hold=8, timeout=12, check=held_left),
                Phase(
                    target=task.meeting, grip=0, speed=0.3, tolerance=0.01, hold=3,
                    check=lambda: self._right.phase >= 4, retry=3,
                ),
                Phase(target=task.meeting, grip=1, hold=5, timeout=8),
                Phase(target=back_off, grip=1, speed=0.35, follow=False),
            ],
            1.0 / task.fps,
            diversity,
        )  # fmt: skip
        self._right = WaypointExpert(
            right,
            [
                Phase(target=waiting, grip=1, speed=0.3, check=task.at_meeting, retry=0, free=0.02),
                Phase(target=lambda: task.grasp(1), above=lift, grip=1, speed=0.3, tolerance=0.015),
                Phase(target=lambda: task.grasp(1), grip=1, speed=0.2, tolerance=0.006, timeout=40),
                Phase(target=here, follow=False, grip=0, hold=8, timeout=12, check=held_right, retry=1),
                Phase(target=here, follow=False, grip=0, check=lambda: self._left.phase >= 5, retry=4),
                Phase(target=task.delivery, grip=0, speed=0.3),
            ],
            1.0 / task.fps,
            diversity,
        )  # fmt: skip

    def reset(self, worlds: Selection, draws: Draws) -> None:
        self._left.reset(worlds, draws)
        self._right.reset(worlds, draws)

    def act(self) -> Tensor:
        return torch.cat([self._left.act(), self._right.act()], 1)

    def buffers(self) -> dict[str, Tensor]:
        parts = {"left": self._left, "right": self._right}
        return {f"{side}.{k}": v for side, expert in parts.items() for k, v in expert.buffers().items()}
