"""Cameras that froze, that are slower than the store, or that saw nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.checks.finding import Finding, located
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.checks.vectors import Vectors, runs
from visuomotor.data.spec import ArraySpec

__all__ = ["FrameWatch", "check_frames"]

_GRID = 4  # of every fourth pixel either way, brightness is taken


class FrameWatch:
    """What one pass over a camera leaves: for each step, is it the frame before, and how bright is it. 5 bytes a step.

    Depth is no brightness: a frame is black where no pixel has a distance.
    """

    def __init__(self, spec: ArraySpec, n_steps: int) -> None:
        self.repeats = np.zeros(n_steps, bool)
        self.brightest = np.full(n_steps, np.inf, np.float32)  # chunks that could not be read stay bright
        self._spec, self._last = spec, (-1, np.empty(0))

    def __call__(self, start: int, rows: np.ndarray) -> None:
        """Take the frames of the steps from ``start`` on."""
        n = len(rows)
        flat = rows.reshape(n, -1)
        self.repeats[start + 1 : start + n] = [np.array_equal(a, b) for a, b in pairwise(flat)]
        if self._last[0] == start - 1 and n:
            self.repeats[start] = np.array_equal(self._last[1], flat[0])
        self._last = (start + n - 1, flat[-1].copy())
        grid = rows if self._spec.is_depth else rows[:, ::_GRID, ::_GRID]
        self.brightest[start : start + n] = grid.reshape(n, -1).max(axis=1)

    def dark(self, limits: Thresholds) -> NDArray[np.bool_]:
        """Steps whose frame is black."""
        if self._spec.is_depth:
            return self.brightest == 0
        finite = self.brightest[np.isfinite(self.brightest)]
        unit = np.dtype(self._spec.dtype).kind == "f" and len(finite) and finite.max() <= 1
        return self.brightest <= (limits.dark_level / 255 if unit else limits.dark_level)


def check_frames(
    watches: Mapping[str, FrameWatch], ends: NDArray[np.int64], vectors: Vectors, ranges: NDArray[np.float64],
    limits: Thresholds,
) -> Iterator[Finding]:  # fmt: skip
    """Judge every camera.

    Args:
        watches: what was seen, by array.
        ends: episode ends.
        vectors: what tells whether the robot moved; without any, only long freezes count.
        ranges: range of every component, ``[C]``.
        limits: thresholds.
    """
    moved = _Motion(vectors, ranges, ends) if vectors.specs else None
    for key, watch in watches.items():
        yield from _dark(key, watch.dark(limits), ends, limits)
        yield from _frozen(key, watch, ends, moved, vectors.fps, limits)


def _dark(key: str, dark: NDArray[np.bool_], ends: NDArray[np.int64], limits: Thresholds) -> Iterator[Finding]:
    if len(dark) >= limits.dark_frames and dark.all():
        yield Finding(severity="error", array=key, episode=0, row=0, message="every frame is black")
        return
    told: dict[int, tuple[int | None, str]] = {}
    for episode, (start, stop) in enumerate(_spans(ends)):
        long = [(a, b) for a, b in runs(dark[start:stop]) if b - a >= min(limits.dark_frames, stop - start) > 1]
        long = [(a, b) for a, b in long if b - a >= limits.dark_frames]
        if long:
            told[episode] = (long[0][0], f"{sum(b - a for a, b in long)} of {stop - start} frames are black")
    yield from located(told, severity="warning", array=key, what="black frames")


def _frozen(
    key: str, watch: FrameWatch, ends: NDArray[np.int64], moved: _Motion | None, fps: float | None, limits: Thresholds
) -> Iterator[Finding]:
    least = limits.frozen_length(fps)
    told: dict[int, tuple[int | None, str]] = {}
    repeated = looked_at = 0
    for episode, (start, stop) in enumerate(_spans(ends)):
        same = watch.repeats[start + 1 : stop]
        if moved is not None:
            moving = moved.steps(start, stop)
            repeated, looked_at = repeated + int((same & moving).sum()), looked_at + int(moving.sum())
        for a, b in runs(same):  # frames a .. b are equal
            far = moved is None or moved.distance(start + a, start + b) >= limits.frozen_motion
            if b - a >= least and far:
                what = "the robot moves" if moved is not None else "the same frame comes again and again"
                told.setdefault(episode, (a, f"frozen for {b - a + 1} frames, while {what}"))
    if looked_at and repeated >= limits.repeated_share * looked_at and looked_at >= 2 * least:
        message = (
            f"{100 * repeated / looked_at:.0f} % of the frames repeat the one before while the robot moves: the camera "
            "is slower than the store, or drops frames"
        )
        yield Finding(severity="warning", array=key, message=message)
    else:
        yield from located(told, severity="warning", array=key, what="frozen frames")


def _spans(ends: NDArray[np.int64]) -> list[tuple[int, int]]:
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


class _Motion:
    """Where the robot is, coarsely: every component as a share of its range, in 16 bit."""

    def __init__(self, vectors: Vectors, ranges: NDArray[np.float64], ends: NDArray[np.int64]) -> None:
        columns = [i for i, c in enumerate(vectors.components) if c.role == "observation" and ranges[i] > 0]
        columns = columns or [i for i, r in enumerate(ranges) if r > 0]
        self._x = np.zeros((int(ends[-1]) if len(ends) else 0, len(columns)), np.float16)
        scale = 1 / ranges[columns]
        for episode, x in vectors.episodes():
            start = int(ends[episode - 1]) if episode else 0
            self._x[start : start + len(x)] = (x[:, columns] - x[0, columns]) * scale

    def distance(self, start: int, stop: int) -> float:
        """How far the component that moves most gets between two steps."""
        if not self._x.shape[1]:
            return 0.0
        return float(np.abs(self._x[stop].astype(np.float32) - self._x[start]).max())

    def steps(self, start: int, stop: int) -> NDArray[np.bool_]:
        """``[L - 1]``: whether anything moves by more than a hundredth of its range between a step and the next."""
        x = self._x[start:stop].astype(np.float32)
        return np.asarray((np.abs(np.diff(x, axis=0)) > 0.01).any(axis=1))
