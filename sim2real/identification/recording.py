"""Recordings of a real arm: what was commanded and measured, joint by joint, read from a demonstration store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

__all__ = ["Episode", "KeysConfig", "Recording", "read_recording"]

_COMMANDS = ("command", "joint_command", "sent", "action")
_UNITS = {"rad": 1.0, "rad/s": 1.0, "deg": math.pi / 180, "deg/s": math.pi / 180, "m": 1.0, "m/s": 1.0, "N m": 1.0}
_EXPECTED = {"command": ("rad", "deg", "m"), "position": ("rad", "deg", "m"), "velocity": ("rad/s", "deg/s", "m/s")}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_BEYOND = 1.0  # how far outside its limits a measured joint may be before the unit is doubted [rad or m]
_STILL = 0.02  # least range of at least one joint [rad or m]


@dataclass(kw_only=True, slots=True)
class KeysConfig:
    """Which arrays of the store are what.

    Attributes:
        command: joint targets that were sent to the arm; null takes the first of command, joint_command, sent, action
            that is there. Each holds until the next.
        position: measured joint positions.
        velocity: measured joint velocities; null takes joint_vel if it is there, empty ('') leaves them out.
        effort: measured torques of the drives, which alone show how large all forces are; null leaves them out.
        time: time stamps; null takes the rate of the store.
    """

    command: str | None = None
    position: str = "joint_pos"
    velocity: str | None = None
    effort: str | None = None
    time: str | None = None


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One recorded motion of ``n`` joints.

    Attributes:
        index: of the episode in its store.
        time: ``[T]`` s, from 0.
        command: joint targets ``[T, n]`` rad, each sent at its time and held until the next.
        measured: {``position`` rad, ``velocity`` rad/s, ``effort`` N m}: ``[T, n]``.
    """

    index: int
    time: np.ndarray
    command: np.ndarray
    measured: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Episodes of one arm.

    Attributes:
        joints: names, in the order of the columns.
        episodes: those that are long enough.
        keys: which arrays they were read from.
        notes: sentences about what was assumed or left out.
    """

    joints: tuple[str, ...]
    episodes: tuple[Episode, ...]
    keys: Mapping[str, str]
    notes: tuple[str, ...] = ()


def read_recording(
    store: DemoStore, joints: tuple[str, ...], limits: np.ndarray, keys: KeysConfig,
    names: Mapping[str, str] | None = None, *, shortest: float = 1.0,
) -> Recording:  # fmt: skip
    """Read what was commanded and measured of ``joints``.

    Args:
        store: open for reading.
        joints: the arm's.
        limits: ``[n, 2]`` positions [rad]; tells degrees that are called radians.
        keys: which arrays.
        names: {joint of the arm: its name in the store}, where they differ; a prefix or suffix need not be stated.
        shortest: episodes below this are left out [s].

    Raises:
        DataError: an array or joint is missing, has another unit, has gaps, or the arm hardly moves.
        ConfigError: ``names`` names no joint of the arm.
    """
    if unknown := sorted(set(names or {}) - set(joints)):
        raise ConfigError(f"joints.{unknown[0]}: the arm has no such joint. {nearest(unknown[0], joints)}")
    found = _find_keys(store, keys)
    notes: list[str] = []
    columns = {role: _columns(store, key, joints, names or {}, notes) for role, key in found.items() if role != "time"}
    episodes: list[Episode] = []
    for index in range(store.n_episodes):
        rows = store.episode_slice(index)
        time = _times(store, found.get("time"), rows, index)
        if len(time) < 2 or time[-1] < shortest:
            notes.append(f"episode {index} is shorter than {shortest:g} s and was left out")
            continue
        values = {
            role: _read(store, found[role], rows, index)[:, c] * _factor(store.specs[found[role]])
            for role, c in columns.items()
        }
        command = values.pop("command")
        episodes.append(Episode(index=index, time=time, command=command, measured=values))
    if not episodes:
        raise DataError(
            f"{store.path}: none of its {store.n_episodes} episodes lasts {shortest:g} s; expected recorded motions of "
            "several seconds (visuomotor sysid excite makes a trajectory to record)"
        )
    _check_motion(store, joints, limits, episodes, notes)
    return Recording(joints=joints, episodes=tuple(episodes), keys=found, notes=tuple(notes))


def _find_keys(store: DemoStore, keys: KeysConfig) -> dict[str, str]:
    command = keys.command or next((k for k in _COMMANDS if k in store.specs), None)
    if command is None:
        raise DataError(
            f"{store.path} has none of the arrays {', '.join(_COMMANDS)}: say by keys.command= which holds the joint "
            f"targets that were sent. {nearest('command', store.keys)}"
        )
    found = {"command": command, "position": keys.position}
    if keys.velocity or (keys.velocity is None and "joint_vel" in store.specs):
        found["velocity"] = keys.velocity or "joint_vel"
    found |= {role: key for role, key in (("effort", keys.effort), ("time", keys.time)) if key}
    for role, key in found.items():
        if key not in store.specs:
            raise DataError(f"{store.path} has no array {key!r} (keys.{role}). {nearest(key, store.keys)}")
        spec, expected = store.specs[key], _EXPECTED.get(role)
        if role != "time" and len(spec.shape) != 1:
            raise DataError(f"{key} (keys.{role}) has shape {spec.shape} a step; expected one number a joint")
        if expected and spec.unit is not None and spec.unit not in expected:
            raise DataError(f"{key} (keys.{role}) is in {spec.unit}; expected {' or '.join(expected)}")
    return found


def _columns(
    store: DemoStore, key: str, joints: tuple[str, ...], names: Mapping[str, str], notes: list[str]
) -> np.ndarray:
    """Column of each joint in an array, by name."""
    spec = store.specs[key]
    if spec.names is None:
        if spec.shape[0] != len(joints):
            raise DataError(
                f"{key} has {spec.shape[0]} components without names; expected {len(joints)}: {', '.join(joints)}"
            )
        notes.append(f"{key} names no joints; they are taken in the arm's order")
        return np.arange(len(joints))
    return np.array([_column(key, spec.names, joint, names.get(joint)) for joint in joints])


def _column(key: str, known: tuple[str, ...], joint: str, stated: str | None) -> int:
    for wanted in (stated, joint):
        if wanted in known:
            return known.index(str(wanted))
    # panda_joint1, robot/joint1, joint1_position
    like = [n for n in known if n.endswith((f"_{joint}", f"/{joint}")) or n.startswith((f"{joint}_", f"{joint}/"))]
    like = [n for n in like if not n.endswith(("_change", "_rate"))]  # other action modes of the simulation
    if len(like) == 1:
        return known.index(like[0])
    raise DataError(
        f"{key} has no joint {stated or joint!r}; it has {', '.join(known)}. Say joints.{joint}=<its name there>"
        + (", or take an array of joint positions as keys.command" if known[:1] == ("dx",) else "")
    )


def _factor(spec: ArraySpec) -> float:
    return _UNITS.get(spec.unit or "", 1.0)


def _read(store: DemoStore, key: str, rows: slice, episode: int) -> np.ndarray:
    values = np.asarray(store.read(key, rows.start, rows.stop), np.float64)
    if not np.isfinite(values).all():
        step = int(np.argwhere(~np.isfinite(values))[0][0])
        raise DataError(f"{key}, episode {episode}, step {step}: {values[step]}; expected finite numbers")
    return values


def _times(store: DemoStore, key: str | None, rows: slice, episode: int) -> np.ndarray:
    count = rows.stop - rows.start
    if key is None:
        if store.fps is None:
            raise DataError(f"{store.path} does not say its rate; name an array of time stamps by keys.time=")
        return np.arange(count) / store.fps
    spec = store.specs[key]
    if spec.unit not in _SECONDS or spec.size != 1:
        raise DataError(
            f"{key} (keys.time) has unit {spec.unit} and shape {spec.shape}; expected one number in s or ns"
        )
    stamps = np.asarray(store.read(key, rows.start, rows.stop)).reshape(count)
    time = (stamps - stamps[0]).astype(np.float64) * _SECONDS[str(spec.unit)]
    if (np.diff(time) <= 0).any():
        step = int(np.argmax(np.diff(time) <= 0)) + 1
        raise DataError(f"{key}, episode {episode}, step {step}: the time does not go on; expected rising stamps")
    return time


def _check_motion(
    store: DemoStore, joints: tuple[str, ...], limits: np.ndarray, episodes: list[Episode], notes: list[str]
) -> None:
    for role in ("command", "position"):
        every = np.concatenate([e.command if role == "command" else e.measured[role] for e in episodes])
        beyond = np.maximum(limits[:, 0] - every.min(0), every.max(0) - limits[:, 1])
        if (worst := int(beyond.argmax())) >= 0 and beyond[worst] > _BEYOND:
            raise DataError(
                f"{role} of {joints[worst]} reaches {np.abs(every[:, worst]).max():.4g} rad, its limits are "
                f"{limits[worst, 0]:.4g} to {limits[worst, 1]:.4g}: is it in degrees, or another joint's?"
            )
    spans = np.ptp(np.concatenate([e.measured["position"] for e in episodes]), axis=0)
    if spans.max() < _STILL:
        raise DataError(
            f"{store.path}: the arm hardly moves: {joints[int(spans.argmax())]} moves most, by {spans.max():.2g} rad; "
            f"expected more than {_STILL:g} (visuomotor sysid excite makes a trajectory to record)"
        )
    if still := [j for j, s in zip(joints, spans, strict=True) if s < _STILL]:
        notes.append(f"{', '.join(still)} moved less than {_STILL:g} rad: little can be said of them")
