"""Jerk-limited changes of velocity in closed form: how a joint comes to rest as fast as its limits allow, and where.

The time-optimal way from velocity ``v`` and acceleration ``a`` to velocity and acceleration zero has at most three
phases: jerk towards a peak of the acceleration, that acceleration held, jerk back to zero (Kröger and Wahl 2010,
"Online Trajectory Generation: Basic Concepts for Instantaneous Reactions to Unforeseen Events", step 1; Berscheid and
Kröger 2021, "Jerk-limited Real-time Trajectory Generation with Arbitrary Target States"). It is time-consistent: after
some of it, the best way on is the rest of it. That is what the safety filter's guarantee stands on.

Plain floats, not arrays: for the seven joints of an arm this costs a third of numpy's calls.
"""

from __future__ import annotations

from math import sqrt
from typing import TypeAlias

__all__ = ["Settling", "after", "duration", "extent", "settle"]


Settling: TypeAlias = tuple[float, float, float, float, float, float, float, float]
"""The way to rest: ``side, v, a, rise, hold, fall, peak, distance``; a plain tuple, made thousands of times a second.

``side`` is +1 where the acceleration goes up first, -1 where it goes down; ``v`` and ``a``, at the beginning, are
mirrored by it; ``rise``, ``hold`` and ``fall`` are the durations of the phases [s], ``peak`` the acceleration that is
held; ``distance`` is where it comes to rest, seen from where it began, and not mirrored.
"""


def settle(v: float, a: float, up: float, down: float, jerk: float) -> Settling:
    """The fastest way to velocity and acceleration zero.

    Args:
        v, a: where it begins; ``-down <= a <= up``.
        up, down: largest acceleration and deceleration, both positive.
        jerk: largest jerk.
    """
    if v + a * abs(a) / (2.0 * jerk) <= 0.0:
        side, most = 1.0, up
    else:
        side, most, v, a = -1.0, down, -v, -a
    square = 0.5 * a * a - jerk * v
    peak = sqrt(square) if square > 0.0 else 0.0
    hold = 0.0
    if peak > most:
        peak = most
        hold = (square / (peak * jerk)) - peak / jerk
    rise = (peak - a) / jerk
    if rise < 0.0:
        rise = 0.0
    distance = rise * (v + rise * (0.5 * a + rise * jerk / 6.0)) - peak * peak * peak / (6.0 * jerk * jerk)
    if hold > 0.0:
        distance += hold * (v + 0.5 * (a + peak) * rise + 0.5 * peak * hold)
    return side, v, a, rise, hold, peak / jerk, peak, side * distance


def after(way: Settling, jerk: float, t: float) -> tuple[float, float, float]:
    """Distance covered, velocity and acceleration at time ``t`` [s] of the way."""
    side, v, a, rise, hold, fall, peak, distance = way
    if t < rise:
        x, v, a = t * (v + t * (0.5 * a + t * jerk / 6.0)), v + t * (a + 0.5 * jerk * t), a + jerk * t
    elif t < rise + hold:
        x, v = rise * (v + rise * (0.5 * a + rise * jerk / 6.0)), v + 0.5 * (a + peak) * rise
        t -= rise
        x, v, a = x + t * (v + 0.5 * peak * t), v + peak * t, peak
    else:
        t = rise + hold + fall - t  # backwards from rest: no sum of phases, so it ends in exact zeros
        if t <= 0.0:
            return distance, 0.0, 0.0
        return distance + side * jerk * t * t * t / 6.0, -side * 0.5 * jerk * t * t, side * jerk * t
    return side * x, side * v, side * a


def duration(way: Settling) -> float:
    """How long it takes [s]."""
    return way[3] + way[4] + way[5]


def extent(v: float, a: float, acceleration: float, jerk: float) -> tuple[float, float]:
    """Lowest and highest point on the way to rest, seen from where it begins."""
    side, v, a, _, _, _, _, distance = settle(v, a, acceleration, acceleration, jerk)
    low, high = (distance, 0.0) if distance < 0.0 else (0.0, distance)
    if v > 0.0:  # mirrored: runs forward, but already brakes harder than a stop: it will turn around
        t = (-a - sqrt(max(a * a - 2.0 * jerk * v, 0.0))) / jerk
        turn = side * t * (v + t * (0.5 * a + t * jerk / 6.0))
        low, high = min(low, turn), max(high, turn)
    return low, high
