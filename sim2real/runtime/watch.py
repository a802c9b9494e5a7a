"""Everything that speaks against moving: what the supervisor is told of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.runtime.link import PolicyLink
from visuomotor.sim2real.runtime.observer import Observer
from visuomotor.sim2real.runtime.teleop import Teleop
from visuomotor.sim2real.runtime.types import State
from visuomotor.sim2real.safety.monitors import TrackingMonitor, stale
from visuomotor.sim2real.transports.base import Publisher, Transport

__all__ = ["Rivals", "Watch"]

_RIVALS_EVERY_NS = 1_000_000_000


class Rivals:
    """Somebody else who publishes on the topic of the commands: two masters move an arm back and forth."""

    def __init__(self, robot: RobotConfig, transport: Transport) -> None:
        self._topic, self._transport = robot.command.topic, transport
        self._looked_ns = -(10**18)
        self.found = ""

    def look(self, now_ns: int) -> None:
        """Look again, once a second: asking for the graph may take milliseconds, so not while the arm moves."""
        if now_ns - self._looked_ns < _RIVALS_EVERY_NS:
            return
        self._looked_ns = now_ns
        publishers = [e for t in self._transport.graph() if t.topic == self._topic for e in t.publishers]
        names = ", ".join(sorted(e.node for e in publishers))
        self.found = ""
        if len(publishers) > 1:
            self.found = f"{self._topic} has {len(publishers)} publishers ({names}); expected this bridge alone"


@dataclass
class Watch:
    """Collects what is wrong.

    Attributes:
        patience_s: without an action to execute for so long, the policy counts as stalled.
        dry_run: nothing is sent, so the arm does not follow.
    """

    observer: Observer
    teleop: Teleop
    link: PolicyLink | None
    tracking: TrackingMonitor
    rivals: Rivals
    command: Publisher
    topic: str
    patience_s: float
    dry_run: bool = False

    def problems(self, now_ns: int, state: State, starved_s: float, commanded: np.ndarray | None) -> tuple[str, ...]:
        """What is wrong now. ``commanded``: what was sent last; None: nothing is being sent."""
        moves = state in (State.RAMP, State.RUN, State.HUMAN)
        out = list(self.observer.missing()) or list(stale(self.observer.ages(now_ns)))
        if self.link is not None and state is not State.HUMAN:
            trouble = self.link.trouble(now_ns)
            if trouble:
                out.append(trouble)
            elif not self.link.ready:
                out.append("the policy is not loaded yet")
        if state is State.RUN and starved_s > self.patience_s:
            out.append(f"the policy has given no action for {starved_s:.2f} s; limit {self.patience_s:g} s")
        if state is State.HUMAN and not self.teleop.alive(now_ns):
            out.append(f"the teleoperating device: no message for {self.teleop.age_s(now_ns):.3f} s")
        if state in (State.IDLE, State.READY):
            self.rivals.look(now_ns)
        if self.rivals.found:
            out.append(self.rivals.found)
        elif moves and (others := self.command.rivals()):
            out.append(f"{self.topic} has {others} more publisher{'s' * (others > 1)}; expected this bridge alone")
        if not self.command.matched():
            why = self.command.incompatible
            out.append(f"nobody listens to {self.topic}{f': {why}' if why else ''}")
        if moves and commanded is not None and not self.dry_run:
            wrong = self.tracking.check(now_ns, commanded, self.observer.measured()[0])
            if wrong:
                out.append(wrong)
        return tuple(out)
