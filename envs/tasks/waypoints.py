"""Scripted experts as sequences of hand poses, for all worlds at once."""

from __future__ import annotations

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

__all__ = ["Phase", "WaypointExpert", "top_down"]

Pose = tuple[Tensor, Tensor]


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
        target: where the hand goes: position ``[N, 3]`` and matrix ``[N, 3, 3]``, world frame; asked in every step.
        grip: commanded opening, 0..1.
        speed: of the hand [m/s].
        tolerance: the leg ends when the hand is this near [m] …
        angle_tolerance: … and turned this near [rad] …
        hold: … for this many steps …
        timeout: … or after this many steps in all.
        free: how far diversity may displace the target, in each direction [m].
    """

    target: Callable[[], Pose]
    grip: float
    speed: float = 0.25
    tolerance: float = 0.012
    angle_tolerance: float = 0.15
    hold: int = 1
    timeout: int = 60
    free: float = 0.0


class WaypointExpert(Expert):
    """Goes through ``phases`` with one arm; stays in the last one.

    Args:
        arm: which one.
        phases: in order.
        dt: duration of a control step [s].
        diversity: 0..1; scales how much speed (up to 40 %) and free waypoints vary from episode to episode.
    """

    def __init__(self, arm: Arm, phases: Sequence[Phase], dt: float, diversity: float = 0.0) -> None:
        self._arm, self._phases, self._dt, self._diversity = arm, list(phases), dt, diversity
        n, device = arm.target.shape[0], arm.target.device
        self.phase = torch.zeros(n, dtype=torch.int64, device=device)
        self._held, self._spent = torch.zeros_like(self.phase), torch.zeros_like(self.phase)
        self._pos = torch.zeros(n, 3, device=device)  # reference pose, which moves smoothly
        self._rot = torch.eye(3, device=device).repeat(n, 1, 1)
        self._pace = torch.ones(n, device=device)
        self._offset = torch.zeros(n, len(self._phases), 3, device=device)
        columns = {k: [getattr(p, k) for p in self._phases] for k in ("grip", "speed", "tolerance", "angle_tolerance")}
        self._table = {k: torch.tensor(v, dtype=torch.float32, device=device) for k, v in columns.items()}
        self._hold = torch.tensor([p.hold for p in self._phases], device=device)
        self._timeout = torch.tensor([p.timeout for p in self._phases], device=device)
        self._free = torch.tensor([p.free for p in self._phases], device=device)

    def reset(self, worlds: Selection, draws: Draws) -> None:
        for counter in (self.phase, self._held, self._spent):
            worlds.put(counter, 0)
        pos, rot = self._arm.tcp.pos(), self._arm.tcp.matrix()
        worlds.put(self._pos, worlds.take(pos))
        worlds.put(self._rot, worlds.take(rot))
        d = self._diversity
        worlds.put(self._pace, draws.uniform((), 1.0 - 0.4 * d, 1.0 + 0.4 * d))
        offset = draws.uniform((len(self._phases), 3), -1.0, 1.0)
        worlds.put(self._offset, d * self._free[:, None] * offset)

    def act(self) -> Tensor:
        i, rows = self.phase, torch.arange(self.phase.shape[0], device=self.phase.device)
        poses = [p.target() for p in self._phases]
        pos = torch.stack([p for p, _ in poses], 1)[rows, i] + self._offset[rows, i]
        rot = torch.stack([r for _, r in poses], 1)[rows, i]
        self._approach(pos, rot, self._table["speed"][i] * self._pace * self._dt)
        action = self._arm.encode(self._pos, self._rot, self._table["grip"][i][:, None])
        self._advance(pos, rot)
        return action

    def _approach(self, pos: Tensor, rot: Tensor, step: Tensor) -> None:
        """Move the reference pose towards the target: ``step [N]`` metres, and 5 radians for every metre."""
        way = pos - self._pos
        length = way.norm(dim=1)
        self._pos = self._pos + way * (step / length.clamp(min=1e-9)).clamp(max=1.0)[:, None]
        turn = rotation_error(rot, self._rot)
        angle = turn.norm(dim=1)
        share = (5.0 * step / angle.clamp(min=1e-9)).clamp(max=1.0)
        self._rot = quat_to_matrix(axis_angle_to_quat(turn * share[:, None])) @ self._rot

    def _advance(self, pos: Tensor, rot: Tensor) -> None:
        """Next phase where the hand is there, or time is up."""
        i = self.phase
        near = (self._arm.tcp.pos() - pos).norm(dim=1) < self._table["tolerance"][i]
        turned = rotation_error(rot, self._arm.tcp.matrix()).norm(dim=1) < self._table["angle_tolerance"][i]
        self._held = torch.where(near & turned, self._held + 1, 0)
        self._spent = self._spent + 1
        done = ((self._held > self._hold[i]) | (self._spent >= self._timeout[i])) & (i < len(self._phases) - 1)
        self.phase = i + done.long()
        self._held, self._spent = self._held.masked_fill(done, 0), self._spent.masked_fill(done, 0)
