"""A policy for robots on other machines: a websocket server around a source of chunks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import http
import json
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.errors import CheckpointError, UserError
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.remote.batching import Batcher, Planned
from visuomotor.sim2real.remote.config import ServerConfig
from visuomotor.sim2real.remote.protocol import (
    BAD_MESSAGE,
    OTHER_SPEC,
    PROTOCOL,
    check_finite,
    check_protocol,
    check_same_spec,
    largest_message,
    read_plan,
)
from visuomotor.sim2real.remote.sockets import (
    ConnectionClosed,
    Request,
    Response,
    Server,
    ServerConnection,
    serve,
    server_tls,
)
from visuomotor.sim2real.remote.source import PlanRequest
from visuomotor.sim2real.remote.wire import WireError, decode, encode

__all__ = ["ManySource", "PolicyServer"]

log = logging.getLogger(__name__)

_HELLO_S = 5.0  # for the first message
_SEND_S = 5.0  # a client that takes no answer for so long is let go
_PING_S = 5.0
_REASON = 120  # bytes that a closing frame has room for (RFC 6455, 5.5: 125 with the code)


class ManySource(Protocol):
    """Makes chunks for several robots at once."""

    @property
    def spec(self) -> PolicySpec: ...
    def plan_many(self, requests: Sequence[PlanRequest]) -> list[NDArray[np.float32]]: ...


class PolicyServer:
    """Serves chunks of ``source``; ``async with server:`` listens until the block ends.

    Refuses clients without the token, of other origins (web pages), with another specification, and closes the
    connection of one that sends what no client sends; the others do not notice.

    Args:
        source: makes the chunks, in a thread of the server's own.
        config: where and to whom.
        about: what a client is told beside the specification: plain data.

    Attributes:
        port: that it listens at, once entered.
        batcher: holds the counts.
    """

    def __init__(self, source: ManySource, config: ServerConfig, about: Mapping[str, Any] | None = None) -> None:
        self._source, self._config, self._about = source, config, dict(about or {})
        self._spec = source.spec
        self._tls = None
        if config.tls_cert is not None and config.tls_key is not None:
            self._tls = server_tls(config.tls_cert, config.tls_key)
        self._executor = ThreadPoolExecutor(1, "policy")
        self._readers = ThreadPoolExecutor(2, "decode")
        self._names: dict[ServerConnection, str] = {}
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._begin = time.monotonic()
        self.rejected = 0  # clients turned away or cut off
        self.port = config.port

    async def __aenter__(self) -> PolicyServer:
        config = self._config
        self.batcher = Batcher(
            self._source.plan_many, self._executor, gather_s=config.gather_ms / 1e3, largest=config.max_batch
        )
        try:
            self._server = await serve(
                self._client,
                config.host,
                config.port,
                ssl=self._tls,
                origins=[None],  # browsers send one, robots do not: no web page gets in
                process_request=self._admit,
                compression=None,  # costs more than it saves, and a small frame must not become a large one
                max_size=largest_message(self._spec),
                max_queue=4,
                ping_interval=_PING_S,
                ping_timeout=2 * _PING_S,
                close_timeout=1.0,
                server_header=None,
            )
        except OSError as error:
            raise UserError(f"cannot listen at {config.host}:{config.port}: {error.strerror or error}") from None
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        self._task = asyncio.create_task(self.batcher.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        assert self._task is not None
        self._server.close()
        await self._server.wait_closed()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._executor.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)

    def metrics(self) -> dict[str, Any]:
        """Counts and percentiles, clients by name, and how long the server runs [s]."""
        running = {"up_s": time.monotonic() - self._begin, "clients": len(self._names), "rejected": self.rejected}
        return {**running, **self.batcher.counts.to_dict()}

    # ---- before a websocket is opened

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers plain HTTP, and turns away who has no business here."""
        path = request.path.split("?", 1)[0]
        if path == "/health":
            return connection.respond(http.HTTPStatus.OK, json.dumps({"status": "ok", "protocol": PROTOCOL}) + "\n")
        if not self._authorized(request):
            self.rejected += 1
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "a token is needed\n")
        if path == "/metrics":
            lines = [f"visuomotor_{name} {value:g}" for name, value in self.metrics().items()]
            return connection.respond(http.HTTPStatus.OK, "\n".join(lines) + "\n")
        if path != "/":
            return connection.respond(http.HTTPStatus.NOT_FOUND, "expected /, /health or /metrics\n")
        if len(self._names) >= self._config.max_clients:
            self.rejected += 1
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "as many robots as are allowed\n")
        return None

    def _authorized(self, request: Request) -> bool:
        if self._config.token is None:
            return True
        given = request.headers.get_all("Authorization")
        shown, expected = given[0] if len(given) == 1 else "", f"Bearer {self._config.token}"
        return hmac.compare_digest(_digest(shown), _digest(expected))

    # ---- one client

    async def _client(self, connection: ServerConnection) -> None:
        self._names[connection] = "robot"
        self.batcher.join(connection)
        answers = _Answers(connection)
        try:
            await self._greet(connection)
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(answers.run())
                await self._listen(connection, answers)
                sending.cancel()
        except* ConnectionClosed:
            pass
        except* (WireError, TimeoutError) as errors:
            await self._cut(connection, BAD_MESSAGE, _first(errors))
        except* CheckpointError as errors:
            await self._cut(connection, OTHER_SPEC, _first(errors))
        finally:
            self.batcher.leave(connection)
            del self._names[connection]

    async def _cut(self, connection: ServerConnection, code: int, reason: str) -> None:
        self.rejected += 1
        log.warning("%s cut off: %s", self._names[connection], reason)
        await connection.close(code, reason.encode()[:_REASON].decode(errors="ignore"))

    async def _greet(self, connection: ServerConnection) -> None:
        async with asyncio.timeout(_HELLO_S):
            hello = decode(await _bytes(connection))
        check_protocol(hello, "hello")
        name = hello.get("name")
        if isinstance(name, str):
            self._names[connection] = name[:40]
        if (theirs := hello.get("spec")) is not None:
            check_same_spec(self._spec, theirs, me="the server", other="the robot")
        welcome = {"kind": "welcome", "protocol": PROTOCOL, "spec": self._spec.to_dict(), "about": self._about}
        await connection.send(encode(welcome))

    async def _listen(self, connection: ServerConnection, answers: _Answers) -> None:
        """Take requests until the client goes."""
        loop = asyncio.get_running_loop()
        async for data in connection:
            if isinstance(data, str):
                raise WireError("text, where messages are binary")
            sequence, request = await loop.run_in_executor(self._readers, self._read, data)
            try:
                check_finite(request)
            except UserError as error:
                self.batcher.counts.refused += 1
                answers.put({"kind": "refused", "sequence": sequence, "reason": str(error)})
                continue
            self.batcher.submit(connection, request, partial(answers.take, sequence))

    def _read(self, data: bytes) -> tuple[int, PlanRequest]:
        return read_plan(self._spec, decode(data))


class _Answers:
    """What is still to be sent to one client: the newest only, so that a slow client holds up nobody."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._next: dict[str, Any] | None = None
        self._some = asyncio.Event()

    def take(self, sequence: int, done: Planned) -> None:
        """What became of the request ``sequence``."""
        if done.chunk is None:
            self.put({"kind": "refused", "sequence": sequence, "reason": done.reason})
            return
        self.put({
            "kind": "chunk", "sequence": sequence, "chunk": done.chunk, "waited_s": done.waited_s,
            "planned_s": done.planned_s, "batch": done.batch,
        })  # fmt: skip

    def put(self, message: dict[str, Any]) -> None:
        """Send it next."""
        self._next = message
        self._some.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._some.wait()
            self._some.clear()
            message, self._next = self._next, None
            if message is not None:
                async with asyncio.timeout(_SEND_S):
                    await self._connection.send(encode(message))


def _digest(text: str) -> bytes:
    """Of equal length for all texts: the time of a comparison then tells nothing of the length either."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


async def _bytes(connection: ServerConnection) -> bytes:
    data = await connection.recv()
    if isinstance(data, str):
        raise WireError("text, where messages are binary")
    return data


def _first(errors: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or "no message in time"
