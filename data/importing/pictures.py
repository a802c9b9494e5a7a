"""Single compressed pictures (PNG, JPEG) as arrays, their size checked before memory is taken."""

from __future__ import annotations

import struct

import cv2
import numpy as np

from visuomotor.data.errors import DataError

__all__ = ["decode_picture", "picture_size"]

_PNG = b"\x89PNG\r\n\x1a\n"
_NO_SIZE = (0xC4, 0xC8, 0xCC)  # among the JPEG markers C0..CF: tables and extensions, not frames


def picture_size(data: bytes) -> tuple[int, int] | None:
    """``(height, width)`` [px] as declared by a PNG (ISO/IEC 15948, 11.2.2) or JPEG (ITU-T T.81, B.2.2), else None."""
    if data[:8] == _PNG and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return height, width
        at += 2 + int(struct.unpack(">H", data[at + 2 : at + 4])[0])
    return None


def decode_picture(data: bytes, shape: tuple[int, ...], what: str) -> np.ndarray:
    """uint8 RGB ``[H, W, 3]`` of a PNG or JPEG file.

    Args:
        data: the file's bytes.
        shape: expected ``(H, W, 3)``.
        what: names the picture in the message.

    Raises:
        DataError: it is no PNG or JPEG, of another size, or damaged.
    """
    size = picture_size(data)
    if size is None:
        raise DataError(f"{what}: {len(data)} bytes that are neither PNG nor JPEG")
    if size != shape[:2]:
        raise DataError(f"{what} is {size[1]} x {size[0]} px; expected {shape[1]} x {shape[0]}")
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None or picture.shape != shape:
        raise DataError(f"{what} cannot be decoded: damaged")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
