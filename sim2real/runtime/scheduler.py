"""From chunks of actions to joint targets at any time: late actions are dropped, and new chunks taken up smoothly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visuomotor.sim2real.runtime.actions import ActionMap
from visuomotor.sim2real.runtime.types import Chunk

__all__ = ["Scheduler", "Target"]

_AHEAD = 2  # knots beyond the present that its spline needs
_BUDGET = 2  # further actions that are worked out in each tick: inverse kinematics would take a long one at once


@dataclass(frozen=True)
class Target:
    """What the arm is to be at a time."""

    joints: np.ndarray  # [n], rad or m
    opening: float
    velocity: np.ndarray  # [n], of the plan
    starved: bool  # the last chunk has ended


class _Plan:
    """Targets at times, and a smooth curve through them (joints and opening in one vector ``[n + 1]``).

    A cubic Hermite spline with the slopes of Fritsch and Carlson 1980: it does not go beyond what it goes through, and
    ends at rest. What was commanded before differs from it where it begins by an offset, which fades away within
    ``fade_ns`` by a cubic that has the same velocity: the sum is continuous in position and velocity.
    """

    def __init__(self, time_ns: int, value: np.ndarray) -> None:
        self.times, self.values = [time_ns], [value]
        self._slopes: dict[int, np.ndarray] = {}
        self._start, self._fade = time_ns, 1
        self._offset = self._rate = np.zeros_like(value)

    def append(self, time_ns: int, value: np.ndarray) -> None:
        self._slopes.pop(len(self.times) - 1, None)
        self._slopes.pop(len(self.times) - 2, None)
        self.times.append(time_ns)
        self.values.append(value)

    def fade_from(self, time_ns: int, offset: np.ndarray, rate: np.ndarray, fade_ns: int) -> None:
        """Add ``offset`` with its ``rate`` [1/s] at ``time_ns``, gone after ``fade_ns``."""
        self._start, self._fade, self._offset, self._rate = time_ns, max(1, fade_ns), offset, rate

    def at(self, time_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """Value and velocity [1/s], in arrays of the caller's own."""
        value, rate = self._spline(time_ns)
        u = (time_ns - self._start) / self._fade
        if not 0.0 <= u < 1.0:
            return value.copy(), rate.copy()
        span = self._fade * 1e-9
        a, b = (1 + 2 * u) * (1 - u) ** 2, u * (1 - u) ** 2
        da, db = 6 * u * (u - 1), (1 - u) * (1 - 3 * u)
        return (
            value + a * self._offset + b * span * self._rate,
            rate + da / span * self._offset + db * self._rate,
        )

    def meant(self, time_ns: int) -> np.ndarray:
        """Value of the curve alone, in an array of the caller's own."""
        return self._spline(time_ns)[0].copy()

    def _spline(self, time_ns: int) -> tuple[np.ndarray, np.ndarray]:
        times, values = self.times, self.values
        if time_ns >= times[-1] or len(times) == 1:
            return values[-1], np.zeros_like(values[-1])
        if time_ns <= times[0]:
            return values[0], self._slope(0)
        i = len(times) - 2
        while times[i] > time_ns:
            i -= 1
        h = (times[i + 1] - times[i]) * 1e-9
        u = (time_ns - times[i]) * 1e-9 / h
        step, s0, s1 = values[i + 1] - values[i], self._slope(i) * h, self._slope(i + 1) * h
        c2, c3 = 3 * step - 2 * s0 - s1, s0 + s1 - 2 * step
        return values[i] + u * (s0 + u * (c2 + u * c3)), (s0 + u * (2 * c2 + u * 3 * c3)) / h

    def _slope(self, i: int) -> np.ndarray:
        if i not in self._slopes:
            self._slopes[i] = self._find_slope(i)
        return self._slopes[i]

    def _find_slope(self, i: int) -> np.ndarray:
        if i == len(self.times) - 1:
            return np.zeros_like(self.values[0])
        after = self._secant(i)
        if i == 0:
            return after
        before = self._secant(i - 1)
        h0, h1 = self.times[i] - self.times[i - 1], self.times[i + 1] - self.times[i]
        w0, w1 = (2 * h1 + h0) / (3 * (h0 + h1)), (h1 + 2 * h0) / (3 * (h0 + h1))
        same = before * after > 0
        below = np.where(same, w0 * after + w1 * before, 1.0)
        return np.where(same, before * after / below, 0.0)

    def _secant(self, i: int) -> np.ndarray:
        return (self.values[i + 1] - self.values[i]) / ((self.times[i + 1] - self.times[i]) * 1e-9)


class Scheduler:
    """Keeps the targets that the newest chunks lead to.

    An action is meant for a time. Those whose time has passed when their chunk arrives are dropped, and the rest go on
    from what was planned for the step before the first of them: the targets of a policy that commands changes continue
    from the commanded targets, exactly as in the simulation with the same delay.

    Args:
        actions: what an action does to the targets.
        fade_s: in which a difference between what was planned before and a new chunk fades away, of the joints; the
            gripper does what the new chunk says at once.
        damped: for changes of the target: what has not been taken up of a correction when the next chunk comes is left
            out. Without, nothing is: targets are the sum of the changes, as in the simulation.
        lead: a chunk goes on from targets that are no further ahead of the arm than this [rad or m]: where the limits
            do not let it follow, changes would pile up.
    """

    def __init__(self, actions: ActionMap, *, fade_s: float, lead: float, damped: bool = False) -> None:
        self._map, self._fade_ns, self._lead, self.damped = actions, round(fade_s * 1e9), lead, damped
        self._pending: list[tuple[int, np.ndarray]] = []
        self._raw: list[tuple[int, np.ndarray]] = []
        self._plan: _Plan | None = None
        self._dt_ns = 0
        self.sequence = -1

    def reset(self, joints: np.ndarray, opening: float, at_ns: int) -> None:
        """Forget every chunk; stand at ``joints [n]``."""
        self._plan = _Plan(at_ns, np.append(joints, opening))
        self._pending, self._raw, self.sequence = [], [], -1

    @property
    def empty(self) -> bool:
        """No chunk since the last :meth:`reset`."""
        return not self._raw

    def accept(self, chunk: Chunk, at_ns: int, commanded: np.ndarray) -> str:
        """Follow ``chunk`` from ``at_ns`` on, the time that is commanded now; returns what is wrong with it, or "".

        ``commanded [n]`` is where the arm was commanded to be, after all limits. A chunk with a value that is no number
        is not followed, nor one that is wholly in the past.
        """
        assert self._plan is not None
        actions = np.asarray(chunk.actions, np.float64)
        if actions.ndim != 2 or actions.shape[1] != self._map.size:
            return f"chunk {chunk.sequence}: shape {actions.shape}, expected [H, {self._map.size}]"
        if not np.isfinite(actions).all():
            i, j = np.argwhere(~np.isfinite(actions))[0]
            return f"chunk {chunk.sequence}: component {j} of action {i} is {actions[i, j]}"
        first = max(0, (at_ns - chunk.first_ns) // chunk.dt_ns + 1)
        if first >= len(actions):
            late = (at_ns - chunk.first_ns) * 1e-9 - (len(actions) - 1) * chunk.dt_ns * 1e-9
            return f"chunk {chunk.sequence}: its last action is {late:.3f} s late"
        base_ns = chunk.first_ns + (first - 1) * chunk.dt_ns
        value, rate = self._plan.at(at_ns)
        base = self._plan.at(base_ns)[0] if self.damped else self._plan.meant(base_ns)
        base[:-1] = np.clip(base[:-1], commanded - self._lead, commanded + self._lead)
        if first > 0 and self._map.absolute:  # the chunk itself says where it comes from: no corner between both
            base = np.append(*self._map.apply(base[:-1], float(base[-1]), actions[first - 1]))
        plan = _Plan(base_ns, base)
        times = chunk.first_ns + np.arange(first, len(actions)) * chunk.dt_ns
        self._raw = self._pending = [(int(t), a) for t, a in zip(times, actions[first:], strict=True)]
        self._pending = list(self._pending)
        self._plan, self._dt_ns, self.sequence = plan, chunk.dt_ns, chunk.sequence
        self._work_out(at_ns, _AHEAD)
        new_value, new_rate = plan.at(at_ns)
        offset, drift = value - new_value, rate - new_rate
        offset[-1] = drift[-1] = 0.0  # the gripper's own speed limit is enough, and a grasp must not come late
        plan.fade_from(at_ns, offset, drift, self._fade_ns)
        return ""

    def sample(self, at_ns: int) -> Target:
        """The target at a time that does not decrease from call to call."""
        assert self._plan is not None
        self._work_out(at_ns, _BUDGET)
        value, rate = self._plan.at(at_ns)
        starved = at_ns > self._plan.times[-1]
        return Target(value[:-1], float(value[-1]), rate[:-1], starved)

    def action(self, at_ns: int) -> np.ndarray | None:
        """The raw action ``[Da]`` that is in force at a time: held from half a step before the time it is meant for."""
        for time, action in self._raw:
            if time + self._dt_ns // 2 > at_ns:
                return action
        return None

    def preview(self, at_ns: int) -> np.ndarray:
        """Joint targets ``[K, n]`` of the actions ahead, as far as they were worked out."""
        assert self._plan is not None
        ahead = [v[:-1] for t, v in zip(self._plan.times, self._plan.values, strict=True) if t > at_ns]
        return np.array(ahead).reshape(len(ahead), len(self._plan.values[0]) - 1)

    def _work_out(self, at_ns: int, budget: int) -> None:
        """Turn pending actions into targets: as many as are needed now, and up to ``budget`` more."""
        assert self._plan is not None
        while self._pending and (budget > 0 or self._pending[0][0] <= at_ns + _AHEAD * self._dt_ns):
            time, action = self._pending.pop(0)
            last = self._plan.values[-1]
            joints, opening = self._map.apply(last[:-1], float(last[-1]), action)
            self._plan.append(time, np.append(joints, opening))
            budget -= 1
