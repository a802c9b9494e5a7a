"""Peg insertion: take a square peg that stands on the table and put it into a square hole."""

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
from visuomotor.envs.sim.world import World
from visuomotor.envs.tasks.fixtures import Fixture, wrap, yaw_matrix, yaw_of
from visuomotor.envs.tasks.tabletop import TabletopConfig, TabletopTask, object_spec, uniform_xy, yaw_quat
from visuomotor.envs.tasks.waypoints import Phase, Pose, WaypointExpert, top_down

__all__ = ["DEPTH", "PEG_HALF", "Peg", "PegConfig"]

PEG_HALF = 0.012  # half the side of the peg [m]
DEPTH = 0.04  # how deep the peg has to be in the block [m]
_LONG = 0.05  # half the peg's length [m]
_BLOCK_HALF, _BLOCK_HEIGHT = 0.045, 0.06  # of the block with the hole [m]
_CHAMFER = 0.004  # of the hole's rim, at 45 degrees [m]
_GRASP = 0.02  # above the peg's middle [m]
_QUARTER = math.pi / 2


@dataclass(kw_only=True, slots=True)
class PegConfig(TabletopConfig):
    """Settings of Peg.

    Attributes:
        spread: half the side of the squares in which peg and block start, as a share of the arm's reach.
        clearance: between peg and hole on each side [m].
    """

    spread: float = 0.14
    clearance: float = 0.0015

    def __post_init__(self) -> None:
        TabletopConfig.__post_init__(self)
        if not 0 <= self.spread <= 0.2:
            raise ConfigError(f"spread={self.spread}: expected 0 to 0.2; beyond, the peg could begin in the block")
        if not 0.0002 <= self.clearance <= 0.01:
            raise ConfigError(f"clearance={self.clearance}: expected 0.0002 to 0.01 m on each side")


class Peg(TabletopTask):
    """Put a square peg (24 x 24 x 100 mm) at least 40 mm deep into a hole with 1.5 mm of clearance on each side.

    The peg stands to the right of the arm, the block with the hole to the left, both anywhere in a square, at any yaw.
    The hole's rim has a chamfer of 4 mm. The episode is lost when the peg is out of reach.
    """

    name = "peg"
    max_episode_steps = 250

    def __init__(self, config: PegConfig) -> None:
        super().__init__(config)
        self._spread, self.clearance = config.spread * self.reach, config.clearance

    def add_objects(self, spec: mujoco.MjSpec) -> None:
        box, red = mujoco.mjtGeom.mjGEOM_BOX, (0.85, 0.2, 0.15, 1.0)
        peg = spec.worldbody.add_body(name="peg", pos=(self.reach, -0.3 * self.reach, _LONG))
        peg.add_freejoint(name="peg")
        peg.add_geom(
            name="peg", type=box, size=(PEG_HALF, PEG_HALF, _LONG), mass=0.06, rgba=red, friction=(0.6, 0.005, 0.0001),
            condim=4,
        )  # fmt: skip
        block = spec.worldbody.add_body(name="block", pos=(self.reach, 0.3 * self.reach, 0), mocap=True)
        for i in range(4):
            self._add_wall(block, i * _QUARTER)

    def bind_objects(self, world: World) -> dict[str, ArraySpec]:
        self._peg = self.objects["peg"] = world.free_body("peg")
        self._block = Fixture(world.sim, "block")
        names = [f"{part}_{c}" for part in ("peg", "hole") for c in ("x", "y", "z", *(f"r{i}" for i in range(6)))]
        return {"object": object_spec(names)}

    def reset(self, worlds: Selection, draws: Draws) -> None:
        half = (self._spread, self._spread)
        pos = uniform_xy(draws.uniform((2,)), (self.reach, -0.32 * self.reach), half, _LONG)
        self._peg.place(worlds, pos, yaw_quat(draws.uniform((), -math.pi, math.pi)))
        pos = uniform_xy(draws.uniform((2,)), (self.reach, 0.32 * self.reach), half, 0.0)
        self._block.place(worlds, pos, draws.uniform((), -0.7, 0.7))

    def hole(self) -> Tensor:
        """Middle of the hole's rim ``[N, 3]`` [m], world frame."""
        return self._block.pos() + constant((0.0, 0.0, _BLOCK_HEIGHT), self._block.pos().device)

    def offset(self) -> tuple[Tensor, Tensor, Tensor]:
        """How the peg stands to the hole: its lower end sideways ``[N, 2]`` and below the rim ``[N]`` [m], tilt [rad].

        Sideways along the hole's sides; depth is negative above the rim.
        """
        axis = quat_to_matrix(self._peg.quat())[:, :, 2]
        axis = axis * torch.sign(axis[:, 2:] + 1e-9)  # either end may go in
        way = self._peg.pos() - _LONG * axis - self.hole()
        local = (self._block.matrix().transpose(1, 2) @ way[:, :, None])[:, :, 0]
        return local[:, :2], -local[:, 2], torch.acos(axis[:, 2].clamp(-1.0, 1.0))

    def observe_objects(self) -> dict[str, Tensor]:
        parts = []
        for pos, mat in ((self._peg.pos(), quat_to_matrix(self._peg.quat())), (self.hole(), self._block.matrix())):
            pos, mat = self.arms[0].to_base(pos, mat)
            parts += [pos, matrix_to_rot6d(mat)]
        return {"object": torch.cat(parts, 1)}

    def privileged(self) -> Tensor:
        """Besides what all tabletop tasks tell: how the peg stands to the hole, see :meth:`offset`."""
        side, depth, tilt = self.offset()
        return torch.cat([super().privileged(), side, depth[:, None], tilt[:, None]], 1)

    def _names_of_privileged(self) -> tuple[str, ...]:
        return (*super()._names_of_privileged(), "side_x", "side_y", "depth", "tilt")

    def outcome(self) -> Outcome:
        side, depth, tilt = self.offset()
        peg = self._peg.pos()
        inside = (side.abs().amax(1) < self.clearance + _CHAMFER) & (depth > 0.0)
        share = (depth / DEPTH).clamp(0.0, 1.0) * inside
        success = (share >= 1.0) & (tilt < 0.2)
        near = 1.0 - torch.tanh(5.0 * (self.arms[0].tcp.pos() - peg).norm(dim=1))
        raised = torch.where(inside, 1.0, (-depth / 0.01 + _BLOCK_HEIGHT / 0.01).clamp(0.0, 6.0) / 6.0)
        over = (1.0 - torch.tanh(6.0 * side.norm(dim=1))) * (raised > 0.3)
        reward = 0.15 * near + 0.15 * raised + 0.3 * over + 0.4 * share
        lost = (peg[:, :2].norm(dim=1) > 1.8 * self.reach) | (peg[:, 2] < -0.05)
        return Outcome(reward=torch.where(success, 1.0, reward), success=success, failure=lost, score=share)

    def expert(self, diversity: float = 0.0) -> Expert:
        def grasp(dz: float) -> Pose:
            yaw = wrap(yaw_of(quat_to_matrix(self._peg.quat())) - _QUARTER, _QUARTER) + _QUARTER
            return self._peg.pos() + constant((0.0, 0.0, dz), yaw.device), top_down(yaw)

        def raised() -> Pose:
            pos = self.arms[0].tcp.pos()
            return torch.cat([pos[:, :2], torch.full_like(pos[:, :1], 0.12 + 2 * _LONG)], 1), grasp(0.0)[1]

        def held() -> Tensor:
            return self.holds(self._peg)

        phases = [
            Phase(target=lambda: grasp(0.12), grip=1.0, speed=0.35, free=0.03, tolerance=0.02),
            Phase(target=lambda: grasp(_GRASP), grip=1.0, speed=0.2, tolerance=0.005),
            Phase(target=lambda: grasp(_GRASP), grip=0.0, hold=6, timeout=10, check=held),
            Phase(target=raised, grip=0.0, tolerance=0.03, angle_tolerance=1.0),
            Phase(target=lambda: self._hand_for(-0.04), grip=0.0, tolerance=0.02, free=0.02),
            Phase(target=lambda: self._hand_for(-0.01), grip=0.0, speed=0.1, tolerance=0.002, angle_tolerance=0.03),
            Phase(target=lambda: self._hand_for(DEPTH + 0.008), grip=0.0, speed=0.08, timeout=100),
        ]
        return WaypointExpert(self.arms[0], phases, 1.0 / self.fps, diversity)

    def _hand_for(self, depth: float) -> Pose:
        """Where the hand has to be for the peg, as it is held now, to stand upright over the hole at this depth."""
        tcp, hand = self.arms[0].tcp.pos(), self.arms[0].tcp.matrix()
        peg = quat_to_matrix(self._peg.quat())
        # of the four ways in which the peg fits, the one with the fingers closing most nearly along +y
        block, held = yaw_of(self._block.matrix()), yaw_of(peg)
        fingers = torch.atan2(hand[:, 1, 1], hand[:, 0, 1])
        turns = torch.round((_QUARTER - (fingers - held) - block) / _QUARTER)
        turn = yaw_matrix(block + turns * _QUARTER) @ peg.transpose(1, 2)
        goal = self.hole() + constant((0.0, 0.0, _LONG - depth), tcp.device)
        return goal + (turn @ (tcp - self._peg.pos())[:, :, None])[:, :, 0], turn @ hand

    def _add_wall(self, block: mujoco.MjsBody, yaw: float) -> None:
        """The side of the block towards ``yaw``: outer part, inner part, and the chamfer between them."""
        hole, grey = PEG_HALF + self.clearance, (0.36, 0.47, 0.62, 1.0)
        rim, top, c = hole + _CHAMFER, _BLOCK_HEIGHT, _CHAMFER
        thick = c / math.sqrt(2.0)
        frame = block.add_frame(quat=(math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)))
        tilt = (math.cos(math.pi / 8), 0, -math.sin(math.pi / 8), 0)  # x of the plate runs up the chamfer
        for pos, half, quat in (
            (((rim + _BLOCK_HALF) / 2, 0, top / 2), ((_BLOCK_HALF - rim) / 2, _BLOCK_HALF, top / 2), (1, 0, 0, 0)),
            ((hole + c / 2, 0, (top - c) / 2), (c / 2, rim, (top - c) / 2), (1, 0, 0, 0)),
            ((hole + 0.75 * c, 0, top - 0.75 * c), (thick, rim, thick / 2), tilt),
        ):
            geom = block.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX, pos=pos, size=half, quat=quat, rgba=grey, friction=(0.3, 0.005, 0.0001)
            )
            geom.set_frame(frame)
