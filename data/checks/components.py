"""Components that never change, that stand still in one episode, or that sit at a limit."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from visuomotor.data.checks.finding import Finding, listed
from visuomotor.data.checks.survey import Survey
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.checks.vectors import FloatArray, Vectors

__all__ = ["check_components"]

_ENOUGH = 50  # steps below which a constant is no wonder
_HAND = re.compile("grip|finger|thumb|hand|jaw|claw", re.IGNORECASE)  # what closes on something rests at its limit
_NEAR_LIMIT = 0.02  # share of the range that counts as lying at its end
_SWITCH = 0.8  # share of steps near either end from which on a component is a switch, such as a gripper


def check_components(vectors: Vectors, seen: Survey, limits: Thresholds) -> Iterator[Finding]:
    """Constant, stuck and saturated components."""
    if vectors.n_steps < _ENOUGH:
        return
    for key, spec in vectors.specs.items():
        still = [i for i in vectors.columns([key]) if seen.constant[i]]
        if still:
            which = f"{len(still)} of {spec.size} components: " + "; ".join(
                f"{vectors.components[i]} is {seen.low[i]:.6g}" for i in still[:6]
            )
            dead = len(still) == spec.size and spec.role == "action"
            yield Finding(
                severity="warning" if dead else "info",
                array=key,
                message=f"constant in all episodes, {which}{'; ...' if len(still) > 6 else ''}",
            )
    if len(seen.episodes):
        yield from _stuck(vectors, seen)
        yield from _saturated(vectors, seen, limits)


def _stuck(vectors: Vectors, seen: Survey) -> Iterator[Finding]:
    """A sensor that is dead in few episodes: constant there, while it moves in 9 of 10 others and its arm moves."""
    still = seen.features[:, 1] == 0  # [E', C]
    still &= (vectors.lengths[seen.episodes] >= 2 * _ENOUGH // 5)[:, None]
    for i, component in enumerate(vectors.components):
        if component.role != "observation" or not seen.smooth[i] or not 0 < still[:, i].mean() <= 0.1:
            continue
        siblings = [j for j in vectors.columns([component.key]) if j != i and seen.smooth[j]]
        arm_moves = (~still[:, siblings]).any(axis=1) if siblings else ~still[:, i] & False
        hit = seen.episodes[still[:, i] & arm_moves].tolist()
        if hit:
            message = f"{component} does not change in {len(hit)} episodes ({listed(hit)}), while others of it do"
            yield Finding(severity="warning", array=component.key, episode=hit[0], row=0, message=message)


def _saturated(vectors: Vectors, seen: Survey, limits: Thresholds) -> Iterator[Finding]:
    n = len(vectors.components)
    at = np.zeros((2, n))  # steps at the smallest and at the largest value that have a neighbour there
    near, total, first = np.zeros(n), 0, dict[tuple[int, int], tuple[int, int]]()
    reach = _NEAR_LIMIT * (seen.high - seen.low)
    for episode, x in vectors.episodes():
        for side, edge in enumerate((seen.low, seen.high)):
            hit = x == edge
            hit[1:-1] &= (x == edge)[:-2] | (x == edge)[2:]  # one extreme step is no limit
            at[side] += hit.sum(axis=0)
            for c in np.flatnonzero(hit.any(axis=0)).tolist():
                first.setdefault((side, c), (episode, int(np.argmax(hit[:, c]))))
        near += _near_ends(x, seen, reach)
        total += len(x)
    share = at / max(1, total)
    for i, component in enumerate(vectors.components):
        if not seen.smooth[i] or near[i] > _SWITCH * total:
            continue
        for side, (word, edge) in enumerate((("smallest", seen.low[i]), ("largest", seen.high[i]))):
            if share[side, i] >= limits.saturated_share:
                episode, row = first[side, i]
                message = (
                    f"{component} is at its {word} value {edge:.6g} in {100 * share[side, i]:.0f} % of the steps: "
                    "clipped, or at a limit"
                )
                held = _HAND.search(f"{component.key} {component.name}")
                severity = "warning" if component.role == "action" and not held else "info"
                yield Finding(severity=severity, array=component.key, episode=episode, row=row, message=message)


def _near_ends(x: FloatArray, seen: Survey, reach: FloatArray) -> FloatArray:
    return np.asarray(((x <= seen.low + reach) | (x >= seen.high - reach)).sum(axis=0), np.float64)
