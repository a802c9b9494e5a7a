"""What the bridge tells people: the status on the board, and a summary at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from visuomotor.sim2real.runtime.episodes import EpisodeResult
from visuomotor.sim2real.runtime.observer import Observer
from visuomotor.sim2real.runtime.types import Status

__all__ = ["EventLog", "Latencies", "status_of", "summary"]

_SHOWN = 100


class EventLog:
    """What happened, with times. The same text is told once a second at most, with how often it came.

    Attributes:
        fresh: since they were last taken.
        total: how many there were.
    """

    def __init__(self, began_ns: int) -> None:
        self._began_ns = began_ns
        self._shown: deque[str] = deque(maxlen=_SHOWN)
        self._last: dict[str, tuple[int, int]] = {}
        self.fresh: list[str] = []
        self.total = 0

    def add(self, now_ns: int, text: str) -> None:
        """Write something down."""
        self.total += 1
        kind = "".join(c for c in text if not c.isdigit())
        then, more = self._last.get(kind, (-(10**18), 0))
        if now_ns - then < 1_000_000_000:
            self._last[kind] = (then, more + 1)
            return
        self._last[kind] = (now_ns, 0)
        line = f"{(now_ns - self._began_ns) * 1e-9:9.3f} s  {text}" + (f" (and {more} more alike)" if more else "")
        self._shown.append(line)
        self.fresh.append(line)

    def take(self) -> list[str]:
        """Lines that nobody has taken yet."""
        fresh, self.fresh = self.fresh, []
        return fresh

    @property
    def shown(self) -> list[str]:
        """The newest lines."""
        return list(self._shown)


class Latencies:
    """Durations [s] by name: how many, their median, 95th percentile and maximum; the newest 100,000 of each."""

    def __init__(self) -> None:
        self._values: dict[str, deque[float]] = {}

    def add(self, name: str, seconds: float) -> None:
        """Count one."""
        self._values.setdefault(name, deque(maxlen=100_000)).append(seconds)

    def newest(self, name: str) -> float:
        """The last one; 0 without any."""
        return self._values[name][-1] if self._values.get(name) else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, in milliseconds."""
        out = {}
        for name, values in self._values.items():
            ms = 1e3 * np.array(values)
            p50, p95 = np.percentile(ms, [50, 95])
            out[name] = {"count": len(ms), "p50_ms": float(p50), "p95_ms": float(p95), "max_ms": float(ms.max())}
        return out


def summary(
    results: list[EpisodeResult], faults: list[str], counts: dict[str, int], latencies: Latencies
) -> dict[str, Any]:
    """JSON-ready account of a session."""
    return {
        "episodes": [asdict(r) for r in results],
        "successes": sum(r.success for r in results),
        "interventions": sum(r.interventions for r in results),
        "faults": faults,
        "counts": counts,
        "latencies": latencies.to_dict(),
    }


def status_of(observer: Observer, joints: Sequence[str], now_ns: int) -> Status:
    """What is measured; the rest of the status is the bridge's."""
    q, v = observer.measured()
    return Status(
        joints=list(joints),
        measured=q.tolist() if np.isfinite(q).all() else [],
        velocity=v.tolist() if np.isfinite(v).all() else [],
        ages_s={k: min(age, 1e6) for k, (age, _) in observer.ages(now_ns).items()},
        rates_hz=observer.rates_hz(now_ns),
        pictures=observer.pictures(),
    )
