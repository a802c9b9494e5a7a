"""Pictures of a LeRobot episode: frames of its video by their times, or pictures in the cells of its table."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.importing.image_bytes import decode_image, image_size
from visuomotor.data.importing.lerobot_layout import Clip
from visuomotor.data.recycling import Recycler
from visuomotor.data.video import VideoIndex, read_frames

__all__ = ["pair_frames", "read_clip", "read_pictures"]

_SAME = 0.01  # of a period: times that differ by less are the same, rounded


def read_clip(
    index: VideoIndex, clip: Clip, times: np.ndarray, fps: float, shape: tuple[int, ...], in_order: bool,
    memory: Recycler | None = None, threads: int = 0,
) -> tuple[np.ndarray, list[str]]:  # fmt: skip
    """Frames uint8 ``[L, H, W, 3]`` of the rows at ``times`` [s] of the episode, and what is odd about them.

    Raises:
        DataError: the video is damaged, of another size, or has no frame for a row.
    """
    if (index.height, index.width, 3) != shape:
        raise DataError(f"{index.path} is {index.width} x {index.height} px; expected {shape[1]} x {shape[0]}")
    half = 0.5 / fps
    inside = index.times >= clip.start - half
    if clip.stop is not None:
        inside &= index.times < clip.stop - half
    own = np.flatnonzero(inside)
    try:
        pairs, notes = pair_frames(times, index.times[own] - clip.start, fps, in_order)
    except DataError as error:
        raise DataError(f"{index.path}: {error}") from None
    return read_frames(index, own[pairs], memory, threads), notes


def pair_frames(
    times: np.ndarray, frames: np.ndarray, fps: float, in_order: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Which frame belongs to which row.

    Args:
        times: float64 ``[L]``, when each row was recorded [s].
        frames: float64 ``[N]``, when each frame is shown [s], increasing.
        fps: rows per second [Hz].
        in_order: row i has frame i, whatever the times.

    Returns:
        int64 ``[L]``, places in ``frames``, not decreasing; and sentences for the user. Each row has the nearest frame,
        at most half a period away. Where times and frames differ by one constant and are equally many (timestamps that
        begin late), rows have the frames in order.

    Raises:
        DataError: a row has no frame.
    """
    n, period = len(times), 1 / fps
    if not len(frames) or (in_order and len(frames) != n):
        raise DataError(f"{len(frames)} frames for {n} rows")
    if in_order:
        return np.arange(n), []
    nearest = _nearest(times, frames)
    away = np.abs(times - frames[nearest])
    if (away <= _SAME * period).all():
        return _increasing(nearest, times)
    if len(frames) == n:
        offset = times - frames
        middle = float(np.median(offset))
        if np.abs(offset - middle).max() < 0.5 * period:
            told = abs(middle) > _SAME * period
            note = f"timestamps are {middle:+.4f} s off the video's: rows have its frames in order"
            return np.arange(n), [note] * told
    far = np.flatnonzero(away > 0.5 * period)
    if len(far):
        row = int(far[0])
        raise DataError(
            f"row {row} at {times[row]:.4f} s has no frame within half a period ({0.5 * period:.4f} s): "
            f"the nearest is at {frames[nearest[row]]:.4f} s ({len(far)} such rows; {len(frames)} frames for {n} rows)"
            + ("; options.pairing=order gives row i frame i" if len(frames) == n else "")
        )
    pairs, notes = _increasing(nearest, times)
    return pairs, [*notes, f"timestamps are up to {away.max():.4f} s off the video's: rows have the nearest frame"]


def _nearest(times: np.ndarray, frames: np.ndarray) -> np.ndarray:
    right = np.clip(np.searchsorted(frames, times), 0, len(frames) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(np.abs(times - frames[left]) <= np.abs(frames[right] - times), left, right)


def _increasing(pairs: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, list[str]]:
    steps = np.diff(pairs)
    if (steps < 0).any():
        row = int(np.argmax(steps < 0)) + 1
        raise DataError(f"timestamps run backwards: {times[row]:.4f} s at row {row} follows {times[row - 1]:.4f} s")
    shared = int((steps == 0).sum())
    return pairs, [f"{shared} rows have the frame of the row before: a frame is missing or comes late"] * (shared > 0)


def read_pictures(root: Path, column: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Pictures uint8 ``[L, H, W, 3]`` of an Arrow column: cells ``{"bytes", "path"}`` as LeRobot's, or bytes.

    Raises:
        DataError: a cell holds no picture, or a path that leaves the dataset.
    """
    out = np.empty((len(column), *shape), np.uint8)
    for row in range(len(column)):
        cell = column[row].as_py()
        if isinstance(cell, dict):
            cell = cell.get("bytes") or _beside(root, cell.get("path"), f"{what}, row {row}")
        if not isinstance(cell, bytes):
            raise DataError(f"{what}, row {row} holds no picture")
        out[row] = _picture(cell, shape, f"{what}, row {row}")
    return out


def _picture(data: bytes, shape: tuple[int, ...], what: str) -> np.ndarray:
    try:
        size = image_size(data)
        if size != shape[:2]:
            raise DataError(f"it is {size[1]} x {size[0]} px; expected {shape[1]} x {shape[0]}")
        return decode_image(data)
    except DataError as error:
        raise DataError(f"{what}: {error}") from None


def _beside(root: Path, path: Any, what: str) -> bytes:
    if not isinstance(path, str):
        raise DataError(f"{what} holds no picture")
    inside = PurePosixPath(path)
    if inside.is_absolute() or ".." in inside.parts or "\0" in path:
        raise DataError(f"{what} names a picture outside the dataset: {path!r}")
    try:
        return (root / inside).read_bytes()
    except OSError as error:
        raise DataError(f"{what}: {path!r} cannot be read: {error.strerror or error}") from None
