"""A motion that shows an arm's physics: sums of sines for all joints at once, slow to start, within limits, checked.

Band-limited sums of sines with random phases are the usual choice (Swevers et al. 1997, "Optimal Robot Excitation and
Identification"): velocities change sign often, which friction needs, and all joints move together, which inertias need.
Of several draws of phases the one is taken whose joint velocities and accelerations are least alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.robots.model import RobotModel

__all__ = ["Excitation", "ExcitationConfig", "excite"]

_DRAWS = 16
_TRIED = 4  # of them, at each size
_SHRINK = 0.85
_TRIES = 25
_CHECK_HZ = 50.0
_PEAK = 1.875  # of the ramp's slope
_NEAR = 0.01  # least distance between links that are not neighbours, and to the table [m]


@dataclass(kw_only=True, slots=True)
class ExcitationConfig:
    """The motion and its limits.

    Attributes:
        duration: of one episode, with starting and ending [s].
        episodes: with other phases each.
        rate_hz: of the commands.
        span: largest distance from the middle of the motion [rad], which is the home position where limits leave room.
        velocity: largest [rad/s].
        acceleration: largest [rad/s^2].
        margin: distance kept from the joints' limits [rad].
        lowest_hz, highest_hz: band of the sines.
        sines: of each joint.
        ramp: time in which the motion grows and dies away [s].
        table: height of what stands below the arm, seen from its base [m]; null: nothing does.
        joints: that move; empty: all.
        seed: of the phases.
    """

    duration: float = 20.0
    episodes: int = 4
    rate_hz: float = 100.0
    span: float = 0.6
    velocity: float = 1.0
    acceleration: float = 4.0
    margin: float = 0.1
    lowest_hz: float = 0.1
    highest_hz: float = 1.0
    sines: int = 5
    ramp: float = 1.5
    table: float | None = 0.0
    joints: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        self.joints = tuple(self.joints)
        for name in ("duration", "rate_hz", "span", "velocity", "acceleration", "lowest_hz", "ramp"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: expected more than 0, and finite")
        if self.episodes < 1 or self.sines < 1 or self.margin < 0:
            raise ConfigError(
                f"episodes={self.episodes}, sines={self.sines}, margin={self.margin}: expected at least 1, 1 and 0"
            )
        if self.duration < 2.5 * self.ramp:
            raise ConfigError(f"duration={self.duration} s: too short; expected 2.5 times ramp={self.ramp} s or more")
        if not self.lowest_hz <= self.highest_hz < self.rate_hz / 4:
            raise ConfigError(
                f"lowest_hz={self.lowest_hz}, highest_hz={self.highest_hz}, rate_hz={self.rate_hz}: expected the first "
                "below the second, and that below a quarter of the third"
            )


@dataclass(frozen=True, kw_only=True)
class Excitation:
    """One motion: ``time [T]`` s, joint targets ``[T, n]`` rad, and its largest reach, velocity and acceleration."""

    time: np.ndarray
    command: np.ndarray
    reach: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    shrunk: float  # how much of the wanted size was left after the check for collisions


def excite(robot: RobotModel, config: ExcitationConfig) -> list[Excitation]:
    """Motions of ``config.episodes`` episodes, each from the home position and back.

    Raises:
        ConfigError: an unknown joint, a home outside the limits, or no size at which the arm stays clear of itself and
            of the table.
    """
    check = _Clearance(robot, config.table)
    moving = _moving(robot, config)
    low, high = check.limits[:, 0] + config.margin, check.limits[:, 1] - config.margin
    home = np.array(robot.home)
    if (narrow := np.flatnonzero(low >= high)).size:
        joint = robot.joints[int(narrow[0])]
        raise ConfigError(f"margin={config.margin:g} rad leaves {joint} no room between its limits: lower it")
    wanted = np.minimum(config.span, (high - low) / 2)
    far = 0.5 * config.velocity * config.ramp / _PEAK  # a home near a limit: the motion goes on about a place beside it
    centre = home + np.clip(np.clip(home, low + wanted, high - wanted) - home, -far, far)
    room = np.maximum(np.minimum(np.minimum(centre - low, high - centre), wanted), 0)
    shift = (centre - home) * moving
    out = []
    for episode in range(config.episodes):
        rng = np.random.default_rng([config.seed, episode])
        drawn = sorted(
            (_shape(config, shift, room * moving, rng) for _ in range(_DRAWS)), key=lambda d: _alike(d, moving)
        )
        time, (shape, size) = _times(config), _clear(drawn[:_TRIED], home, check, config.rate_hz)
        command = home + size * shape
        v, a = _rates(command, time)
        out.append(
            Excitation(
                time=time, command=command, reach=np.abs(command - home).max(0), velocity=np.abs(v).max(0),
                acceleration=np.abs(a).max(0), shrunk=size,
            )
        )  # fmt: skip
    return out


def _clear(drawn: list[np.ndarray], home: np.ndarray, check: _Clearance, rate_hz: float) -> tuple[np.ndarray, float]:
    """The first motion that stays clear, the larger before the smaller."""
    for size in _SHRINK ** np.arange(_TRIES):
        for shape in drawn:
            if check.clear(home + size * shape, rate_hz):
                return shape, float(size)
    raise ConfigError(
        "no motion about the home position stays clear of the arm and the table: give table=null if there is none, "
        "fewer joints=, or another home"
    )


def _moving(robot: RobotModel, config: ExcitationConfig) -> np.ndarray:
    for joint in config.joints:
        if joint not in robot.joints:
            raise ConfigError(f"joints: the arm has no joint {joint!r}. {nearest(joint, robot.joints)}")
    return np.array([not config.joints or j in config.joints for j in robot.joints], np.float64)


def _shape(config: ExcitationConfig, shift: np.ndarray, room: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Motion from home ``[T, n]``, as large as reach, velocity and acceleration allow.

    ``shift [n]`` is the middle of the motion, seen from home.
    """
    time = _times(config)
    frequency = np.geomspace(config.lowest_hz, config.highest_hz, config.sines)
    frequency = frequency * rng.uniform(0.85, 1.0, (len(room), config.sines))  # joints do not repeat together
    frequency = np.maximum(frequency, config.lowest_hz)
    phase = rng.uniform(0, 2 * np.pi, (len(room), config.sines))
    weight = frequency**-0.5  # between equal reach and equal velocity
    waves = np.sin(2 * np.pi * frequency[:, :, None] * time + phase[:, :, None])
    grown = _window(time, config.ramp)[:, None]
    motion, aside = (weight[:, :, None] * waves).sum(1).T * grown, shift * grown
    v, a = _rates(motion, time)
    aside_v, aside_a = (np.abs(x).max(0) for x in _rates(aside, time))
    size = np.minimum(
        room / np.abs(motion).max(0),
        np.minimum((config.velocity - aside_v) / np.abs(v).max(0), (config.acceleration - aside_a) / np.abs(a).max(0)),
    )
    return aside + motion * np.maximum(size, 0)


def _times(config: ExcitationConfig) -> np.ndarray:
    return np.arange(round(config.duration * config.rate_hz) + 1) / config.rate_hz


def _rates(motion: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Velocity and acceleration ``[T, n]``."""
    velocity = np.gradient(motion, time, axis=0)
    return velocity, np.gradient(velocity, time, axis=0)


def _window(time: np.ndarray, ramp: float) -> np.ndarray:
    """From 0 to 1 and back with velocity and acceleration 0 at the ends (a polynomial of fifth order)."""
    x = np.clip(np.minimum(time, time[-1] - time) / ramp, 0, 1)
    return x**3 * (10 - 15 * x + 6 * x**2)


def _alike(motion: np.ndarray, moving: np.ndarray) -> float:
    """Condition number of the correlations of all moving joints' velocities and accelerations."""
    v = np.gradient(motion[:, moving > 0], axis=0)
    both = np.concatenate([v, np.gradient(v, axis=0)], axis=1)
    return float(np.linalg.cond(both / np.maximum(np.linalg.norm(both, axis=0), 1e-12)))


class _Clearance:
    """Whether an arm stays clear of itself and of the table; links that touch at home count as neighbours."""

    def __init__(self, robot: RobotModel, table: float | None) -> None:
        spec = robot.spec()
        for geom in spec.geoms:
            geom.contype = geom.conaffinity = 1
            geom.margin = _NEAR
        if table is not None:
            spec.worldbody.add_geom(
                name="sysid_table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1], pos=[0, 0, table], margin=_NEAR
            )
        self._m = m = spec.compile()
        self._d = mujoco.MjData(m)
        ids = [m.joint(j).id for j in robot.joints]
        self._columns = m.jnt_qposadr[ids]
        self.limits = np.where(m.jnt_limited[ids].astype(bool)[:, None], m.jnt_range[ids], [-np.inf, np.inf])
        first = int(m.jnt_bodyid[ids[0]])
        stands = {b for b in range(m.nbody) if m.body_weldid[b] == 0} | {first}
        touching = self._touching(np.array(robot.home))
        self._allowed = {(a, b) for a, b in touching if a > 0 or b in stands}  # body 0 is the table

    def clear(self, motion: np.ndarray, rate_hz: float) -> bool:
        """For joint positions ``[T, n]``."""
        stride = max(1, int(rate_hz / _CHECK_HZ))
        return all(not (self._touching(q) - self._allowed) for q in motion[::stride])

    def _touching(self, q: np.ndarray) -> set[tuple[int, int]]:
        self._d.qpos[self._columns] = q
        mujoco.mj_kinematics(self._m, self._d)
        mujoco.mj_collision(self._m, self._d)
        pairs = self._m.geom_bodyid[self._d.contact.geom]
        return {(int(min(p)), int(max(p))) for p in pairs}
