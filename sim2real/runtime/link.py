"""Between the bridge and the policy: observations one way, chunks the other, and whether the other side still lives."""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from visuomotor.data.spec import ArraySpec
from visuomotor.sim2real.runtime.memory import Block, Counters, Ring, Segment
from visuomotor.sim2real.runtime.pilot import Pilot
from visuomotor.sim2real.runtime.types import Chunk, Observed

__all__ = ["DirectLink", "PolicyLink", "PolicyPort", "SharedLink"]

_SLOTS = 32
_WORDS = 4096
_OBSERVED = struct.Struct("<qqqqq")  # time, step, episode, seed, size of the ages
_CHUNK = struct.Struct("<qqqqqqq")  # observed, first, dt, sequence, episode, H, Da
_BEAT, _READY = 0, 1
_BEAT_EVERY_S = 0.01


class PolicyLink(Protocol):
    """The policy as the bridge sees it."""

    def send(self, observed: Observed) -> None:
        """Hand an observation over; never waits."""

    def receive(self, now_ns: int) -> Chunk | None:
        """The newest chunk that was not received yet."""

    def trouble(self, now_ns: int) -> str:
        """Why nothing is to be expected of the policy any more; empty: it lives."""

    @property
    def ready(self) -> bool:
        """Whether it has loaded and answered once."""


class DirectLink:
    """A policy in the same process, for simulated clocks: its chunks come ``latency_s`` after their observation."""

    ready = True

    def __init__(self, pilot: Pilot, *, latency_s: float) -> None:
        self._pilot, self._latency_ns = pilot, round(latency_s * 1e9)
        self._waiting: deque[Observed] = deque()
        self._coming: tuple[int, Chunk] | None = None
        self._tick_ns = 0  # of the last call of receive: observations are sent in the same tick

    def send(self, observed: Observed) -> None:
        self._waiting.append(observed)
        if self._coming is None:
            self._plan(self._tick_ns)

    def receive(self, now_ns: int) -> Chunk | None:
        self._tick_ns = now_ns
        if self._coming is None or now_ns < self._coming[0]:
            return None
        there, chunk = self._coming
        self._coming = None
        self._plan(there)  # with what has come meanwhile
        return chunk

    def trouble(self, now_ns: int) -> str:
        return ""

    def _plan(self, began_ns: int) -> None:
        while self._waiting:
            self._pilot.take(self._waiting.popleft())
        if self._pilot.due:
            there = began_ns + self._latency_ns
            chunk = self._pilot.plan(lambda: there)
            if chunk is not None:
                self._coming = (there, chunk)


class _Shared:
    """The memory of a link: both sides lay it out alike, from the same specification."""

    def __init__(self, obs: Mapping[str, ArraySpec], horizon: int, action_size: int, fd: int | None) -> None:
        self.specs = dict(sorted(obs.items()))
        self.dtypes = {k: np.dtype(s.dtype) for k, s in self.specs.items()}
        record = _OBSERVED.size + sum(s.size * self.dtypes[k].itemsize for k, s in self.specs.items())
        chunk = _CHUNK.size + 8 * horizon * action_size
        size = Ring.needed(_SLOTS, record) + Block.needed(chunk) + Block.needed(_WORDS) + Counters.needed(2)
        self.segment = Segment(size, fd)
        self.ring = Ring(self.segment, _SLOTS, record)
        self.mailbox = Block(self.segment, chunk)
        self.words = Block(self.segment, _WORDS)
        self.counters = Counters(self.segment, 2)


class SharedLink:
    """The bridge's side of the shared memory.

    Args:
        obs: what the policy observes, without its constant keys.
        horizon, action_size: of a chunk.
        timeout_s: without a sign of life for so long, the policy counts as stalled.
        fds: memory and bell of a :class:`PolicyPort`.
        pid: of the policy's process, whose death is noticed at once.
    """

    def __init__(
        self, obs: Mapping[str, ArraySpec], horizon: int, action_size: int, *, timeout_s: float, fds: tuple[int, int],
        pid: int,
    ) -> None:  # fmt: skip
        self._shared = _Shared(obs, horizon, action_size, fds[0])
        self._bell, self._timeout_ns = fds[1], round(timeout_s * 1e9)
        self._had = 0
        self._pid = pid
        self._life = select.poll()
        self._life.register(os.pidfd_open(pid), select.POLLIN)

    @property
    def ready(self) -> bool:
        return self._shared.counters[_READY] > 0

    def send(self, observed: Observed) -> None:
        head = _OBSERVED.pack(observed.time_ns, observed.step, observed.episode, observed.seed, 0)
        values = [
            np.ascontiguousarray(observed.values[k], d).reshape(-1).view(np.uint8).data
            for k, d in self._shared.dtypes.items()
        ]
        self._shared.ring.put([head, *values])
        os.eventfd_write(self._bell, 1)

    def receive(self, now_ns: int) -> Chunk | None:
        version = self._shared.mailbox.version
        if version == self._had or version & 1:
            return None
        found = self._shared.mailbox.read()
        if found is None:
            return None
        self._had = version
        observed, first, dt, sequence, episode, steps, size = _CHUNK.unpack_from(found[0])
        actions = np.frombuffer(found[0], np.float64, steps * size, _CHUNK.size).reshape(steps, size)
        return Chunk(
            observed_ns=observed, first_ns=first, dt_ns=dt, actions=actions, sequence=sequence, episode=episode
        )

    def trouble(self, now_ns: int) -> str:
        words = self._shared.words.read()
        if words is not None:
            return f"the policy has ended: {words[0].decode(errors='replace')}"
        if self._life.poll(0):
            return f"the policy's process ({self._pid}) has died"
        beat = self._shared.counters[_BEAT]
        if beat and now_ns - beat > self._timeout_ns:
            age = (now_ns - beat) * 1e-9
            return (
                f"the policy's process ({self._pid}) has stalled: no sign of life for {age:.3f} s (limit "
                f"{self._timeout_ns * 1e-9:g} s)"
            )
        return ""


class PolicyPort:
    """The policy's side: makes the memory, and tells the bridge that it lives.

    Args:
        obs, horizon, action_size: as of :class:`SharedLink`.

    Attributes:
        fds: memory and bell; give them to the bridge by ``pass_fds``.
    """

    def __init__(self, obs: Mapping[str, ArraySpec], horizon: int, action_size: int) -> None:
        self._shared = _Shared(obs, horizon, action_size, None)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.fds = (self._shared.segment.fd, self._bell)
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    @staticmethod
    def now_ns() -> int:
        """The clock of both sides: CLOCK_MONOTONIC is the same for all processes of a machine."""
        return time.monotonic_ns()

    def ready(self) -> None:
        """Say that the policy is loaded and warm."""
        self._shared.counters[_READY] = 1

    def wait(self, timeout_s: float) -> None:
        """Until there is an observation, or for ``timeout_s``."""
        if select.select([self._bell], [], [], timeout_s)[0]:
            os.eventfd_read(self._bell)

    def take(self) -> list[Observed]:
        """Observations that have come since the last call, oldest first."""
        out = []
        while (data := self._shared.ring.take()) is not None:
            out.append(self._unpacked(data))
        return out

    def post(self, chunk: Chunk) -> None:
        """Hand a chunk to the bridge, in the place of one that it has not taken yet."""
        steps, size = chunk.actions.shape
        head = _CHUNK.pack(chunk.observed_ns, chunk.first_ns, chunk.dt_ns, chunk.sequence, chunk.episode, steps, size)
        self._shared.mailbox.write(
            [head, np.ascontiguousarray(chunk.actions, np.float64).reshape(-1).view(np.uint8).data]
        )

    def last_words(self, text: str) -> None:
        """Say why the policy ends."""
        self._shared.words.write([text.encode()[:_WORDS]])

    def close(self) -> None:
        """End the signs of life."""
        self._closed.set()
        self._heart.join()
        self._shared.segment.close()
        os.close(self._bell)

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT_EVERY_S):
            self._shared.counters[_BEAT] = time.monotonic_ns()

    def _unpacked(self, data: bytes) -> Observed:
        time_ns, step, episode, seed, _ = _OBSERVED.unpack_from(data)
        at, values = _OBSERVED.size, {}
        for key, spec in self._shared.specs.items():
            dtype = self._shared.dtypes[key]
            values[key] = np.frombuffer(data, dtype, spec.size, at).reshape(spec.shape)
            at += spec.size * dtype.itemsize
        return Observed(time_ns=time_ns, step=step, episode=episode, seed=seed, values=values, ages_s={})


def run_policy(port: PolicyPort, pilot: Pilot, ended: Sequence[int]) -> None:
    """Serve the bridge until one of ``ended`` (descriptors of processes) becomes readable."""
    while not select.select(ended, [], [], 0)[0]:
        for observed in port.take():
            pilot.take(observed)
        if pilot.due:
            chunk = pilot.plan(port.now_ns)
            if chunk is not None:
                port.post(chunk)
        else:
            port.wait(0.05)
