"""The one place that knows the websocket library: what server and client need of it, and TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

from visuomotor.data.errors import ConfigError, MissingExtraError

try:
    from websockets.asyncio.client import ClientConnection, connect
    from websockets.asyncio.server import Server, ServerConnection, serve
    from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
    from websockets.http11 import Request, Response
except ImportError:
    raise MissingExtraError("remote policies need websockets and msgpack: pip install 'visuomotor[serve]'") from None

__all__ = [
    "ClientConnection",
    "ConnectionClosed",
    "InvalidStatus",
    "InvalidURI",
    "Request",
    "Response",
    "Server",
    "ServerConnection",
    "WebSocketException",
    "client_tls",
    "connect",
    "serve",
    "server_tls",
]


def server_tls(certificate: str, key: str) -> ssl.SSLContext:
    """TLS of a server with a certificate chain and its private key, both PEM files.

    Raises:
        ConfigError: files that cannot be read or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(Path(certificate).expanduser(), Path(key).expanduser())
    except OSError as error:  # SSLError is one
        raise ConfigError(f"tls_cert={certificate}, tls_key={key}: {error.strerror or error}") from None
    return context


def client_tls(authority: str | None) -> ssl.SSLContext:
    """TLS of a client that trusts the certificates of ``authority`` (a PEM file), or the system's.

    Raises:
        ConfigError: a file that cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=None if authority is None else str(Path(authority).expanduser()))
    except OSError as error:
        raise ConfigError(f"tls_ca={authority}: {error.strerror or error}") from None
