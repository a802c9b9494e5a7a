"""Push-T with an arm: push a T that lies on the table onto its outline."""

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
from visuomotor.envs.tasks.fixtures import wrap, yaw_of
from visuomotor.envs.tasks.pushing import Outline, PushExpert
from visuomotor.envs.tasks.tabletop import TabletopConfig, TabletopTask, object_spec, yaw_quat

__all__ = ["COVERED", "PushTArm", "PushTArmConfig", "coverage", "t_outline", "t_rectangles"]

COVERED = 0.9  # share of the goal that the T has to cover
_GOAL_X, _GOAL_YAW = 1.08, math.pi / 4  # of the goal: share of the reach, and [rad]
_SAMPLES = 8  # of the coverage, along the width of a bar

Rectangle = tuple[float, float, float, float]  # centre x, y and half sizes x, y [m]


@dataclass(kw_only=True, slots=True)
class PushTArmConfig(TabletopConfig):
    """Settings of PushTArm.

    Attributes:
        spread: how far from its goal the T may start, as a share of the arm's reach: to the sides; away from the arm
            or towards it 60 % of that. It is never nearer than half as far.
    """

    spread: float = 0.32

    def __post_init__(self) -> None:
        TabletopConfig.__post_init__(self)
        if not 0.2 <= self.spread <= 0.5:
            raise ConfigError(f"spread={self.spread}: expected 0.2 to 0.5")


def t_rectangles(u: float) -> tuple[Rectangle, Rectangle]:
    """Bar (4u x u) and stem (u x 3u) of a T whose origin is its centre of mass; the stem points along -y."""
    return (0.0, 6 / 7 * u, 2 * u, u / 2), (0.0, -8 / 7 * u, u / 2, 1.5 * u)


def t_outline(u: float) -> Outline:
    """Where a finger may push that T: points of its sides, away from the corners, and the directions into it."""
    top, under, foot, half, wide = 6 / 7 * u + u / 2, 6 / 7 * u - u / 2, -8 / 7 * u - 1.5 * u, u / 2, 2 * u
    free, inner = 0.15 * u, 0.65 * u  # kept off outer and inner corners
    sides = (
        ((-wide + free, top), (wide - free, top), (0, -1), 13),
        ((-wide, under + free), (-wide, top - free), (1, 0), 3),
        ((wide, under + free), (wide, top - free), (-1, 0), 3),
        ((-wide + free, under), (-half - inner, under), (0, 1), 4),
        ((wide - free, under), (half + inner, under), (0, 1), 4),
        ((-half, foot + free), (-half, under - inner), (1, 0), 8),
        ((half, foot + free), (half, under - inner), (-1, 0), 8),
        ((-half + free, foot), (half - free, foot), (0, 1), 3),
    )
    points, normals = [], []
    for start, end, normal, count in sides:
        share = torch.linspace(0.0, 1.0, count)[:, None]
        points.append((1 - share) * torch.tensor(start) + share * torch.tensor(end))
        normals.append(torch.tensor(normal, dtype=torch.float32).expand(count, 2))
    return Outline(torch.cat(points), torch.cat(normals), turning_radius=1.8 * u)


def coverage(offset: Tensor, yaw: Tensor, u: float) -> Tensor:
    """Share ``[N]`` of a goal's area that a T of the same size covers.

    The area is sampled at the middles of squares of ``u / 8``; the result is within about 0.01 of the exact one.

    Args:
        offset: of the T's centre of mass in the goal's frame ``[N, 2]`` [m].
        yaw: of the T in the goal's frame ``[N]`` [rad].
        u: width of a bar [m].
    """
    step, grids = u / _SAMPLES, []
    for x, y, a, b in t_rectangles(u):
        xs = x - a + step * (torch.arange(round(2 * a / step), device=yaw.device) + 0.5)
        ys = y - b + step * (torch.arange(round(2 * b / step), device=yaw.device) + 0.5)
        grids.append(torch.cartesian_prod(xs, ys))
    way = torch.cat(grids) - offset[:, None]  # [N, P, 2]
    c, s = torch.cos(yaw)[:, None], torch.sin(yaw)[:, None]
    px, py = c * way[..., 0] + s * way[..., 1], c * way[..., 1] - s * way[..., 0]
    inside = torch.zeros_like(px, dtype=torch.bool)
    for x, y, a, b in t_rectangles(u):
        inside |= ((px - x).abs() <= a) & ((py - y).abs() <= b)
    return inside.float().mean(1)


class PushTArm(TabletopTask):
    """Push a T (16 x 16 cm for a Panda) with the closed fingers until it covers 90 % of its outline on the table.

    The T starts 5 to 16 cm from its goal, in any direction and at any yaw. The goal lies before the arm, turned by 45
    degrees. The episode is lost when the T is out of reach. The flat game of the same name is the task ``pusht``.
    """

    name = "push_t_arm"
    max_episode_steps = 600
    needs_gripper = False

    def __init__(self, config: PushTArmConfig) -> None:
        super().__init__(config)
        self.unit, self.height = 0.08 * self.reach, 0.06 * self.reach
        self._spread = (0.6 * config.spread * self.reach, config.spread * self.reach)

    def add_objects(self, spec: mujoco.MjSpec) -> None:
        box, blue, green = mujoco.mjtGeom.mjGEOM_BOX, (0.30, 0.42, 0.66, 1.0), (0.35, 0.68, 0.38, 0.6)
        half = self.height / 2
        body = spec.worldbody.add_body(name="t", pos=(self.reach, 0.25 * self.reach, half))
        body.add_freejoint(name="t")
        goal = spec.worldbody.add_body(
            name="goal", pos=(_GOAL_X * self.reach, 0, 0), quat=(math.cos(_GOAL_YAW / 2), 0, 0, math.sin(_GOAL_YAW / 2))
        )
        for x, y, a, b in t_rectangles(self.unit):
            share = a * b / (1.75 * self.unit**2)  # of the area, 7 u^2
            body.add_geom(
                type=box, pos=(x, y, 0), size=(a, b, half), mass=0.2 * share, rgba=blue, friction=(0.5, 0.005, 0.0001),
                priority=1,
            )  # fmt: skip
            goal.add_geom(type=box, pos=(x, y, 6e-4), size=(a, b, 4e-4), rgba=green, contype=0, conaffinity=0)

    def bind_objects(self, world: World) -> dict[str, ArraySpec]:
        self._t = self.objects["t"] = world.free_body("t")
        self._goal = torch.tensor([_GOAL_X * self.reach, 0.0], device=world.sim.device)
        names = [f"{part}_{c}" for part in ("t", "goal") for c in ("x", "y", "z", *(f"r{i}" for i in range(6)))]
        return {"object": object_spec(names)}

    def reset(self, worlds: Selection, draws: Draws) -> None:
        share, bearing = draws.uniform((1,), 0.5, 1.0), draws.uniform((), -math.pi, math.pi)
        way = torch.stack([self._spread[0] * torch.cos(bearing), self._spread[1] * torch.sin(bearing)], 1)
        pos = torch.cat([self._goal + share * way, torch.full_like(share, self.height / 2)], 1)
        self._t.place(worlds, pos, yaw_quat(draws.uniform((), -math.pi, math.pi)))

    def observe_objects(self) -> dict[str, Tensor]:
        pos, mat = self._t.pos(), quat_to_matrix(self._t.quat())
        goal = torch.cat([self._goal, constant((self.height / 2,), pos.device)]).expand_as(pos)
        turned = quat_to_matrix(yaw_quat(torch.full_like(pos[:, 0], _GOAL_YAW)))
        parts = []
        for p, m in ((pos, mat), (goal, turned)):
            p, m = self.arms[0].to_base(p, m)
            parts += [p, matrix_to_rot6d(m)]
        return {"object": torch.cat(parts, 1)}

    def privileged(self) -> Tensor:
        """Besides what all tabletop tasks tell: the coverage."""
        return torch.cat([super().privileged(), self.covered()[:, None]], 1)

    def _names_of_privileged(self) -> tuple[str, ...]:
        return (*super()._names_of_privileged(), "coverage")

    def covered(self) -> Tensor:
        """Share of the goal that the T covers ``[N]``; 0 where it does not lie flat on the table."""
        pos, mat = self._t.pos(), quat_to_matrix(self._t.quat())
        way, c = pos[:, :2] - self._goal, math.cos(_GOAL_YAW)  # sine and cosine of 45 degrees are one
        lies = (mat[:, 2, 2] > 0.98) & ((pos[:, 2] - self.height / 2).abs() < 0.25 * self.height)
        offset = torch.stack([c * (way[:, 0] + way[:, 1]), c * (way[:, 1] - way[:, 0])], 1)
        return coverage(offset, yaw_of(mat) - _GOAL_YAW, self.unit) * lies

    def error(self) -> tuple[Tensor, Tensor]:
        """What is missing to the goal: position ``[N, 2]`` [m] in the T's frame, and turn ``[N]`` [rad]."""
        mat = quat_to_matrix(self._t.quat())
        way = ((self._goal - self._t.pos()[:, :2])[:, None] @ mat[:, :2, :2])[:, 0]
        return way, wrap(_GOAL_YAW - yaw_of(mat), 2 * math.pi)

    def outcome(self) -> Outcome:
        share = (self.covered() / COVERED).clamp(max=1.0)
        way, turn = self.error()
        t = self._t.pos()
        missing = torch.hypot(way.norm(dim=1), 1.8 * self.unit * turn) / self.reach
        hand = (self.arms[0].tcp.pos() - t).norm(dim=1) / self.reach
        reward = 0.1 * (1 - torch.tanh(2.0 * hand)) + 0.4 * (1 - torch.tanh(2.0 * missing)) + 0.45 * share
        success = share >= 1.0
        lost = (t[:, :2].norm(dim=1) > 1.7 * self.reach) | (t[:, 2] < -0.05)
        return Outcome(reward=torch.where(success, 1.0, reward), success=success, failure=lost, score=share)

    def expert(self, diversity: float = 0.0) -> Expert:
        return PushExpert(
            self.arms[0], self._t, t_outline(self.unit), self.error, height=self.height, reach=self.reach,
            dt=1.0 / self.fps, diversity=diversity,
        )  # fmt: skip
