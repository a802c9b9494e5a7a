"""MCAP files (https://mcap.dev/spec) with ROS messages: CDR, or ROS 1 serialization; with or without their summary."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from visuomotor.data.errors import DataError
from visuomotor.data.importing.recording import Message, Recording, Topic, decompress, read_exactly, ros_type

__all__ = ["MAGIC", "METADATA", "McapFile"]

MAGIC = b"\x89MCAP0\r\n"
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _CHUNK_INDEX, _STATISTICS, _METADATA, _METADATA_INDEX, _DATA_END = (
    2,
    3,
    4,
    5,
    6,
    8,
    11,
    12,
    13,
    15,
)
METADATA = "visuomotor"  # name of the metadata record whose "mapping" says (JSON) which arrays the topics are
_SCHEMAS = {"ros2msg": "msg", "ros1msg": "msg", "ros2idl": "idl", "omgidl": "idl"}


class _Chunk(NamedTuple):
    pos: int  # of the record in the file
    start: int
    end: int
    channels: frozenset[int] | None  # None: any


class _Reader:
    """Fields of one record, one after the other."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.pos = data, 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from("<" + code, self.data, self.pos)
        self.pos += struct.calcsize("<" + code)
        return int(value)

    def bytes(self, code: str = "I") -> memoryview:
        n = self.number(code)
        if n > len(self.data) - self.pos:
            raise DataError(f"a field of {n} bytes declared, {len(self.data) - self.pos} are left")
        self.pos += n
        return self.data[self.pos - n : self.pos]

    def text(self) -> str:
        return bytes(self.bytes()).decode("utf-8", "replace")


class McapFile(Recording):
    """One ``.mcap`` file. Topics that are not ROS messages (JSON, protobuf) are named in ``unreadable``.

    Raises:
        DataError: it is none, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        self.topics, self.unreadable, self.notes = {}, {}, []
        self._reset()
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise DataError(f"{path} does not begin as an MCAP file")
            try:
                self._read_summary(file)
            except (DataError, struct.error) as error:
                self._scan(file, str(error))
        for number, (topic, encoding, schema) in self._channels.items():
            self._add_topic(topic, encoding, schema, self._counts.get(number, 0))

    def _reset(self) -> None:
        self._schemas: dict[int, tuple[str, str, str]] = {}  # name, encoding, text
        self._channels: dict[int, tuple[str, str, int]] = {}  # topic, encoding, schema
        self._counts: dict[int, int] = {}
        self._chunks: list[_Chunk] = []
        self._loose = False  # messages outside of chunks

    def _add_topic(self, topic: str, encoding: str, schema: int, count: int) -> None:
        name, kind, text = self._schemas.get(schema, ("", "", ""))
        if encoding not in ("cdr", "ros1") or (kind and kind not in _SCHEMAS):
            self.unreadable[topic] = f"messages in {encoding or 'no encoding'} (schema {kind or 'none'}), not of ROS"
            return
        before = self.topics.get(topic)
        self.topics[topic] = Topic(
            name=topic,
            msgtype=ros_type(name),
            count=count + (before.count if before else 0),
            definition=text or None,
            encoding=_SCHEMAS.get(kind, "msg"),
            ros1=encoding == "ros1",
        )

    def _read_summary(self, file: BinaryIO) -> None:
        file.seek(max(0, self.size - 37))
        tail = file.read(37)
        if len(tail) < 37 or tail[-8:] != MAGIC or tail[0] != _FOOTER:
            raise DataError("it was not closed")
        start, _, crc = struct.unpack_from("<QQI", tail, 9)
        if not len(MAGIC) < start < self.size - 37:
            raise DataError("it has no summary")
        file.seek(start)
        data = file.read(self.size - 37 - start)
        if crc and zlib.crc32(tail[: 9 + 16], zlib.crc32(data)) != crc:
            raise DataError("the checksum of its summary is wrong")
        statistics = False
        for op, body in _records(memoryview(data)):
            self._take(op, body)
            if op == _METADATA_INDEX:
                self._read_metadata(file, _Reader(body))
            elif op == _CHUNK_INDEX:
                r = _Reader(body)
                low, high, pos = r.number("Q"), r.number("Q"), r.number("Q")
                r.number("Q")
                channels = frozenset(c for c, _ in struct.iter_unpack("<HQ", r.bytes()))
                if pos >= self.size:
                    raise DataError(f"its summary points to byte {pos} of {self.size}")
                self._chunks.append(_Chunk(pos, low, high, channels or None))
            elif op == _STATISTICS:
                n_chunks = struct.unpack_from("<I", body, 8 + 2 + 4 + 4 + 4)[0]
                r = _Reader(body[42:])
                self._counts = dict(struct.iter_unpack("<HQ", r.bytes()))
                statistics = True
        if not statistics or n_chunks != len(self._chunks) or not self._chunks or not self._channels:
            raise DataError("its summary has no index")

    def _read_metadata(self, file: BinaryIO, r: _Reader) -> None:
        pos, length = r.number("Q"), r.number("Q")
        if r.text() == METADATA and pos < self.size:
            file.seek(pos)
            for op, body in _records(memoryview(read_exactly(file, length, self.size, "metadata"))):
                self._take(op, body)

    def _take(self, op: int, body: memoryview) -> None:
        r = _Reader(body)
        if op == _SCHEMA:
            number = r.number("H")
            self._schemas[number] = (r.text(), r.text(), r.text())
        elif op == _METADATA and r.text() == METADATA:
            self._take_metadata(_Reader(r.bytes()))
        elif op == _CHANNEL:
            number, schema = r.number("H"), r.number("H")
            self._channels[number] = (r.text(), r.text(), schema)

    def _take_metadata(self, r: _Reader) -> None:
        while r.pos < len(r.data):
            name, value = r.text(), r.text()
            if name == "mapping":
                try:
                    found = json.loads(value)
                except (ValueError, RecursionError):
                    raise DataError(f"{self.path}: the mapping in it is no JSON") from None
                self.mapping = found if isinstance(found, dict) else None

    def _scan(self, file: BinaryIO, reason: str) -> None:
        """Find all without the summary, up to where the file breaks off."""
        self._reset()
        self.topics, end = {}, "its end"
        file.seek(len(MAGIC))
        while (pos := file.tell()) < self.size:
            try:
                op, n = struct.unpack("<BQ", read_exactly(file, 9, self.size, "a record"))
                if op in (_FOOTER, _DATA_END):
                    break
                body = memoryview(read_exactly(file, n, self.size, "a record"))
                if op == _CHUNK:
                    self._scan_chunk(pos, body)
                elif op == _MESSAGE:
                    self._loose = True
                    self._count(body)
                else:
                    self._take(op, body)
            except (DataError, struct.error):
                end = f"byte {pos}"
                break
        if not self._counts:
            raise DataError(f"{self.path}: {reason}, and no whole message is in it")
        self.notes.append(f"no usable summary ({reason}): {sum(self._counts.values())} messages were found up to {end}")

    def _scan_chunk(self, pos: int, body: memoryview) -> None:
        low, high = struct.unpack_from("<QQ", body)
        for op, inner in _records(_unpack_chunk(body)):
            if op == _MESSAGE:
                self._count(inner)
            else:
                self._take(op, inner)
        self._chunks.append(_Chunk(pos, low, high, None))

    def _count(self, body: memoryview) -> None:
        (channel,) = struct.unpack_from("<H", body)
        self._counts[channel] = self._counts.get(channel, 0) + 1

    def messages(self, topics: Collection[str], start: int | None = None, stop: int | None = None) -> Iterator[Message]:
        """See :meth:`Recording.messages`."""
        wanted = {number: topic for number, (topic, _, _) in self._channels.items() if topic in topics}
        low, high = start if start is not None else 0, stop if stop is not None else 2**64
        with self.path.open("rb") as file:
            if self._loose:
                yield from self._loose_messages(file, wanted, low, high)
                return
            for chunk in self._chunks:
                if chunk.end < low or chunk.start > high:
                    continue
                if chunk.channels is not None and not chunk.channels & wanted.keys():
                    continue
                file.seek(chunk.pos)
                try:
                    op, n = struct.unpack("<BQ", read_exactly(file, 9, self.size, "a chunk"))
                    if op != _CHUNK:
                        raise DataError(f"record of type {op}: expected a chunk")
                    body = memoryview(read_exactly(file, n, self.size, "a chunk"))
                    yield from _select(_records(_unpack_chunk(body)), wanted, low, high)
                except (DataError, struct.error) as error:
                    raise DataError(f"{self.path}: the chunk at byte {chunk.pos}: {error}") from None

    def _loose_messages(self, file: BinaryIO, wanted: dict[int, str], low: int, high: int) -> Iterator[Message]:
        file.seek(len(MAGIC))
        while file.tell() < self.size:
            pos = file.tell()
            try:
                op, n = struct.unpack("<BQ", read_exactly(file, 9, self.size, "a record"))
                if op in (_FOOTER, _DATA_END):
                    return
                body = memoryview(read_exactly(file, n, self.size, "a record"))
                inner = _records(_unpack_chunk(body)) if op == _CHUNK else iter([(op, body)])
                yield from _select(inner, wanted, low, high)
            except (DataError, struct.error) as error:
                if any("up to byte" in note for note in self.notes):  # told when it was opened
                    return
                raise DataError(f"{self.path}: the record at byte {pos}: {error}") from None


def _records(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    pos = 0
    while pos < len(data):
        op, n = struct.unpack_from("<BQ", data, pos)
        pos += 9
        if n > len(data) - pos:
            raise DataError(f"a record of {n} bytes declared, {len(data) - pos} are left")
        yield op, data[pos : pos + n]
        pos += n


def _unpack_chunk(body: memoryview) -> memoryview:
    r = _Reader(body)
    r.number("Q"), r.number("Q")
    size, crc, kind = r.number("Q"), r.number("I"), r.text()
    plain = decompress(kind, r.bytes("Q"), size)
    if crc and zlib.crc32(plain) != crc:
        raise DataError("its checksum is wrong")
    return memoryview(plain)


def _select(
    records: Iterator[tuple[int, memoryview]], wanted: dict[int, str], low: int, high: int
) -> Iterator[Message]:
    for op, body in records:
        if op != _MESSAGE:
            continue
        channel, _, time, _ = struct.unpack_from("<HIQQ", body)
        if channel in wanted and low <= time <= high:
            yield wanted[channel], time, body[22:]
