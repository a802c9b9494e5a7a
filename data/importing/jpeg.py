"""JPEG pictures in rows of bytes: their size is read before they are decoded.

Markers after ITU-T T.81 (JPEG), annex B.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from visuomotor.data.errors import DataError

__all__ = ["decode_jpegs", "is_jpeg", "jpeg_shape"]

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15; the three are tables
_MAX_PIXELS = 1 << 26


def is_jpeg(row: np.ndarray) -> bool:
    """True if bytes begin as a JPEG does."""
    return row[:3].tobytes() == _START


def jpeg_shape(row: np.ndarray, what: str) -> tuple[int, int, int]:
    """``(height, width, 1 or 3)`` as the header says; nothing is decoded.

    Raises:
        DataError: no JPEG, or one that is cut off.
    """
    data = row.tobytes().rstrip(b"\0")  # rows are filled up with zeros to one length
    if not (data.startswith(_START) and data.endswith(_END)):
        raise DataError(f"{what} is no whole JPEG: {len(data)} bytes from {data[:3].hex()} to {data[-2:].hex()}")
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        if data[at + 1] in _FRAMES:
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            if not 0 < height * width <= _MAX_PIXELS:
                raise DataError(f"{what} declares {height} x {width} pixels: expected 1 to {_MAX_PIXELS}")
            return height, width, 1 if data[at + 9] == 1 else 3
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    raise DataError(f"{what} is a JPEG without the size of its picture")


def decode_jpegs(rows: Iterable[np.ndarray], n: int, shape: tuple[int, ...], what: str, *, swapped: bool) -> np.ndarray:
    """Pictures uint8 ``[n, H, W, C]`` in RGB.

    Args:
        rows: bytes of each.
        n: how many there are.
        shape: ``(H, W, C)`` that each must have.
        what: names them in messages.
        swapped: they were written by OpenCV from RGB arrays, which it takes for BGR: red and blue are exchanged in
            the files.

    Raises:
        DataError: one is damaged, or of another size.
    """
    pictures = np.empty((n, *shape), np.uint8)
    flags = cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_GRAYSCALE if shape[2] == 1 else cv2.IMREAD_COLOR)
    for i, row in enumerate(rows):
        found = jpeg_shape(row, f"{what}, row {i},")
        if found != shape:
            raise DataError(f"{what}, row {i}, is a picture of {list(found)}: expected {list(shape)}")
        picture = cv2.imdecode(np.ascontiguousarray(row), flags)
        if picture is None or picture.shape[:2] != shape[:2]:
            raise DataError(f"{what}, row {i}, cannot be decoded")
        picture = picture.reshape(shape)
        pictures[i] = picture if swapped or shape[2] == 1 else picture[..., ::-1]
    return pictures
