"""The twin in real time."""

from __future__ import annotations

import time
from collections.abc import Callable

from visuomotor.sim2real.twin.node import Twin

__all__ = ["run_twin"]

_BEHIND_S = 0.2  # a computer that stood still does not make up for more than this


def run_twin(twin: Twin, seconds: float, on_second: Callable[[int, float], None]) -> None:
    """Tick at the twin's rate for ``seconds``; ``on_second(second, late)`` hears how long it has been behind [s].

    Physics that cannot keep up falls behind, and time is then lost rather than caught up with in a rush.
    """
    period = 1.0 / twin.rate_hz
    begin = due = time.monotonic()
    said, late = 0, 0.0
    while (now := time.monotonic()) - begin < seconds:
        if now < due:
            time.sleep(due - now)
        elif now - due > _BEHIND_S:
            late += now - due
            due = now
        twin.tick()
        due += period
        if int(now - begin) > said:
            said = int(now - begin)
            on_second(said, late)
