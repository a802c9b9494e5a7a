"""JPEG pictures in rows of bytes, as HDF5 files hold them: their size is read before they are decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import cv2
import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.importing.image_bytes import MAX_PIXELS, jpeg_header

__all__ = ["decode_jpegs", "is_jpeg", "jpeg_shape"]

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"


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
    try:
        height, width, components = jpeg_header(data)
    except (DataError, struct.error):
        raise DataError(f"{what} is a JPEG without the size of its picture") from None
    if not 0 < height * width <= MAX_PIXELS:
        raise DataError(f"{what} declares {height} x {width} pixels: expected 1 to {MAX_PIXELS}")
    return height, width, 1 if components == 1 else 3


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
