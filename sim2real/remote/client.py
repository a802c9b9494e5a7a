"""The policy server seen from the robot: a source of chunks that reconnects and waits no longer than it was asked to.

Imports without torch: it runs on the robot's own computer.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.errors import CheckpointError, ConfigError, UserError
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.remote.config import read_token
from visuomotor.sim2real.remote.protocol import (
    OTHER_SPEC,
    PROTOCOL,
    check_protocol,
    check_same_spec,
    read_chunk,
    write_plan,
)
from visuomotor.sim2real.remote.sockets import (
    ClientConnection,
    ConnectionClosed,
    InvalidStatus,
    InvalidURI,
    client_tls,
    connect,
)
from visuomotor.sim2real.remote.source import PlanRequest
from visuomotor.sim2real.remote.wire import WireError, decode, encode

__all__ = ["ClientConfig", "LinkCounts", "RemoteSource"]

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_LARGEST_ANSWER = 16 << 20
_KEPT = 1000
_PAUSE_S = 0.02  # after a refusal, lest it is asked for without end


@dataclass(kw_only=True, slots=True)
class ClientConfig:
    """How a policy server is reached.

    Attributes:
        url: ``ws://host:port``, or ``wss://host:port`` for TLS.
        token: that the server asks for; null takes the variable ``VISUOMOTOR_TOKEN``, if it is set.
        tls_ca: PEM file of the authority that signed the server's certificate; null trusts the system's.
        name: what the server calls this robot in its log.
        jpeg: quality of the pictures that are sent, 1 to 100; null sends them as they are.
        connect_s: how long the first connection may take [s].
    """

    url: str = "ws://127.0.0.1:8765"
    token: str | None = None
    tls_ca: str | None = None
    name: str = "robot"
    jpeg: int | None = None
    connect_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("ws://", "wss://")):
            raise ConfigError(f"url={self.url}: expected ws://host:port, or wss://host:port for TLS")
        if self.tls_ca is not None and not self.url.startswith("wss://"):
            raise ConfigError(f"tls_ca= belongs to wss://, url={self.url} is not encrypted")
        if self.jpeg is not None and not 1 <= self.jpeg <= 100:
            raise ConfigError(f"jpeg={self.jpeg}: expected 1 to 100")
        self.token = read_token(self.token, None)


@dataclass
class LinkCounts:
    """What went over the link so far; the last durations are kept."""

    asked: int = 0
    answered: int = 0
    late: int = 0  # nothing came before the deadline
    refused: int = 0
    connections: int = 0
    round_trip_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    planned_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))


class RemoteSource:
    """A :class:`ChunkSource` whose policy runs behind a :class:`PolicyServer`.

    A thread keeps the connection. :meth:`plan` returns within the deadline of its request whatever the network does; an
    answer that comes later is dropped, by its sequence number.

    Args:
        config: where the server is.
        expected: the specification that the server must have; None takes whatever it has. After a lost connection it
            must have the same again.

    Raises:
        UserError: no server there in time, or one that refuses this client, with its reason.
    """

    def __init__(self, config: ClientConfig, expected: PolicySpec | None = None) -> None:
        self._config, self._spec = config, expected
        self._tls = client_tls(config.tls_ca) if config.url.startswith("wss://") else None
        self._changed = threading.Condition()
        self._sequence = 0
        self._answer: tuple[int, NDArray[np.float32] | None] = (0, None)
        self._connected = self._closed = False
        self._trouble = ""  # why there is no connection
        self._fatal: UserError | None = None  # why there never will be one
        self.counts = LinkCounts()
        self.about: dict[str, Any] = {}
        self.refusal = ""  # the newest reason of the server for making no chunk
        self._outbox: bytes | None = None
        self._wait_s = _FIRST_WAIT_S
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="policy link", daemon=True)
        self._thread.start()
        if not self._wait(lambda: self._connected or self._fatal is not None, config.connect_s):
            self.close()
            raise UserError(f"no policy server at {config.url} within {config.connect_s:g} s: {self._trouble}")
        if self._fatal is not None:
            self.close()
            raise self._fatal

    @property
    def spec(self) -> PolicySpec:
        """What is observed and commanded."""
        assert self._spec is not None
        return self._spec

    @property
    def connected(self) -> bool:
        """Whether the server is there now."""
        return self._connected

    @property
    def trouble(self) -> str:
        """Why the server is not there; empty while it is."""
        return "" if self._connected else self._trouble

    def plan(self, request: PlanRequest) -> NDArray[np.float32] | None:
        """A chunk ``[H, Da]``, or None where none came within ``request.deadline_s``.

        Raises:
            UserError: the server has another policy now, or refuses the token: it will never answer.
        """
        begin = time.monotonic()
        with self._changed:
            if self._fatal is not None:
                raise self._fatal
            self._sequence += 1
            sequence = self._sequence
        data = encode(write_plan(self.spec, request, sequence, jpeg_quality=self._config.jpeg))
        self.counts.asked += 1
        self._loop.call_soon_threadsafe(self._send_next, data)
        left = request.deadline_s - (time.monotonic() - begin)
        came = self._wait(lambda: self._answer[0] == sequence or self._fatal is not None, left)
        if self._fatal is not None:
            raise self._fatal
        if not came:
            self.counts.late += 1
            return None
        chunk = self._answer[1]
        if chunk is None:
            time.sleep(max(0.0, min(_PAUSE_S, request.deadline_s - (time.monotonic() - begin))))
            return None
        self.counts.answered += 1
        self.counts.round_trip_s.append(time.monotonic() - begin)
        return chunk

    def close(self) -> None:
        """Hang up. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(timeout=5.0)
        if not self._loop.is_running():
            self._loop.close()

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, max(0.0, seconds))

    # ---- in the thread of the link

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._keep())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)

    async def _keep(self) -> None:
        """Stay connected; after a failure wait twice as long as before, somewhat at random, up to a few seconds.

        A connection that brought a chunk makes the waiting short again; one that only opened does not.
        """
        while True:
            try:
                async with await self._open() as connection:
                    await self._talk(connection)
                self._lost("the server hung up")
            except InvalidStatus as error:
                status = error.response.status_code
                if status in (401, 403, 404):
                    self._give_up(UserError(f"{self._config.url} refuses this client: {_REFUSALS[status]}"))
                    return
                self._lost(f"it answers {status}, {_REFUSALS.get(status, 'which is none of ours')}")
            except CheckpointError as error:
                self._give_up(error)
                return
            except ConnectionClosed as error:
                reason = "" if error.rcvd is None else error.rcvd.reason
                if error.rcvd is not None and error.rcvd.code == OTHER_SPEC:
                    self._give_up(CheckpointError(f"{self._config.url} refuses this robot: {reason}"))
                    return
                self._lost(reason or "the connection was cut")
            except Exception as error:  # whatever sockets, TLS and asyncio raise: the robot waits for its server
                self._lost(str(error) or type(error).__name__)
            await asyncio.sleep(self._wait_s * random.uniform(0.5, 1.0))
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)

    async def _open(self) -> ClientConnection:
        headers = {} if self._config.token is None else {"Authorization": f"Bearer {self._config.token}"}
        try:
            return await connect(
                self._config.url,
                ssl=self._tls,
                additional_headers=headers,
                compression=None,
                proxy=None,  # a robot's server is not behind a proxy that the environment happens to name
                open_timeout=5.0,
                ping_interval=2.0,
                ping_timeout=10.0,  # a machine under load is not gone; what waits for a chunk has its own deadline
                close_timeout=1.0,
                max_size=_LARGEST_ANSWER,
            )
        except InvalidURI as error:
            raise CheckpointError(str(error)) from None

    async def _talk(self, connection: ClientConnection) -> None:
        mine = None if self._spec is None else self._spec.to_dict()
        hello = {"kind": "hello", "protocol": PROTOCOL, "name": self._config.name, "spec": mine}
        await connection.send(encode(hello))
        async with asyncio.timeout(5.0):
            welcome = decode(_binary(await connection.recv()))
        check_protocol(welcome, "welcome")
        self._take_spec(welcome)
        self.counts.connections += 1
        self._outbox = None  # of before: too old
        self._report(connected=True)
        sending = asyncio.create_task(self._send(connection))
        try:
            async for data in connection:
                self._take(decode(_binary(data)))
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await sending

    def _take_spec(self, welcome: dict[str, Any]) -> None:
        theirs = welcome.get("spec")
        if self._spec is not None:
            check_same_spec(self._spec, theirs, me="this robot", other="the server")
        else:
            try:
                self._spec = PolicySpec.from_dict(theirs)  # type: ignore[arg-type]
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise CheckpointError(f"{self._config.url} describes no policy: {error}") from None
        about = welcome.get("about")
        self.about = about if isinstance(about, dict) else {}

    def _send_next(self, data: bytes) -> None:
        self._outbox = data
        self._wake.set()

    async def _send(self, connection: ClientConnection) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            data, self._outbox = self._outbox, None
            if data is not None:
                await connection.send(data)

    def _take(self, message: dict[str, Any]) -> None:
        chunk: NDArray[np.float32] | None = None
        if message.get("kind") == "refused":
            sequence = message.get("sequence")
            self.counts.refused += 1
            self.refusal = str(message.get("reason"))[:300]
        elif message.get("kind") == "chunk":
            sequence, chunk = read_chunk(self.spec, message)
            self._wait_s = _FIRST_WAIT_S
            planned = message.get("planned_s")
            self.counts.planned_s.append(planned if isinstance(planned, float) else 0.0)
        else:
            raise WireError(f"expected 'chunk' or 'refused', not {str(message.get('kind'))[:20]!r}")
        with self._changed:
            if isinstance(sequence, int) and self._answer[0] < sequence <= self._sequence:
                self._answer = (sequence, chunk)
                self._changed.notify_all()

    def _report(self, *, connected: bool) -> None:
        with self._changed:
            self._connected = connected
            self._changed.notify_all()

    def _lost(self, why: str) -> None:
        self._trouble = why
        self._report(connected=False)

    def _give_up(self, error: UserError) -> None:
        self._trouble = str(error)
        with self._changed:
            self._fatal = error
            self._changed.notify_all()


_REFUSALS = {
    401: "it asks for another token (token=, or the variable VISUOMOTOR_TOKEN)",
    403: "it lets no web pages in",
    404: "there is no policy at this path",
    503: "as many robots as it allows are connected",
}


def _binary(data: str | bytes) -> bytes:
    if isinstance(data, str):
        raise WireError("text, where messages are binary")
    return data
