"""A scripted expert that pushes a flat object to a goal with one finger.

Model (Goyal, Ruina and Papadopoulos 1991; Lynch and Mason 1996): an object that slides slowly under a force ``f`` at
the point ``c`` moves by a twist along ``(f, c x f / rho^2)``, an ellipsoidal limit surface with the turning radius
``rho``. With the finger sticking to the side, all forces within the cone of friction are at hand. For each point of the
outline the best force is therefore a small least-squares problem; the point whose push leaves the least error is taken.
The push is planned anew in every step, and ends when it gains no more. A point that was of no use is avoided later.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.data.rotations import quat_to_matrix
from visuomotor.envs.robots.arm import Arm
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection, constant
from visuomotor.envs.sim.task import Expert
from visuomotor.envs.sim.world import FreeBody
from visuomotor.envs.tasks.waypoints import top_down

__all__ = ["Outline", "PushExpert", "best_push"]

RISE, TRAVEL, LOWER, PUSH = range(4)

_FRICTION = 0.7  # of the cone in which forces are planned; less than that of fingertips
_FINGER = (0.011, 0.015)  # half sizes of the closed fingertips, across and along their closing direction [m]
_LOW = 0.016  # of the hand above the table while it pushes [m]
_GAP = 0.015  # from the side when the finger comes down [m]
_SPEED = (0.35, 0.45, 0.3, 0.15)  # of the hand in each leg [m/s]
_MAX_PUSH, _MAX_TRAVEL, _MAX_STILL = 80, 60, 15  # steps
_NEAREST, _FARTHEST = 0.64, 1.55  # where the finger may come down, as shares of the arm's reach


@dataclass(frozen=True)
class Outline:
    """Where an object may be pushed, in its own frame; its origin is the centre of mass."""

    points: Tensor  # [K, 2] [m]
    normals: Tensor  # [K, 2], into the object
    turning_radius: float  # largest frictional torque over largest frictional force [m]


def best_push(error: Tensor, points: Tensor, normals: Tensor, rho: float) -> tuple[Tensor, Tensor, Tensor]:
    """The push at each point that comes nearest to a wanted motion.

    Args:
        error: wanted motion ``[..., 3]``: x and y [m], and turn times ``rho`` [m].
        points, normals: ``[..., 2]``, see :class:`Outline`.
        rho: turning radius [m].

    Returns:
        Motion of the contact point ``[..., 2]`` [m], length of the error that is left ``[...]`` [m], and how much of
        it is gone ``[...]`` [m].
    """
    lever = torch.stack([-points[..., 1], points[..., 0]], -1) / rho
    pull = error[..., :2] + lever * error[..., 2:]  # A^T e, with A f = (f, lever . f)
    free = pull - lever * (lever * pull).sum(-1, keepdim=True) / (1.0 + (lever**2).sum(-1, keepdim=True))
    side = torch.stack([-normals[..., 1], normals[..., 0]], -1)
    along, across = (free * normals).sum(-1), (free * side).sum(-1)
    feasible = (along > 0.0) & (across.abs() <= _FRICTION * along)
    edge = (normals + _FRICTION * torch.sign(across)[..., None] * side) / math.hypot(1.0, _FRICTION)
    scale = (edge * pull).sum(-1) / (1.0 + (edge * lever).sum(-1) ** 2)
    force = torch.where(feasible[..., None], free, edge * scale.clamp(min=0.0)[..., None])
    turn = (lever * force).sum(-1, keepdim=True)
    left = (error - torch.cat([force, turn], -1)).norm(dim=-1)
    return force + turn * lever, left, error.norm(dim=-1) - left


class PushExpert(Expert):
    """Pushes ``body`` until ``error`` is nothing: over it, down beside it, push, up, and again.

    Args:
        arm: whose closed fingers push.
        body: what is pushed, flat on the table.
        outline: where it may be touched.
        error: what is missing: position ``[N, 2]`` [m] in the body's frame, and turn ``[N]`` [rad].
        height: of the body [m].
        reach: of the arm [m]; the finger comes down between 0.64 and 1.55 of it.
        dt: duration of a control step [s].
        diversity: 0..1; scales how much speed (up to 30 %) and the choice of sides vary.
    """

    def __init__(
        self, arm: Arm, body: FreeBody, outline: Outline, error: Callable[[], tuple[Tensor, Tensor]], *,
        height: float, reach: float, dt: float, diversity: float,
    ) -> None:  # fmt: skip
        self._arm, self._body, self._error, self._dt, self._diversity = arm, body, error, dt, diversity
        n, device = arm.target.shape[0], arm.target.device
        self._points, self._normals = outline.points.to(device), outline.normals.to(device)
        self._rho, self._high, self._reach = outline.turning_radius, height + 0.035, reach
        self.phase = torch.zeros(n, dtype=torch.int64, device=device)
        self._spent, self._choice, self._still = torch.zeros(3, n, dtype=torch.int64, device=device).unbind()
        self._before = torch.zeros(n, device=device)  # error when the push began
        self._ref = torch.zeros(n, 3, device=device)
        self._pace = torch.ones(n, device=device)
        self._taste = torch.zeros(n, self._points.shape[0], device=device)
        self._speed = torch.tensor(_SPEED, device=device)
        self._down = top_down(torch.full((n,), math.pi / 2, device=device))
        self._closed = torch.zeros(n, 1, device=device)

    def reset(self, worlds: Selection, draws: Draws) -> None:
        for counter in (self.phase, self._spent, self._choice, self._still):
            worlds.put(counter, 0)
        pos, _ = self._arm.to_world(*self._arm.chain.forward(self._arm.target))
        worlds.put(self._ref, worlds.take(pos))
        d = self._diversity
        worlds.put(self._pace, draws.uniform((), 1.0 - 0.3 * d, 1.0 + 0.3 * d))
        worlds.put(self._taste, draws.uniform((self._points.shape[0],), 0.0, 0.2 * d))

    def act(self) -> Tensor:
        way, turn = self._error()
        error = torch.cat([way, self._rho * turn[:, None]], 1)
        pos, rot = self._body.pos()[:, :2], quat_to_matrix(self._body.quat())[:, :2, :2]
        self._choose(error, pos, rot)
        point, normal = self._points[self._choice], self._normals[self._choice]
        motion, _, gain = best_push(error, point, normal, self._rho)
        target = self._target(point, normal, motion, pos, rot)
        step = (self._speed[self.phase] * self._pace * self._dt)[:, None]
        ahead = target - self._ref
        self._ref.add_(ahead * (step / ahead.norm(dim=1, keepdim=True).clamp(min=1e-9)).clamp(max=1.0))
        action = self._arm.encode(self._ref, self._down, self._closed)
        self._advance(target, gain, error.norm(dim=1))
        return action

    def buffers(self) -> dict[str, Tensor]:
        names = ("phase", "_spent", "_choice", "_still", "_before", "_ref", "_pace", "_taste")
        return {n.strip("_"): getattr(self, n) for n in names}

    def _choose(self, error: Tensor, pos: Tensor, rot: Tensor) -> None:
        """Where the hand is high enough, take the point whose push leaves least, not too far away, within reach."""
        hand = self._arm.tcp.pos()
        up = (self.phase == RISE) & (hand[:, 2] > self._high - 0.012)
        _, left, _ = best_push(error[:, None], self._points, self._normals, self._rho)
        start = pos[:, None] + (self._points - _GAP * self._normals) @ rot.transpose(1, 2)
        away = (start - hand[:, None, :2]).norm(dim=2)
        reached = self._arm.to_base(torch.cat([start, torch.zeros_like(start[..., :1])], 2), self._down[0])[0]
        radius = reached[..., :2].norm(dim=2)
        outside = (radius > _FARTHEST * self._reach) | (radius < _NEAREST * self._reach)
        cost = left / error.norm(dim=1, keepdim=True).clamp(min=1e-6) + 0.1 * away / self._reach + self._taste + outside
        self._choice.copy_(torch.where(up, cost.argmin(1), self._choice))
        self._enter(up, TRAVEL)

    def _target(self, point: Tensor, normal: Tensor, motion: Tensor, pos: Tensor, rot: Tensor) -> Tensor:
        """Where the hand goes ``[N, 3]``: the finger's foremost point beside, at or in the side of the object."""
        pushing = self.phase == PUSH
        length = motion.norm(dim=1, keepdim=True)
        depth = (0.5 * length).clamp(0.003, 0.016) + 0.001 * self._still[:, None]  # until it moves
        lead = motion / length.clamp(min=1e-9) * depth
        local = point + torch.where(pushing[:, None], lead, -_GAP * normal)
        facing = (rot @ normal[:, :, None])[:, :, 0]
        finger = constant(_FINGER, facing.device) * (facing / 0.15).clamp(-1.0, 1.0)
        xy = pos + (rot @ local[:, :, None])[:, :, 0] - finger
        hand = self._arm.tcp.pos()[:, :2]
        rising = self.phase == RISE
        xy = torch.where(rising[:, None], hand - 0.01 * facing, xy)
        z = torch.where(pushing | (self.phase == LOWER), _LOW, self._high)
        return torch.cat([xy, z[:, None]], 1)

    def _advance(self, target: Tensor, gain: Tensor, error: Tensor) -> None:
        self._spent.add_(1)
        near = (self._arm.tcp.pos() - target).norm(dim=1)
        over = (self.phase == TRAVEL) & (near < 0.012)
        down = (self.phase == LOWER) & ((near < 0.006) | (self._spent > 20))
        pushing = self.phase == PUSH
        moving = (self._body.linvel().norm(dim=1) > 0.005) | (self._body.angvel().norm(dim=1) > 0.05)
        self._still.copy_(torch.where(pushing & ~moving, self._still + 1, 0))
        pushed = (gain < 0.03 * error + 0.0005) | (self._spent > _MAX_PUSH) | (self._still > _MAX_STILL)
        pushed = pushing & pushed
        lost = (self.phase == TRAVEL) & (self._spent > _MAX_TRAVEL)
        useless = lost | (pushed & (error > self._before - 0.001))
        self._taste[torch.arange(len(useless), device=useless.device), self._choice] += 0.3 * useless
        self._before.copy_(torch.where(down, error, self._before))
        self._enter(over, LOWER)
        self._enter(down, PUSH)
        self._enter(pushed | lost, RISE)

    def _enter(self, worlds: Tensor, phase: int) -> None:
        self.phase.masked_fill_(worlds, phase)
        self._spent.masked_fill_(worlds, 0)
