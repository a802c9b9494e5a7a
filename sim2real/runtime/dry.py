"""A transport whose commands go nowhere: everything but moving the arm (``dry_run``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from visuomotor.sim2real.messages import Message
from visuomotor.sim2real.transports.base import COMMAND, SENSOR, Publisher, Qos, Subscription, TopicInfo, Transport

__all__ = ["DryTransport"]

M = TypeVar("M", bound=Message)


class _Nothing(Publisher[M]):
    def publish(self, message: M) -> None:
        pass

    def matched(self) -> int:
        return 1


class DryTransport(Transport):
    """Listens as another transport does, and publishes nothing."""

    def __init__(self, inner: Transport) -> None:
        self._inner, self.name = inner, f"{inner.name} (dry run)"

    def advertise(self, topic: str, message: type[M], qos: Qos = COMMAND) -> Publisher[M]:
        return _Nothing()

    def subscribe(
        self, topic: str, message: type[M], callback: Callable[[M, int], None], qos: Qos = SENSOR
    ) -> Subscription:
        return self._inner.subscribe(topic, message, callback, qos)

    def now_ns(self) -> int:
        return self._inner.now_ns()

    def stamp_ns(self) -> int:
        return self._inner.stamp_ns()

    def graph(self) -> list[TopicInfo]:
        return self._inner.graph()

    def close(self) -> None:
        self._inner.close()
