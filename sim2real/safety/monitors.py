"""What is watched while the arm moves: the age of every stream, and whether the arm follows what was sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from visuomotor.sim2real.safety.config import SafetyConfig

__all__ = ["TrackingMonitor", "stale"]


def stale(ages_s: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """A sentence for every stream that is too old: which, how old, which limit.

    Args:
        ages_s: by stream: age of its newest message, by when it was received, and the limit [s].
    """
    out = []
    for stream, (age, limit) in ages_s.items():
        if age == float("inf"):
            out.append(f"{stream}: no message yet")
        elif not age <= limit:  # not a number counts too
            out.append(f"{stream}: no message for {age:.3f} s; limit {limit:.3f} s")
    return tuple(out)


class TrackingMonitor:
    """Notices an arm that does not follow: blocked, in another mode, disconnected, or without power.

    A measured joint may be anywhere between the lowest and the highest position that was commanded within the last
    ``tracking_window_s``, so that the delay of the robot's own controller is no error.

    Args:
        names: of the joints.
        config: how far, for how long.
    """

    def __init__(self, names: tuple[str, ...], config: SafetyConfig) -> None:
        self._names, self._config = names, config
        self.reset()

    def reset(self) -> None:
        """Forget what was commanded: before the first command after a pause."""
        self._sent: deque[tuple[int, np.ndarray]] = deque()
        self._since_ns: int | None = None

    def check(self, now_ns: int, commanded: np.ndarray, measured: np.ndarray) -> str:
        """What is wrong, or nothing.

        Args:
            now_ns: monotonic clock [ns].
            commanded: what is sent now ``[n]`` [rad or m].
            measured: the newest measured positions ``[n]`` [rad or m].
        """
        self._sent.append((now_ns, np.array(commanded, dtype=np.float64)))
        while self._sent[0][0] < now_ns - round(self._config.tracking_window_s * 1e9):
            self._sent.popleft()
        past = np.stack([q for _, q in self._sent])
        error = np.maximum(past.min(0) - measured, measured - past.max(0))
        error = np.where(np.isfinite(error), error, np.inf)
        worst = int(error.argmax())
        limit = self._config.tracking_error
        if error[worst] <= limit:
            self._since_ns = None
            return ""
        if self._since_ns is None:
            self._since_ns = now_ns
        if (now_ns - self._since_ns) * 1e-9 < self._config.tracking_time_s:
            return ""
        return (
            f"{self._names[worst]} does not follow: measured {measured[worst]:.3f}, commanded {commanded[worst]:.3f} "
            f"rad; limit {limit:g} rad for {self._config.tracking_time_s:g} s"
        )
