"""What the training loop tells its subscribers."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor

__all__ = ["GracefulStop", "StepEvent", "Subscriber", "every"]


@dataclass(frozen=True)
class StepEvent:
    """One optimiser step is done. Tensors are left on the device: read them rarely."""

    step: int  # steps done, from 1
    total: int
    loss: Tensor
    grad_norm: Tensor
    lr: float
    batch_size: int  # over all ranks
    stopping: bool  # the run ends after this step, before its time


Subscriber = Callable[[StepEvent], None]


def every(n: int, action: Subscriber, *, on_stop: bool = True) -> Subscriber:
    """Call ``action`` after every ``n``-th step and after the last; with ``on_stop`` also when the run is stopped.

    With ``n = 0`` only then.
    """

    def subscriber(event: StepEvent) -> None:
        if event.step == event.total or (on_stop and event.stopping) or (n and event.step % n == 0):
            action(event)

    return subscriber


class GracefulStop:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the current step; the second kills as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
