"""Settings of the policy server."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from visuomotor.data.errors import ConfigError

__all__ = ["TOKEN_VARIABLE", "ServerConfig", "is_loopback", "read_token"]

TOKEN_VARIABLE = "VISUOMOTOR_TOKEN"
_SHORTEST_TOKEN = 16


@dataclass(kw_only=True, slots=True)
class ServerConfig:
    """Where and to whom policies are served.

    Attributes:
        host: address to listen at. Any other than this machine's own (``127.0.0.1``, ``::1``, ``localhost``) needs a
            token.
        port: to listen at; 0 takes a free one.
        token: that a client has to show, 16 characters or more; null takes the variable ``VISUOMOTOR_TOKEN``, which
            other users of the machine cannot see in its list of processes.
        token_file: a file that holds the token instead.
        tls_cert, tls_key: certificate chain and private key, PEM files; null: no encryption.
        max_clients: robots at the same time; more are turned away.
        gather_ms: how long a request waits for those of other robots, to be computed together.
        max_batch: requests computed together.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    max_clients: int = 16
    gather_ms: float = 3.0
    max_batch: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port}: expected 0 to 65535")
        if self.max_clients < 1 or self.max_batch < 1 or not 0 <= self.gather_ms <= 1000:
            raise ConfigError(
                f"max_clients={self.max_clients}, max_batch={self.max_batch}, gather_ms={self.gather_ms:g}: expected "
                "1 or more, 1 or more, and 0 to 1000"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("TLS needs both tls_cert= and tls_key=")
        self.token = read_token(self.token, self.token_file)
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"host={self.host} lets other machines in: give token= (or {TOKEN_VARIABLE}, or token_file=), or "
                "host=127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(token: str | None, token_file: str | None) -> str | None:
    """The token from a setting, a file or the environment, in this order; None without any.

    Raises:
        ConfigError: too short, or no plain ASCII, or a file that cannot be read.
    """
    if token is not None and token_file is not None:
        raise ConfigError("give token= or token_file=, not both")
    if token_file is not None:
        try:
            token = Path(token_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"token_file={token_file}: {error}") from None
    elif token is None:
        token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None:
        return None
    if len(token) < _SHORTEST_TOKEN:
        raise ConfigError(f"a token of {len(token)} characters: expected {_SHORTEST_TOKEN} or more")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("a token is made of printable ASCII characters without spaces")
    return token
