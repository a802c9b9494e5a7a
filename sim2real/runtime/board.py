"""What an operator sees and asks for: a board that the bridge writes, and a box that it empties every tick."""

from __future__ import annotations

import json
import os
import select
from dataclasses import fields

import numpy as np

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.runtime.memory import Block, Segment
from visuomotor.sim2real.runtime.types import Request, Status

__all__ = ["RequestBox", "StatusBoard"]

_CAPACITY = 8 << 20  # two pictures of 640 x 480 and all the rest; larger ones are thinned
_LENGTH = 4


class StatusBoard:
    """The newest :class:`Status`, for any number of readers.

    Args:
        fd: of a board that another process has made (:attr:`fd`); None makes one.

    Attributes:
        fd: give it to a child by ``pass_fds``.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._segment = Segment(Block.needed(_CAPACITY), fd)
        self._block = Block(self._segment, _CAPACITY)
        self.fd = self._segment.fd

    @property
    def version(self) -> int:
        """Changes with every write; 0 before the first."""
        return self._block.version

    def write(self, status: Status) -> None:
        """Show ``status``. Pictures are thinned until they fit."""
        room = _CAPACITY // 2 // max(1, len(status.pictures))
        pictures = {name: _thinned(picture, room) for name, picture in status.pictures.items()}
        values = {f.name: getattr(status, f.name) for f in fields(status) if f.name != "pictures"}
        shapes = {name: picture.shape for name, picture in pictures.items()}
        text = json.dumps([values, shapes]).encode()[: _CAPACITY // 2 - _LENGTH]
        self._block.write(
            [len(text).to_bytes(_LENGTH, "little"), text, *(p.reshape(-1).data for p in pictures.values())]
        )

    def read(self) -> Status:
        """The newest status; a fresh :class:`Status` before the first was written."""
        found = self._block.read()
        if found is None:
            return Status()
        data = found[0]
        at = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
        values, shapes = json.loads(data[_LENGTH:at])
        pictures: dict[str, np.ndarray] = {}
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            pictures[name] = np.frombuffer(data, np.uint8, size, at).reshape(shape)
            at += size
        return Status(**values, pictures=pictures)

    def close(self) -> None:
        """Give the descriptor back."""
        self._segment.close()


def _thinned(picture: np.ndarray, room: int) -> np.ndarray:
    while picture.size > room:
        picture = picture[::2, ::2]
    return np.ascontiguousarray(picture, np.uint8)


class RequestBox:
    """Requests of operators, in the order in which they came; any number of writers, one reader (the bridge).

    A pipe: what is written whole is read whole, and nothing is lost while the reader lives.

    Args:
        fds: of a box that another process has made (:attr:`fds`); None makes one.

    Attributes:
        fds: reading and writing end; give them to a child by ``pass_fds``.
    """

    def __init__(self, fds: tuple[int, int] | None = None) -> None:
        self.fds = os.pipe2(os.O_CLOEXEC) if fds is None else fds
        os.set_blocking(self.fds[0], False)
        self._waiting: list[Request] = []

    def put(self, request: Request) -> None:
        """Ask for something.

        Raises:
            ConfigError: nobody is there to read it.
        """
        try:
            os.write(self.fds[1], f"{request.value}\n".encode())
        except BrokenPipeError:
            raise ConfigError(f"request {request.value!r}: the bridge has ended") from None

    def take(self) -> Request | None:
        """The oldest request that was not yet taken; None: there is none. Never blocks."""
        if not self._waiting:
            self._read()
        return self._waiting.pop(0) if self._waiting else None

    def wait(self, timeout_s: float) -> None:
        """Return when there is a request, or after ``timeout_s``."""
        select.select([self.fds[0]], [], [], timeout_s)

    def _read(self) -> None:
        known = {r.value: r for r in Request}
        try:
            words = os.read(self.fds[0], 4096).decode(errors="replace").split()
        except BlockingIOError:
            return
        self._waiting += [known[w] for w in words if w in known]

    def close(self) -> None:
        """Give both ends back."""
        for fd in self.fds:
            os.close(fd)
