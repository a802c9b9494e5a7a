"""Time stamps: backwards, gaps, jitter, and whether they agree with the rate of the store."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from visuomotor.data.checks.finding import Finding
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.checks.vectors import FloatArray, iter_episodes
from visuomotor.data.store import DemoStore

__all__ = ["check_stamps"]

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def check_stamps(store: DemoStore, key: str, limits: Thresholds) -> Iterator[Finding]:
    """Look at the array ``key``, whose role is ``timestamp``."""
    spec = store.specs[key]
    steps = [np.empty(0)]
    where: list[tuple[int, int]] = []  # (episode, row) of the later stamp of each step
    backwards: list[tuple[int, int, str]] = []
    for episode, rows in iter_episodes(store, [key]):
        stamps = rows[key].reshape(len(rows[key]), -1)[:, 0]
        dt = np.diff(stamps.astype(np.int64) if stamps.dtype.kind in "iu" else stamps.astype(np.float64))
        bad = np.flatnonzero(dt <= 0) + 1
        backwards += [(episode, int(r), f"{stamps[r]} follows {stamps[r - 1]}") for r in bad]
        good = dt > 0
        steps.append(dt[good].astype(np.float64))
        where += [(episode, int(r) + 1) for r in np.flatnonzero(good)]
    if backwards:
        episode, row, what = backwards[0]
        message = f"time does not increase: {what} ({len(backwards)} such steps in all)"
        yield Finding(severity="warning", array=key, episode=episode, row=row, message=message)
    dt_all = np.concatenate(steps)
    if len(dt_all) >= 2:
        dt_all = dt_all * _scale(spec.unit, float(np.median(dt_all)), store.fps)
        yield from _spacing(key, dt_all, where, store.fps, limits)


def _scale(unit: str | None, usual: float, fps: float | None) -> float:
    """Seconds in one unit of the stamps; where it is not said, what comes closest to the rate of the store."""
    if unit in _SECONDS:
        return _SECONDS[unit]
    if fps is None:
        return 1.0
    return min(_SECONDS.values(), key=lambda s: abs(np.log(usual * s * fps)))


def _spacing(
    key: str, dt: FloatArray, where: list[tuple[int, int]], fps: float | None, limits: Thresholds
) -> Iterator[Finding]:
    usual = float(np.median(dt))
    if fps is not None and abs(usual * fps - 1) > limits.rate:
        message = f"the usual time step is {usual:.4g} s ({1 / usual:.4g} Hz), but the store says {fps:g} Hz"
        yield Finding(severity="warning", array=key, message=message)
    gaps = np.flatnonzero(dt > limits.gap * usual)
    if len(gaps):
        episode, row = where[int(gaps[0])]
        worst = int(np.argmax(dt))
        lost = int(np.sum(np.rint(dt[gaps] / usual) - 1))
        message = (
            f"{len(gaps)} gaps, about {lost} steps lost; the first is {dt[gaps[0]]:.4g} s, the longest "
            f"{dt[worst]:.4g} s (episode {where[worst][0]}, row {where[worst][1]}), where {usual:.4g} s is usual"
        )
        yield Finding(severity="warning", array=key, episode=episode, row=row, message=message)
    deviation = np.abs(dt - usual)[dt <= limits.gap * usual]
    jitter = float(np.percentile(deviation, 95)) / usual
    if jitter > limits.jitter:
        message = f"time steps vary: 5 % are more than {100 * jitter:.0f} % off the usual {usual:.4g} s"
        yield Finding(severity="warning", array=key, message=message)
