"""Nodes within one process on a clock that somebody advances: the same run, message for message, every time.

Messages go through their bytes as on a real middleware, so that nothing is shared between sender and receiver and what
does not fit into its type is refused here as well.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.messages import ROS_NAMES, Message
from visuomotor.sim2real.transports.base import (
    COMMAND,
    SENSOR,
    Endpoint,
    Publisher,
    Qos,
    Subscription,
    TopicInfo,
    Transport,
)
from visuomotor.sim2real.transports.cdr import encode
from visuomotor.sim2real.transports.inbox import Inbox

__all__ = ["Bus", "InprocTransport", "mismatch"]

M = TypeVar("M", bound=Message)


def mismatch(offered: Qos, requested: Qos) -> str:
    """Why a publisher and a subscriber of these qualities are not connected in ROS 2; empty: they are."""
    if requested.reliable and not offered.reliable:
        return "reliability: the publisher is best effort, the subscriber asks for reliable"
    if requested.transient_local and not offered.transient_local:
        return "durability: the publisher is volatile, the subscriber asks for transient local"
    return ""


@dataclass(eq=False)
class _Reader:
    node: InprocTransport
    kind: type[Message]
    qos: Qos
    inbox: Inbox[Any]


class _Writer(Publisher[Any]):
    def __init__(self, bus: Bus, node: InprocTransport, topic: str, kind: type[Message], qos: Qos) -> None:
        self.bus, self.node, self.topic, self.kind, self.qos = bus, node, topic, kind, qos
        self.kept: deque[bytes] = deque(maxlen=qos.depth)

    def publish(self, message: Message) -> None:
        data = encode(message)
        if self.node.closed:
            return
        if self.qos.transient_local:
            self.kept.append(data)
        for reader in self.bus.readers(self):
            self.bus.send(self, reader, data)

    def matched(self) -> int:
        return len(self.bus.readers(self))

    def rivals(self) -> int:
        return sum(writer is not self for writer in self.bus.topics[self.topic][0])


class Bus:
    """What connects the nodes of one process.

    Messages arrive while the clock is advanced, in the order of their times of arrival; those of one publisher to one
    subscriber never overtake each other. One that is sent while the clock stands arrives at the next ``advance``, be it
    by 0.

    Args:
        latency_ns: from ``publish`` to the callback.
        jitter_ns: up to so much longer, drawn uniformly.
        loss: share of the messages of best-effort connections that vanish; reliable ones are not lost.
        duplication: share of all messages that arrive twice.
        seed: of all those draws.
        epoch_ns: what clocks of headers show when the bus begins [ns since 1970].
    """

    def __init__(
        self, *, latency_ns: int = 0, jitter_ns: int = 0, loss: float = 0.0, duplication: float = 0.0, seed: int = 0,
        epoch_ns: int = 1_700_000_000_000_000_000,
    ) -> None:  # fmt: skip
        if latency_ns < 0 or jitter_ns < 0:
            raise ConfigError(f"latency_ns={latency_ns} and jitter_ns={jitter_ns} cannot be negative")
        for name, share in (("loss", loss), ("duplication", duplication)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share}; expected a share from 0 to 1")
        self.latency_ns, self.jitter_ns, self.loss, self.duplication = latency_ns, jitter_ns, loss, duplication
        self.epoch_ns = epoch_ns
        self.now_ns = 0
        self._random = np.random.default_rng(seed)
        self._queue: list[tuple[int, int, _Reader, bytes]] = []
        self._sent = 0
        self._last: dict[tuple[_Writer, _Reader], int] = {}
        self.topics: dict[str, tuple[list[_Writer], list[_Reader]]] = {}

    def node(self, name: str, *, clock_offset_ns: int = 0) -> InprocTransport:
        """A participant; the clock of its headers is ahead by ``clock_offset_ns``."""
        return InprocTransport(self, name, clock_offset_ns)

    def advance(self, dt_ns: int) -> None:
        """Let time pass, and everything arrive that is due."""
        if dt_ns < 0:
            raise ValueError(f"time does not run backwards: {dt_ns} ns")
        until = self.now_ns + dt_ns
        while self._queue and self._queue[0][0] <= until:
            due, _, reader, data = heapq.heappop(self._queue)
            self.now_ns = max(self.now_ns, due)
            if not reader.node.closed:
                reader.inbox.deliver(data, self.now_ns)
        self.now_ns = max(self.now_ns, until)  # a callback may have advanced it as well

    def readers(self, writer: _Writer) -> list[_Reader]:
        """Who is connected to this publisher."""
        readers = self.topics[writer.topic][1]
        return [r for r in readers if r.kind is writer.kind and not mismatch(writer.qos, r.qos)]

    def send(self, writer: _Writer, reader: _Reader, data: bytes) -> None:
        """Put bytes on their way."""
        reliable = writer.qos.reliable and reader.qos.reliable
        if self.loss and not reliable and self._random.random() < self.loss:
            return
        copies = 2 if self.duplication and self._random.random() < self.duplication else 1
        for _ in range(copies):
            late = int(self._random.integers(0, self.jitter_ns + 1)) if self.jitter_ns else 0
            due = max(self.now_ns + self.latency_ns + late, self._last.get((writer, reader), 0))
            self._last[writer, reader] = due
            self._sent += 1
            heapq.heappush(self._queue, (due, self._sent, reader, data))


class InprocTransport(Transport):
    """One node on a :class:`Bus`."""

    name = "inproc"

    def __init__(self, bus: Bus, node: str, clock_offset_ns: int = 0) -> None:
        self.bus, self.node, self._offset = bus, node, clock_offset_ns
        self.closed = False

    def advertise(self, topic: str, message: type[M], qos: Qos = COMMAND) -> Publisher[M]:
        writers, readers = self.bus.topics.setdefault(topic, ([], []))
        writer = _Writer(self.bus, self, topic, message, qos)
        writers.append(writer)
        for reader in readers:
            self._meet(writer, reader)
        return writer

    def subscribe(
        self, topic: str, message: type[M], callback: Callable[[M, int], None], qos: Qos = SENSOR
    ) -> Subscription:
        writers, readers = self.bus.topics.setdefault(topic, ([], []))
        subscription = Subscription(topic)
        reader = _Reader(self, message, qos, Inbox(subscription, message, callback))
        readers.append(reader)
        for writer in writers:
            self._meet(writer, reader)
            if reader.qos.transient_local and reader in self.bus.readers(writer):
                for data in writer.kept:
                    self.bus.send(writer, reader, data)
        return subscription

    @staticmethod
    def _meet(writer: _Writer, reader: _Reader) -> None:
        if reader.kind is writer.kind and (reason := mismatch(writer.qos, reader.qos)):
            reader.inbox.subscription.incompatible = writer.incompatible = reason

    def now_ns(self) -> int:
        return self.bus.now_ns

    def stamp_ns(self) -> int:
        return self.bus.epoch_ns + self.bus.now_ns + self._offset

    def graph(self) -> list[TopicInfo]:
        def end(x: _Writer | _Reader) -> Endpoint:
            return Endpoint(f"/{x.node.node}", ROS_NAMES[x.kind], x.qos)

        return [
            TopicInfo(topic, tuple(map(end, writers)), tuple(map(end, readers)))
            for topic, (writers, readers) in sorted(self.bus.topics.items())
            if writers or readers
        ]

    def close(self) -> None:
        self.closed = True
        for writers, readers in self.bus.topics.values():
            writers[:] = [w for w in writers if w.node is not self]
            readers[:] = [r for r in readers if r.node is not self]
