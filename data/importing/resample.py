"""Streams of samples at their own times, brought to one fixed rate. Pure functions of arrays.

Times are int64 nanoseconds ``[N]``, increasing; ``at`` are the times asked for ``[L]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visuomotor.data.errors import DataError

__all__ = [
    "INTERPOLATIONS",
    "ages",
    "angle",
    "gaps",
    "grid",
    "hold_index",
    "in_order",
    "intersection",
    "linear",
    "missing_samples",
    "nearest_index",
    "resample",
    "slerp",
    "split_at_changes",
    "split_at_gaps",
]

INTERPOLATIONS = ("hold", "nearest", "linear", "angle", "slerp")
SECOND = 1_000_000_000  # ns


def grid(start: int, stop: int, fps: float) -> np.ndarray:
    """Times of the steps, int64 ``[L]`` ns: ``start + round(i / fps)``, none after ``stop``.

    Rounded from the index, not summed up: step 1,000,000 is no further from its time than step 1.
    """
    if stop < start:
        return np.zeros(0, np.int64)
    n = int((stop - start) * fps / SECOND) + 2
    times = start + np.round(np.arange(n) * (SECOND / fps)).astype(np.int64)
    return times[times <= stop]


def in_order(times: np.ndarray) -> np.ndarray:
    """Indices int64 that put ``times`` in strictly increasing order; of equal times the last one is kept."""
    order = np.argsort(times, kind="stable")
    last = np.append(np.diff(times[order]) > 0, True)[: len(order)]
    return order[last]


def intersection(streams: Sequence[np.ndarray]) -> tuple[int, int]:
    """``(first, last)`` time [ns] at which every stream has begun and none has ended; last < first if there is none."""
    return max(int(t[0]) for t in streams), min(int(t[-1]) for t in streams)


def hold_index(times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Index of the latest sample not after each time, int64 ``[L]``; -1 before the first."""
    return np.searchsorted(times, at, side="right") - 1


def nearest_index(times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Index of the sample nearest to each time, int64 ``[L]``; of two equally near ones the earlier."""
    after = np.clip(np.searchsorted(times, at), 1, max(1, len(times) - 1))
    if len(times) == 1:
        return np.zeros(len(at), np.int64)
    return after - (at - times[after - 1] <= times[after] - at)


def ages(times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """How old the latest sample is at each time, float64 ``[L]`` seconds; infinite before the first."""
    index = hold_index(times, at)
    return np.where(index < 0, np.inf, (at - times[np.maximum(index, 0)]) / SECOND)


def _weights(times: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(index before, index after, weight of the one after [0, 1])`` of each time; ends are held."""
    before = np.clip(hold_index(times, at), 0, len(times) - 1)
    after = np.minimum(before + 1, len(times) - 1)
    width = np.maximum(times[after] - times[before], 1)
    return before, after, np.clip((at - times[before]) / width, 0.0, 1.0)


def linear(times: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values ``[N, ...]`` on the straight line between the two samples around each time, float64 ``[L, ...]``."""
    before, after, weight = _weights(times, at)
    w = weight.reshape(-1, *[1] * (values.ndim - 1))
    # Where the weight is 0 the sample itself comes out, also next to an infinite or huge neighbour.
    return np.where(w == 0, values[before], values[before] * (1.0 - w) + values[after] * w)


def angle(times: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Angles ``[N, D]`` rad along the short way round the circle, float64 ``[L, D]``.

    The result is in [-pi, pi) where the samples have negative ones, else in [0, 2 pi).
    """
    turned = linear(times, np.unwrap(values, axis=0), at)
    low = np.where((values < 0).any(axis=0), -np.pi, 0.0)
    return low + np.mod(turned - low, 2 * np.pi)


def slerp(times: np.ndarray, quats: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Unit quaternions ``[N, 4]`` on the shortest arc (Shoemake 1985), float64 ``[L, 4]``, components in their order.

    ``q`` and ``-q`` are one rotation: signs are made continuous first.

    Raises:
        DataError: a quaternion of length 0.
    """
    norm = np.linalg.norm(quats, axis=-1, keepdims=True)
    if (norm < 1e-6).any():
        raise DataError(f"sample {int(np.argmin(norm))} is a quaternion of length 0, which is no rotation")
    q = quats / norm
    flips = np.where((q[1:] * q[:-1]).sum(-1) < 0, -1.0, 1.0)
    q = q * np.concatenate([[1.0], np.cumprod(flips)])[:, None]
    before, after, w = _weights(times, at)
    p, r = q[before], q[after]
    angle = np.arccos(np.clip((p * r).sum(-1), -1.0, 1.0))
    small = np.sin(angle) < 1e-6  # the arc is a straight line there, and sin(angle) no divisor
    s = np.where(small, 1.0, np.sin(angle))
    a = np.where(small, 1.0 - w, np.sin((1.0 - w) * angle) / s)
    b = np.where(small, w, np.sin(w * angle) / s)
    out = a[:, None] * p + b[:, None] * r
    return out / np.linalg.norm(out, axis=-1, keepdims=True)


def resample(times: np.ndarray, values: np.ndarray, at: np.ndarray, how: str) -> np.ndarray:
    """Values ``[N, ...]`` at the times ``at``: ``how`` is one of :data:`INTERPOLATIONS`.

    ``hold`` and ``nearest`` keep the type and invent no value; the others give float64. Before the first
    sample it is the first one, after the last the last one.
    """
    if how == "linear":
        return linear(times, values, at)
    if how == "angle":
        return angle(times, values, at)
    if how == "slerp":
        return slerp(times, values, at)
    if how == "nearest":
        return values[nearest_index(times, at)]
    return values[np.maximum(hold_index(times, at), 0)]


def gaps(times: np.ndarray, longer_than: float) -> list[tuple[int, float]]:
    """``(index of the sample before it, seconds)`` of every pause longer than ``longer_than`` [s]."""
    width = np.diff(times) / SECOND
    return [(int(i), float(width[i])) for i in np.flatnonzero(width > longer_than)]


def missing_samples(times: np.ndarray) -> int:
    """Samples that a periodic stream has lost: whole periods (the median interval) in the pauses over 1.5 of them."""
    width = np.diff(times)
    period = float(np.median(width)) if len(width) else 0.0
    if period <= 0:
        return 0
    wide = width[width > 1.5 * period]
    return int(np.round(wide / period - 1).sum())


def split_at_gaps(times: np.ndarray, longer_than: float) -> list[tuple[int, int]]:
    """``(first, last)`` times [ns] of the parts between pauses longer than ``longer_than`` [s]."""
    cut = [i + 1 for i, _ in gaps(times, longer_than)]
    return [(int(part[0]), int(part[-1])) for part in np.split(times, cut) if len(part)]


def split_at_changes(times: np.ndarray, values: Sequence[object], end: int) -> list[tuple[int, int, object]]:
    """``(first, last, value)`` of every stretch of one value; a value holds until the next sample, the last to ``end``.

    Args:
        times: when each value was sent, increasing.
        values: ``[N]``.
        end: time of the end of the recording [ns].
    """
    out: list[tuple[int, int, object]] = []
    for k, (time, value) in enumerate(zip(times.tolist(), values, strict=True)):
        last = int(times[k + 1]) - 1 if k + 1 < len(times) else max(end, time)
        if out and out[-1][2] == value:
            out[-1] = (out[-1][0], last, value)
        else:
            out.append((time, last, value))
    return out
