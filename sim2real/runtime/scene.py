"""What the surroundings say: an emergency stop, whether the goal holds; and asking for a new scene."""

from __future__ import annotations

from visuomotor.sim2real.messages import Boolean, Text
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.transports.base import Publisher, Transport

__all__ = ["Scene"]


class Scene:
    """Listens to ``stop_topic`` and ``success_topic``, speaks on ``reset_topic``.

    Attributes:
        good: the goal holds, as far as anybody says so.
        can_reset: there is somebody to set up a new scene.
    """

    def __init__(self, robot: RobotConfig, transport: Transport) -> None:
        self.good, self._stop = False, False
        self._stops, self._taken = 0, 0  # how often anybody said to stop, and how often that was taken note of
        self._reset: Publisher[Text] | None = None
        if robot.stop_topic:
            transport.subscribe(robot.stop_topic, Boolean, self._on_stop)
        if robot.success_topic:
            transport.subscribe(robot.success_topic, Boolean, self._on_success)
        if robot.reset_topic:
            self._reset = transport.advertise(robot.reset_topic, Text)
        self.can_reset = self._reset is not None

    def take_stop(self) -> bool:
        """Whether ``stop_topic`` says to stop, or did since the last call: a short press between two ticks counts."""
        stops = self._stops
        pressed, self._taken = stops != self._taken, stops
        return pressed or self._stop

    def ask_for(self, seed: int) -> None:
        """Ask for the scene of ``seed``."""
        if self._reset is not None:
            self._reset.publish(Text(data=str(seed)))

    def _on_stop(self, message: Boolean, received_ns: int) -> None:
        self._stop = message.data
        self._stops += message.data

    def _on_success(self, message: Boolean, received_ns: int) -> None:
        self.good = message.data
