"""ROS message types and bytes: definitions parsed, messages decoded without running code made from a file.

rosbags (the only place where it is imported) parses definitions and knows the standard ones. Its own decoder is not
used for files: it compiles Python code from the definitions that a bag brings along. The walk here interprets them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError, MissingExtraError

__all__ = ["Decoder", "Definitions", "parse_definition", "serialize", "standard_definition", "standard_types"]

Field = tuple[str, Any]  # name, type: ("base", name) | ("name", type) | ("array" | "sequence", element type, length)
Definitions = Mapping[str, tuple[Field, ...]]

_MAX_DEFINITION = 1 << 20  # bytes
_MAX_DEPTH = 32
_TIME = (("sec", ("base", "int32")), ("nanosec", ("base", "uint32")))
_BUILTIN: dict[str, tuple[Field, ...]] = {
    "builtin_interfaces/msg/Time": _TIME,
    "builtin_interfaces/msg/Duration": _TIME,
}
_DTYPES = {
    "bool": "u1", "octet": "u1", "byte": "u1", "char": "u1", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2",
    "int32": "i4", "uint32": "u4", "int64": "i8", "uint64": "u8", "float32": "f4", "float64": "f8",
}  # fmt: skip


def _rosbags() -> Any:
    try:
        import rosbags.typesys as typesys
    except ImportError:
        raise MissingExtraError("ROS bags need the package rosbags: pip install 'visuomotor[ros]'") from None
    return typesys


@cache
def _store() -> Any:
    typesys = _rosbags()
    return typesys.get_typestore(typesys.Stores.ROS2_JAZZY)


def _plain(desc: Any) -> Any:
    kind, value = desc[0].name, desc[1]
    if kind == "BASE":
        return ("base", value[0])
    if kind == "NAME":
        return ("name", value)
    return (kind.lower(), _plain(value[0]), int(value[1]))


def parse_definition(text: str, msgtype: str, encoding: str) -> dict[str, tuple[Field, ...]]:
    """Types that a definition brings, by name (``"sensor_msgs/msg/Imu"``).

    Args:
        text: ``.msg`` text with its parts after lines of ``=``, or IDL.
        msgtype: name of the type defined first.
        encoding: ``"msg"`` or ``"idl"``.

    Raises:
        DataError: it cannot be read.
    """
    typesys = _rosbags()
    if len(text) > _MAX_DEFINITION:
        raise DataError(f"the definition of {msgtype} has {len(text)} characters: more than {_MAX_DEFINITION}")
    try:
        if encoding == "idl":
            found: dict[str, Any] = {}
            parts = text.split("=" * 80 + "\n")
            for part in parts if len(parts) == 1 else parts[1:]:
                found.update(typesys.get_types_from_idl(part.split("\n", 1)[1] if part.startswith("IDL: ") else part))
        else:
            found = typesys.get_types_from_msg(text, msgtype)
        return {name: tuple((n, _plain(d)) for n, d in fields) for name, (_, fields) in found.items()}
    except Exception as error:  # the parser meets hostile text with errors of many types
        raise DataError(f"the definition of {msgtype} cannot be read: {type(error).__name__}") from None


def standard_types() -> dict[str, tuple[Field, ...]]:
    """The types of a ROS 2 installation (Jazzy), for recordings that bring no definitions."""
    return {name: tuple((n, _plain(d)) for n, d in fields) for name, (_, fields) in _store().fielddefs.items()}


def standard_definition(msgtype: str) -> str:
    """Text of a standard ROS 2 type with all that it needs, as recordings embed it."""
    text: str = _store().generate_msgdef(msgtype, ros_version=2)[0]
    return text


def serialize(msgtype: str, values: Mapping[str, Any]) -> bytes:
    """Bytes (CDR, little endian) of a message of a standard type from nested dicts, all fields given."""

    def build(name: str, given: Mapping[str, Any]) -> Any:
        out = {}
        for field, desc in ((n, _plain(d)) for n, d in _store().fielddefs[name][1]):
            value = given[field]
            if desc[0] == "name":
                value = build(desc[1], value)
            elif desc[0] == "sequence" and desc[1][0] == "name":
                value = [build(desc[1][1], v) for v in value]
            out[field] = value
        return _store().types[name](**out)

    return bytes(_store().serialize_cdr(build(msgtype, values), msgtype))


@dataclass
class _Cursor:
    data: memoryview  # behind the header, from where alignment counts
    pos: int = 0


class Decoder:
    """Bytes of messages to nested dicts: numbers, text, arrays (views, not copies), dicts, lists of dicts.

    Formats: ROS 1 serialization (packed, little endian), and XCDR1 as ROS 2 writes it (OMG CORBA 3.3, 9.3: every
    primitive at a multiple of its size, behind a header of four bytes that names the byte order).

    Args:
        definitions: every type that may occur.
        ros1: the bytes are of ROS 1.
    """

    def __init__(self, definitions: Definitions, *, ros1: bool) -> None:
        self.types = {**definitions, **_BUILTIN}
        self.ros1 = ros1

    def knows(self, msgtype: str) -> bool:
        """Whether the type and all that it contains are defined."""
        seen: set[str] = set()
        todo = [msgtype]
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            if name not in self.types:
                return False
            seen.add(name)
            for _, desc in self.types[name]:
                inner = desc[1] if desc[0] in ("array", "sequence") else desc
                if inner[0] == "name":
                    todo.append(inner[1])
        return True

    def decode(self, msgtype: str, raw: bytes | memoryview) -> dict[str, Any]:
        """One message.

        Raises:
            DataError: the bytes are not of that type.
        """
        data = memoryview(raw)
        try:
            order = "<"
            if not self.ros1:
                if len(data) < 4 or data[0] != 0 or data[1] not in (0, 1):
                    raise DataError(f"begins with {bytes(data[:4]).hex()}, which is not the header of plain CDR")
                order, data = "<" if data[1] else ">", data[4:]
            return self._message(msgtype, _Cursor(data), order, 0)
        except (struct.error, ValueError, IndexError, OverflowError) as error:
            if isinstance(error, DataError):
                raise DataError(f"a message of {msgtype}: {error}") from None
            raise DataError(f"a message of {msgtype} ({len(data)} bytes) is damaged: {error}") from None

    def _message(self, msgtype: str, at: _Cursor, order: str, depth: int) -> dict[str, Any]:
        if msgtype not in self.types:
            raise DataError(f"type {msgtype} is not defined")
        if depth > _MAX_DEPTH:
            raise DataError(f"types are nested more than {_MAX_DEPTH} deep")
        fields = self.types[msgtype]
        if not fields and not self.ros1:
            at.pos += 1  # an empty struct has one byte in ROS 2
        return {name: self._value(desc, at, order, depth) for name, desc in fields}

    def _value(self, desc: Any, at: _Cursor, order: str, depth: int) -> Any:
        kind = desc[0]
        if kind == "base":
            return self._string(at, order) if desc[1] == "string" else self._numbers(desc[1], 1, at, order)[0].item()
        if kind == "name":
            return self._message(desc[1], at, order, depth + 1)
        n = desc[2] if kind == "array" else self._count(at, order)
        if desc[1][0] == "base" and desc[1][1] != "string":
            return self._numbers(desc[1][1], n, at, order)
        if n > len(at.data) - at.pos:  # every element takes a byte at least
            raise DataError(f"{n} elements declared, {len(at.data) - at.pos} bytes left")
        return [self._value(desc[1], at, order, depth) for _ in range(n)]

    def _align(self, at: _Cursor, size: int) -> None:
        if not self.ros1:
            at.pos += -at.pos % size

    def _count(self, at: _Cursor, order: str) -> int:
        self._align(at, 4)
        (n,) = struct.unpack_from(order + "I", at.data, at.pos)
        at.pos += 4
        return int(n)

    def _numbers(self, name: str, n: int, at: _Cursor, order: str) -> np.ndarray:
        code = "i1" if name == "byte" and self.ros1 else _DTYPES.get(name)
        if code is None:
            raise DataError(f"fields of type {name} cannot be read")
        dtype = np.dtype(order + code)
        if not n:
            return np.zeros(0, dtype)
        self._align(at, dtype.itemsize)
        if n * dtype.itemsize > len(at.data) - at.pos:
            raise DataError(f"{n} values of {name} declared, {max(0, len(at.data) - at.pos)} bytes left")
        out = np.frombuffer(at.data, dtype, n, at.pos)
        at.pos += n * dtype.itemsize
        return out.view(bool) if name == "bool" and bool((out <= 1).all()) else out

    def _string(self, at: _Cursor, order: str) -> str:
        n = self._count(at, order)
        if n > len(at.data) - at.pos:
            raise DataError(f"a text of {n} bytes declared, {len(at.data) - at.pos} bytes left")
        text = bytes(at.data[at.pos : at.pos + n])
        at.pos += n
        return (text if self.ros1 else text[:-1]).decode("utf-8", "replace")
