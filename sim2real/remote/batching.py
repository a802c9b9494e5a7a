"""Requests of several robots through one policy: gathered for a moment, the newest of each robot, none that is late."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.errors import UserError
from visuomotor.sim2real.remote.source import PlanRequest

__all__ = ["Batcher", "Planned", "ServerCounts"]

_KEPT = 1000


class Planned(NamedTuple):
    """What became of a request: a chunk ``[H, Da]``, or the reason why there is none."""

    chunk: NDArray[np.float32] | None
    reason: str
    waited_s: float
    planned_s: float
    batch: int


@dataclass
class ServerCounts:
    """What the server did so far; the last durations are kept for percentiles."""

    received: int = 0
    answered: int = 0
    replaced: int = 0  # a newer observation of the same robot came before it was planned for
    expired: int = 0  # nobody waited any more
    refused: int = 0
    failed: int = 0  # the policy raised
    batches: int = 0
    waited_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    planned_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    batch: deque[int] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def to_dict(self) -> dict[str, float]:
        """Counts, and percentiles of the last thousand requests, by name."""
        out: dict[str, float] = {
            name: getattr(self, name)
            for name in ("received", "answered", "replaced", "expired", "refused", "failed", "batches")
        }
        for name, values in (("waited_ms", self.waited_s), ("planned_ms", self.planned_s)):
            for percent in (50, 95):
                out[f"{name}_p{percent}"] = 1e3 * float(np.percentile(values, percent)) if values else 0.0
        return {**out, "batch_mean": float(np.mean(self.batch)) if self.batch else 0.0}


@dataclass
class _Waiting:
    request: PlanRequest
    came: float
    reply: Callable[[Planned], None]


class Batcher:
    """Plans for whoever waits, several at once.

    A request that waits is replaced by a newer one of the same client. One whose deadline has passed when its turn
    comes is dropped, not computed. While a batch is computed the next one gathers.

    Args:
        plan: requests to chunks, called in ``executor``.
        executor: of one thread: a policy is not called twice at a time.
        gather_s: how long the first request waits for those of other clients [s].
        largest: requests in one batch.
        clock: seconds.
    """

    def __init__(
        self, plan: Callable[[Sequence[PlanRequest]], list[NDArray[np.float32]]], executor: Executor, *,
        gather_s: float = 0.003, largest: int = 16, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._plan, self._executor, self._gather_s, self._largest = plan, executor, gather_s, largest
        self._clock = clock
        self._waiting: dict[Hashable, _Waiting] = {}  # in the order of arrival; a newer request keeps the place
        self._clients: set[Hashable] = set()
        self._came = asyncio.Event()
        self.counts = ServerCounts()

    def join(self, client: Hashable) -> None:
        """A client that requests are to be expected of."""
        self._clients.add(client)

    def leave(self, client: Hashable) -> None:
        """Forget a client and what it waits for."""
        self._clients.discard(client)
        self._waiting.pop(client, None)

    def submit(self, client: Hashable, request: PlanRequest, reply: Callable[[Planned], None]) -> None:
        """Take a request; ``reply`` is called in the event loop, or never (see the class)."""
        self.counts.received += 1
        self.counts.replaced += client in self._waiting
        self._waiting[client] = _Waiting(request, self._clock(), reply)
        self._came.set()

    async def run(self) -> None:
        """Plan until cancelled."""
        while True:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                await self._gather()
                if batch := self._take():
                    await self._answer(batch)

    async def _gather(self) -> None:
        """Wait for others, but not longer than it takes for all of them to have asked."""
        end = self._clock() + self._gather_s
        while len(self._waiting) < min(len(self._clients), self._largest) and (left := end - self._clock()) > 0:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        for client in list(self._waiting):
            if len(batch) == self._largest:
                break
            waiting = self._waiting.pop(client)
            if self._clock() - waiting.came > waiting.request.deadline_s:
                self.counts.expired += 1
            else:
                batch.append(waiting)
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        begin = self._clock()
        results = await self._planned([w.request for w in batch])
        seconds = self._clock() - begin
        self.counts.batches += 1
        self.counts.batch.append(len(batch))
        self.counts.planned_s.append(seconds)
        for waiting, result in zip(batch, results, strict=True):
            waited = begin - waiting.came
            self.counts.waited_s.append(waited)
            if isinstance(result, str):
                self.counts.failed += 1
                waiting.reply(Planned(None, result, waited, seconds, len(batch)))
            else:
                self.counts.answered += 1
                waiting.reply(Planned(result, "", waited, seconds, len(batch)))

    async def _planned(self, requests: list[PlanRequest]) -> list[Any]:
        """A chunk or the reason for none, for each. What one request brings about does not touch the others."""
        loop = asyncio.get_running_loop()
        try:
            chunks = await loop.run_in_executor(self._executor, self._plan, requests)
        except Exception as error:  # whatever a policy raises, the other robots go on
            if len(requests) == 1:
                text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                return [f"the policy failed: {text[:300]}"]
            return [(await self._planned([request]))[0] for request in requests]
        made = [np.asarray(chunk, np.float32) for chunk in chunks]
        return [c if np.isfinite(c).all() else "the policy's actions are not finite" for c in made]
