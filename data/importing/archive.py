"""Zip archives of strangers: names that stay inside, sizes checked before memory is taken, nothing extracted."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from visuomotor.data.errors import DataError, UserError

__all__ = ["Archive"]

_FREE_BYTES = 256 << 20  # an archive may unpack to this much whatever its own size
_RATIO = 200  # and beyond it, to this multiple of its own size; deflate reaches 1032 on zeros alone
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, LZMAError, struct.error, EOFError, OSError, NotImplementedError, RuntimeError,
    ValueError, KeyError,
)  # fmt: skip
_LOCAL_HEADER = 30  # bytes before the name; APPNOTE.TXT 4.3.7
_BLOCK = 1 << 20


class Archive:
    """A zip archive open for reading; several threads may read at once.

    Args:
        path: the file.

    Raises:
        DataError: it is no zip archive or damaged; an entry's name leads out of it, occurs twice or is encrypted; or it
            would unpack to far more than it could hold of real data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            self._entries = {info.filename: info for info in self._zip.infolist()}
        except _DAMAGE as error:
            raise DataError(f"{path} is no zip archive that can be read: {error}") from None
        try:
            self._check()
        except DataError:
            self._zip.close()
            raise

    def _check(self) -> None:
        infos = self._zip.infolist()
        if len(self._entries) < len(infos):
            raise DataError(f"{self.path}: two entries of the archive have one name")
        for name, info in self._entries.items():
            inside = PurePosixPath(name)
            if inside.is_absolute() or ".." in inside.parts or "\\" in name:
                raise DataError(f"{self.path}: entry {name!r} leads out of the archive")
            if info.flag_bits & 1:
                raise DataError(f"{self.path}: entry {name!r} is encrypted")
            if info.compress_type not in _METHODS:
                raise DataError(f"{self.path}: entry {name!r} has compression {info.compress_type}: expected 0 or 8")
        whole, size = sum(i.file_size for i in infos), self.path.stat().st_size
        if whole > max(_FREE_BYTES, _RATIO * size):
            raise DataError(
                f"{self.path} has {size} bytes and would unpack to {whole}, more than {_RATIO} times as much: "
                "not unpacked. Unpack it yourself if that is right"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries."""
        return tuple(self._entries)

    def size(self, name: str) -> int:
        """Bytes of an entry when unpacked."""
        return self._entries[name].file_size

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Stream of an entry; what is damaged raises DataError, at its end at the latest (checksum)."""
        try:
            with self._zip.open(self._entries[name]) as stream:
                yield stream
        except _DAMAGE as error:
            if isinstance(error, UserError):
                raise
            raise DataError(f"{self.path}: entry {name!r} cannot be read: {error}") from None

    def read(self, name: str) -> bytes:
        """Content of an entry, its checksum compared."""
        with self.open(name) as stream:
            return stream.read()

    def copy(self, name: str, target: IO[bytes] | None) -> None:
        """Unpack an entry into ``target``, or into nothing, which compares the checksum alone."""
        with self.open(name) as stream:
            while block := stream.read(_BLOCK):
                if target is not None:
                    target.write(block)

    def offset(self, name: str) -> int | None:
        """Where in the file the content of an entry begins, for one that is not compressed; else None."""
        info = self._entries[name]
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        with self.path.open("rb") as f:
            f.seek(info.header_offset)
            header = f.read(_LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER:
            raise DataError(f"{self.path}: entry {name!r} is damaged: its header is cut short")
        return info.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))

    def close(self) -> None:
        """Close the file."""
        self._zip.close()
