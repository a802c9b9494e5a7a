"""When the bridge ticks: at a steady rate, shortly after joint states come in."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Pacer"]

_AFTER_NS = 300_000  # a tick shall come so long after a joint state
_PULL = 0.1  # share of the distance to there that one tick makes up ...
_MOST = 0.01  # ... but no more than this share of a period: commands stay evenly spaced


class Pacer:
    """Sleeps from tick to tick.

    A loop that runs freely finds joint states half a period old on average. This one lets its phase slide, by one
    percent of a period at most, until a tick follows shortly after a joint state: a phase-locked loop.

    Args:
        period_ns: of the ticks.
        state_ns: when the newest joint state came; 0: none has.
        now_ns: the clock of both.

    Attributes:
        overruns: ticks that began more than a period late.
    """

    def __init__(
        self, period_ns: int, state_ns: Callable[[], int], now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._period_ns, self._state_ns, self._now_ns = period_ns, state_ns, now_ns
        self._due_ns = now_ns()
        self.overruns = 0

    def wait(self) -> int:
        """Sleep until the next tick is due; returns the time then [ns]."""
        self._due_ns += self._period_ns + self.slide()
        now = self._now_ns()
        if now < self._due_ns:
            time.sleep((self._due_ns - now) * 1e-9)
            return self._now_ns()
        if now - self._due_ns > self._period_ns:  # do not make up for what is lost by ticks in quick succession
            self.overruns += 1
            self._due_ns = now
        return now

    def slide(self) -> int:
        """By how much the next tick comes later (or earlier) than a period after the last one [ns]."""
        came = self._state_ns()
        if not came:
            return 0
        age = self._due_ns - came
        if not 0 <= age <= 2 * self._period_ns:  # a state that comes less often than we tick says nothing about phase
            return 0
        off = age - _AFTER_NS
        most = _MOST * self._period_ns
        return round(max(-most, min(most, -_PULL * off)))
