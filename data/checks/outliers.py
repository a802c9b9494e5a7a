"""Episodes unlike the others: of another length, or elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.checks.finding import Finding, located
from visuomotor.data.checks.survey import Survey
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.checks.vectors import FloatArray, Vectors

__all__ = ["check_outliers"]

_ENOUGH = 20  # episodes of one task from which on something is unusual
_TO_SIGMA = 1.4826  # median absolute deviation to standard deviation, for a normal distribution
_FEATURES = ("mean", "standard deviation", "first value", "last value")
_CAP = 20.0


def check_outliers(
    vectors: Vectors, seen: Survey, limits: Thresholds, tasks: NDArray[np.object_] | None = None
) -> Iterator[Finding]:
    """Compare the episodes of each task (``tasks [E]``; None: there is one) with each other."""
    groups = np.zeros(len(vectors.lengths), object) if tasks is None else tasks
    lengths: dict[int, tuple[int | None, str]] = {}
    places: dict[int, tuple[int | None, str]] = {}
    for group in dict.fromkeys(groups.tolist()):
        members = np.flatnonzero(groups == group)
        if len(members) >= _ENOUGH:
            lengths |= _lengths(members, vectors.lengths[members], limits)
        rows = np.flatnonzero(groups[seen.episodes] == group) if len(seen.episodes) else np.empty(0, np.int64)
        if len(rows) >= _ENOUGH:
            places |= _places(vectors, seen, rows, limits)
    yield from located(lengths, severity="warning", array=None, what="unusual lengths")
    yield from located(places, severity="info", array=None, what="episodes far from the others")


def _robust(x: FloatArray) -> FloatArray:
    """Deviations from the median along the first axis, in robust standard deviations (at least a plain one / 4)."""
    middle = np.median(x, axis=0)
    sigma = _TO_SIGMA * np.median(np.abs(x - middle), axis=0)
    floor = 0.25 * np.std(x, axis=0)
    return np.asarray((x - middle) / np.maximum(np.maximum(sigma, floor), 1e-12))


def _lengths(members: NDArray[np.int64], n: NDArray[np.int64], limits: Thresholds) -> dict[int, tuple[int | None, str]]:
    log = np.log(n.astype(np.float64))
    middle = float(np.median(log))
    sigma = max(_TO_SIGMA * float(np.median(np.abs(log - middle))), 0.05)
    far = (np.abs(log - middle) > limits.length_deviation * sigma) & (
        np.abs(log - middle) > np.log(limits.length_factor)
    )
    usual = float(np.exp(middle))
    return {
        int(e): (None, f"{length} steps, where {usual:.0f} are usual")
        for e, length, bad in zip(members, n, far, strict=True)
        if bad
    }


def _places(
    vectors: Vectors, seen: Survey, rows: NDArray[np.int64], limits: Thresholds
) -> dict[int, tuple[int | None, str]]:
    smooth = np.flatnonzero(seen.smooth)
    if not len(smooth):
        return {}
    z = _robust(seen.features[rows][:, :, smooth])  # [R, 4, S]
    distance = np.sqrt(np.square(np.clip(z, -_CAP, _CAP)).mean(axis=(1, 2)))
    middle = float(np.median(distance))
    sigma = max(_TO_SIGMA * float(np.median(np.abs(distance - middle))), 0.1 * middle)
    told: dict[int, tuple[int | None, str]] = {}
    for r in np.flatnonzero(distance > middle + limits.outlier_deviation * sigma):
        f, c = np.unravel_index(int(np.argmax(np.abs(z[r]))), z[r].shape)
        component = vectors.components[smooth[c]]
        told[int(seen.episodes[rows[r]])] = (
            None,
            f"far from the other episodes ({distance[r]:.1f}, where {middle:.1f} is usual): most of all the "
            f"{_FEATURES[int(f)]} of {component.key}, {component}",
        )
    return told
