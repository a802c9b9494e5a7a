"""Texts as numbers: the bytes of their UTF-8 form. Imports without torch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.errors import DataError

__all__ = ["encode_texts"]


def encode_texts(texts: Iterable[str], length: int) -> NDArray[np.uint8]:
    """UTF-8 bytes of each text, filled up with zeros: uint8 ``[E, length]``.

    Raises:
        DataError: a text that is longer than ``length`` bytes (two tasks that differ only behind the cut would become
            one), or that holds the character 0.
    """
    rows = []
    for i, text in enumerate(texts):
        code = text.encode()
        if len(code) > length:
            raise DataError(f"text {i} has {len(code)} bytes, expected at most {length}: {text!r}")
        if 0 in code:
            raise DataError(f"text {i} holds the character 0: {text!r}")
        rows.append(np.frombuffer(code.ljust(length, b"\0"), np.uint8))
    return np.stack(rows) if rows else np.empty((0, length), np.uint8)
