"""What comes in on a topic while somebody listens: how often, how late, and the newest message."""

from __future__ import annotations

import threading

import numpy as np

from visuomotor.sim2real.messages import Message
from visuomotor.sim2real.transports.base import Subscription, Transport

__all__ = ["Heard"]

_KEPT = 100_000


class Heard:
    """A subscription that keeps count.

    Attributes:
        topic, kind: what is listened to.
        subscription: of the transport.
        newest: the newest message, or None.
    """

    def __init__(self, transport: Transport, topic: str, kind: type[Message]) -> None:
        self.topic, self.kind = topic, kind
        self._transport, self._lock = transport, threading.Lock()
        self._received: list[int] = []
        self._stamps: list[int] = []
        self._late: list[int] = []
        self.newest: Message | None = None
        self.subscription: Subscription = transport.subscribe(topic, kind, self._hear)

    def _hear(self, message: Message, received_ns: int) -> None:
        clock = self._transport.stamp_ns()
        with self._lock:
            self.newest = message
            if len(self._received) < _KEPT:
                self._received.append(received_ns)
                self._stamps.append(message.stamp_ns)
                self._late.append(clock - message.stamp_ns)

    def restart(self) -> None:
        """Count from now on: what came while connections were made is no measure of a rate."""
        with self._lock:
            self._received, self._stamps, self._late = [], [], []

    @property
    def count(self) -> int:
        """Messages."""
        return len(self._received)

    @property
    def rate_hz(self) -> float:
        """Between the first message and the last; 0 of fewer than two."""
        with self._lock:
            span = self._received[-1] - self._received[0] if self._received else 0
            return (len(self._received) - 1) / (span * 1e-9) if span else 0.0

    @property
    def longest_gap_s(self) -> float:
        """Between two messages, or from the last one until now."""
        with self._lock:
            times = [*self._received, self._transport.now_ns()]
        return float(np.diff(times).max()) * 1e-9 if len(times) > 1 else float("inf")

    @property
    def has_stamps(self) -> bool:
        """Whether every header says when its message was true."""
        with self._lock:
            return bool(self._stamps) and all(self._stamps)

    @property
    def stamps_increase(self) -> bool:
        """Whether each is later than the one before."""
        with self._lock:
            return bool((np.diff(self._stamps) > 0).all()) if len(self._stamps) > 1 else True

    @property
    def clock_offset_s(self) -> float:
        """Our clock of headers minus theirs, and the fastest way between them: the smallest difference seen."""
        with self._lock:
            return min(self._late) * 1e-9 if self._late else 0.0

    @property
    def jitter_s(self) -> float:
        """95th percentile of how much later than the fastest a message came."""
        with self._lock:
            return float(np.percentile(np.array(self._late) - min(self._late), 95)) * 1e-9 if self._late else 0.0
