"""The board as the page asks for it: read once for all who look, with pictures as JPEG."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Protocol

import cv2
import numpy as np

from visuomotor.sim2real.runtime.types import State, Status
from visuomotor.sim2real.safety.supervisor import TRANSITIONS

__all__ = ["Board", "Snapshots"]

_FRESH_S = 0.03
_QUALITY = 75
_LARGEST_SIDE = 640


class Board(Protocol):
    """Where the bridge shows its status."""

    def read(self) -> Status:
        """The newest."""


class Snapshots:
    """The newest status for any number of readers, from any thread.

    Args:
        board: where it comes from.
        clock: seconds.
    """

    def __init__(self, board: Board, clock: Callable[[], float] = time.monotonic) -> None:
        self._board, self._clock = board, clock
        self._lock = threading.Lock()
        self._status, self._read_at = Status(), -math.inf
        self._moved_at = clock()  # when the bridge's own time was last seen to go on
        self._pictures: dict[int, bytes] = {}

    def status(self) -> bytes:
        """JSON of the status without its pictures, and beside it ``cameras`` (their names), ``allowed`` (requests that
        the state takes) and ``silent_s`` (how long the bridge has not written anything).
        """
        with self._lock:
            now = self._refresh()
            status = self._status
            values: dict[str, Any] = {f.name: getattr(status, f.name) for f in fields(status) if f.name != "pictures"}
            values["cameras"] = list(status.pictures)
            values["allowed"] = _allowed(status.state)
            values["silent_s"] = now - self._moved_at
        return json.dumps(_finite(values)).encode()

    def picture(self, number: int) -> bytes | None:
        """The newest picture of the camera with this place among ``cameras``, as JPEG; None without one."""
        with self._lock:
            self._refresh()
            pictures = list(self._status.pictures.values())
            if number >= len(pictures):
                return None
            if number not in self._pictures:
                self._pictures[number] = _jpeg(pictures[number])
            return self._pictures[number]

    def _refresh(self) -> float:
        now = self._clock()
        if now - self._read_at < _FRESH_S:
            return now
        self._read_at = now
        status = self._board.read()
        if status.time_s != self._status.time_s:
            self._status, self._moved_at = status, now
            self._pictures.clear()
        return now


def _allowed(state: str) -> list[str]:
    known = {s.value for s in State}
    return [r.value for r in TRANSITIONS[State(state)]] if state in known else []


def _jpeg(picture: np.ndarray) -> bytes:
    """uint8 ``[H, W, 3]`` RGB."""
    step = -(-max(picture.shape[:2]) // _LARGEST_SIDE)
    pixels = np.ascontiguousarray(picture[::step, ::step, ::-1])
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return data.tobytes()


def _finite(value: Any) -> Any:
    """JSON has no nan and no inf; browsers refuse a document with one."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
