"""What is usual in a set of demonstrations: range and speed of every component, and figures of every episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.checks.vectors import FloatArray, Vectors

__all__ = ["Survey", "survey"]

_SAMPLE = 50_000
_FEW = 20


@dataclass(frozen=True)
class Survey:
    """Figures per component ``[C]``, over all episodes.

    Attributes:
        low, high: smallest and largest value.
        spread: distance of the 1st and the 99th percentile.
        speed: 95th percentile of the absolute difference of two steps, over those that differ; 0 if none do.
        fast: 99th percentile of it.
        smooth: it takes more than twenty values and changes in more than a tenth of the steps: no switch, no goal.
        features: mean, standard deviation, first and last value of each component, by episode ``[E', 4, C]``.
        episodes: which episode each row of ``features`` is.
    """

    low: FloatArray
    high: FloatArray
    spread: FloatArray
    speed: FloatArray
    fast: FloatArray
    smooth: NDArray[np.bool_]
    features: FloatArray
    episodes: NDArray[np.int64]

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Components that have one value everywhere."""
        return self.low == self.high


def survey(vectors: Vectors) -> Survey:
    """One pass over the episodes; percentiles are of up to 50,000 evenly spaced steps."""
    n = len(vectors.components)
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    stride = max(1, vectors.n_steps // _SAMPLE)
    values, steps, features, episodes = [np.empty((0, n))], [np.empty((0, n))], [], []
    for episode, x in vectors.episodes():
        low, high = np.minimum(low, x.min(axis=0)), np.maximum(high, x.max(axis=0))
        values.append(x[::stride])
        steps.append(np.abs(np.diff(x, axis=0))[::stride])
        features.append(np.stack([x.mean(axis=0), x.std(axis=0), x[0], x[-1]]))
        episodes.append(episode)
    sample, step = np.concatenate(values), np.concatenate(steps)
    if not len(sample):
        low = high = np.zeros(n)
    return Survey(
        low=low,
        high=high,
        spread=_spread(sample),
        speed=_moving_percentile(step, 95),
        fast=_moving_percentile(step, 99),
        smooth=np.array([len(np.unique(c)) > _FEW for c in sample.T], bool)
        & ((step > 0).mean(axis=0) > 0.1 if len(step) else np.zeros(n, bool)),
        features=np.stack(features) if features else np.empty((0, 4, n)),
        episodes=np.array(episodes, np.int64),
    )


def _spread(sample: FloatArray) -> FloatArray:
    if not len(sample):
        return np.zeros(sample.shape[1])
    edges = np.percentile(sample, [1, 99], axis=0)
    return np.asarray(edges[1] - edges[0])


def _moving_percentile(step: FloatArray, q: float) -> FloatArray:
    return np.array([np.percentile(c[c > 0], q) if (c > 0).any() else 0.0 for c in step.T])
