"""A trajectory as ros2_control's joint_trajectory_controller takes, refuses and interpolates it.

Rules: control.ros.org, "joint_trajectory_controller" (trajectory representation, replacement, details about
parameters), as of Jazzy with its default parameters: what names unknown joints or leaves some out, whose times do not
increase, that ends in the past or that does not end at rest is refused; one that arrives replaces the running one
at once; positions alone are joined by straight lines, with velocities by cubic and with accelerations by quintic
polynomials; after the last point the arm holds. Values that are not finite are refused here as well: the controller
itself lets them pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from visuomotor.sim2real.messages import JointTrajectory

__all__ = ["Knots", "at", "bounds", "refusal", "sorted_knots"]

_AT_REST = 1e-6  # [rad/s]: as good as no velocity


@dataclass(frozen=True)
class Knots:
    """Points of a trajectory by time, and the polynomials between them.

    Attributes:
        times_s: ``[P]`` from its start.
        positions, velocities, accelerations: ``[P, n]``; rows are NaN where a point has none.
        polynomials: coefficients ``[P - 1, 6, n]`` in the time since each point.
    """

    times_s: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray
    accelerations: np.ndarray
    polynomials: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        c = _polynomials(self.times_s, self.positions, self.velocities, self.accelerations)
        object.__setattr__(self, "polynomials", c)


def refusal(message: JointTrajectory, joints: Sequence[str], stamp_ns: int) -> str:
    """Why the controller of ``joints`` would not take ``message``; empty if it does.

    Args:
        stamp_ns: the clock of headers now.
    """
    names, points = message.joint_names, message.points
    unknown = [n for n in names if n not in joints]
    missing = [n for n in joints if n not in names]
    if unknown or missing or len(set(names)) < len(names):
        return f"joints {list(names)}: unknown {unknown}, missing {missing}"
    if not points:
        return "no points"
    times = [p.time_from_start_ns for p in points]
    if any(b <= a for a, b in pairwise(times)) or times[0] < 0:
        return "times do not increase"
    if message.stamp_ns and message.stamp_ns + times[-1] < stamp_ns:
        return f"it ended {(stamp_ns - message.stamp_ns - times[-1]) / 1e9:.3f} s ago"
    for i, p in enumerate(points):
        for what in ("positions", "velocities", "accelerations"):
            values = getattr(p, what)
            if len(values) not in (0, len(names)) or (what == "positions" and not len(values)):
                return f"point {i} has {len(values)} {what} for {len(names)} joints"
            if not np.isfinite(values).all():
                return f"point {i}: {what} are not finite"
    if (np.abs(points[-1].velocities) > _AT_REST).any():
        return f"the last point moves, with {np.abs(points[-1].velocities).max():.4f} rad/s"
    return ""


def sorted_knots(message: JointTrajectory, joints: Sequence[str]) -> Knots:
    """The points of a message that is not refused, with columns in the order of ``joints``."""
    order = [message.joint_names.index(j) for j in joints]

    def column(what: str) -> np.ndarray:
        none = np.full(len(joints), np.nan)
        rows = [getattr(p, what) for p in message.points]
        return np.array([np.asarray(r, dtype=np.float64)[order] if len(r) else none for r in rows])

    times = np.array([p.time_from_start_ns for p in message.points]) / 1e9
    return Knots(times, column("positions"), column("velocities"), column("accelerations"))


def at(knots: Knots, time_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Position and velocity ``[n]`` at a time from the start; before the first point and after the last as there."""
    k = knots
    if time_s >= k.times_s[-1]:
        return k.positions[-1].copy(), np.zeros(k.positions.shape[1])
    if time_s <= k.times_s[0]:
        return k.positions[0].copy(), np.nan_to_num(k.velocities[0])
    i = int(np.searchsorted(k.times_s, time_s, side="right")) - 1
    c, t = k.polynomials[i], time_s - k.times_s[i]
    position = c[0] + t * (c[1] + t * (c[2] + t * (c[3] + t * (c[4] + t * c[5]))))
    return position, c[1] + t * (2 * c[2] + t * (3 * c[3] + t * (4 * c[4] + t * 5 * c[5])))


def bounds(knots: Knots) -> tuple[np.ndarray, np.ndarray]:
    """Largest speed and acceleration ``[n]`` anywhere between the points (exact but for quintic pieces: sampled)."""
    n = knots.positions.shape[1]
    if len(knots.times_s) < 2:
        return np.zeros(n), np.zeros(n)
    c = knots.polynomials.transpose(1, 0, 2)[:, :, None]  # [6, P - 1, 1, n]
    h = np.diff(knots.times_s)
    t = (h[:, None] * np.linspace(0.0, 1.0, 11))[..., None]  # [P - 1, 11, 1]
    speed = np.abs(c[1] + t * (2 * c[2] + t * (3 * c[3] + t * (4 * c[4] + t * 5 * c[5]))))
    acceleration = np.abs(2 * c[2] + t * (6 * c[3] + t * (12 * c[4] + t * 20 * c[5])))
    with np.errstate(divide="ignore", invalid="ignore"):  # a cubic is fastest where it does not accelerate
        turn = -c[2] / (3 * c[3])
        inside = (turn > 0) & (turn < h[:, None, None]) & (c[5] == 0) & (c[4] == 0)
        peak = np.where(inside, np.abs(c[1] + 2 * c[2] * turn + 3 * c[3] * turn**2), 0.0)
    return np.maximum(speed.max((0, 1)), peak.max((0, 1))), acceleration.max((0, 1))


def _polynomials(times_s: np.ndarray, x: np.ndarray, dx: np.ndarray, ddx: np.ndarray) -> np.ndarray:
    """Coefficients ``[P - 1, 6, n]`` in the time since each point, of as high a degree as both its ends allow."""
    h = np.diff(times_s)[:, None]
    p, q, v, w, a, b = x[:-1], x[1:], dx[:-1], dx[1:], ddx[:-1], ddx[1:]
    zero = np.zeros_like(p)
    straight = [p, (q - p) / h, zero, zero, zero, zero]
    cubic = [p, v, (3 * (q - p) / h - 2 * v - w) / h, (2 * (p - q) / h + v + w) / h**2, zero, zero]
    d, e, f = q - p - v * h - a * h**2 / 2, w - v - a * h, b - a  # what the three highest terms have to make up for
    quintic = [
        p,
        v,
        a / 2,
        (10 * d - 4 * e * h + f * h**2 / 2) / h**3,
        (-15 * d + 7 * e * h - f * h**2) / h**4,
        (6 * d - 3 * e * h + f * h**2 / 2) / h**5,
    ]
    moving = ~np.isnan(v + w).any(1)[:, None, None]
    driven = moving & ~np.isnan(a + b).any(1)[:, None, None]
    parts = [np.stack(c, 1) for c in (quintic, cubic, straight)]
    return np.where(driven, parts[0], np.where(moving, parts[1], parts[2]))
