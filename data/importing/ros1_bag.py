"""ROS 1 bags, version 2.0 (http://wiki.ros.org/Bags/Format/2.0): plain, lz4 or bz2; also ones never closed."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from visuomotor.data.errors import DataError
from visuomotor.data.importing.recording import Message, Recording, Topic, decompress, read_exactly, ros_type

__all__ = ["MAGIC", "Ros1Bag"]

MAGIC = b"#ROSBAG V2.0\n"
_MESSAGE, _HEADER, _INDEX, _CHUNK, _CHUNK_INFO, _CONNECTION = 2, 3, 4, 5, 6, 7
_MAX_HEADER = 1 << 20


@dataclass
class _Chunk:
    pos: int
    start: int
    end: int
    counts: dict[int, int] = field(default_factory=dict)


class Ros1Bag(Recording):
    """One ``.bag`` file.

    Raises:
        DataError: it is none, or encrypted, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        self.unreadable, self.notes = {}, []
        self._connections: dict[int, tuple[str, str, str]] = {}  # topic, type, definition
        self._chunks: list[_Chunk] = []
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise DataError(f"{path} does not begin as a ROS 1 bag of version 2.0")
            fields, n = self._record(file, _HEADER)
            if fields.get(b"encryptor"):
                raise DataError(f"{path} is encrypted")
            begin = file.tell() + n
            index = _number(fields, b"index_pos", "<Q")
            try:
                if not begin <= index <= self.size:
                    raise DataError("it was not closed")
                self._read_index(file, index, fields)
            except (DataError, struct.error) as error:
                self._scan(file, begin, str(error))
        counts: dict[int, int] = {}
        for chunk in self._chunks:
            for connection, n in chunk.counts.items():
                counts[connection] = counts.get(connection, 0) + n
        self.topics = {}
        for connection, (topic, kind, text) in self._connections.items():
            n = counts.get(connection, 0) + (self.topics[topic].count if topic in self.topics else 0)
            self.topics[topic] = Topic(name=topic, msgtype=kind, count=n, definition=text, ros1=True)

    def _record(self, file: BinaryIO, expected: int | None = None) -> tuple[dict[bytes, bytes], int]:
        """Header of the next record, and the size of its data, which the file is then at."""
        (n,) = struct.unpack("<I", read_exactly(file, 4, self.size, "a record"))
        if n > _MAX_HEADER:
            raise DataError(f"the record header at byte {file.tell()} declares {n} bytes")
        fields = _fields(memoryview(read_exactly(file, n, self.size, "a record header")))
        op = _number(fields, b"op", "<B")
        if expected is not None and op != expected:
            raise DataError(f"record of type {op} at byte {file.tell()}: expected {expected}")
        (size,) = struct.unpack("<I", read_exactly(file, 4, self.size, "a record"))
        if size > self.size - file.tell():
            raise DataError(f"a record at byte {file.tell()} declares {size} bytes, {self.size - file.tell()} are left")
        return fields, size

    def _read_index(self, file: BinaryIO, index: int, header: dict[bytes, bytes]) -> None:
        file.seek(index)
        for _ in range(_number(header, b"conn_count", "<I")):
            fields, n = self._record(file, _CONNECTION)
            self._connect(fields, file.read(n))
        for _ in range(_number(header, b"chunk_count", "<I")):
            fields, n = self._record(file, _CHUNK_INFO)
            pos = _number(fields, b"chunk_pos", "<Q")
            if pos >= self.size:
                raise DataError(f"the index points to byte {pos} of {self.size}")
            counts = dict(struct.iter_unpack("<II", file.read(n)))
            self._chunks.append(_Chunk(pos, _time(fields, b"start_time"), _time(fields, b"end_time"), counts))

    def _scan(self, file: BinaryIO, begin: int, reason: str) -> None:
        """Find chunks and connections without the index, up to where the file breaks off."""
        self._connections, self._chunks = {}, []
        file.seek(begin)
        end = "its end"
        while (pos := file.tell()) < self.size:
            try:
                fields, n = self._record(file)
                op = _number(fields, b"op", "<B")
                data = read_exactly(file, n, self.size, "a record")
                if op == _CHUNK:
                    self._scan_chunk(pos, fields, data)
                elif op == _CONNECTION:
                    self._connect(fields, data)
            except (DataError, struct.error):
                end = f"byte {pos}"
                break
        if not self._chunks:
            raise DataError(f"{self.path}: {reason}, and no whole chunk of messages is in it")
        self.notes.append(f"no usable index ({reason}): {len(self._chunks)} chunks were found up to {end}")

    def _scan_chunk(self, pos: int, fields: dict[bytes, bytes], data: bytes) -> None:
        chunk = _Chunk(pos, 2**63 - 1, 0)
        for inner, body in self._unpacked(fields, data):
            op = _number(inner, b"op", "<B")
            if op == _CONNECTION:
                self._connect(inner, bytes(body))
            elif op == _MESSAGE:
                connection, time = _number(inner, b"conn", "<I"), _time(inner, b"time")
                chunk.counts[connection] = chunk.counts.get(connection, 0) + 1
                chunk.start, chunk.end = min(chunk.start, time), max(chunk.end, time)
        self._chunks.append(chunk)

    def _connect(self, fields: dict[bytes, bytes], data: bytes) -> None:
        inner = _fields(memoryview(data))
        topic = fields.get(b"topic", b"").decode("utf-8", "replace")
        kind = ros_type(inner.get(b"type", b"").decode("utf-8", "replace"))
        text = inner.get(b"message_definition", b"").decode("utf-8", "replace")
        self._connections[_number(fields, b"conn", "<I")] = (topic, kind, text)

    def _unpacked(self, fields: dict[bytes, bytes], data: bytes) -> Iterator[tuple[dict[bytes, bytes], memoryview]]:
        kind = fields.get(b"compression", b"none").decode("ascii", "replace")
        plain = memoryview(decompress(kind, data, _number(fields, b"size", "<I")))
        pos = 0
        while pos < len(plain):
            (n,) = struct.unpack_from("<I", plain, pos)
            inner = _fields(plain[pos + 4 : pos + 4 + n])
            (size,) = struct.unpack_from("<I", plain, pos + 4 + n)
            pos += 8 + n + size
            if pos > len(plain):
                raise DataError(f"a record in a chunk declares {size} bytes: the chunk is shorter")
            yield inner, plain[pos - size : pos]

    def messages(self, topics: Collection[str], start: int | None = None, stop: int | None = None) -> Iterator[Message]:
        """See :meth:`Recording.messages`."""
        wanted = {c: topic for c, (topic, _, _) in self._connections.items() if topic in topics}
        low, high = start if start is not None else 0, stop if stop is not None else 2**64
        with self.path.open("rb") as file:
            for chunk in self._chunks:
                if chunk.end < low or chunk.start > high or not any(chunk.counts.get(c) for c in wanted):
                    continue
                file.seek(chunk.pos)
                try:
                    fields, n = self._record(file, _CHUNK)
                    for inner, body in self._unpacked(fields, file.read(n)):
                        if inner.get(b"op") != b"\x02":
                            continue
                        topic = wanted.get(_number(inner, b"conn", "<I"))
                        time = _time(inner, b"time")
                        if topic is not None and low <= time <= high:
                            yield topic, time, body
                except (DataError, struct.error) as error:
                    raise DataError(f"{self.path}: the chunk at byte {chunk.pos}: {error}") from None


def _fields(header: memoryview) -> dict[bytes, bytes]:
    out, pos = {}, 0
    while pos < len(header):
        (n,) = struct.unpack_from("<I", header, pos)
        text = bytes(header[pos + 4 : pos + 4 + n])
        name, equals, value = text.partition(b"=")
        if not equals or len(text) < n:
            raise DataError("a record header is damaged")
        out[name] = value
        pos += 4 + n
    return out


def _number(fields: dict[bytes, bytes], name: bytes, code: str) -> int:
    try:
        return int(struct.unpack(code, fields[name])[0])
    except (KeyError, struct.error):
        raise DataError(f"a record without {name.decode()}") from None


def _time(fields: dict[bytes, bytes], name: bytes) -> int:
    try:
        seconds, nanoseconds = struct.unpack("<II", fields[name])
    except (KeyError, struct.error):
        raise DataError(f"a record without {name.decode()}") from None
    return int(seconds) * 1_000_000_000 + int(nanoseconds)
