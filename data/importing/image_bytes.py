"""Compressed pictures from strangers: their size is read from the header before anything is decoded."""

from __future__ import annotations

import struct

import cv2
import numpy as np

from visuomotor.data.errors import DataError

__all__ = ["MAX_PIXELS", "decode_image", "image_size", "jpeg_header"]

MAX_PIXELS = 64 << 20  # of one picture; a 50-megapixel camera passes
_PNG = b"\x89PNG\r\n\x1a\n"
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # start of frame


def image_size(data: bytes) -> tuple[int, int]:
    """``(height, width)`` that a PNG or JPEG declares.

    Raises:
        DataError: it is neither, or damaged.
    """
    try:
        if data.startswith(_PNG):
            width, height = struct.unpack_from(">II", data, 16)
            return int(height), int(width)
        if data.startswith(b"\xff\xd8"):
            return jpeg_header(data)[:2]
    except struct.error:
        raise DataError(f"a picture of {len(data)} bytes is cut off") from None
    raise DataError(f"a picture begins with {data[:8].hex()}: neither PNG nor JPEG")


def jpeg_header(data: bytes) -> tuple[int, int, int]:
    """``(height, width, components)`` of a JPEG, by its frame header (ITU-T T.81, B.2.2); nothing is decoded.

    Raises:
        DataError: damaged before the frame header.
        struct.error: cut off before it.
    """
    pos = 2
    while True:
        marker, n = struct.unpack_from(">HH", data, pos)
        if marker >> 8 != 0xFF:
            raise DataError(f"a JPEG is damaged at byte {pos}")
        if marker & 0xFF in _FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, pos + 5)
            return int(height), int(width), int(components)
        pos += 1 if marker == 0xFFFF else 2 + max(n, 2)


def decode_image(data: bytes | memoryview, *, depth: bool = False) -> np.ndarray:
    """A PNG or JPEG as uint8 ``[H, W, 3]`` RGB; with ``depth``, as it is: uint8 or uint16 ``[H, W]``.

    Raises:
        DataError: it is neither, declares too many pixels, or is damaged.
    """
    raw = bytes(data)
    height, width = image_size(raw)
    if not 0 < height * width <= MAX_PIXELS:
        raise DataError(f"a picture of {len(raw)} bytes declares {width} x {height} pixels: refused")
    flags = cv2.IMREAD_UNCHANGED if depth else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"a picture cannot be decoded: {str(error).strip()}") from None
    if image is None:
        raise DataError(f"a picture of {len(raw)} bytes ({width} x {height}) is damaged")
    if depth:
        if image.ndim != 2:
            raise DataError(f"a depth picture has {image.shape[2]} channels: expected one")
        return np.asarray(image)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
