"""TFRecord files and the messages in them, without TensorFlow.

Framing (tensorflow/core/lib/io/record_writer.h): uint64 length, masked CRC32C of it, bytes, masked CRC32C of them; all
little endian. Contents: tf.train.Example and SequenceExample (tensorflow/core/example/*.proto) in Protocol Buffers wire
format (https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c  # zarr depends on it
import numpy as np

from visuomotor.data.errors import DataError

__all__ = ["Feature", "masked_crc", "parse_example", "read_record", "record_spans"]

Feature = list[bytes] | np.ndarray  # texts and pictures; float32 [N]; int64 [N]
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FEATURES, _FEATURE_LISTS = 1, 2


def masked_crc(data: bytes) -> int:
    """CRC32C, rotated by 15 bits and offset, so that a checksum of data with checksums in it stays a good one."""
    crc = int(google_crc32c.value(data))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def record_spans(path: Path) -> list[tuple[int, int]]:
    """``(offset, length)`` of the bytes of each record; their headers are checked, they are not read.

    Raises:
        DataError: a header is damaged, or the file is cut off.
    """
    size, pos = path.stat().st_size, 0
    out: list[tuple[int, int]] = []
    with path.open("rb") as file:
        while pos < size:
            file.seek(pos)
            head = file.read(12)
            if len(head) < 12:
                raise DataError(f"{path} is cut off at byte {pos}, in the header of record {len(out)}")
            length, crc = struct.unpack("<QI", head)
            if masked_crc(head[:8]) != crc:
                raise DataError(f"{path}: the header of record {len(out)} at byte {pos} is damaged (wrong checksum)")
            if length + 16 > size - pos:
                left = max(0, size - pos - 16)
                raise DataError(f"{path}: record {len(out)} at byte {pos} declares {length} bytes, {left} are left")
            out.append((pos + 12, int(length)))
            pos += 16 + length
    return out


def read_record(path: Path, span: tuple[int, int]) -> bytes:
    """The bytes of one record.

    Raises:
        DataError: they are not what was written.
    """
    offset, length = span
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length + 4)
    if len(data) < length + 4 or masked_crc(data[:length]) != struct.unpack("<I", data[length:])[0]:
        raise DataError(f"{path}: the record at byte {offset - 12} is damaged (wrong checksum)")
    return data[:length]


def parse_example(data: bytes) -> dict[str, Feature]:
    """Features of a tf.train.Example by name; of a SequenceExample its context, and its lists end to end.

    Raises:
        DataError: it is no such message.
    """
    out: dict[str, Feature] = {}
    try:
        for number, wire, value in _fields(memoryview(data)):
            if wire != _BYTES:
                continue
            for name, body in _map(_view(value)):
                if number == _FEATURES:
                    out[name] = _feature(body)
                elif number == _FEATURE_LISTS:
                    out[name] = _joined(
                        name, [_feature(_view(v)) for n, w, v in _fields(body) if (n, w) == (1, _BYTES)]
                    )
    except (struct.error, IndexError) as error:
        raise DataError(f"a record of {len(data)} bytes is no tf.train.Example: {error}") from None
    return out


def _view(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise DataError("a record is no tf.train.Example: a number where a message is expected")
    return value


def _varint(data: memoryview, pos: int) -> tuple[int, int]:
    value = 0
    for k in range(10):
        byte = data[pos + k]
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, pos + k + 1
    raise DataError("a record is no tf.train.Example: a number of more than ten bytes")


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """``(field number, wire type, value)`` of a message."""
    pos = 0
    while pos < len(data):
        tag, pos = _varint(data, pos)
        wire = tag & 7
        if wire == _VARINT:
            value, pos = _varint(data, pos)
            yield tag >> 3, wire, value
            continue
        if wire == _BYTES:
            n, pos = _varint(data, pos)
        elif wire in (_FIXED32, _FIXED64):
            n = 4 if wire == _FIXED32 else 8
        else:
            raise DataError(f"a record is no tf.train.Example: wire type {wire}")
        if n > len(data) - pos:
            raise DataError(f"a record is no tf.train.Example: {n} bytes declared, {len(data) - pos} are left")
        yield tag >> 3, wire, data[pos : pos + n]
        pos += n


def _map(features: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Entries of ``map<string, message>`` in field 1."""
    for number, wire, entry in _fields(features):
        if (number, wire) != (1, _BYTES):
            continue
        name, body = "", memoryview(b"")
        for part, kind, value in _fields(_view(entry)):
            if (part, kind) == (1, _BYTES):
                name = bytes(_view(value)).decode("utf-8", "replace")
            elif (part, kind) == (2, _BYTES):
                body = _view(value)
        yield name, body


def _feature(body: memoryview) -> Feature:
    """One of bytes_list (1), float_list (2), int64_list (3); an empty feature is an empty list."""
    for number, wire, value in _fields(body):
        if wire != _BYTES:
            continue
        inner = [(w, v) for n, w, v in _fields(_view(value)) if n == 1]
        if number == 1:
            return [bytes(_view(v)) for _, v in inner]
        if number == 2:
            return _floats(inner)
        if number == 3:
            parts = [
                np.array([v], np.uint64).view(np.int64) if isinstance(v, int) else _packed_varints(v) for _, v in inner
            ]
            return np.concatenate([np.zeros(0, np.int64), *parts])
    return []


def _floats(inner: list[tuple[int, int | memoryview]]) -> np.ndarray:
    parts = [_view(v) for _, v in inner]
    if any(len(p) % 4 for p in parts):
        raise DataError("a record is no tf.train.Example: a list of floats is no multiple of four bytes")
    return np.concatenate([np.zeros(0, np.float32), *(np.frombuffer(p, "<f4") for p in parts)])


def _packed_varints(data: memoryview) -> np.ndarray:
    """All numbers of a packed list at once, int64 ``[N]``."""
    raw = np.frombuffer(data, np.uint8)
    if not len(raw):
        return np.zeros(0, np.int64)
    last = np.flatnonzero(raw < 0x80)
    starts = np.concatenate([[0], last[:-1] + 1]) if len(last) else np.zeros(1, np.int64)
    if not len(last) or last[-1] != len(raw) - 1 or int((last - starts).max()) > 9:
        raise DataError("a record is no tf.train.Example: a list of whole numbers is damaged")
    out = np.zeros(len(last), np.uint64)
    for k in range(int((last - starts).max()) + 1):
        has = starts + k <= last
        out[has] |= (raw[starts[has] + k].astype(np.uint64) & np.uint64(0x7F)) << np.uint64(7 * k)
    return out.view(np.int64)


def _joined(name: str, parts: list[Feature]) -> Feature:
    arrays = [p for p in parts if isinstance(p, np.ndarray)]
    if not arrays:
        return [b for p in parts if isinstance(p, list) for b in p]
    if len(arrays) < len([p for p in parts if len(p)]) or len({a.dtype for a in arrays}) > 1:
        raise DataError(f"feature {name!r} has steps of different types")
    return np.concatenate(arrays)
