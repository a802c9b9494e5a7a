"""Scripted experts as sequences of hand poses, for all worlds at once.

To write one, list its :class:`Phase` s in order. A phase names a pose to go to, the opening of the gripper, and when it
is over; targets are functions that are asked in every step, so a phase follows what moves. Three things make it robust:

- a phase ends after ``timeout`` steps even if the pose is never reached, so nothing waits for ever;
- ``check`` says what has to hold when a phase ends (the object is in the hand); where it does not, the expert goes back
  to phase ``retry``. With ``watch`` it has to hold all the time: a dropped object is noticed on the way;
- ``symmetry`` says that turns about the hand's axis are equivalent (a parallel gripper on a cube: 4); the nearest one
  is chosen when the phase begins and is then kept.

The hand follows a reference that accelerates and brakes, so commands do not jump, whatever the targets do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.data.rotations import axis_angle_to_quat, quat_to_matrix
from visuomotor.envs.robots.arm import Arm
from visuomotor.envs.robots.kinematics import rotation_error
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.task import Expert

__all__ = ["Phase", "Pose", "WaypointExpert", "top_down"]

Pose = tuple[Tensor, Tensor | None]  # position [N, 3] and matrix [N, 3, 3]; None: stay turned as now

_ACCELERATION = 1.5  # of the reference [m/s^2]
_TURN = 5.0  # rotation that goes with a motion [rad/m], for speeds and accelerations
_GRIP_STEP = 0.25  # largest change of the commanded opening in a control step
_PAUSE = 0.25  # longest pause at the beginning of a phase [s], at full diversity
_LEAN = math.pi / 4  # how far the choice among equivalent turns may be shifted [rad], at full diversity


def top_down(yaw: Tensor) -> Tensor:
    """Matrices ``[N, 3, 3]`` of a hand that points straight down, its fingers closing along the direction ``yaw [N]``.

    The hand's z is -z of the world; its y is ``(cos yaw, sin yaw, 0)``.
    """
    c, s, zero = torch.cos(yaw), torch.sin(yaw), torch.zeros_like(yaw)
    y = torch.stack([c, s, zero], -1)
    z = torch.stack([zero, zero, zero - 1.0], -1)
    return torch.stack([torch.linalg.cross(y, z), y, z], -1)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One leg of an expert's way.

    Attributes:
        target: where the hand goes: position ``[N, 3]`` and matrix ``[N, 3, 3]`` (None: stays turned as it is), world
            frame. Asked once a step, even if several phases share it.
        grip: commanded opening, 0..1.
        above: how far above the target [m].
        follow: ask for the target in every step; else only when the leg begins.
        symmetry: number of equivalent turns about the hand's z axis; see the module's text.
        speed: of the hand [m/s].
        tolerance: the leg ends when the hand is this near [m] …
        angle_tolerance: … and turned this near [rad] …
        hold: … for this many steps …
        timeout: … or after this many steps in all.
        check: bool ``[N]`` that has to hold at the end, else the expert goes back to phase ``retry``.
        watch: ``check`` has to hold in every step of the leg.
        retry: index of the phase to go back to.
        free: how far diversity may displace the target, in each direction [m].
    """

    target: Callable[[], Pose]
    grip: float
    above: float = 0.0
    follow: bool = True
    symmetry: int = 1
    speed: float = 0.25
    tolerance: float = 0.012
    angle_tolerance: float = 0.15
    hold: int = 1
    timeout: int = 60
    check: Callable[[], Tensor] | None = None
    watch: bool = False
    retry: int = 0
    free: float = 0.0


class WaypointExpert(Expert):
    """Goes through ``phases`` with one arm; stays in the last one.

    Everything it remembers are tensors ``[N, ...]`` (:meth:`buffers`), changed in place.

    Args:
        arm: which one.
        phases: in order.
        dt: duration of a control step [s].
        diversity: 0..1; scales how much an episode's speed (up to 40 %, and 20 % more in each phase), pauses (up to
            0.25 s before a phase), waypoints (:attr:`Phase.free`) and choice among equivalent turns vary.

    Attributes:
        phase: index of the leg that each world is in, int64 ``[N]``.
        retries: how often it went back, int64 ``[N]``.
        done: the last leg has ended, bool ``[N]``; it goes on acting.
    """

    def __init__(self, arm: Arm, phases: Sequence[Phase], dt: float, diversity: float = 0.0) -> None:
        self._arm, self._phases, self._dt, self._diversity = arm, list(phases), dt, diversity
        self._targets = list(dict.fromkeys(p.target for p in self._phases))
        n, device = arm.target.shape[0], arm.target.device
        self._rows = torch.arange(n, device=device)
        self.phase, self.retries, self._held, self._spent = torch.zeros(4, n, dtype=torch.int64, device=device).unbind()
        self.done, self._entered = torch.zeros(2, n, dtype=torch.bool, device=device).unbind()
        self._pos, self._velocity, self._spin, self._goal_pos = torch.zeros(4, n, 3, device=device).unbind()
        self._rot, self._goal_rot = torch.eye(3, device=device).repeat(2, n, 1, 1).unbind()
        self._grip, self._lean, self._turn = torch.zeros(3, n, device=device).unbind()
        self._pace = torch.ones(n, len(self._phases), device=device)
        self._pause = torch.zeros(n, len(self._phases), dtype=torch.int64, device=device)
        self._offset = torch.zeros(n, len(self._phases), 3, device=device)
        real = ("grip", "above", "symmetry", "speed", "tolerance", "angle_tolerance", "free")
        self._table = {k: torch.tensor([float(getattr(p, k)) for p in phases], device=device) for k in real}
        others = ("follow", "watch", "hold", "timeout", "retry")
        self._table |= {k: torch.tensor([getattr(p, k) for p in phases], device=device) for k in others}
        self._which = torch.tensor([self._targets.index(p.target) for p in phases], device=device)

    def reset(self, worlds: Selection, draws: Draws) -> None:
        """Begin in worlds whose arm may be anywhere: the reference starts where the arm's command is."""
        for counter in (self.phase, self.retries, self._held, self._spent, self.done, self._velocity, self._spin):
            worlds.put(counter, 0)
        worlds.put(self._entered, True)
        pos, rot = self._arm.to_world(*self._arm.chain.forward(self._arm.target))
        for field, value in ((self._pos, pos), (self._rot, rot), (self._grip, self._arm.grip[:, 0])):
            worlds.put(field, worlds.take(value))
        d, count = self._diversity, len(self._phases)
        pace = draws.uniform((1,), 1.0 - 0.4 * d, 1.0 + 0.4 * d)
        worlds.put(self._pace, pace * draws.uniform((count,), 1.0 - 0.2 * d, 1.0 + 0.2 * d))
        worlds.put(self._offset, d * self._table["free"][:, None] * draws.uniform((count, 3), -1.0, 1.0))
        worlds.put(self._pause, (draws.uniform((count,), 0.0, d * _PAUSE / self._dt)).long())
        worlds.put(self._lean, draws.uniform((), -d * _LEAN, d * _LEAN))

    def act(self) -> Tensor:
        i, rows = self.phase, self._rows
        poses = [target() for target in self._targets]
        which = self._which[i]
        pos = torch.stack([p for p, _ in poses], 1)[rows, which] + self._offset[rows, i]
        pos[:, 2] += self._table["above"][i]
        rot = torch.stack([self._rot if r is None else r for _, r in poses], 1)[rows, which]
        self._aim(pos, rot)
        self._move(self._table["speed"][i] * self._pace[rows, i])
        action = self._arm.encode(self._pos, self._rot, self._grip[:, None])
        self._advance()
        return action

    def buffers(self) -> dict[str, Tensor]:
        return {
            k.strip("_"): v for k, v in vars(self).items() if isinstance(v, Tensor) and k not in ("_rows", "_which")
        }

    def _aim(self, pos: Tensor, rot: Tensor) -> None:
        """Update the goal; where a leg begins, choose among equivalent turns the one nearest to the hand."""
        i = self.phase
        step = 2 * math.pi / self._table["symmetry"][i]
        between = rot.transpose(1, 2) @ self._rot
        twist = torch.atan2(between[:, 1, 0] - between[:, 0, 1], between[:, 0, 0] + between[:, 1, 1])
        choice = step * torch.round((twist + self._lean) / step)
        self._turn.copy_(torch.where(self._entered, choice, self._turn))
        self._lean.masked_fill_(self._entered & (self._table["symmetry"][i] > 1), 0.0)
        fresh = self._entered | self._table["follow"][i]
        self._goal_pos.copy_(torch.where(fresh[:, None], pos, self._goal_pos))
        self._goal_rot.copy_(torch.where(fresh[:, None, None], rot @ _about_z(self._turn), self._goal_rot))
        self._entered.fill_(False)

    def _move(self, speed: Tensor) -> None:
        """Move the reference towards the goal, and the commanded opening towards the phase's."""
        i, dt = self.phase, self._dt
        waits = self._spent < self._pause[self._rows, i]
        speed = speed.masked_fill(waits, 0.0)
        turn = rotation_error(self._goal_rot, self._rot)
        self._velocity.copy_(_glide(self._goal_pos - self._pos, self._velocity, speed, _ACCELERATION, dt))
        self._spin.copy_(_glide(turn, self._spin, _TURN * speed, _TURN * _ACCELERATION, dt))
        self._pos.add_(self._velocity * dt)
        self._rot.copy_(quat_to_matrix(axis_angle_to_quat(self._spin * dt)) @ self._rot)
        change = (self._table["grip"][i] - self._grip).clamp(-_GRIP_STEP, _GRIP_STEP)
        self._grip.add_(change.masked_fill(waits, 0.0))

    def _advance(self) -> None:
        """Next phase where the hand is there or time is up; back where something went wrong."""
        i, table, last = self.phase, self._table, len(self._phases) - 1
        near = (self._arm.tcp.pos() - self._goal_pos).norm(dim=1) < table["tolerance"][i]
        turned = rotation_error(self._goal_rot, self._arm.tcp.matrix()).norm(dim=1) < table["angle_tolerance"][i]
        self._held.copy_(torch.where(near & turned, self._held + 1, 0))
        self._spent.add_(1)
        over = (self._held >= table["hold"][i]) | (self._spent >= table["timeout"][i] + self._pause[self._rows, i])
        fine = torch.ones_like(over)
        for k, phase in enumerate(self._phases):
            if phase.check is not None:
                fine &= phase.check() | (i != k)
        back = ~fine & (over | table["watch"][i])
        self.done.copy_((self.done | (over & (i == last))) & ~back)
        self.retries.add_(back)
        forward = over & fine & (i < last)
        self._entered.copy_(back | forward)
        self.phase.copy_(torch.where(back, table["retry"][i], i + forward.long()))
        for counter in (self._held, self._spent):
            counter.masked_fill_(self._entered, 0)


def _about_z(angle: Tensor) -> Tensor:
    """Rotations ``[N, 3, 3]`` about z by ``angle [N]``."""
    c, s, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    columns = [torch.stack(x, -1) for x in ([c, s, zero], [-s, c, zero], [zero, zero, zero + 1.0])]
    return torch.stack(columns, -1)


def _glide(way: Tensor, velocity: Tensor, top: Tensor, acceleration: float, dt: float) -> Tensor:
    """Velocity ``[N, 3]`` of the next step along ``way [N, 3]``: at most ``top [N]``, and slow enough to stop in time.

    It differs from ``velocity`` by at most ``acceleration * dt``.
    """
    distance = way.norm(dim=1)
    half = acceleration * dt / 2
    brake = (half**2 + 2 * acceleration * distance).sqrt() - half  # v with v^2 / 2a + v dt / 2 = distance
    speed = torch.minimum(torch.minimum(top, brake), distance / dt)
    change = way * (speed / distance.clamp(min=1e-9))[:, None] - velocity
    limit = (acceleration * dt / change.norm(dim=1).clamp(min=1e-9)).clamp(max=1.0)
    return velocity + change * limit[:, None]
