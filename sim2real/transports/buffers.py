"""Numbers, strings and arrays to bytes and back: XCDR1, which ROS 2 has on the wire, and the serialisation of ROS 1.

Both write the same fields in the same order. XCDR1 (DDS-XTypes 1.3, section 7.4.1; encapsulation ``00 01 00 00``)
aligns each number to its own size, counted from behind the encapsulation, and ends strings with a NUL; ROS 1 does
neither and has a counter in the header. Bytes from outside are checked against their end before anything is allocated
or read.

Arrays of bytes (pictures) are views of what came in, and copied once on the way out; other arrays are copies.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from visuomotor.sim2real.messages import Message

__all__ = ["Bytes", "CdrError", "Decoder", "Encoder"]

Bytes = bytes | bytearray | memoryview
_SECOND = 1_000_000_000
_BOOL, _INT, _UINT, _TIME = (struct.Struct(f"<{c}") for c in ("B", "i", "I", "iI"))
_TIME1 = struct.Struct("<II")
_ZEROS = bytes(8)
_HEADER = b"\x00\x01\x00\x00"


class CdrError(ValueError):
    """These bytes are no such message, or this message does not fit into its type."""


class Encoder:
    """Bytes of one message, little endian."""

    def __init__(self, *, ros1: bool = False) -> None:
        self.ros1 = ros1
        self._parts: list[Bytes] = [] if ros1 else [_HEADER]
        self._size = 0

    def put(self, data: Bytes, align: int) -> None:
        """Append these bytes at the next multiple of ``align``."""
        pad = 0 if self.ros1 else -self._size % align
        if pad:
            self._parts.append(_ZEROS[:pad])
        self._parts.append(data)
        self._size += pad + len(data)

    def finish(self, multiple: int = 1) -> bytes:
        """Everything put so far, filled up with zeros to a multiple of so many bytes."""
        self._parts.append(bytes(-self._size % multiple))
        return b"".join(self._parts)

    def boolean(self, value: bool) -> None:
        self.put(_BOOL.pack(bool(value)), 1)

    def uint(self, value: int) -> None:
        self.put(_UINT.pack(value), 4)

    def string(self, value: str) -> None:
        data = value.encode() if self.ros1 else value.encode() + b"\0"
        self.uint(len(data))
        self.put(data, 1)

    def strings(self, values: Sequence[str]) -> None:
        self.uint(len(values))
        for value in values:
            self.string(value)

    def array(self, values: np.ndarray, dtype: str = "<f8") -> None:
        """A sequence of numbers."""
        array = np.ascontiguousarray(values, dtype)
        if array.ndim != 1:
            raise CdrError(f"an array has shape {list(array.shape)}; expected [n]")
        self.uint(len(array))
        if len(array):
            self.put(array.data.cast("B"), array.itemsize)

    def vector(self, values: np.ndarray, size: int) -> None:
        """``size`` float64 numbers without a length."""
        array = np.ascontiguousarray(values, "<f8")
        if array.shape != (size,):
            raise CdrError(f"a vector has shape {list(array.shape)}; expected [{size}]")
        self.put(array.data.cast("B"), 8)

    def time(self, time_ns: int) -> None:
        seconds, rest = divmod(int(time_ns), _SECOND)
        self.put((_TIME1 if self.ros1 else _TIME).pack(seconds, rest), 4)

    def duration(self, time_ns: int) -> None:
        self.put(_TIME.pack(*divmod(int(time_ns), _SECOND)), 4)

    def header(self, message: Message) -> None:
        if self.ros1:
            self.uint(0)
        self.time(message.stamp_ns)
        self.string(message.frame_id)


class Decoder:
    """Reads one message's bytes from front to back.

    Raises:
        CdrError: on construction, when these are not XCDR1; by every method, when the bytes end too early.
    """

    def __init__(self, data: Bytes, *, ros1: bool = False) -> None:
        view = memoryview(data).cast("B")
        self.ros1, self._order = ros1, "<"
        if not ros1:
            if len(view) < 4 or view[0] != 0 or view[1] > 1:
                raise CdrError(f"encapsulation {bytes(view[:4]).hex(' ') or '(nothing)'}; XCDR1 has 00 00 or 00 01")
            self._order = "<" if view[1] else ">"
            view = view[4:]
        self._view, self._at = view, 0

    def take(self, size: int, align: int) -> int:
        """Where the next ``size`` bytes begin."""
        begin = self._at if self.ros1 else self._at + -self._at % align
        if size > len(self._view) - begin:
            raise CdrError(f"{len(self._view)} bytes, but a field of {size} begins at {begin}")
        self._at = begin + size
        return begin

    def view(self, size: int) -> memoryview:
        """The next ``size`` bytes."""
        begin = self.take(size, 1)
        return self._view[begin : begin + size]

    def _number(self, code: str, size: int) -> int:
        return cast(int, struct.unpack_from(self._order + code, self._view, self.take(size, size))[0])

    def boolean(self) -> bool:
        return self._number("B", 1) != 0

    def uint(self) -> int:
        return self._number("I", 4)

    def length(self, smallest: int) -> int:
        """Length of a sequence whose elements have at least so many bytes."""
        count = self.uint()
        if count * smallest > len(self._view) - self._at:
            raise CdrError(f"a sequence of {count}, but only {len(self._view) - self._at} bytes are left")
        return count

    def string(self) -> str:
        size = self.uint()
        begin = self.take(size, 1)
        data = bytes(self._view[begin : begin + size])
        if not self.ros1 and size:
            if data[-1]:
                raise CdrError("a string without its terminating NUL")
            data = data[:-1]
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise CdrError(f"a string is not UTF-8: {error}") from None

    def strings(self) -> tuple[str, ...]:
        return tuple([self.string() for _ in range(self.length(4))])

    def array(self, code: str = "f8") -> np.ndarray:
        """A sequence of numbers: native and writable, but of bytes a view."""
        dtype = np.dtype(self._order + code)
        count = self.uint()
        if not count:
            return np.zeros(0, dtype.newbyteorder("="))
        raw = np.frombuffer(self._view, dtype, count, self.take(count * dtype.itemsize, dtype.itemsize))
        return raw if code == "u1" else raw.astype(dtype.newbyteorder("="))

    def vector(self, size: int) -> np.ndarray:
        begin = self.take(8 * size, 8)
        return np.frombuffer(self._view, self._order + "f8", size, begin).astype(float)

    def time(self) -> int:
        code = "II" if self.ros1 else "iI"
        seconds, rest = struct.unpack_from(self._order + code, self._view, self.take(8, 4))
        return int(seconds * _SECOND + rest)

    def duration(self) -> int:
        seconds, rest = struct.unpack_from(self._order + ("ii" if self.ros1 else "iI"), self._view, self.take(8, 4))
        return int(seconds * _SECOND + rest)

    def header(self) -> dict[str, Any]:
        if self.ros1:
            self.uint()
        return {"stamp_ns": self.time(), "frame_id": self.string()}
