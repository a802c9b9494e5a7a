"""Where an arm of unknown make works comfortably: its front, its reach, and a home pose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.envs.robots.kinematics import Chain, rotation_error

__all__ = ["Posing", "find_posing"]

_TRIES = 16
_ITERATIONS = 60


@dataclass(frozen=True)
class Posing:
    """Attributes:
    yaw: turn of the model about z that makes it face +x [rad].
    flip: the hand's frame turned by half a turn about z works with less motion of the joints.
    reach: distance from the base in the middle of where the hand can point straight down [m]; None: nowhere.
    home: joint positions ``[n]`` there, the hand above the table and pointing down; None: nowhere.
    """

    yaw: float
    flip: bool
    reach: float | None
    home: tuple[float, ...] | None


def find_posing(chain: Chain, low: Tensor, high: Tensor, rest: Tensor, length: float, yaws: Sequence[float]) -> Posing:
    """Try the hand pointing down, fingers closing sideways, at distances up to ``length`` [m] and two heights.

    The front is the direction in which the joints stay nearest to ``rest [n]``; the first of ``yaws`` wins ties.

    Args:
        chain: from the world to the hand, in the model's own frame.
        low, high: joint limits ``[n]``.
    """
    best, best_cost = Posing(yaws[0], False, None, None), math.inf
    radii = torch.linspace(0.1, 1.0, 19) * length
    half = torch.where(torch.isfinite(high - low), (high - low) / 2, math.pi).clamp(min=1e-3)
    for yaw in yaws:
        for flip in (False, True):
            heights = (0.02, min(0.15, 0.25 * length))
            pos = torch.stack([torch.tensor([float(r), 0.0, z]) for r in radii for z in heights])
            q, ok = _point_down(chain, pos, yaw, flip, low, high, rest)
            cost = ((q - rest) / half).square().sum(2).masked_fill(~ok, math.inf).amin(1)  # [targets]
            works = torch.isfinite(cost).view(-1, 2).all(1)
            if not bool(works.any()):
                continue
            mean = float(cost.view(-1, 2)[works].mean()) + (0.3 if yaw != yaws[0] else 0.0)
            if mean < best_cost:
                reach = float((radii[works].min() + radii[works].max()) / 2)
                best, best_cost = Posing(yaw, flip, reach, None), mean
    if best.reach is None:
        return best
    pos = torch.tensor([[best.reach, 0.0, max(0.1, 0.4 * best.reach)], [best.reach, 0.0, 0.1]])
    q, ok = _point_down(chain, pos, best.yaw, best.flip, low, high, rest, tries=4 * _TRIES)
    height = int(bool(~ok[0].any()))  # the lower one where the arm cannot do the higher one
    q, ok = q[height], ok[height]
    clear = chain.origins(q)[:, 1:, 2].amin(1) > 0.03  # the elbow above the table
    cost = ((q - rest) / half).square().sum(1) + 100.0 * ~clear
    pick = int(cost.masked_fill(~ok, math.inf).argmin())
    home = tuple(round(float(x), 4) for x in q[pick]) if bool(ok[pick]) else None
    return Posing(best.yaw, best.flip, best.reach, home)


def _point_down(
    chain: Chain, pos: Tensor, yaw: float, flip: bool, low: Tensor, high: Tensor, rest: Tensor, tries: int = _TRIES
) -> tuple[Tensor, Tensor]:
    """Joint positions ``[targets, tries, n]`` with the hand at ``pos [targets, 3]``, and whether they reach it."""
    c, s, sign = math.cos(yaw), math.sin(yaw), -1.0 if flip else 1.0
    back = torch.tensor([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])  # from the turned frame to the model's
    down = back @ torch.tensor([[-sign, 0.0, 0.0], [0.0, sign, 0.0], [0.0, 0.0, -1.0]])
    starts, k = _starts(low, high, rest, tries), pos.shape[0]
    goal = (pos @ back.T).repeat_interleave(tries, 0)
    rot = down.expand(k * tries, 3, 3)
    weight = 0.3 if chain.n >= 6 else 0.05
    q = chain.solve(
        starts.repeat(k, 1), goal, rot, low=low, high=high, rest=rest, rotation_weight=weight, iterations=_ITERATIONS
    )
    got, turned = chain.forward(q)
    near = (got - goal).norm(dim=1) < 0.006
    tilt = rotation_error(rot, turned).norm(dim=1) < (0.1 if chain.n >= 6 else 0.35)
    return q.view(k, tries, -1), (near & tilt).view(k, tries)


def _starts(low: Tensor, high: Tensor, rest: Tensor, tries: int) -> Tensor:
    """``rest`` and evenly spread joint positions ``[tries, n]`` (additive recurrence; Roberts 2018)."""
    n = rest.shape[0]
    golden = 2.0
    for _ in range(30):
        golden = (1.0 + golden) ** (1.0 / (n + 1))
    step = torch.tensor([golden ** -(i + 1) for i in range(n)])
    share = torch.remainder(0.5 + torch.arange(1, tries)[:, None] * step, 1.0)
    bottom = torch.where(torch.isfinite(low), low, -math.pi)
    top = torch.where(torch.isfinite(high), high, math.pi)
    return torch.cat([rest[None], bottom + share * (top - bottom)])
