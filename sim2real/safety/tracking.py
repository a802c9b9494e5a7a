"""Following a target with bounded velocity, acceleration and jerk: what one joint does in one tick.

Time-optimal. The target is seen as a point that moves on with the velocity it has; in its frame the joint comes to rest
somewhere (``settle``). As long as that is short of the target the joint accelerates towards it, as soon as it is there
it settles. The change between both happens inside of a tick, so that a target that stands is reached exactly, without
overshoot and without a limit cycle.

The velocity of the target is a mean over its last 30 ms. With its last difference alone, or with its acceleration, a
smooth target is followed more exactly, but the joint makes several times as much of every small disagreement between
chunks: it takes what lasts for a moment for what will go on.

The law is that of online trajectory generation (Kröger and Wahl 2010) in the frame of a moving target; filters that
impose bounds by sliding modes (Biagiotti and Zanasi 2010, "Online trajectory planner with constraints on velocity,
acceleration and jerk") share its idea.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import NamedTuple

from visuomotor.data.errors import UserError
from visuomotor.sim2real.safety.config import ArmLimits, SafetyConfig
from visuomotor.sim2real.safety.profile import after, settle

__all__ = ["Joint", "Motion", "believed", "blend", "bounded", "bounds_of", "pursue"]

_MEMORY_S = 0.03
_EXACT = 1e-12  # of positions [rad or m]: nearer is there


class Motion(NamedTuple):
    """Position, velocity and acceleration of one joint."""

    q: float
    v: float
    a: float


@dataclass(frozen=True)
class Joint:
    """One joint's limits as the filter keeps them; ``stop``: it comes to rest within this distance from any state."""

    velocity: float
    acceleration: float
    jerk: float
    stop: float


def blend(one: Motion, other: Motion, share: float) -> Motion:
    """Between two motions that begin alike: bounds that both keep, the motion between them keeps too."""
    return Motion(
        one.q + share * (other.q - one.q), one.v + share * (other.v - one.v), one.a + share * (other.a - one.a)
    )


def pursue(
    now: Motion, goal_q: float, goal_v: float, cap: float, acceleration: float, jerk: float, dt: float
) -> Motion:
    """The joint's motion at the end of a tick of ``dt`` [s] in which it pursues a target.

    Args:
        now: its motion; ``abs(now.a) <= acceleration``.
        goal_q, goal_v: where the target will be then, and its velocity; ``abs(goal_v) <= cap``.
        cap: velocity at which it travels; above it, it slows down.
        acceleration, jerk: bounds, kept within the tick as well.
    """
    q, v, a = now
    error = q - goal_q + goal_v * dt
    way = settle(v - goal_v, a, acceleration, acceleration, jerk)
    short = error + way[7]
    x, w, land_a = after(way, jerk, dt)
    land_q, land_v = goal_q + error + x, goal_v + w
    if -_EXACT <= short <= _EXACT:
        return Motion(land_q, land_v, land_a)
    speed = cap if short < 0.0 else -cap
    x, w, a = after(settle(v - speed, a, acceleration, acceleration, jerk), jerk, dt)
    q, v = q + x + speed * dt, speed + w
    left = q - goal_q + settle(v - goal_v, a, acceleration, acceleration, jerk)[7]
    if short * left >= 0.0:
        return Motion(q, v, a)
    share = short / (short - left)
    return Motion(land_q + share * (q - land_q), land_v + share * (v - land_v), land_a + share * (a - land_a))


def believed(slope: float, before: float, mean: float, acceleration: float, dt: float) -> float:
    """Velocity of a target from its last two differences [rad/s] and the velocity that was believed before.

    Differences that no motion within the limits could have are a step of the target or a corner: of the two, the slope
    nearer to zero counts.
    """
    if abs(slope - before) > 2.0 * acceleration * dt:
        if slope * before <= 0.0:
            slope = 0.0
        elif abs(before) < abs(slope):
            slope = before
    return mean + (slope - mean) * dt / (_MEMORY_S + dt)


def bounded(v: float, x: float, j: Joint, cap: float, low: float, high: float) -> float:
    """Velocity of a target at ``x`` as far as the joint may follow it: towards a limit of the position it is taken to
    slow down as the joint has to.
    """
    room = (high - x) if v > 0.0 else (x - low)
    most = cap
    if room < j.stop:
        k = j.acceleration * j.acceleration / (2.0 * j.jerk)
        most = min(cap, sqrt(k * k + 2.0 * j.acceleration * max(room, 0.0)) - k)
    return max(-most, min(most, v))


def bounds_of(limits: ArmLimits, i: int, config: SafetyConfig, dt: float) -> Joint:
    """Without jerk or acceleration limits (infinite) one tick is enough for any change."""
    v = float(limits.velocity[i]) * config.velocity_share
    if not isfinite(v):
        raise UserError(f"{limits.names[i]} has no velocity limit; expected one in the robot's preset or its URDF")
    a = min(float(limits.acceleration[i]) * config.acceleration_share, v / dt)
    jerk = min(float(limits.jerk[i]) * config.jerk_share, a / dt)
    return Joint(v, a, jerk, v * v / (2.0 * a) + 1.5 * v * a / jerk)
