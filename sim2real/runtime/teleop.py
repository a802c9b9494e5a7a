"""Where a person wants the arm to be: the joint positions of a teleoperating device."""

from __future__ import annotations

import math

import numpy as np

from visuomotor.sim2real.messages import JointState
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.runtime.streams import HeaderClock, Inbox, JointHistory
from visuomotor.sim2real.transports.base import Transport

__all__ = ["Teleop"]

_MAX_AGE_S = 0.2
_CAUGHT_UP = 0.05  # the arm has come to the device when no joint is further away [rad]


class Teleop:
    """Listens to ``teleop_topic``: joints by the driver's names, the gripper's joint too if the device has it."""

    def __init__(self, robot: RobotConfig, transport: Transport) -> None:
        n = len(robot.joints)
        self._gripper = robot.gripper if robot.gripper is not None and robot.gripper.joint else None
        self._arm = JointHistory(tuple(robot.joints), np.full(n, math.inf), HeaderClock(), _MAX_AGE_S)
        self._fingers: JointHistory | None = None
        if self._gripper is not None:
            self._fingers = JointHistory((self._gripper.joint,), np.full(1, math.inf), HeaderClock(), _MAX_AGE_S)
        self._inbox: Inbox[JointState] = Inbox()
        self._caught_up = False
        self.there = bool(robot.teleop_topic)
        if self.there:
            transport.subscribe(robot.teleop_topic, JointState, self._inbox.put)

    def poll(self) -> None:
        """Take in what has come."""
        for message, received in self._inbox.take():
            for history in (self._arm, self._fingers):
                if history is not None:
                    history.put(message.name, message.position, message.velocity, message.stamp_ns, received)

    def age_s(self, now_ns: int) -> float:
        """Of the newest message; infinite before the first."""
        return (now_ns - self._arm.believed_ns) * 1e-9 if self._arm.believed_ns else math.inf

    def alive(self, now_ns: int) -> bool:
        """Whether somebody is there."""
        return self.there and self.age_s(now_ns) < _MAX_AGE_S

    def begin(self) -> None:
        """A person takes over: the arm goes slowly to where the device is, then follows it."""
        self._caught_up = False

    def target(self, commanded: np.ndarray) -> tuple[np.ndarray, bool]:
        """Joint targets ``[n]``, and whether the arm shall go there slowly."""
        wanted = self._arm.track.newest[: len(commanded)]
        if not self._caught_up:
            self._caught_up = bool(np.abs(wanted - commanded).max() < _CAUGHT_UP)
        return wanted, not self._caught_up

    @property
    def opening(self) -> float | None:
        """Of the device's gripper, 0..1; None where it has none."""
        if self._fingers is None or self._gripper is None or not self._fingers.believed_ns:
            return None
        g = self._gripper
        return float((self._fingers.track.newest[0] - g.closed) / (g.opened - g.closed))
