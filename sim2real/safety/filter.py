"""The last thing before a command is sent: whatever comes in, what goes out is finite and within every limit.

The guarantee is by construction, not by clipping. After every tick the filter knows how each joint would come to rest
(``settle``), and that this way keeps within the limits of position, velocity, acceleration and jerk and within the
geometry. A tick that pursues a target is accepted only if the same still holds after it; if not, the tick goes along
the known way instead, which therefore always exists. This is a shield with a verified backup manoeuvre (Alshiekh et al.
2018, "Safe Reinforcement Learning via Shielding"; Gurriet et al. 2018, "Online Active Safety for Robotic
Manipulators").
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

import numpy as np

from visuomotor.data.errors import UserError
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.safety.config import ArmLimits, SafetyConfig
from visuomotor.sim2real.safety.geometry import Geometry
from visuomotor.sim2real.safety.profile import after, duration, extent, settle
from visuomotor.sim2real.safety.results import Filtered, SafetyEvent, note
from visuomotor.sim2real.safety.tank import Contact, Steps
from visuomotor.sim2real.safety.tracking import Joint, Motion, believed, blend, bounded, bounds_of, pursue

__all__ = ["Filtered", "SafetyEvent", "SafetyFilter"]

_INSIDE = 1e-6  # targets stay so far within the position limits [rad]: rounding then never passes them
_ROUNDING = 1e-9  # relative, of velocities; absolute, of positions [rad]
_HALVINGS = 12
_SAY_AGAIN_S = 0.5  # an event that ended so long ago is a new one
_POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way to rest where the geometry is checked


class SafetyFilter:
    """Turns targets of joint positions into commands, one a tick.

    Finite differences of the sent positions keep ``|v| <= velocity``, ``|a| <= acceleration``, ``|j| <= jerk`` (each a
    share of ``limits``) and ``low <= q <= high`` (by ``position_margin`` within ``limits``), whatever the targets.
    A target that stands is reached in the shortest time, without overshoot; one that moves within the limits is
    followed with a lag of milliseconds.

    Args:
        limits: of the robot.
        dt_s: duration of a tick [s].
        config: margins and constraints.
        kinematics: for the geometry; None: joint limits alone.
        contact: for contact tasks: what motions against the measured force are paid from.
    """

    def __init__(
        self,
        limits: ArmLimits,
        dt_s: float,
        config: SafetyConfig,
        kinematics: Kinematics | None = None,
        contact: Contact | None = None,
    ) -> None:
        if not 0.0 < dt_s < inf:
            raise UserError(f"safety filter: a tick of {dt_s} s; expected more than 0, and finite")
        self.limits, self.dt_s, self.config = limits, dt_s, config
        margin = np.minimum(config.position_margin, (limits.high - limits.low) / 4.0)
        self._low, self._high = (limits.low + margin).tolist(), (limits.high - margin).tolist()
        self._joints = [bounds_of(limits, i, config, dt_s) for i in range(limits.n)]
        geometry = None if kinematics is None else Geometry(kinematics, config, limits.names)
        self._geometry = None if geometry is None or geometry.empty else geometry
        self._contact = contact
        self._now: list[Motion] = []
        self._forget()
        self._said: dict[str, int] = {}  # by kind of event: the last tick that had one
        self._ticks = 0
        self._first, self._share, self._share_step = True, 1.0, 0.0
        self._refused = self._good = 0

    # ---- state

    def start(self, q: np.ndarray) -> None:
        """Begin at rest at the measured positions ``q [n]``. Only while nothing is being sent: the arm is at rest.

        An arm that stands within the margin of a limit, or somewhat beyond a limit, can go back but no further.

        Raises:
            UserError: a position that is not finite, or beyond a limit by more than ``measured_beyond``.
        """
        values = np.asarray(q, dtype=np.float64)
        if values.shape != (self.limits.n,) or not np.isfinite(values).all():
            raise UserError(
                f"the measured joint positions are {values.tolist()}; expected {self.limits.n} finite numbers"
            )
        for i, name in enumerate(self.limits.names):
            low, high = self.limits.low[i], self.limits.high[i]
            if not low - self.config.measured_beyond <= values[i] <= high + self.config.measured_beyond:
                raise UserError(f"{name} is measured at {values[i]:.3f}; its limits are {low:.3f} to {high:.3f}")
        self._now = [Motion(x, 0.0, 0.0) for x in values.tolist()]
        self._bottom = [min(low, m.q) for low, m in zip(self._low, self._now, strict=True)]
        self._top = [max(high, m.q) for high, m in zip(self._high, self._now, strict=True)]
        if self._geometry is not None:
            self._geometry.begin(values)
        self._said = {}
        self._refused = 0
        if self._contact is not None:
            self._contact.tank.refill()
        self._rearm()

    @property
    def at_rest(self) -> bool:
        """Nothing moves."""
        return all(m.v == 0.0 and m.a == 0.0 for m in self._now)

    @property
    def position(self) -> np.ndarray:
        """Commanded positions ``[n]`` [rad or m]."""
        return np.array([m.q for m in self._now])

    @property
    def velocity(self) -> np.ndarray:
        """Commanded velocities ``[n]`` [rad/s or m/s]."""
        return np.array([m.v for m in self._now])

    # ---- one tick

    def step(self, target: np.ndarray | None, *, slow: bool = False) -> Filtered:
        """The next command.

        Args:
            target: where the joints should be at the end of this tick ``[n]``; None: brake to rest and hold. After
                that, or after ``start``, the first target has to be near the arm.
            slow: on the way to a start: at ``ramp_share`` of the velocity, and the target may be anywhere.
        """
        events: dict[str, SafetyEvent] = {}
        goal = None if target is None else self._accept(target, slow, events)
        if target is not None and self._contact is not None and (trouble := self._contact.trouble()):
            note(events, "wrench", trouble, fatal=True)
            goal = None
        before = self._now
        if target is None:
            self._refused = 0
            if self.at_rest:
                self._rearm()
        elif goal is None:
            self._refuse(events)
        elif not slow:
            self._share = min(1.0, self._share + self._share_step)
        if goal is None:
            self._forget()
            self._now = self._stopping()
        else:
            self._now = self._follow(goal, self.config.ramp_share if slow else self._share, events)
        if self._contact is not None:
            q = np.array([m.q for m in before])
            self._contact.pay(q, self.position - q, self.dt_s)
        self._tighten()
        return self._report(goal is not None, events)

    def resting_tail(self, dt_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How the commanded motion comes to rest: the end of every trajectory that is sent.

        Args:
            dt_s: between two points [s].

        Returns:
            Positions ``[P, n]``, velocities ``[P, n]``, whose last is exactly zero, and times ``[P]`` [s] from the
            commanded state on, the first one ``dt_s``.
        """
        ways = [settle(m.v, m.a, j.acceleration, j.acceleration, j.jerk) for m, j in self._moving()]
        count = max(1, int(np.ceil(max(map(duration, ways)) / dt_s - 1e-9)))
        times = dt_s * np.arange(1, count + 1)
        points = [
            [after(way, j.jerk, t if k < count else inf)[:2] for way, j in zip(ways, self._joints, strict=True)]
            for k, t in enumerate(times.tolist(), 1)
        ]
        table = np.array(points).reshape(count, self.limits.n, 2)
        return table[:, :, 0] + self.position, table[:, :, 1], times

    # ---- what comes in

    def _accept(self, target: np.ndarray, slow: bool, events: dict[str, SafetyEvent]) -> list[float] | None:
        """The target within the position limits, or None if it is refused."""
        try:
            values = np.asarray(target, dtype=np.float64)
        except (TypeError, ValueError):
            values = np.zeros(0)
        if values.shape != (self.limits.n,):
            note(events, "shape", f"the target has shape {list(values.shape)}; expected {self.limits.n} numbers")
            return None
        goal: list[float] = values.tolist()
        if not all(map(isfinite, goal)):
            bad = [f"{n} {x}" for n, x in zip(self.limits.names, goal, strict=True) if not isfinite(x)]
            note(events, "not_finite", f"the target is not finite: {', '.join(bad)}")
            return None
        lead, which = max((abs(x - m.q), i) for i, (x, m) in enumerate(zip(goal, self._now, strict=True)))
        most = self.config.first_command if self._first else self.config.jump
        if not slow and lead > most:
            kind, what = ("first_command", "the first target") if self._first else ("jump", "the target")
            text = f"{what} is {lead:.3f} rad from the arm at {self.limits.names[which]}; limit {most:g} rad"
            note(events, kind, text, fatal=self._first)
            return None
        if self._refused:
            self._good += 1
            if self._good * self.dt_s < self.config.resume_after_s:
                return None
            self._refused = 0
        self._first = self._first and slow
        for i, x in enumerate(goal):
            low, high = self._bottom[i] + _INSIDE, self._top[i] - _INSIDE
            if not low <= x <= high:
                if not self._low[i] <= x <= self._high[i]:
                    name, bounds = self.limits.names[i], f"{self._low[i]:.3f} to {self._high[i]:.3f}"
                    note(events, "position", f"the target of {name} is {x:.3f}; it may be {bounds}")
                goal[i] = min(max(x, low), high)
        return goal

    def _refuse(self, events: dict[str, SafetyEvent]) -> None:
        if events:
            self._good = 0
        self._refused += 1
        waited = self._refused * self.dt_s
        if waited >= self.config.reject_fault_s:
            limit = self.config.reject_fault_s
            note(events, "refused", f"targets have been refused for {waited:.2f} s; limit {limit:g} s", fatal=True)

    def _rearm(self) -> None:
        """The next target is a first one, and the velocity grows from its ramp again."""
        self._first, self._good = True, 0
        self._share = self.config.ramp_share
        ticks = self.config.ramp_in_s / self.dt_s
        self._share_step = (1.0 - self._share) / ticks if ticks >= 1.0 else 1.0
        self._forget()

    def _forget(self) -> None:
        """The next target has no past."""
        self._last: list[float] | None = None
        self._slopes = [0.0] * self.limits.n  # how it moved in the last tick
        self._mean = [0.0] * self.limits.n  # and lately

    # ---- what goes out

    def _moving(self) -> zip[tuple[Motion, Joint]]:
        return zip(self._now, self._joints, strict=True)

    def _stopping(self) -> list[Motion]:
        """One tick along the way to rest."""
        out = []
        for m, j in self._moving():
            if m.v == 0.0 and m.a == 0.0:
                out.append(m)
            else:
                x, v, a = after(settle(m.v, m.a, j.acceleration, j.acceleration, j.jerk), j.jerk, self.dt_s)
                out.append(Motion(m.q + x, v, a))
        return out

    def _follow(self, goal: list[float], share: float, events: dict[str, SafetyEvent]) -> list[Motion]:
        dt, last = self.dt_s, self._last or goal
        slopes = [(x - y) / dt for x, y in zip(goal, last, strict=True)]
        wanted = []
        for i, (m, j) in enumerate(self._moving()):
            x, cap = goal[i], share * j.velocity
            self._mean[i] = believed(slopes[i], self._slopes[i], self._mean[i], j.acceleration, dt)
            v = bounded(self._mean[i], x, j, cap, self._bottom[i], self._top[i])
            new = pursue(m, x, v, cap, j.acceleration, j.jerk, dt)
            wanted.append(new if self._holds(i, m, new) else self._nearest_safe(i, m, new))
        self._last, self._slopes = goal, slopes
        if self._contact is not None:
            wanted = self._affordable(self._contact, wanted, events)
        if self._geometry is None:
            return wanted
        depth, where = self._geometry.depth(self._braking_path(wanted))
        if depth <= _ROUNDING:
            return wanted
        note(events, "geometry", where)
        return self._stopping()

    def _affordable(self, contact: Contact, wanted: list[Motion], events: dict[str, SafetyEvent]) -> list[Motion]:
        """As much of the motion as the energy tank pays for."""
        stop = self._stopping()
        share = contact.share(self.position, self._steps(stop), self._steps(wanted), self.dt_s)
        if share >= 1.0:
            return wanted
        note(events, "energy", f"the policy pushes: {contact.tank.energy:.2f} J are left in its energy tank")
        mixed = [blend(one, other, share) for one, other in zip(stop, wanted, strict=True)]
        fine = all(self._holds(i, now, new) for i, (now, new) in enumerate(zip(self._now, mixed, strict=True)))
        return mixed if fine else stop

    def _steps(self, motions: list[Motion]) -> Steps:
        """From now to ``motions``, and from there to rest."""
        rest = [
            settle(m.v, m.a, j.acceleration, j.acceleration, j.jerk)[7]
            for m, j in zip(motions, self._joints, strict=True)
        ]
        return Steps(np.array([m.q for m in motions]) - self.position, np.array(rest))

    def _holds(self, i: int, now: Motion, new: Motion) -> bool:
        """After this motion the joint can still come to rest within its limits."""
        j = self._joints[i]
        most = j.velocity * (1.0 + _ROUNDING)
        if not -most <= new.v + new.a * abs(new.a) / (2.0 * j.jerk) <= most or not -most <= new.v <= most:
            return False
        if abs(new.q - now.q) > most * self.dt_s:
            return False
        low, high = self._bottom[i], self._top[i]
        if low + j.stop <= new.q <= high - j.stop:
            return True
        down, up = extent(new.v, new.a, j.acceleration, j.jerk)
        return low <= new.q + down and new.q + up <= high

    def _nearest_safe(self, i: int, now: Motion, new: Motion) -> Motion:
        """As much of the wanted motion as keeps the limits; the rest is the way to rest."""
        j = self._joints[i]
        x, v, a = after(settle(now.v, now.a, j.acceleration, j.acceleration, j.jerk), j.jerk, self.dt_s)
        stop = best = Motion(now.q + x, v, a)
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            share = 0.5 * (low + high)
            tried = blend(stop, new, share)
            if self._holds(i, now, tried):
                low, best = share, tried
            else:
                high = share
        return best

    def _braking_path(self, motions: Sequence[Motion]) -> np.ndarray:
        """Joint positions ``[P, n]`` on the way to rest after ``motions``."""
        pairs = [
            (m, j, settle(m.v, m.a, j.acceleration, j.acceleration, j.jerk))
            for m, j in zip(motions, self._joints, strict=True)
        ]
        last = max(duration(way) for _, _, way in pairs)
        return np.array([[m.q + after(way, j.jerk, share * last)[0] for m, j, way in pairs] for share in _POINTS])

    def _tighten(self) -> None:
        """An arm that began beyond its limits does not go back there."""
        for i, (m, j) in enumerate(self._moving()):
            if self._bottom[i] < self._low[i] or self._top[i] > self._high[i]:
                down, up = extent(m.v, m.a, j.acceleration, j.jerk)
                self._bottom[i] = max(self._bottom[i], min(self._low[i], m.q + down))
                self._top[i] = min(self._top[i], max(self._high[i], m.q + up))

    def _report(self, following: bool, events: dict[str, SafetyEvent]) -> Filtered:
        self._ticks += 1
        fresh = tuple(event for event in events.values() if self._is_new(event))
        self._said.update(dict.fromkeys(events, self._ticks))
        position, velocity, acceleration = np.array(tuple(zip(*self._now, strict=True)))
        return Filtered(position, velocity, acceleration, fresh, following)

    def _is_new(self, event: SafetyEvent) -> bool:
        quiet = 1.0 if event.fatal else _SAY_AGAIN_S / self.dt_s
        return self._said.get(event.kind, -inf) < self._ticks - quiet
