"""A policy of arithmetic, and a server around it in a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from visuomotor.data.actions import ActionConfig
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.remote.client import ClientConfig, RemoteSource
from visuomotor.sim2real.remote.config import ServerConfig
from visuomotor.sim2real.remote.server import PolicyServer
from visuomotor.sim2real.remote.source import PlanRequest

WINDOW = WindowConfig(n_obs=2, horizon=8, n_exec=4)
SPEC = PolicySpec(
    obs={
        "state": ArraySpec(shape=(3,), role="observation", unit="rad", names=("a", "b", "c")),
        "front": ArraySpec(shape=(12, 16, 3), dtype="uint8", role="observation"),
    },
    action_key="action",
    action=ArraySpec(shape=(2,), role="action", unit="rad"),
    fps=20.0,
    window=WINDOW,
    action_config=ActionConfig(),
)


class Arithmetic:
    """Chunks whose first column is the sum of the newest state, the second the mean of the newest picture."""

    def __init__(self) -> None:
        self.spec = SPEC
        self.batches: list[int] = []
        self.seen: list[float] = []  # first component of the newest state
        self.seconds = 0.0
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.fail: Exception | None = None

    def plan_many(self, requests: Sequence[PlanRequest]) -> list[np.ndarray]:
        self.entered.set()
        self.go.wait(20)
        time.sleep(self.seconds)
        self.batches.append(len(requests))
        self.seen += [float(r.obs["state"][-1, 0]) for r in requests]
        if self.fail is not None:
            raise self.fail
        return [self.chunk(r) for r in requests]

    @staticmethod
    def chunk(request: PlanRequest) -> np.ndarray:
        row = [request.obs["state"][-1].sum(dtype=np.float64), request.obs["front"][-1].mean()]
        with np.errstate(over="ignore"):
            return np.tile(np.array(row, np.float64).astype(np.float32), (WINDOW.horizon, 1))


class Running:
    """A server in a thread of its own."""

    def __init__(self, source: Any, config: ServerConfig) -> None:
        self._loop, self._ready = asyncio.new_event_loop(), threading.Event()
        self._stop = asyncio.Event()
        self.server = PolicyServer(source, config, {"model": "arithmetic"})
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with self.server:
            self._ready.set()
            await self._stop.wait()

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(20)
            assert not self._thread.is_alive()


@pytest.fixture
def spec() -> PolicySpec:
    """What :class:`Arithmetic` observes."""
    return SPEC


@pytest.fixture
def source() -> Arithmetic:
    """The policy."""
    return Arithmetic()


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """``start(source, **settings)`` -> a running server, stopped after the test."""
    running: list[Running] = []

    def make(source: Any, **settings: Any) -> Running:
        running.append(Running(source, ServerConfig(**{"port": 0, **settings})))
        return running[-1]

    yield make
    for server in running:
        server.close()


@pytest.fixture
def dial() -> Iterator[Callable[..., RemoteSource]]:
    """``dial(url, **settings)`` -> a client, closed after the test."""
    clients: list[RemoteSource] = []

    def make(url: str, *, expected: PolicySpec | None = None, **settings: Any) -> RemoteSource:
        clients.append(RemoteSource(ClientConfig(url=url, **settings), expected))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def ask() -> Callable[..., PlanRequest]:
    """``ask(value, **changes)`` -> a request whose newest state is ``value`` in all components."""

    def make(value: float = 1.0, **changes: Any) -> PlanRequest:
        state = np.full((2, 3), value, np.float32)
        front = np.full((2, 12, 16, 3), 7, np.uint8)
        request = PlanRequest(obs={"state": state, "front": front}, previous=None, seed=1, plan=0, deadline_s=10.0)
        return replace(request, **changes)

    return make
