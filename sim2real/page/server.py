"""The live page: what the bridge shows on its board, in a browser on this machine, and buttons that ask it for things.

Only this machine reaches it, and of its programs only those that know the address: a random token is part of it. A page
of another site in the same browser gets nothing: requests must name this server as host (against DNS rebinding), those
that ask for something must come from this page (against forged requests).

The page is no safety device. A stop from it takes the way through a browser; the robot's own emergency stop does not.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, Protocol

from visuomotor.data.errors import UserError
from visuomotor.sim2real.page.snapshot import Board, Snapshots
from visuomotor.sim2real.runtime.types import Request

__all__ = ["Box", "LivePage"]

_HOST = "127.0.0.1"
_LARGEST = 256  # bytes of a request's body
_IDLE_S = 10.0  # a connection that says nothing for so long is closed
_MOST = 32  # connections at a time


class Box(Protocol):
    """Takes requests of an operator."""

    def put(self, request: Request) -> None:
        """Ask for ``request``."""


class LivePage:
    """Serves the page until closed.

    Args:
        board: what is shown.
        box: where requests go.
        port: 0 takes a free one.
        title: of the page.

    Attributes:
        url: to open; the token in it is the only key, so it belongs on the operator's terminal alone.

    Raises:
        UserError: the port is in use.
    """

    def __init__(self, board: Board, box: Box, *, port: int = 0, title: str = "visuomotor") -> None:
        self._token = secrets.token_urlsafe(24)
        self._requests = {r.value: r for r in Request}
        self.snapshots, self._box = Snapshots(board), box
        self._page, self._policy = _page(title)
        try:
            self._server = _Server((_HOST, port), _handler(self))
        except OSError as error:
            raise UserError(f"the live page cannot be served at {_HOST}:{port}: {error.strerror or error}") from None
        self.port = int(self._server.server_address[1])
        self.url = f"http://{_HOST}:{self.port}/{self._token}/"
        self._hosts = {f"{name}:{self.port}" for name in (_HOST, "localhost")}
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving. A second call does nothing."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # ---- one request; what is returned is (status, type, body)

    def admits(self, host: str | None, origin: str | None) -> bool:
        """Whether a request that names ``host`` and comes from ``origin`` is one of our own page's."""
        return host in self._hosts and (origin is None or origin in {f"http://{h}" for h in self._hosts})

    def inner(self, path: str) -> str | None:
        """What of ``path`` comes after the token; None with another token, or none."""
        token, _, rest = path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self._token.encode()):
            return None
        return rest.partition("?")[0]

    def get(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """What is at ``path``."""
        if path == "":
            return HTTPStatus.OK, "text/html; charset=utf-8", self._page
        if path == "status":
            return HTTPStatus.OK, "application/json", self.snapshots.status()
        if (name := re.fullmatch(r"camera/(\d{1,3})", path)) is not None:
            picture = self.snapshots.picture(int(name[1]))
            if picture is not None:
                return HTTPStatus.OK, "image/jpeg", picture
        return HTTPStatus.NOT_FOUND, "text/plain", b"nothing here\n"

    def post(self, path: str, body: bytes) -> tuple[HTTPStatus, str, bytes]:
        """Ask the bridge for what ``body`` names."""
        if path != "request":
            return HTTPStatus.NOT_FOUND, "text/plain", b"nothing here\n"
        try:
            name = json.loads(body)["request"]
            request = self._requests[name]
        except (ValueError, TypeError, KeyError, RecursionError):
            return HTTPStatus.BAD_REQUEST, "text/plain", b"no such request\n"
        try:
            self._box.put(request)
        except (UserError, OSError) as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{error}\n".encode()
        return HTTPStatus.OK, "application/json", b"{}"

    @property
    def headers(self) -> dict[str, str]:
        """Of every answer."""
        return {
            "Content-Security-Policy": self._policy,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
        }


def _page(title: str) -> tuple[bytes, str]:
    """The page, and the policy that lets exactly its own script and style run."""
    text = files("visuomotor.sim2real.page").joinpath("page.html").read_text(encoding="utf-8")
    escaped = title.replace("&", "&amp;").replace("<", "&lt;")
    text = text.replace("$title", escaped)
    hashes = {}
    for kind in ("script", "style"):
        (inside,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        hashes[kind] = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= _MOST:
            self.shutdown_request(request)
            return
        self._open.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)

    def server_close(self) -> None:
        """Hang up on browsers too: their connections stay open between requests."""
        super().server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up in the midst of an answer is nothing to report."""


def _handler(page: LivePage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "visuomotor", ""
        timeout = _IDLE_S
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = self._admitted()
            if path is not None:
                self._answer(*page.get(path))

        def do_POST(self) -> None:
            path = self._admitted()
            if path is None:
                return
            size = self.headers.get("Content-Length", "")
            if not re.fullmatch(r"\d{1,6}", size) or int(size) > _LARGEST:
                self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "expected a short body")
            elif self.headers.get("Content-Type") != "application/json" or self.headers.get("Origin") is None:
                self._refuse(HTTPStatus.FORBIDDEN, "expected JSON from the page itself")
            else:
                self._answer(*page.post(path, self.rfile.read(int(size))))

        def _admitted(self) -> str | None:
            """The path within the page, of a request that is one of ours; others are answered here."""
            if not page.admits(self.headers.get("Host"), self.headers.get("Origin")):
                self._refuse(HTTPStatus.FORBIDDEN, "of another site")
                return None
            path = page.inner(self.path)
            if path is None:
                self._refuse(HTTPStatus.NOT_FOUND, "nothing here")
            return path

        def _refuse(self, status: HTTPStatus, text: str) -> None:
            self.close_connection = True
            self._answer(status, "text/plain", f"{text}\n".encode())

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            for name, value in {**page.headers, "Content-Type": kind, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """The terminal is the operator's."""

    return Handler
