"""Pick and place: carry a cube onto a platform. Also what it shares with other tasks that put one thing on another."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import mujoco
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import matrix_to_rot6d, quat_to_matrix
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.task import Expert, Outcome
from visuomotor.envs.sim.world import World
from visuomotor.envs.tasks.fixtures import Fixture
from visuomotor.envs.tasks.tabletop import (
    TabletopConfig,
    TabletopTask,
    add_box,
    flat_yaw,
    object_spec,
    scatter,
    yaw_quat,
)
from visuomotor.envs.tasks.waypoints import Phase, Pose, WaypointExpert, top_down

__all__ = ["PickPlace", "PickPlaceConfig", "PlaceConfig", "PlaceTask"]

_REST = 0.05  # speed below which the cube counts as lying [m/s]
_FIT = 0.006  # largest error of its height [m]


@dataclass(kw_only=True, slots=True)
class PlaceConfig(TabletopConfig):
    """Settings of tasks that put a cube on something.

    Attributes:
        spread: half the depth of the area in which things start, as a share of the arm's reach.
        width: half its width, likewise.
    """

    spread: float = 0.25
    width: float = 0.4

    def __post_init__(self) -> None:
        TabletopConfig.__post_init__(self)
        if not (0 <= self.spread <= 0.6 and 0 <= self.width <= 1.0):
            raise ConfigError(f"spread={self.spread}, width={self.width}: expected 0 to 0.6, and 0 to 1 of the reach")


class PlaceTask(TabletopTask):
    """Put a cube on a support and let it go. Subclasses say what the support is, and where.

    Success: the cube lies at its place on the support, and the hand is more than one and a half cubes away. Dense
    reward: up to 0.2 for the hand being near the cube, 0.15 for holding it, 0.45 for bringing it to its place; 0.8 when
    it lies there and up to 0.2 more for withdrawing the hand; 1 at the goal. The score is how near the cube is.
    """

    max_episode_steps = 250

    def __init__(self, config: PlaceConfig) -> None:
        super().__init__(config)
        self._area = (config.spread * self.reach, config.width * self.reach)
        self.half = self.grip_half  # of the cube [m]
        touch = math.sqrt(2) * (self.half + self.support_half)  # distance of the middles, whatever the yaws
        self._room = touch + 0.02  # a finger fits between
        if math.hypot(*self._area) < touch:
            raise ConfigError(
                f"spread={config.spread}, width={config.width}: cube and support do not fit beside each other; the "
                f"diagonal has to be at least {touch / self.reach:.2f} for the robot {config.robot!r}"
            )

    @property
    @abstractmethod
    def support_half(self) -> float:
        """Half the side of the support [m]."""

    @abstractmethod
    def add_support(self, spec: mujoco.MjSpec) -> None:
        """Add the support, 2 half sides before the reach."""

    @abstractmethod
    def bind_support(self, world: World) -> None:
        """Take its handle."""

    @abstractmethod
    def place_support(self, worlds: Selection, xy: Tensor, yaw: Tensor) -> None:
        """Put it at ``xy [n, 2]`` with ``yaw [n]``."""

    @abstractmethod
    def support(self) -> tuple[Tensor, Tensor, Tensor]:
        """Middle of its upper face ``[N, 3]``, its quaternion ``[N, 4]`` (wxyz), and whether it stands well ``[N]``."""

    def add_objects(self, spec: mujoco.MjSpec) -> None:
        add_box(spec, "cube", (self.half,) * 3, (self.reach, 0.3 * self.reach, self.half), (0.85, 0.2, 0.15, 1.0))
        self.add_support(spec)

    def bind_objects(self, world: World) -> dict[str, ArraySpec]:
        self._cube = self.objects["cube"] = world.free_body("cube")
        self.bind_support(world)
        axes = [*"xyz", *(f"r{i}" for i in range(6))]
        names = {"object": "cube", "support": "support"}
        return {key: object_spec([f"{name}_{a}" for a in axes]) for key, name in names.items()}

    def reset(self, worlds: Selection, draws: Draws) -> None:
        xy = scatter(draws, 2, (self.reach, 0.0), self._area, self._room)
        yaw = draws.uniform((2,), -math.pi, math.pi)
        z = torch.full_like(yaw[:, :1], self.half)
        self._cube.place(worlds, torch.cat([xy[:, 0], z], 1), yaw_quat(yaw[:, 0]))
        self.place_support(worlds, xy[:, 1], yaw[:, 1])

    def observe_objects(self) -> dict[str, Tensor]:
        top, quat, _ = self.support()
        poses = {"object": (self._cube.pos(), self._cube.quat()), "support": (top, quat)}
        found = {k: self.arms[0].to_base(pos, quat_to_matrix(q)) for k, (pos, q) in poses.items()}
        return {k: torch.cat([pos, matrix_to_rot6d(mat)], 1) for k, (pos, mat) in found.items()}

    def outcome(self) -> Outcome:
        cube, held = self._cube.pos(), self.holds(self._cube)
        over, lies = self._settled()
        away = (self.arms[0].tcp.pos() - cube).norm(dim=1)
        close = 1.0 - torch.tanh(2.5 * (cube - self._goal()).norm(dim=1) / self.reach)
        placed = over & lies & ~held
        near = 1.0 - torch.tanh(2.5 * away / self.reach)
        success = placed & (away > 3 * self.half)
        on_the_way = 0.2 * near + (0.15 + 0.45 * close) * (held | over)
        reward = torch.where(placed, 0.8 + 0.2 * (away / (3 * self.half)).clamp(max=1.0), on_the_way)
        return Outcome(reward=reward, success=success, score=torch.where(placed, 1.0, close))

    def expert(self, diversity: float = 0.0) -> Expert:
        def grasp() -> Pose:
            return self._cube.pos(), top_down(flat_yaw(self._cube.quat()))

        def here() -> Pose:
            return self.arms[0].tcp.pos(), None

        def goal() -> Pose:  # of the hand, with the cube as it lies in it
            return self._goal() + self.arms[0].tcp.pos() - self._cube.pos(), top_down(flat_yaw(self.support()[1]))

        def held() -> Tensor:
            return self.holds(self._cube)

        def opened() -> Tensor:  # else the fingers would press on the cube
            return self.arms[0].opening()[:, 0] > 0.7

        half, up = self.half, 4 * self.half
        way: dict[str, Any] = {"symmetry": 4, "speed": 0.35, "angle_tolerance": 0.25, "timeout": 50}
        carry: dict[str, Any] = {"grip": 0.0, "check": held, "watch": True}
        phases = [
            Phase(target=grasp, grip=1, above=3 * half, tolerance=0.015, free=half, **way),
            Phase(target=grasp, grip=1, symmetry=4, tolerance=0.005, timeout=25, check=opened, watch=True),
            Phase(target=here, grip=0, follow=False, hold=8, timeout=12, check=held),
            Phase(target=here, follow=False, above=up, tolerance=0.02, angle_tolerance=0.4, timeout=25, **carry),
            Phase(target=goal, above=1.5 * half, free=0.5 * half, **way, **carry),
            Phase(
                target=goal, above=0.002, symmetry=4, speed=0.15, tolerance=0.004, angle_tolerance=0.06, hold=2,
                timeout=25, **carry,
            ),
            Phase(target=here, grip=1, follow=False, hold=6, timeout=10),
            Phase(target=here, grip=1, follow=False, above=up, speed=0.3, timeout=25, check=self._placed),
        ]  # fmt: skip
        return WaypointExpert(self.arms[0], phases, 1.0 / self.fps, diversity)

    def _goal(self) -> Tensor:
        """Where the middle of the cube belongs ``[N, 3]``."""
        top = self.support()[0].clone()
        top[:, 2] += self.half
        return top

    def _placed(self) -> Tensor:
        """Bool ``[N]``: the cube lies on the support, its middle well inside."""
        over, lies = self._settled()
        return over & lies

    def _settled(self) -> tuple[Tensor, Tensor]:
        """Bool ``[N]``: the cube is just over its place; and, if so, it lies there at rest."""
        error = self._cube.pos() - self._goal()
        inside = error[:, :2].norm(dim=1) < max(0.5 * self.half, self.support_half - self.half)
        rests = (error[:, 2].abs() < _FIT) & (self._cube.linvel().norm(dim=1) < _REST)
        return inside & (error[:, 2].abs() < 2 * _FIT), rests & self.support()[2]


@dataclass(kw_only=True, slots=True)
class PickPlaceConfig(PlaceConfig):
    """Settings of pick and place."""


class PickPlace(PlaceTask):
    """Carry a cube onto a low platform and let it go there. Pushing does not do: the platform's edge stops the cube."""

    name = "pick_place"

    @property
    def support_half(self) -> float:
        return 2.2 * self.half

    def add_support(self, spec: mujoco.MjSpec) -> None:
        body = spec.worldbody.add_body(name="platform", pos=(self.reach, -0.3 * self.reach, 0), mocap=True)
        size = (self.support_half, self.support_half, 0.5 * self.half)
        body.add_geom(
            name="platform", type=mujoco.mjtGeom.mjGEOM_BOX, size=size, pos=(0, 0, size[2]), rgba=(0.2, 0.55, 0.3, 1.0)
        )

    def bind_support(self, world: World) -> None:
        self._platform = Fixture(world.sim, "platform")

    def place_support(self, worlds: Selection, xy: Tensor, yaw: Tensor) -> None:
        self._platform.place(worlds, torch.cat([xy, torch.zeros_like(xy[:, :1])], 1), yaw)

    def support(self) -> tuple[Tensor, Tensor, Tensor]:
        top = self._platform.pos().clone()
        top[:, 2] += self.half
        return top, self._platform.quat(), torch.ones_like(top[:, 0], dtype=torch.bool)
