"""Chunk files of a Zarr 3 array filled in order, compressed by several threads.

zarr writes a file once all its rows are in one array, and copies them several times. Here inner chunks are compressed
as soon as their rows are there, straight from the arrays that hold them, and the file is put together of the results.

Formats: Zarr core specification 3; sharding codec 1.0: chunks end to end, then ``(offset, bytes)`` of each, with
the checksum of that table (zarr-specs.readthedocs.io).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from visuomotor.data.errors import DataError

__all__ = ["ChunkFiles", "Encoded", "Submit", "can_write"]

Encoded = list[bytes]  # a chunk: parts that lie end to end, for joining them would copy
Submit = Callable[..., "Future[Encoded]"]
Write = Callable[[str, "list[Future[Encoded]]"], None]  # name of the file, and its chunks in order
_ABSENT = 2**64 - 1
_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")


class ChunkFiles:
    """Rows of one array in, chunk files out.

    Args:
        name: of the array within its store.
        array: as :func:`~visuomotor.data.layout.create_layout` makes it; see :func:`can_write`.
        first: row that begins the chunk file which is written next.
        submit: runs a function in another thread.
        write: takes each file.

    Raises:
        DataError: the array is cut or compressed in a way that this writer does not know.
    """

    def __init__(self, name: str, array: zarr.Array, first: int, submit: Submit, write: Write) -> None:
        self._name, self._array, self._submit, self._write = name, array, submit, write
        self._rows = int(array.chunks[0])
        self._per_file = int(array.shards[0]) // self._rows if array.shards else 1
        self._file = first // (self._rows * self._per_file)
        self._codecs, self._checked = _codecs(name, array)
        self._done: list[Future[Encoded]] = []  # chunks of the file that is being filled
        self._rest = np.empty((0, *array.shape[1:]), array.dtype)  # a chunk, zeros from row _n on
        self._n = 0

    def add(self, rows: np.ndarray) -> None:
        """Take rows ``[n, *shape]``, which must not change from now on: full chunks are compressed, full files written.

        Rows that do not fill a chunk are copied: a view would keep a whole episode in memory.
        """
        while len(rows):
            if not self._n and len(rows) >= self._rows:
                chunk, rows = rows[: self._rows], rows[self._rows :]
            else:
                if not self._n:
                    self._rest = np.zeros((self._rows, *rows.shape[1:]), rows.dtype)
                taken = min(self._rows - self._n, len(rows))
                self._rest[self._n : self._n + taken] = rows[:taken]
                self._n, rows = self._n + taken, rows[taken:]
                if self._n < self._rows:
                    return
                chunk, self._n = self._rest, 0
            self._done.append(self._submit(self._encode, chunk))
            if len(self._done) == self._per_file:
                self._write(self._key, self._done)
                self._done, self._file = [], self._file + 1

    def flush(self) -> None:
        """Write the last file as far as it goes; add nothing before that is done. It is written again later."""
        done = [*self._done, self._submit(self._encode, self._rest)] if self._n else list(self._done)
        if done:
            self._write(self._key, done)

    def assemble(self, chunks: Sequence[Encoded]) -> list[bytes]:
        """The content of a file, in parts."""
        parts = [part for chunk in chunks for part in chunk]
        if not self._array.shards:
            return parts
        index = np.full((self._per_file, 2), _ABSENT, "<u8")
        sizes = [sum(map(len, c)) for c in chunks]
        index[: len(chunks), 0], index[: len(chunks), 1] = np.cumsum([0, *sizes[:-1]]), sizes
        return [*parts, index.tobytes(), _crc32c(index.tobytes())]

    @property
    def _key(self) -> str:
        place = (self._file, *(0 for _ in self._array.shape[1:]))
        return f"{self._name}/{self._array.metadata.encode_chunk_key(place)}"

    def _encode(self, chunk: np.ndarray) -> Encoded:
        data: Any = np.ascontiguousarray(chunk)
        for codec in self._codecs:
            data = codec.encode(data)
        return [data, _crc32c(data)] if self._checked else [data]


def _crc32c(data: bytes) -> bytes:
    """What zarr's codec ``crc32c`` appends."""
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def can_write(array: zarr.Array) -> bool:
    """Whether :class:`ChunkFiles` can: other programs may have made a store of ours anew, with chunks of their own."""
    try:
        _codecs("", array)
    except DataError:
        return False
    return True


def _codecs(name: str, array: zarr.Array) -> tuple[list[Any], bool]:
    """The array's compressors as numcodecs has them, which zarr itself calls, and whether a checksum follows."""
    whole = array.shape[1:]
    split = array.chunks[1:] != whole or (array.shards is not None and array.shards[1:] != whole)
    if split or array.filters or not _plain(array):
        raise DataError(f"{name} has chunks of {list(array.chunks)}, laid out as this version does not write them")
    found: list[Any] = []
    codecs = list(array.compressors)
    checked = bool(codecs) and isinstance(codecs[-1], Crc32cCodec)
    for codec in codecs[:-1] if checked else codecs:
        match codec:
            case ZstdCodec():
                found.append(numcodecs.Zstd(level=codec.level, checksum=codec.checksum))
            case BloscCodec():
                shuffle = _SHUFFLES.index(codec.shuffle.value)
                found.append(numcodecs.Blosc(codec.cname.value, codec.clevel, shuffle, codec.blocksize, codec.typesize))
            case _:
                raise DataError(f"{name} is compressed by {type(codec).__name__}, which this version does not write")
    if not found:
        raise DataError(f"{name} is not compressed, which this version does not write")
    return found, checked


def _plain(array: zarr.Array) -> bool:
    """Numbers are little endian; the table of a shard follows its chunks, with a checksum."""
    numbers: Any = array.serializer
    if not isinstance(numbers, BytesCodec) or getattr(numbers.endian, "value", None) not in (None, "little"):
        return False
    codecs: Any = array.metadata.codecs  # type: ignore[union-attr]
    if not isinstance(codecs[0], ShardingCodec):
        return True
    table = [type(c) for c in codecs[0].index_codecs]
    return codecs[0].index_location.value == "end" and table == [BytesCodec, Crc32cCodec]
