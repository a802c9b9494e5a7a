"""What the twin holds against the commands that it receives: violations of the arm's limits, counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import numpy as np

from visuomotor.sim2real.safety.config import ArmLimits
from visuomotor.sim2real.twin.trajectory import Knots, bounds

__all__ = ["CommandWatch", "Violations"]

_ROUNDING = 1e-9  # [rad]: of positions in a message
_SHARE = 1e-3  # by which a rate may be above its limit before it counts
_EARLY = 0.05  # of a period: a command that comes so much later than the last one may be the second since
_BETWEEN = 0.5  # the same between two points, where cubics need more than the change of velocity from one to the other


@dataclass
class Violations:
    """How often, and how far at worst (as a multiple of the limit, of one step's largest change for ``jump``)."""

    count: dict[str, int] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)

    def add(self, kind: str, ratio: float) -> None:
        """Count one."""
        self.count[kind] = self.count.get(kind, 0) + 1
        self.worst[kind] = max(self.worst.get(kind, 0.0), ratio)

    @property
    def total(self) -> int:
        """Of all kinds."""
        return sum(self.count.values())

    def __str__(self) -> str:
        if not self.count:
            return "no violation"
        return ", ".join(f"{n} x {k} (at worst {self.worst[k]:.3g} of the limit)" for k, n in self.count.items())


class CommandWatch:
    """Compares commands for ``n`` joints with limits, by finite differences over the period of commands.

    Args:
        limits: of the arm.
        period_s: between two commands.
    """

    def __init__(self, limits: ArmLimits, period_s: float) -> None:
        self._limits, self._period = limits, period_s
        self.violations = Violations()
        self._last: tuple[int, np.ndarray] | None = None
        self._velocity: np.ndarray | None = None

    def reset(self) -> None:
        """The arm was put elsewhere: the next command begins anew."""
        self._last = self._velocity = None

    def position(self, q: np.ndarray, received_ns: int) -> None:
        """A command of positions ``[n]``, and when it came.

        Commands follow each other by their period, whenever they come; if they then violate a limit, and there was time
        for others that were lost in between, these have had their share of it.
        """
        self._range(q)
        if self._last is not None:
            lost = max(1, ceil((received_ns - self._last[0]) * 1e-9 / self._period - _EARLY))
            stretched = lost > 1 and not self._fits(q, self._period) and self._fits(q, lost * self._period)
            dt = lost * self._period if stretched else self._period
            velocity = self._moved(q, dt)
            self._rate("velocity", velocity, self._limits.velocity, 2 * _ROUNDING / dt)
            if self._velocity is not None:
                change = (velocity - self._velocity) / dt
                self._rate("acceleration", change, self._limits.acceleration, 4 * _ROUNDING / dt**2)
            self._velocity = velocity
        self._last = (received_ns, q)

    def _moved(self, q: np.ndarray, dt: float) -> np.ndarray:
        assert self._last is not None
        return (q - self._last[1]) / dt

    def _fits(self, q: np.ndarray, dt: float) -> bool:
        v, most = self._moved(q, dt), 1 + _SHARE
        change = np.zeros_like(v) if self._velocity is None else (v - self._velocity) / dt
        slow = (np.abs(v) <= self._limits.velocity * most + 2 * _ROUNDING / dt).all()
        return bool(slow and (np.abs(change) <= self._limits.acceleration * most + 4 * _ROUNDING / dt**2).all())

    def trajectory(self, knots: Knots, begins: np.ndarray, desired: np.ndarray) -> None:
        """A trajectory that is at ``begins [n]`` when it replaces one that was at ``desired [n]``."""
        for q in knots.positions:
            self._range(q)
        speed, acceleration = bounds(knots)
        self._rate("velocity", speed, self._limits.velocity, _ROUNDING)
        self._rate("acceleration", acceleration / (1 + _BETWEEN), self._limits.acceleration, _ROUNDING)
        if len(knots.times_s) > 1:
            change = np.diff(knots.velocities, axis=0) / np.diff(knots.times_s)[:, None]
            largest = np.abs(np.nan_to_num(change)).max(0)
            self._rate("acceleration", largest, self._limits.acceleration, 2 * _ROUNDING / np.diff(knots.times_s).min())
        self._rate("jump", begins - desired, self._limits.velocity * self._period, _ROUNDING)

    def velocity(self, v: np.ndarray) -> None:
        """A command of velocities ``[n]``."""
        self._rate("velocity", v, self._limits.velocity, _ROUNDING)
        if self._velocity is not None:
            self._rate("acceleration", (v - self._velocity) / self._period, self._limits.acceleration, _ROUNDING)
        self._velocity = v

    def refused(self, why: str) -> None:
        """The controller did not take a command."""
        self.violations.add("not finite" if "not finite" in why else "refused", np.inf)

    def _range(self, q: np.ndarray) -> None:
        beyond = np.maximum(q - self._limits.high, self._limits.low - q).max()
        if beyond > _ROUNDING:
            self.violations.add("position", float(1 + beyond))

    def _rate(self, kind: str, value: np.ndarray, limit: np.ndarray, rounding: float) -> None:
        if (np.abs(value) > limit * (1 + _SHARE) + rounding).any():
            self.violations.add(kind, float((np.abs(value) / limit).max()))
