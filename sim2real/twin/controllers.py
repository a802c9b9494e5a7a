"""The controllers of the twin: from ROS commands to desired joint positions, by the rules of the real ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from visuomotor.sim2real.messages import FloatArray, JointCommand, JointTrajectory, Message
from visuomotor.sim2real.twin.trajectory import Knots, at, refusal, sorted_knots

__all__ = ["Controller", "ForwardPosition", "ForwardVelocity", "JointGroup", "Trajectory"]


class Controller(ABC):
    """Desired positions of ``n`` joints in the driver's units and order.

    Attributes:
        message: what it takes.
        joints: their names.
    """

    message: type[Message]

    def __init__(self, joints: Sequence[str]) -> None:
        self.joints = tuple(joints)
        self.desired = np.zeros(len(self.joints))

    def reset(self, position: np.ndarray) -> None:
        """Forget all commands and hold ``position [n]``."""
        self.desired = np.array(position, dtype=np.float64)

    @abstractmethod
    def receive(self, message: Message, now_ns: int, stamp_ns: int, position: np.ndarray, velocity: np.ndarray) -> str:
        """Take a command; returns why it is refused, or nothing.

        Args:
            now_ns, stamp_ns: monotonic clock and clock of headers.
            position, velocity: measured ``[n]``.
        """

    def sample(self, now_ns: int) -> np.ndarray:
        """Desired positions ``[n]`` now; called at the controller's rate."""
        return self.desired


class ForwardPosition(Controller):
    """ros2_control's forward_command_controller for positions: no limits, no interpolation, the last one is held."""

    message: type[Message] = FloatArray

    def receive(self, message: Message, now_ns: int, stamp_ns: int, position: np.ndarray, velocity: np.ndarray) -> str:
        assert isinstance(message, FloatArray)
        return self._take(message.data)

    def _take(self, values: np.ndarray) -> str:
        if len(values) != len(self.joints):
            return f"{len(values)} values for {len(self.joints)} joints"
        if not np.isfinite(values).all():
            return f"values are not finite: {np.asarray(values).tolist()}"
        self.desired = np.array(values, dtype=np.float64)
        return ""


class JointGroup(ForwardPosition):
    """interbotix_xs_sdk's ``commands/joint_group`` in position mode.

    Args:
        group: that is commanded.
    """

    message = JointCommand

    def __init__(self, joints: Sequence[str], group: str) -> None:
        super().__init__(joints)
        self._group = group

    def receive(self, message: Message, now_ns: int, stamp_ns: int, position: np.ndarray, velocity: np.ndarray) -> str:
        assert isinstance(message, JointCommand)
        if message.name != self._group:
            return f"group {message.name!r}; there is {self._group!r}"
        return self._take(message.command)


class ForwardVelocity(Controller):
    """Velocities, which a driver with a timeout stops by itself.

    Args:
        timeout_s: of the driver.

    Attributes:
        velocity: commanded last ``[n]``.
    """

    message = FloatArray

    def __init__(self, joints: Sequence[str], timeout_s: float) -> None:
        super().__init__(joints)
        self._timeout_ns = round(timeout_s * 1e9)
        self.velocity = np.zeros(len(self.joints))
        self._received_ns = self._sampled_ns = 0

    def reset(self, position: np.ndarray) -> None:
        super().reset(position)
        self.velocity = np.zeros(len(self.joints))

    def receive(self, message: Message, now_ns: int, stamp_ns: int, position: np.ndarray, velocity: np.ndarray) -> str:
        assert isinstance(message, FloatArray)
        if len(message.data) != len(self.joints) or not np.isfinite(message.data).all():
            return f"{message.data.tolist()}: expected {len(self.joints)} finite velocities"
        self.velocity, self._received_ns = np.array(message.data, dtype=np.float64), now_ns
        return ""

    def sample(self, now_ns: int) -> np.ndarray:
        dt = (now_ns - self._sampled_ns) / 1e9 if self._sampled_ns else 0.0
        self._sampled_ns = now_ns
        if now_ns - self._received_ns <= self._timeout_ns:
            self.desired = self.desired + dt * self.velocity
        return self.desired


class Trajectory(Controller):
    """joint_trajectory_controller: see :mod:`~visuomotor.sim2real.twin.trajectory`.

    A trajectory whose first point is not due yet is joined to where the arm is measured to be, as the real one does.
    """

    message = JointTrajectory

    def __init__(self, joints: Sequence[str]) -> None:
        super().__init__(joints)
        self._knots: Knots | None = None
        self._received: Knots | None = None
        self._start_ns = 0

    def received(self, n: int) -> Knots:
        """The points of the trajectory taken last, of the first ``n`` joints."""
        assert self._received is not None
        k = self._received
        return Knots(k.times_s, k.positions[:, :n], k.velocities[:, :n], k.accelerations[:, :n])

    def reset(self, position: np.ndarray) -> None:
        super().reset(position)
        self._knots = None

    def receive(self, message: Message, now_ns: int, stamp_ns: int, position: np.ndarray, velocity: np.ndarray) -> str:
        assert isinstance(message, JointTrajectory)
        if why := refusal(message, self.joints, stamp_ns):
            return why
        knots = self._received = sorted_knots(message, self.joints)
        start = now_ns if not message.stamp_ns else now_ns + message.stamp_ns - stamp_ns
        lead = (start - now_ns) / 1e9 + knots.times_s[0]
        if lead > 0:
            none = np.full((1, len(self.joints)), np.nan)
            knots = Knots(
                np.concatenate([[0.0], knots.times_s + (start - now_ns) / 1e9]),
                np.concatenate([position[None], knots.positions]),
                np.concatenate([velocity[None], knots.velocities]),
                np.concatenate([none, knots.accelerations]),
            )
            start = now_ns
        self._knots, self._start_ns = knots, start
        return ""

    def sample(self, now_ns: int) -> np.ndarray:
        if self._knots is not None:
            self.desired = at(self._knots, (now_ns - self._start_ns) / 1e9)[0]
        return self.desired
