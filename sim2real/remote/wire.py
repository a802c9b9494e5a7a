"""Messages between policy server and client as bytes: msgpack with arrays and JPEG pictures; nothing that runs code.

An array is the extension type 1: one byte for the type of its values, one for the number of axes, the axes as
little-endian uint32, then the values, little-endian, in C order. Extension type 2 is a whole JPEG file. What comes in
is taken for hostile: types are listed, and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.errors import DataError, MissingExtraError, UserError

try:
    import msgpack
except ImportError:
    raise MissingExtraError("remote policies need websockets and msgpack: pip install 'visuomotor[serve]'") from None

__all__ = ["Jpeg", "WireError", "decode", "encode"]

_ARRAY, _JPEG = 1, 2
_DTYPES = (np.dtype("<u1"), np.dtype("<f4"))  # the place in this tuple is what is sent
_MAX_AXES = 8
_MAX_TEXT = 1 << 16
_MAX_ENTRIES = 4096


class WireError(DataError):
    """Bytes that are no message of this protocol."""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A picture as a JPEG file."""

    data: bytes


def encode(message: Mapping[str, Any]) -> bytes:
    """``message`` of plain values, uint8 and float32 arrays and :class:`Jpeg` to bytes; inverse of :func:`decode`."""
    return bytes(msgpack.packb(dict(message), default=_pack, use_bin_type=True))


def decode(data: bytes) -> dict[str, Any]:
    """Bytes of a stranger to a map with text keys. Arrays are read-only views of ``data``.

    Raises:
        WireError: anything else than a whole message.
    """
    try:
        message = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            ext_hook=_unpack,
            max_str_len=_MAX_TEXT,
            max_bin_len=0,
            max_array_len=_MAX_ENTRIES,
            max_map_len=_MAX_ENTRIES,
            max_ext_len=len(data),
        )
    except UserError:
        raise
    # the package raises its own errors, ValueError, and for nesting without end StackError or RecursionError
    except (msgpack.UnpackException, ValueError, RecursionError, TypeError, OverflowError) as error:
        raise WireError(f"{len(data)} bytes are no message: {type(error).__name__} {str(error)[:80]}") from None
    if not isinstance(message, dict) or not all(isinstance(k, str) for k in message):
        raise WireError(f"a message is a map with text keys, not {type(message).__name__}")
    return message


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        dtype = value.dtype.newbyteorder("<")
        if dtype not in _DTYPES or value.ndim > _MAX_AXES:
            raise WireError(f"an array of {value.dtype} {value.shape} cannot be sent: expected uint8 or float32")
        head = struct.pack(f"<BB{value.ndim}I", _DTYPES.index(dtype), value.ndim, *value.shape)
        return msgpack.ExtType(_ARRAY, head + value.astype(dtype, copy=False).tobytes())
    if isinstance(value, Jpeg):
        return msgpack.ExtType(_JPEG, value.data)
    raise WireError(f"{type(value).__name__} cannot be sent")


def _unpack(code: int, data: bytes) -> Any:
    if code == _JPEG:
        return Jpeg(data)
    if code != _ARRAY:
        raise WireError(f"unknown extension type {code}")
    return _array(data)


def _array(data: bytes) -> NDArray[Any]:
    if len(data) < 2 or data[0] >= len(_DTYPES) or data[1] > _MAX_AXES or len(data) < 2 + 4 * data[1]:
        raise WireError(f"an array of {len(data)} bytes has no valid head")
    dtype, axes, start = _DTYPES[data[0]], data[1], 2 + 4 * data[1]
    shape = struct.unpack_from(f"<{axes}I", data, 2)
    size = math.prod(shape)  # of Python's integers: nothing overflows
    if len(data) - start != size * dtype.itemsize:
        raise WireError(f"an array of shape {shape[:4]} with {len(data) - start} bytes of values")
    return np.frombuffer(data, dtype, size, start).reshape(shape)
