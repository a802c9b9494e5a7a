"""How much later one signal follows another, and the motion to find it out with.

A chirp is moved, and the delay is where the cross-correlation of what was commanded and what was measured is highest
(as UMI's latency scripts do: Chi et al. 2024, "Universal Manipulation Interface"), with a parabola between the samples
of the grid. A chirp has one such place only, a sine has one in every period.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from visuomotor.data.errors import UserError
from visuomotor.sim2real.safety.config import ArmLimits

__all__ = ["Chirp", "Delay", "delay_between", "fitting_amplitude"]

_GRID_S = 1e-3
_EASE = 0.15  # share of the motion at either end in which it grows and fades: it begins and ends at rest
_SHARE = 0.8  # of the limits


@dataclass(frozen=True)
class Chirp:
    """A sine whose frequency grows from ``low_hz`` to ``high_hz``, eased in and out.

    Attributes:
        amplitude: [rad or m].
        low_hz, high_hz: frequency at the beginning and at the end.
        duration_s: of all of it.
    """

    amplitude: float
    low_hz: float
    high_hz: float
    duration_s: float

    def at(self, t: np.ndarray) -> np.ndarray:
        """Displacement [rad or m] at times ``t`` [s]; 0 before and after."""
        s = np.clip(np.asarray(t, dtype=np.float64), 0.0, self.duration_s)
        phase = 2 * math.pi * (self.low_hz * s + (self.high_hz - self.low_hz) * s**2 / (2 * self.duration_s))
        ease = _EASE * self.duration_s
        edge = np.clip(np.minimum(s, self.duration_s - s) / ease, 0.0, 1.0)
        smooth = edge**3 * (10.0 - 15.0 * edge + 6.0 * edge**2)  # no jump of velocity and acceleration at its ends
        return self.amplitude * smooth * np.sin(phase)


@dataclass(frozen=True)
class Delay:
    """A delay [s], and the correlation of both signals then: 1 is the same motion."""

    seconds: float
    correlation: float


def fitting_amplitude(chirp: Chirp, limits: ArmLimits, joint: int, start: float, margin: float) -> float:
    """The largest amplitude, at most the chirp's, with which joint ``joint`` keeps 80 % of every limit.

    Args:
        start: position of the joint when the chirp begins [rad or m].
        margin: to its position limits.

    Raises:
        UserError: the joint stands too close to a limit to be moved.
    """
    t = np.arange(0.0, chirp.duration_s, _GRID_S)
    unit = chirp.at(t) / chirp.amplitude
    v = np.gradient(unit, _GRID_S)
    a = np.gradient(v, _GRID_S)
    j = np.gradient(a, _GRID_S)
    room = min(limits.high[joint] - start, start - limits.low[joint]) - margin
    most = [chirp.amplitude, room]
    for rate, limit in ((v, limits.velocity), (a, limits.acceleration), (j, limits.jerk)):
        most.append(_SHARE * float(limit[joint]) / float(np.abs(rate).max()))
    if (amplitude := float(min(most))) < 1e-3:
        raise UserError(
            f"joint {limits.names[joint]!r} stands at {start:.3f}, {max(room, 0):.3f} from its limits "
            f"{limits.low[joint]:.3f} to {limits.high[joint]:.3f}: move it away from them, or choose another joint"
        )
    return amplitude


def delay_between(
    cause: tuple[np.ndarray, np.ndarray], effect: tuple[np.ndarray, np.ndarray], most_s: float = 1.0
) -> Delay:
    """By how much ``effect`` follows ``cause``, each as times [s] and values; up to ``most_s``, and a tenth before.

    Raises:
        UserError: signals that do not overlap, or that do not change.
    """
    first = max(cause[0][0], effect[0][0] - most_s) if len(cause[0]) and len(effect[0]) else 0.0
    last = min(cause[0][-1], effect[0][-1]) if len(cause[0]) and len(effect[0]) else 0.0
    grid = np.arange(first, last, _GRID_S)
    if len(grid) < 100:
        raise UserError(f"{len(cause[0])} commands and {len(effect[0])} measurements do not overlap for 0.1 s")
    before, after = round(0.1 * most_s / _GRID_S), round(most_s / _GRID_S)
    x = np.interp(grid, *cause)
    y = np.interp(grid[0] + _GRID_S * np.arange(-before, len(grid) + after), *effect)
    score = _correlations(x, y)
    best = int(np.argmax(score))
    if not np.isfinite(score[best]) or score[best] <= 0:
        raise UserError("what was measured has nothing of what was commanded: does the arm move, and is it this joint?")
    step = 0.0
    if 0 < best < len(score) - 1:
        left, top, right = score[best - 1 : best + 2]
        bend = left - 2 * top + right
        step = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return Delay(float((best - before + step) * _GRID_S), float(score[best]))


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation of ``x [n]`` with every stretch of ``y [n + L - 1]`` of its length: ``[L]``; -1 where one stands."""
    n, x = len(x), x - x.mean()
    y = y - y.mean()
    sums, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (y, y * y))
    spread = (squares[n:] - squares[:-n]) - (sums[n:] - sums[:-n]) ** 2 / n
    size = np.sqrt((x @ x) * np.maximum(spread, 0.0))
    moving = size > 1e-9 * max(1.0, float(x @ x))
    return np.where(moving, np.correlate(y, x, "valid") / np.where(moving, size, 1.0), -1.0)
