"""How far actions run ahead of the states that they lead to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.checks.finding import Finding
from visuomotor.data.checks.survey import Survey
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.checks.vectors import FloatArray, Vectors

__all__ = ["Alignment", "alignments", "check_alignment"]

_EPISODES = 100  # evenly spaced ones that the correlations are made of
_CLOSE = 0.9  # correlation from which on an action follows a state, as a target
_CLOSE_RATE = 0.7  # the same, as a rate of change
_PEAK = 2e-3  # how much the best lag must be above lags two steps further


@dataclass(frozen=True)
class Alignment:
    """Component ``action`` at step t goes with component ``state`` at step ``t + lag`` (positions in the vectors).

    ``rate``: with the change of the state from there on, instead of its value. ``exact``: equal, bit for bit.
    """

    action: int
    state: int
    lag: int
    correlation: float
    rate: bool
    exact: bool


def alignments(vectors: Vectors, seen: Survey, limits: Thresholds) -> list[Alignment]:
    """The best partner of every action component, by cross-correlation over ``-max_lag .. max_lag``.

    Components of the same name are compared with each other only. Components without a clear partner are left out.
    """
    usable = np.flatnonzero(seen.smooth).tolist()
    actions = [i for i in usable if vectors.components[i].role == "action"]
    states = [i for i in usable if vectors.components[i].role == "observation"]
    if not actions or not states:
        return []
    lags = np.arange(-limits.max_lag, limits.max_lag + 1)
    levels, rates, equal, n = _correlate(vectors, actions, states, lags)
    found = []
    for a, action in enumerate(actions):
        partners = _partners(vectors, action, states)
        at_level = _peak(levels[:, a, partners], lags, _CLOSE)
        at_rate = _peak(rates[:, a, partners], lags, _CLOSE_RATE)
        best, rate = (at_level, False) if at_level is not None else (at_rate, True)
        if best is not None:
            k, s, r = best
            exact = bool(not rate and n and equal[k, a, partners[s]] == 1)
            found.append(Alignment(action, states[partners[s]], int(lags[k]), r, rate, exact))
    return found


def _partners(vectors: Vectors, action: int, states: list[int]) -> list[int]:
    """Positions in ``states`` of what may go with an action: what has its name, else everything."""
    name = vectors.components[action].name
    same = [j for j, s in enumerate(states) if name is not None and vectors.components[s].name == name]
    return same or list(range(len(states)))


def _correlate(
    vectors: Vectors, actions: list[int], states: list[int], lags: NDArray[np.int64]
) -> tuple[FloatArray, FloatArray, FloatArray, int]:
    """Correlations ``[K, Da, Ds]`` of values with values and of values with changes; the share of equal steps."""
    shape = (len(lags), len(actions), len(states))
    sums = {name: np.zeros(shape) for name in ("level", "rate", "equal")}
    squares = {name: np.zeros(shape) for name in ("level_a", "level_s", "rate_a", "rate_s")}
    count, every = np.zeros(len(lags)), max(1, len(vectors.lengths) // _EPISODES)
    for episode, x in vectors.episodes():
        if episode % every or len(x) <= 2 * len(lags):
            continue
        a, s = x[:, actions], x[:, states]
        for k, lag in enumerate(lags):
            left, right = (a[:-lag], s[lag:]) if lag > 0 else (a[-lag:], s[: len(s) + lag])
            sums["equal"][k] += [[np.sum(left[:, i] == right[:, j]) for j in range(shape[2])] for i in range(shape[1])]
            count[k] += len(left)
            _add(sums["level"][k], squares["level_a"][k], squares["level_s"][k], left, right)
            _add(sums["rate"][k], squares["rate_a"][k], squares["rate_s"][k], left[:-1], np.diff(right, axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.nan_to_num(sums["level"] / np.sqrt(squares["level_a"] * squares["level_s"]))
        rate = np.nan_to_num(sums["rate"] / np.sqrt(squares["rate_a"] * squares["rate_s"]))
        equal = np.nan_to_num(sums["equal"] / count[:, None, None])
    return level, rate, equal, int(count.sum())


def _add(product: FloatArray, left_sq: FloatArray, right_sq: FloatArray, left: FloatArray, right: FloatArray) -> None:
    left, right = left - left.mean(axis=0), right - right.mean(axis=0)
    product += left.T @ right
    left_sq += np.square(left).sum(axis=0)[:, None]
    right_sq += np.square(right).sum(axis=0)[None]


def _peak(r: FloatArray, lags: NDArray[np.int64], least: float) -> tuple[int, int, float] | None:
    """(lag index, state index, correlation) of the maximum over ``[K, S]``, if it is clear and inside the range."""
    if not r.size:
        return None
    k, s = np.unravel_index(int(np.argmax(r)), r.shape)
    inside = 2 <= k < len(lags) - 2
    if r[k, s] < least or not inside or r[k, s] - max(r[k - 2, s], r[k + 2, s]) < _PEAK:
        return None
    return int(k), int(s), float(r[k, s])


def check_alignment(vectors: Vectors, seen: Survey, limits: Thresholds) -> Iterator[Finding]:
    """State the offset of each action array; warn where actions lie in the past or repeat the state."""
    found = alignments(vectors, seen, limits)
    for key in {vectors.components[a.action].key: None for a in found}:
        mine = [a for a in found if vectors.components[a.action].key == key]
        lag = int(np.median([a.lag for a in mine]))
        pairs = "; ".join(_told(vectors, a) for a in mine[:4]) + ("; ..." if len(mine) > 4 else "")
        rate = all(a.rate for a in mine)
        severity, verdict = "info", f"the robot follows its actions after {_delay(lag, vectors.fps)}"
        if rate and lag >= 0:
            verdict = f"actions are changes of the state, {_delay(lag, vectors.fps)} ahead" if lag else (
                "actions are changes of the state from that step to the next"
            )  # fmt: skip
        elif lag < 0:
            severity, verdict = "warning", f"actions lie {_delay(-lag, vectors.fps)} behind the states: shifted?"
        elif all(a.exact for a in mine):
            verdict = f"actions are the states of {lag} step(s) later"
            if lag == 0:
                severity, verdict = "warning", "actions repeat the states of the same step: nothing to predict"
        elif lag == 0:
            verdict = "the robot follows its actions within the step"
        yield Finding(severity=severity, array=key, message=f"{verdict} ({pairs})")


def _delay(lag: int, fps: float | None) -> str:
    return f"{lag} step(s)" if fps is None else f"{lag} step(s) ({lag / fps:.3g} s)"


def _told(vectors: Vectors, a: Alignment) -> str:
    action, state = vectors.components[a.action], vectors.components[a.state]
    sign = f"{a.lag:+d}" if a.lag else ""
    state_name = f"{state.key}[{state.index}]"
    right = f"{state_name} from t{sign} to t{a.lag + 1:+d}" if a.rate else f"{state_name} at t{sign}"
    return f"{action.key}[{action.index}] at t, {right}: correlation {a.correlation:.3f}"
