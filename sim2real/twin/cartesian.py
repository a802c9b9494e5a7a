"""Controllers of the twin that take motions of the hand: a pose to go to, and a twist to move with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visuomotor.data.rotations import quat_to_matrix
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.messages import Message, Pose, Twist
from visuomotor.sim2real.robots.config import CommandConfig
from visuomotor.sim2real.twin.controllers import Controller

__all__ = ["HandPose", "HandTwist"]


class HandPose(Controller):
    """The equilibrium pose of an impedance controller: the hand goes there at once, stiffly.

    Args:
        joints: of the arm, as the driver names them.
        config: its frame is ``group``.
        kinematics: of the same joints, in the same order.
    """

    message = Pose

    def __init__(self, joints: Sequence[str], config: CommandConfig, kinematics: Kinematics) -> None:
        super().__init__(joints)
        self._frame, self._kinematics = config.group, kinematics
        self._goal: tuple[np.ndarray, np.ndarray] | None = None
        self._rest = self.desired

    def reset(self, position: np.ndarray) -> None:
        super().reset(position)
        self._goal, self._rest = None, self.desired

    def receive(self, message: Message, now_ns: int, stamp_ns: int, position: np.ndarray, velocity: np.ndarray) -> str:
        assert isinstance(message, Pose)
        if why := _refusal(message, self._frame, message.position, message.q_xyzw):
            return why
        if abs(np.linalg.norm(message.q_xyzw) - 1.0) > 1e-3:
            return f"q_xyzw={message.q_xyzw.tolist()} has length {np.linalg.norm(message.q_xyzw):.3f}; expected 1"
        self._goal = (message.position, quat_to_matrix(message.q_xyzw[[3, 0, 1, 2]]))
        return ""

    def sample(self, now_ns: int) -> np.ndarray:
        if self._goal is not None:
            self.desired = self._kinematics.solve(self.desired, *self._goal, self._rest)
        return self.desired


class HandTwist(Controller):
    """Velocities of the hand, as MoveIt Servo takes them; without new ones it stops after ``timeout_s``."""

    message = Twist

    def __init__(self, joints: Sequence[str], config: CommandConfig, kinematics: Kinematics) -> None:
        super().__init__(joints)
        assert config.timeout_s is not None  # CommandConfig refuses it otherwise
        self._frame, self._kinematics, self._timeout_ns = config.group, kinematics, round(config.timeout_s * 1e9)
        self._twist = np.zeros(6)
        self._received_ns = self._sampled_ns = 0
        self._rest = self.desired

    def reset(self, position: np.ndarray) -> None:
        super().reset(position)
        self._twist, self._rest = np.zeros(6), self.desired

    def receive(self, message: Message, now_ns: int, stamp_ns: int, position: np.ndarray, velocity: np.ndarray) -> str:
        assert isinstance(message, Twist)
        if why := _refusal(message, self._frame, message.linear, message.angular):
            return why
        self._twist, self._received_ns = np.concatenate([message.linear, message.angular]), now_ns
        return ""

    def sample(self, now_ns: int) -> np.ndarray:
        dt = (now_ns - self._sampled_ns) / 1e9 if self._sampled_ns else 0.0
        self._sampled_ns = now_ns
        if now_ns - self._received_ns <= self._timeout_ns and self._twist.any():
            self.desired = self._kinematics.follow(self.desired, dt * self._twist, self._rest)
        return self.desired


def _refusal(message: Message, frame: str, *values: np.ndarray) -> str:
    if message.frame_id != frame:
        return f"frame {message.frame_id!r}; expected {frame!r}"
    return "" if all(np.isfinite(v).all() for v in values) else f"values are not finite: {[v.tolist() for v in values]}"
