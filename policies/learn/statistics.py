"""Intervals and tests for comparing policies on few episodes. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from visuomotor.data.errors import UserError

__all__ = ["bootstrap_mean_interval", "mcnemar_exact", "wilson_interval"]

_NORMAL = NormalDist()
_CHUNK = 1_000_000  # resampled values held at a time


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a success rate (Wilson 1927; Agresti & Coull 1998, eq. 2): it keeps its coverage at 0 and 1.

    Raises:
        UserError: no trials, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise UserError(f"{successes} successes of {n} trials; expected at least one trial and 0 to n successes")
    z = _NORMAL.inv_cdf(0.5 + confidence / 2)
    rate, zz = successes / n, z * z / n
    centre = (rate + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt(rate * (1 - rate) / n + zz / (4 * n))
    low = 0.0 if successes == 0 else centre - half  # exact at the ends, where rounding would leave 1e-17
    return low, 1.0 if successes == n else centre + half


def bootstrap_mean_interval(
    values: Sequence[float], confidence: float = 0.95, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of a mean (Efron 1987), reproducible from ``seed``.

    Equal values give an interval without width, since resampling cannot see what has not happened; a single value gives
    ``(nan, nan)``.

    Raises:
        UserError: no values, or one that is not finite.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise UserError(f"{values!r}; expected a list of at least one finite number")
    if len(x) == 1:
        return math.nan, math.nan
    if np.ptp(x) == 0:
        return float(x[0]), float(x[0])
    means = _resampled_means(x, resamples, seed)
    below = (np.sum(means < x.mean()) + np.sum(means == x.mean()) / 2) / resamples
    bias = _NORMAL.inv_cdf(float(np.clip(below, 1 / resamples, 1 - 1 / resamples)))
    deviation = x - x.mean()  # the jackknife of a mean: its influences are the deviations themselves
    acceleration = float(np.sum(deviation**3) / (6 * np.sum(deviation**2) ** 1.5))
    tail = (1 - confidence) / 2
    low, high = (_adjusted(p, bias, acceleration) for p in (tail, 1 - tail))
    return float(np.quantile(means, low)), float(np.quantile(means, high))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value that two policies succeed equally often, from paired trials (McNemar 1947).

    Only the trials in which exactly one succeeded tell anything; under equality each falls to either side with
    probability 1/2, so this is the sign test on them. 1.0 without any.
    """
    n = only_a + only_b
    tail: int = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)


def _resampled_means(x: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(x))
    parts = [min(rows, resamples - i) for i in range(0, resamples, rows)]
    return np.concatenate([x[rng.integers(0, len(x), (m, len(x)))].mean(1) for m in parts])


def _adjusted(p: float, bias: float, acceleration: float) -> float:
    """Which quantile of the resampled means stands for level ``p`` (Efron & Tibshirani 1993, eq. 14.10)."""
    shifted = bias + _NORMAL.inv_cdf(p)
    return _NORMAL.cdf(bias + shifted / (1 - acceleration * shifted))
