"""Rest, and jumps that no robot makes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.checks.finding import Finding, located
from visuomotor.data.checks.rotation import find_quaternions, is_axis_angle
from visuomotor.data.checks.survey import Survey
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.checks.vectors import FloatArray, Vectors, runs

__all__ = ["check_idle", "check_jumps", "resting", "turns"]

_TURNS = {"rad": 2 * math.pi, "deg": 360.0}
_ENOUGH = 50
_OF_ARRAY = 0.01  # share of the largest range in the array below which nothing is a jump: a joint that settles


def resting(x: FloatArray, seen: Survey, limits: Thresholds) -> NDArray[np.bool_]:
    """Steps ``[L]`` of an episode ``[L, C]`` at which nothing moves, neither before nor after the step alone.

    Step ``t`` rests when no component changes between ``t`` and ``t + 1``, or, for the last one, before it.
    """
    faster: NDArray[np.bool_] = np.abs(np.diff(x, axis=0)) > limits.idle_speed * seen.speed
    moves = np.asarray(faster.any(axis=1))
    return ~np.append(moves, moves[-1:] if len(moves) else [True])


def check_idle(vectors: Vectors, seen: Survey, limits: Thresholds) -> Iterator[Finding]:
    """All rests in one finding, which names the longest; rests at either end in another."""
    if not len(seen.speed) or not seen.speed.any():
        return
    shortest = limits.idle_length(vectors.fps)
    rests: list[tuple[int, int, int]] = []  # (length, episode, row)
    ends: list[tuple[int, int, int]] = []
    for episode, x in vectors.episodes():
        for start, stop in runs(resting(x, seen, limits)):
            if stop - start >= shortest:
                rests.append((stop - start, episode, start))
                if start == 0 or stop == len(x):
                    ends.append(rests[-1])
    if not rests:
        return
    total = sum(n for n, _, _ in rests)
    share = total / max(1, vectors.n_steps)
    longest, episode, row = max(rests, key=lambda r: (r[0], -r[1]))
    at_ends = f"; {len(ends)} of them at the start or end of an episode" if ends else ""
    yield Finding(
        severity="warning" if share > limits.idle_share else "info",
        episode=episode,
        row=row,
        message=(
            f"nothing moves for {_duration(shortest, vectors.fps)} or longer in {len(rests)} places of "
            f"{len({e for _, e, _ in rests})} episodes, {100 * share:.1f} % of all steps{at_ends}; the longest, "
            f"{_duration(longest, vectors.fps)}, is here"
        ),
        fix="trim idle" if ends else None,
    )


def _duration(steps: int, fps: float | None) -> str:
    return f"{steps} steps" if fps is None else f"{steps} steps ({steps / fps:.2g} s)"


def turns(d: FloatArray, low: FloatArray, high: FloatArray, unit: str | None = None) -> float | None:
    """The whole turn (2 pi or 360) by which the steps ``d`` of a component are too long, if it is an angle that wraps.

    Its values must lie within one turn and use most of it, unless the unit says what they are.
    """
    for turn in [_TURNS[unit]] if unit in _TURNS else _TURNS.values():
        span = float(high - low)
        if 0.9 * turn <= span <= 1.01 * turn and (np.abs(d) > 0.75 * turn).any():
            return turn
    return None


def check_jumps(vectors: Vectors, seen: Survey, limits: Thresholds) -> Iterator[Finding]:
    """Steps far longer than is usual for the component, or faster than any arm; not whole turns of an angle."""
    if vectors.n_steps < _ENOUGH:
        return
    rotations = {vectors.columns([q.key])[0] + d for q in find_quaternions(vectors.specs) for d in q.dims}
    looked_at = [
        i
        for i, c in enumerate(vectors.components)
        if seen.smooth[i] and i not in rotations and not is_axis_angle(c.key)
    ]
    floor = {k: _OF_ARRAY * float(seen.spread[vectors.columns([k])].max()) for k in vectors.specs}
    found: dict[str, dict[int, tuple[int | None, str]]] = {}
    wraps: dict[int, int] = {}
    for episode, x in vectors.episodes():
        steps = np.diff(x, axis=0)
        for i in looked_at:
            c = vectors.components[i]
            turn = turns(steps[:, i], seen.low[i], seen.high[i], c.unit)
            d = np.abs(steps[:, i])
            if turn is not None:
                wrapped = d > turn / 2
                wraps[i] = wraps.get(i, 0) + int(wrapped.sum())
                d = np.where(wrapped, np.abs(turn - d), d)
            jump, limit = _too_long(
                d, seen, i, limits, c.role == "action", floor[c.key], _top_speed(vectors, i, limits)
            )
            if len(jump):
                row = int(jump[0]) + 1
                message = (
                    f"{c} jumps by {d[jump[0]]:.4g} in one step ({len(jump)} such steps in this episode); up to "
                    f"{limit:.4g} is plausible here"
                )
                found.setdefault(c.key, {}).setdefault(episode, (row, message))
    for key, episodes in found.items():
        yield from located(episodes, severity="warning", array=key, what="jumps")
    for i, n in wraps.items():
        c = vectors.components[i]
        message = f"{c} is an angle that wraps round, {n} times in all: action.angle_dims, or sine and cosine, keep it"
        yield Finding(severity="info", array=c.key, message=message + " continuous")


def _too_long(
    d: FloatArray, seen: Survey, i: int, limits: Thresholds, is_action: bool, floor: float, top: float | None
) -> tuple[NDArray[np.int64], float]:
    if not len(d):
        return np.empty(0, np.int64), 0.0
    usual = max(float(seen.fast[i]), float(np.percentile(d, 95)))
    share = limits.jump_range_action if is_action else limits.jump_range
    limit = max(limits.jump_factor * usual, share * float(seen.spread[i]), floor)
    limit = limit if top is None else min(limit, top)
    return np.flatnonzero(d > limit), limit


def _top_speed(vectors: Vectors, i: int, limits: Thresholds) -> float | None:
    """The longest step that physics allows, in the unit of the component."""
    c = vectors.components[i]
    speeds = {
        "m": limits.max_speed_m_s,
        "cm": 100 * limits.max_speed_m_s,
        "mm": 1000 * limits.max_speed_m_s,
        "rad": limits.max_speed_rad_s,
        "deg": math.degrees(limits.max_speed_rad_s),
    }
    if vectors.fps is None or c.role != "observation" or c.unit not in speeds:
        return None
    return speeds[c.unit] / vectors.fps
