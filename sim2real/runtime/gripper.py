"""A gripper that opens and closes by one number."""

from __future__ import annotations

import numpy as np

from visuomotor.sim2real.messages import FloatArray, JointTrajectory, TrajectoryPoint
from visuomotor.sim2real.robots.config import GripperConfig
from visuomotor.sim2real.transports.base import Publisher, Transport

__all__ = ["Gripper", "command_value"]

_REPEAT_NS = 100_000_000  # a standing gripper is told again so often
_TRAJECTORY_NS = 50_000_000  # a moving one gets trajectories so often
_SAME = 1e-3  # of the opening


def command_value(config: GripperConfig, opening: float) -> float:
    """What the driver is told for an opening of 0..1."""
    return config.command_closed + opening * (config.command_opened - config.command_closed)


class Gripper:
    """Moves the commanded opening towards what is wanted, no faster than the settings allow, and sends it.

    Attributes:
        opening: commanded, 0 closed, 1 open.
    """

    def __init__(self, config: GripperConfig | None, transport: Transport, dt_s: float) -> None:
        self._config, self._step = config, 0.0 if config is None else config.speed * dt_s
        self.opening = self._wanted = 1.0
        self._told, self._told_ns = float("nan"), 0
        self._publisher: Publisher | None = None
        if config is not None and config.mode != "with_arm":
            kind: type[FloatArray] | type[JointTrajectory] = (
                FloatArray if config.mode == "forward_position" else JointTrajectory
            )
            self._publisher = transport.advertise(config.topic, kind)

    def start(self, opening: float) -> None:
        """Begin where the gripper is."""
        self.opening = self._wanted = min(1.0, max(0.0, opening))
        self._told = float("nan")

    def send(self, now_ns: int, wanted: float | None) -> None:
        """One tick; None keeps what was wanted before."""
        if self._config is None:
            return
        if wanted is not None:
            self._wanted = min(1.0, max(0.0, wanted))
        self.opening += min(self._step, max(-self._step, self._wanted - self.opening))
        if self._publisher is None:
            return
        if self._config.mode == "forward_position":
            self._send_value(now_ns)
        else:
            self._send_trajectory(now_ns)

    def _send_value(self, now_ns: int) -> None:
        assert self._config is not None
        assert self._publisher is not None
        if abs(self.opening - self._told) > _SAME or self._told != self._told or now_ns - self._told_ns >= _REPEAT_NS:
            self._publisher.publish(FloatArray(data=np.array([command_value(self._config, self.opening)])))
            self._told, self._told_ns = self.opening, now_ns

    def _send_trajectory(self, now_ns: int) -> None:
        """One point where it shall end, in the time that the way takes."""
        assert self._config is not None
        assert self._publisher is not None
        if abs(self._wanted - self._told) <= _SAME or now_ns - self._told_ns < _TRAJECTORY_NS:
            return
        takes = max(0.05, abs(self._wanted - self.opening) / self._config.speed)
        point = TrajectoryPoint(
            time_from_start_ns=round(1e9 * takes),
            positions=np.array([command_value(self._config, self._wanted)]),
            velocities=np.zeros(1),
        )
        self._publisher.publish(JointTrajectory(joint_names=(self._config.joint,), points=(point,)))
        self._told, self._told_ns = self._wanted, now_ns
