"""What the safety layer may be told. Every default is on; the table with all of them is in ``docs/safety.md``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from visuomotor.data.errors import ConfigError, nearest

__all__ = ["ArmLimits", "BoxConfig", "KeepOutConfig", "PlaneConfig", "SafetyConfig", "TankConfig"]


@dataclass(frozen=True, kw_only=True)
class ArmLimits:
    """Limits of an arm's joints, ``[n]`` each. Infinite positions are allowed: joints that turn without end.

    Attributes:
        low, high: position [rad or m].
        velocity: [rad/s or m/s].
        acceleration: [rad/s^2 or m/s^2].
        jerk: [rad/s^3 or m/s^3].
        names: of the joints, for messages; empty: numbers.
    """

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.low)
        for key in ("low", "high", "velocity", "acceleration", "jerk"):
            value = np.array(getattr(self, key), dtype=np.float64)
            if value.shape != (n,) or np.isnan(value).any():
                raise ConfigError(f"limits: {key} is {value.tolist()}; expected {n} numbers")
            object.__setattr__(self, key, value)
        names = self.names or tuple(f"joint {i}" for i in range(n))
        if len(names) != n:
            raise ConfigError(f"limits: {len(names)} names for {n} joints")
        object.__setattr__(self, "names", names)
        for i, name in enumerate(names):
            if not self.low[i] < self.high[i]:
                raise ConfigError(f"limits of {name}: position {self.low[i]} to {self.high[i]}; expected low < high")
            for key in ("velocity", "acceleration", "jerk"):
                if not getattr(self, key)[i] > 0.0:
                    raise ConfigError(f"limits of {name}: {key} {getattr(self, key)[i]}; expected more than 0")

    @property
    def n(self) -> int:
        """Joints."""
        return len(self.low)


@dataclass(kw_only=True, slots=True)
class BoxConfig:
    """Where the hand's point (``tcp``) may be, in the frame of the arm's base: corners ``[3]`` [m]."""

    low: list[float] = field(default_factory=lambda: [-math.inf] * 3)
    high: list[float] = field(default_factory=lambda: [math.inf] * 3)

    def __post_init__(self) -> None:
        if (
            len(self.low) != 3
            or len(self.high) != 3
            or not all(a < b for a, b in zip(self.low, self.high, strict=True))
        ):
            raise ConfigError(f"safety.workspace: {self.low} to {self.high}; expected two corners x y z, low < high")


@dataclass(kw_only=True, slots=True)
class PlaneConfig:
    """A table or a wall in the frame of the arm's base: ``normal . x >= offset`` is free.

    Attributes:
        normal: ``[3]``, of any length.
        offset: along the unit normal [m].
        hand: the spheres of the hand count too; false: the hand counts by its point (``tcp``) alone, so that it can
            take things off a table.
        name: for messages.
    """

    normal: list[float] = field(default_factory=lambda: [0.0, 0.0, 1.0])
    offset: float = 0.0
    hand: bool = False
    name: str = "plane"

    def __post_init__(self) -> None:
        if len(self.normal) != 3 or not 0.0 < math.hypot(*self.normal) < math.inf or not math.isfinite(self.offset):
            raise ConfigError(f"safety.planes: normal {self.normal}, offset {self.offset}; expected x y z, not all 0")


@dataclass(kw_only=True, slots=True)
class KeepOutConfig:
    """A sphere that no part of the arm may enter, in the frame of the arm's base.

    Attributes:
        centre: ``[3]`` [m].
        radius: [m].
        name: for messages.
    """

    centre: list[float] = field(default_factory=list)
    radius: float = 0.0
    name: str = "keep-out"

    def __post_init__(self) -> None:
        if len(self.centre) != 3 or not all(map(math.isfinite, self.centre)) or not 0.0 < self.radius < math.inf:
            raise ConfigError(
                f"safety.keep_out: centre {self.centre}, radius {self.radius}; expected x y z and more than 0"
            )


@dataclass(kw_only=True, slots=True)
class TankConfig:
    """The energy tank of contact tasks.

    Attributes:
        start: energy in it at the beginning of a motion [J].
        most: it never holds more [J].
        least: below this the policy may not work on the hand's surroundings [J]; what braking takes comes out of it.
        power: largest power of the commanded motion against the measured force [W].
        topic: of geometry_msgs/WrenchStamped: what the surroundings do to the hand, without the hand's own weight.
        frame: in which that is given: ``hand`` or ``base``.
        max_age_s: without a message for so long, the arm brakes.
    """

    start: float = 1.0
    most: float = 2.0
    least: float = 0.05
    power: float = 10.0
    topic: str = "/force_torque_sensor_broadcaster/wrench"
    frame: str = "hand"
    max_age_s: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.least < self.start <= self.most < math.inf:
            levels = f"least {self.least}, start {self.start}, most {self.most}"
            raise ConfigError(f"safety.tank: {levels}; expected 0 or more, ascending")
        if not self.power > 0.0 or not self.max_age_s > 0.0:
            raise ConfigError(f"safety.tank: power {self.power}, max_age_s {self.max_age_s}; expected more than 0")
        if self.frame not in ("hand", "base"):
            raise ConfigError(f"safety.tank.frame={self.frame!r}. {nearest(self.frame, ('hand', 'base'))}")


@dataclass(kw_only=True, slots=True)
class SafetyConfig:
    """What the filter, the monitors and the supervisor allow. Radians where joints turn, metres where they slide.

    Attributes:
        position_margin: distance to the joints' limits [rad].
        velocity_share, acceleration_share, jerk_share: of the robot's own limits.
        first_command: the first target after a start may be so far from the arm in any joint [rad].
        jump: later targets may lead the arm by so much [rad].
        resume_after_s: good targets for so long, before a stream of refused ones is followed again.
        reject_fault_s: refused targets for so long are a fault.
        ramp_share: of the velocity, at which the arm goes to where the policy begins, and with which it starts.
        ramp_in_s: from there to the full velocity.
        ramp_timeout_s: the arm has to be there by then.
        ramp_arrival: it is there when no joint is further away [rad].
        workspace: box for the hand's point; null: none.
        planes: tables and walls.
        keep_out: spheres to stay out of.
        self_collision: links of the arm keep apart, where there is kinematics.
        clearance: of all of these [m].
        policy_timeout_s: without a sign of life from the policy's process for so long, it counts as dead.
        tracking_error: measured joints may be so far from what was commanded within the last ``tracking_window_s`` ...
        tracking_time_s: ... for so long [rad, s].
        tracking_window_s: covers the delay of the robot's own controller.
        measured_beyond: the filter refuses to start where a joint is measured so far beyond its limits [rad]: the
            sensor is wrong, or the limits are.
        hold_to_run: the arm moves only while the operator holds a key or a pedal.
        tank: passivity of contact tasks by an energy tank; null: none.
    """

    position_margin: float = 0.02
    velocity_share: float = 0.9
    acceleration_share: float = 1.0
    jerk_share: float = 1.0
    first_command: float = 0.2
    jump: float = 0.5
    resume_after_s: float = 0.1
    reject_fault_s: float = 0.5
    ramp_share: float = 0.2
    ramp_in_s: float = 1.0
    ramp_timeout_s: float = 30.0
    ramp_arrival: float = 0.02
    workspace: BoxConfig | None = None
    planes: list[PlaneConfig] = field(default_factory=list)
    keep_out: list[KeepOutConfig] = field(default_factory=list)
    self_collision: bool = True
    clearance: float = 0.01
    policy_timeout_s: float = 0.1
    tracking_error: float = 0.15
    tracking_time_s: float = 0.1
    tracking_window_s: float = 0.3
    measured_beyond: float = 0.1
    hold_to_run: bool = False
    tank: TankConfig | None = None

    def __post_init__(self) -> None:
        for key in ("velocity_share", "acceleration_share", "jerk_share", "ramp_share"):
            if not 0.0 < getattr(self, key) <= 1.0:
                raise ConfigError(f"safety.{key}={getattr(self, key)}: expected more than 0, 1 at most")
        for key in ("position_margin", "resume_after_s", "ramp_in_s", "clearance", "tracking_time_s"):
            if not 0.0 <= getattr(self, key) < math.inf:
                raise ConfigError(f"safety.{key}={getattr(self, key)}: expected 0 or more, and finite")
        positive = ("first_command", "jump", "reject_fault_s", "ramp_timeout_s", "ramp_arrival", "policy_timeout_s")
        for key in (*positive, "tracking_error", "tracking_window_s", "measured_beyond"):
            if not getattr(self, key) > 0.0:
                raise ConfigError(f"safety.{key}={getattr(self, key)}: expected more than 0")
