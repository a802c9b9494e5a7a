"""Drawer: take a drawer by its handle and pull it open."""

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
from visuomotor.envs.sim.selection import Selection, constant
from visuomotor.envs.sim.task import Expert, Outcome
from visuomotor.envs.sim.world import World
from visuomotor.envs.tasks.fixtures import Fixture, yaw_of
from visuomotor.envs.tasks.tabletop import TabletopConfig, TabletopTask, add_camera, object_spec, uniform_xy
from visuomotor.envs.tasks.waypoints import Phase, Pose, WaypointExpert, top_down

__all__ = ["OPENED", "Drawer", "DrawerConfig"]

OPENED = 0.8  # share of the travel at which the drawer counts as open
_TRAVEL = 0.32  # of the drawer, as a share of the arm's reach
_HALF_WIDTH, _HALF_HEIGHT, _WALL = 0.11, 0.055, 0.008  # of the cabinet [m]
_HANDLE_Z = 0.08  # [m]
_STAND_OFF = 0.05  # of the handle's bar before the front [m]: room for a finger behind it
_BAR = 0.008  # radius of the bar [m]

_WOOD, _FRONT, _METAL = (0.55, 0.38, 0.24, 1.0), (0.80, 0.62, 0.42, 1.0), (0.25, 0.26, 0.30, 1.0)


@dataclass(kw_only=True, slots=True)
class DrawerConfig(TabletopConfig):
    """Settings of Drawer.

    Attributes:
        spread: half the depth of the area in which the cabinet's front stands, as a share of the arm's reach; it is
            twice as wide.
        turn: how far the front may be turned to either side of facing the arm's base [rad].
    """

    spread: float = 0.12
    turn: float = 0.4

    def __post_init__(self) -> None:
        TabletopConfig.__post_init__(self)
        if not (0 <= self.spread <= 0.3 and 0 <= self.turn <= math.pi / 2):
            raise ConfigError(f"spread={self.spread}, turn={self.turn}: expected 0 to 0.3, and 0 to pi/2")


class Drawer(TabletopTask):
    """Pull a drawer open by at least 80 % of its travel (0.32 of the reach: 16 cm for a Panda, so 12.8 cm).

    A low cabinet stands before the arm, anywhere in an area and turned to either side. The handle is a horizontal bar
    of 16 mm, 5 cm before the drawer's front, high enough for a hand that points down.
    """

    name = "drawer"
    max_episode_steps = 200

    def __init__(self, config: DrawerConfig) -> None:
        super().__init__(config)
        self._spread, self._turn = config.spread * self.reach, config.turn
        self.travel = _TRAVEL * self.reach  # [m]

    def add_objects(self, spec: mujoco.MjSpec) -> None:
        """Origin of the cabinet: under the middle of its front; the drawer comes out along -x."""
        cabinet = spec.worldbody.add_body(name="cabinet", pos=(1.3 * self.reach, 0, 0), mocap=True)
        depth, h, w = self.travel / 2 + 0.03, _HALF_HEIGHT, _WALL / 2
        for pos, half in (
            ((depth, _HALF_WIDTH - w, h), (depth, w, h)),
            ((depth, w - _HALF_WIDTH, h), (depth, w, h)),
            ((depth, 0, 2 * h - w), (depth, _HALF_WIDTH, w)),
            ((depth, 0, w), (depth, _HALF_WIDTH, w)),
            ((2 * depth - w, 0, h), (w, _HALF_WIDTH, h)),
        ):
            cabinet.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=pos, size=half, rgba=_WOOD)
        drawer = cabinet.add_body(name="drawer")
        drawer.add_joint(
            name="drawer", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=(-1, 0, 0), limited=True, range=(0, self.travel),
            damping=[4.0, 0, 0], frictionloss=1.0, armature=0.1,
        )  # fmt: skip
        self._add_drawer(drawer, depth)
        spec.add_exclude(bodyname1="cabinet", bodyname2="drawer")
        r = self.reach  # the handle is hidden from the cameras before the arm
        add_camera(spec, "handle", (0.3 * r, -1.3 * r, 1.1 * r), (1.15 * r, 0.0, 0.06))

    def bind_objects(self, world: World) -> dict[str, ArraySpec]:
        self._cabinet = Fixture(world.sim, "cabinet")
        self._joint = world.joints(["drawer"])
        self._handle = world.site("handle")
        names = [*(f"handle_{a}" for a in "xyz"), *(f"handle_r{i}" for i in range(6)), "opening"]
        return {"object": object_spec(names)}

    def reset(self, worlds: Selection, draws: Draws) -> None:
        pos = uniform_xy(draws.uniform((2,)), (1.38 * self.reach, 0.0), (self._spread, 2 * self._spread), 0.0)
        # as seen from the base the front is turned by at most `turn`: it looks towards the arm wherever it stands
        towards = torch.atan2(pos[:, 1], pos[:, 0])
        self._cabinet.place(worlds, pos, towards + draws.uniform((), -self._turn, self._turn))

    def opening(self) -> Tensor:
        """How far the drawer is open ``[N]`` [m]."""
        return self._joint.pos()[:, 0]

    def observe_objects(self) -> dict[str, Tensor]:
        pos, mat = self.arms[0].to_base(self._handle.pos(), self._handle.matrix())
        return {"object": torch.cat([pos, matrix_to_rot6d(mat), self._joint.pos()], 1)}

    def privileged(self) -> Tensor:
        """Besides what all tabletop tasks tell: the drawer's speed, and the way from hand to handle (world frame)."""
        return torch.cat([super().privileged(), self._joint.vel(), self._handle.pos() - self.arms[0].tcp.pos()], 1)

    def _names_of_privileged(self) -> tuple[str, ...]:
        return (*super()._names_of_privileged(), "drawer_speed", "handle_dx", "handle_dy", "handle_dz")

    def outcome(self) -> Outcome:
        share = (self.opening() / (OPENED * self.travel)).clamp(0.0, 1.0)
        success = share >= 1.0
        reach = 1.0 - torch.tanh(5.0 * (self.arms[0].tcp.pos() - self._handle.pos()).norm(dim=1))
        return Outcome(reward=torch.where(success, 1.0, 0.25 * reach + 0.7 * share), success=success, score=share)

    def expert(self, diversity: float = 0.0) -> Expert:
        half_open = 0.5  # enough for the bar, and the finger behind it fits between bar and front

        def at_handle(dz: float) -> Pose:
            return self._handle.pos() + constant((0.0, 0.0, dz), self._handle.pos().device), self._across()

        def pulled() -> Pose:
            way = -self._cabinet.matrix()[:, :, 0] * (self.travel * 0.97 - self.opening())[:, None]
            return self._handle.pos() + way, self._across()

        phases = [
            Phase(target=lambda: at_handle(0.09), grip=half_open, free=0.03, tolerance=0.02),
            Phase(target=lambda: at_handle(0.0), grip=half_open, speed=0.15, tolerance=0.008),
            Phase(target=lambda: at_handle(0.0), grip=0.0, hold=5, timeout=8),
            Phase(target=pulled, grip=0.0, speed=0.12, timeout=100),
        ]
        return WaypointExpert(self.arms[0], phases, 1.0 / self.fps, diversity)

    def _across(self) -> Tensor:
        """The hand points down and closes along the way of the drawer."""
        return top_down(yaw_of(self._cabinet.matrix()))

    def _add_drawer(self, drawer: mujoco.MjsBody, depth: float) -> None:
        box, capsule = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE
        gap = 0.002
        y, h, w = _HALF_WIDTH - _WALL - gap, _HALF_HEIGHT - _WALL - gap, _WALL / 2
        inner = depth - _WALL
        for pos, half in (
            ((-w, 0, _HALF_HEIGHT), (w, _HALF_WIDTH, _HALF_HEIGHT - gap)),
            ((inner, 0, _WALL + gap + w), (inner, y, w)),
            ((inner, y - w, 0.8 * h + _WALL), (inner, w, 0.7 * h)),
            ((inner, w - y, 0.8 * h + _WALL), (inner, w, 0.7 * h)),
            ((2 * inner - w, 0, 0.8 * h + _WALL), (w, y, 0.7 * h)),
        ):
            drawer.add_geom(type=box, pos=pos, size=half, rgba=_FRONT, mass=0.12)
        x, ends = -_WALL - _STAND_OFF, 0.065
        drawer.add_geom(
            name="handle", type=capsule, fromto=(x, -ends, _HANDLE_Z, x, ends, _HANDLE_Z), size=(_BAR, 0, 0), mass=0.05,
            rgba=_METAL, condim=4,
        )  # fmt: skip
        for end in (-ends, ends):
            drawer.add_geom(
                type=capsule, fromto=(x, end, _HANDLE_Z, -_WALL, end, _HANDLE_Z), size=(0.006, 0, 0), mass=0.02,
                rgba=_METAL,
            )  # fmt: skip
        drawer.add_site(name="handle", pos=(x, 0, _HANDLE_Z), size=(0.004,) * 3, group=4)
