"""What comes in on a topic, in order of when it was true, on our own clock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from visuomotor.sim2real.messages import Message

__all__ = ["HeaderClock", "Inbox", "JointHistory", "Track", "Worker"]

M = TypeVar("M", bound=Message)
_WINDOW_NS = 30_000_000_000  # clocks drift apart by 1.5 ms in that time (50 ppm)
_KEPT_NS = 2_000_000_000


class HeaderClock:
    """From the clock of a sender's headers to ours, however far apart they are.

    A stamp plus the offset of the clocks is when something was true; received minus stamp is that offset plus what the
    way took. The smallest of it over half a minute is taken for the offset: what a message is late beyond the fastest
    one then counts as its age. (The fastest way itself, well below a millisecond on one machine, cannot be told from
    the offset; a constant delay before the stamp neither: that is ``latency_s`` in the settings.)
    """

    def __init__(self, latency_s: float = 0.0) -> None:
        self._least: deque[tuple[int, int]] = deque()  # received, offset; both increasing
        self._latency_ns = round(latency_s * 1e9)

    @property
    def offset_ns(self) -> int:
        """Our clock minus theirs; 0 before the first message."""
        return self._least[0][1] if self._least else 0

    def event_ns(self, stamp_ns: int, received_ns: int) -> int:
        """When a message was true [ns of our clock]; without a stamp: when it was received."""
        if stamp_ns == 0:
            return received_ns - self._latency_ns
        offset = received_ns - stamp_ns
        while self._least and self._least[-1][1] >= offset:
            self._least.pop()
        self._least.append((received_ns, offset))
        while self._least[0][0] < received_ns - _WINDOW_NS:
            self._least.popleft()
        return stamp_ns + self._least[0][1] - self._latency_ns


class Inbox(Generic[M]):
    """Messages from the transport's threads to the bridge's own, none of which waits for the other.

    Attributes:
        received: how many have come.
        newest_ns: when the newest came; 0: none has.
    """

    def __init__(self, depth: int = 256) -> None:
        self._queue: deque[tuple[M, int]] = deque(maxlen=depth)
        self._times: deque[int] = deque(maxlen=64)
        self.received, self.newest_ns = 0, 0

    def put(self, message: M, received_ns: int) -> None:
        """The callback of a subscription."""
        self._queue.append((message, received_ns))
        self._times.append(received_ns)
        self.received, self.newest_ns = self.received + 1, received_ns

    def take(self) -> list[tuple[M, int]]:
        """What has come since the last call, oldest first."""
        out: list[tuple[M, int]] = []
        while self._queue:
            out.append(self._queue.popleft())
        return out

    def rate_hz(self, now_ns: int) -> float:
        """Of the last second."""
        return float(sum(1 for t in list(self._times) if t > now_ns - 1_000_000_000))


class Track:
    """Values at the times at which they were true: the last two seconds of them.

    Attributes:
        newest_ns: of the newest; 0: there is none.
    """

    def __init__(self) -> None:
        self._times: deque[int] = deque()
        self._values: deque[np.ndarray] = deque()

    @property
    def newest_ns(self) -> int:
        return self._times[-1] if self._times else 0

    @property
    def newest(self) -> np.ndarray:
        """The newest value."""
        return self._values[-1]

    def put(self, event_ns: int, value: np.ndarray) -> bool:
        """Append; False: it is not newer than what there is, and is dropped."""
        if event_ns <= self.newest_ns:
            return False
        self._times.append(event_ns)
        self._values.append(value)
        while self._times[0] < event_ns - _KEPT_NS:
            self._times.popleft()
            self._values.popleft()
        return True

    def at(self, time_ns: int) -> np.ndarray:
        """The value at a time, interpolated; beyond either end the one there."""
        after = len(self._times)
        while after and self._times[after - 1] > time_ns:  # what is asked for lies near the newest
            after -= 1
        if after == len(self._times):
            return self._values[-1]
        if after == 0:
            return self._values[0]
        t0, t1 = self._times[after - 1], self._times[after]
        share = (time_ns - t0) / (t1 - t0)
        return (1.0 - share) * self._values[after - 1] + share * self._values[after]


class JointHistory:
    """Measured joint positions and velocities, cleared of what cannot be true.

    A driver that fails to read its bus may report -pi, 0 or NaN for a joint (Interbotix: -pi by default). A position
    that the joint cannot have reached from the one before is not believed, until nothing else has come for a while.

    Args:
        names: of the joints, in our order.
        speed: the fastest that each can move [rad/s], ``[n]``; infinite: not checked.
        clock: of the stream.
        patience_s: after so long a new position is believed wherever it is.

    Attributes:
        track: of ``[2n]``: positions, then velocities.
        refused: why messages were dropped, by how many.
        believed_ns: when the newest believed message came; 0: none has.
    """

    _SLACK = 0.05  # noise and a delayed message [rad]

    def __init__(self, names: tuple[str, ...], speed: np.ndarray, clock: HeaderClock, patience_s: float) -> None:
        self.names, self._speed, self._clock = names, speed, clock
        self._patience_ns = round(patience_s * 1e9)
        self._index: dict[tuple[str, ...], np.ndarray | str] = {}
        self.track, self.believed_ns = Track(), 0
        self.refused: dict[str, int] = {}

    def put(
        self, name: tuple[str, ...], position: np.ndarray, velocity: np.ndarray, stamp_ns: int, received_ns: int
    ) -> str:
        """Take one message; returns why it was not believed, or an empty text."""
        if not any(n in self.names for n in name):
            return ""  # of another node on the same topic
        event = self._clock.event_ns(stamp_ns, received_ns)
        why = self._judge(name, position, event)
        if not why:
            index = self._index[name]
            q = position[index].astype(np.float64)
            dq = velocity[index].astype(np.float64) if len(velocity) == len(name) else self._rate(q, event)
            if not np.isfinite(dq).all():
                dq = self._rate(q, event)
            if self.track.put(event, np.concatenate([q, dq])):
                self.believed_ns = received_ns
                return ""
            why = "its time stamp does not increase"
        self.refused[why.split(":")[0]] = self.refused.get(why.split(":")[0], 0) + 1
        return why

    def _judge(self, name: tuple[str, ...], position: np.ndarray, event_ns: int) -> str:
        if name not in self._index:
            missing = [n for n in self.names if n not in name]
            self._index[name] = (
                f"no joint {missing[0]!r}: it has {', '.join(name)}" if missing else _places(self.names, name)
            )
        index = self._index[name]
        if isinstance(index, str):
            return index
        if len(position) != len(name):
            return f"no positions: {len(position)} for {len(name)} joints"
        q = position[index]
        if not np.isfinite(q).all():
            return f"a position that is no number: {self.names[int(np.argmin(np.isfinite(q)))]}"
        past_ns = event_ns - self.track.newest_ns
        if self.track.newest_ns and 0 < past_ns < self._patience_ns:
            jump = np.abs(q - self.track.newest[: len(q)])
            far = jump > self._speed * past_ns * 1e-9 + self._SLACK
            if far.any():
                j = int(np.argmax(np.where(far, jump, 0.0)))
                return f"a jump: {self.names[j]} by {jump[j]:.3f} rad in {past_ns * 1e-6:.1f} ms"
        return ""

    def _rate(self, q: np.ndarray, event_ns: int) -> np.ndarray:
        """Velocity from the message before, for drivers that give none."""
        if not self.track.newest_ns or event_ns <= self.track.newest_ns:
            return np.zeros_like(q)
        return (q - self.track.newest[: len(q)]) / ((event_ns - self.track.newest_ns) * 1e-9)


def _places(wanted: tuple[str, ...], name: tuple[str, ...]) -> np.ndarray:
    return np.array([name.index(n) for n in wanted])


class Worker(Generic[M]):
    """Applies a function to messages in a thread of its own, the newest first; what it is too slow for is dropped."""

    def __init__(self, work: Callable[[M, int], None]) -> None:
        self._work, self._wanted = work, threading.Condition()
        self._job: tuple[M, int] | None = None
        self._open = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, message: M, received_ns: int) -> None:
        """The callback of a subscription."""
        with self._wanted:
            self._job = (message, received_ns)
            self._wanted.notify()

    def close(self) -> None:
        """End the thread."""
        with self._wanted:
            self._open = False
            self._wanted.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._job is not None or not self._open)
                if not self._open:
                    return
                job, self._job = self._job, None
            assert job is not None
            self._work(*job)
