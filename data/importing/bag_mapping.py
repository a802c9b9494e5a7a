"""Which topics of a bag become which arrays: the mapping file, checked, and a first one proposed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.importing.resample import INTERPOLATIONS
from visuomotor.data.spec import ROLES

__all__ = ["CLOCKS", "BagMapping", "ColumnMap", "EpisodeMap", "KeyMap", "load_mapping"]

CLOCKS = ("header", "receive")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_MAX_FILE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """One array of the store.

    Attributes:
        topic: where its messages are sent.
        field: path or paths in the message (``pose.position``, ``data[0]``,
            ``transforms[child_frame_id=tool0].transform``); a message inside gives all numbers in it, in order.
        joints: names, in the order of the array: components are found by name, never by place.
        role, unit, names, dtype: of the array (:class:`visuomotor.data.spec.ArraySpec`).
        interpolation: ``hold`` (the latest sample), ``nearest``, ``linear``, ``angle`` (linear, the short way round the
            circle [rad]) or ``slerp`` (quaternions); by default ``linear`` for decimal observations, else ``hold``.
        clock: ``header`` or ``receive``, where it differs from the mapping's.
        shift: the value at time t is what was there at t + shift [s].
        shift_steps: the same in steps; 1 makes the next state an action.
        max_age: values older than this [s] are reported; by default three intervals of the topic.
        latched: its last value holds to the end of the episode, and from before its start.
        size: ``[height, width]`` to which pictures are resized.
        shape: of one step, where the numbers are no plain vector.
    """

    topic: str
    field: tuple[str, ...] = ()
    joints: tuple[str, ...] | None = None
    role: str | None = None
    unit: str | None = None
    names: tuple[str, ...] | None = None
    dtype: str | None = None
    interpolation: str | None = None
    clock: str | None = None
    shift: float = 0.0
    shift_steps: int = 0
    max_age: float | None = None
    latched: bool = False
    size: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """A value per episode: the same for all, or the latest one of a topic at the episode's end."""

    value: Any = None
    topic: str | None = None
    field: str = "data"


@dataclass(frozen=True, kw_only=True)
class EpisodeMap:
    """Where a bag is cut into episodes; without any of these it is one.

    Attributes:
        topic, field: a bool that is true during episodes, or a text or number that changes with each; empty text and
            negative numbers are no episode.
        gap: pauses longer than this [s] separate episodes: of ``gap_topic``, or of all topics together.
        times: ``[start, end]`` of each [s since the first message].
        min_length: shorter ones [s] are left out.
    """

    topic: str | None = None
    field: str = "data"
    gap: float | None = None
    gap_topic: str | None = None
    times: tuple[tuple[float, float], ...] | None = None
    min_length: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BagMapping:
    """The mapping file."""

    keys: dict[str, KeyMap]
    fps: float | None = None
    clock: str | None = None
    episodes: EpisodeMap = field(default_factory=EpisodeMap)
    columns: dict[str, ColumnMap] = field(default_factory=dict)


def load_mapping(given: Any) -> BagMapping:
    """The mapping in a YAML file (its path), or given as nested dicts.

    Raises:
        ConfigError: unreadable, or a setting that is unknown or of the wrong type.
    """
    if not isinstance(given, Mapping):
        path = Path(str(given)).expanduser()
        try:
            if path.stat().st_size > _MAX_FILE:
                raise ConfigError(f"the mapping {path} has {path.stat().st_size} bytes: more than {_MAX_FILE}")
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"the mapping {path} cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"the mapping {path} is not YAML: {' '.join(str(error).split())}") from None
    top = _known(given, BagMapping, "the mapping")
    keys = top.get("keys")
    if not isinstance(keys, Mapping) or not keys:
        raise ConfigError("the mapping has no keys: expected keys: {state: {topic: /joint_states, ...}, ...}")
    return BagMapping(
        keys={str(k): _key(str(k), v) for k, v in keys.items()},
        fps=_positive(top.get("fps"), "fps"),
        clock=_choice(top.get("clock"), CLOCKS, "clock"),
        episodes=_episodes(top.get("episodes") or {}),
        columns={str(k): _column(str(k), v) for k, v in (top.get("columns") or {}).items()},
    )


def _known(given: Any, kind: type, what: str) -> dict[str, Any]:
    names = [f.name for f in fields(kind)]
    if not isinstance(given, Mapping):
        raise ConfigError(f"{what} is {given!r}: expected settings. {nearest('', names)}")
    for name in given:
        if name not in names:
            raise ConfigError(f"{what}: unknown setting {name!r}. {nearest(str(name), names)}")
    return dict(given)


def _key(name: str, given: Any) -> KeyMap:
    what = f"keys.{name}"
    d = _known(given, KeyMap, what)
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what}: a name has letters, digits and _ only, and begins with a letter")
    if not isinstance(d.get("topic"), str):
        raise ConfigError(f"{what}: give its topic")
    if (path := d.get("field")) is not None:
        d["field"] = (path,) if isinstance(path, str) else _texts(path, f"{what}.field")
    for option in ("joints", "names"):
        if d.get(option) is not None:
            d[option] = _texts(d[option], f"{what}.{option}")
    if d.get("size") is not None:
        size = d["size"]
        if not isinstance(size, list | tuple) or len(size) != 2 or not all(_is_int(n) and n > 0 for n in size):
            raise ConfigError(f"{what}.size is {size!r}: expected [height, width]")
        d["size"] = (int(size[0]), int(size[1]))
    if (shape := d.get("shape")) is not None:
        if not isinstance(shape, list | tuple) or not all(_is_int(n) and n > 0 for n in shape):
            raise ConfigError(f"{what}.shape is {shape!r}: expected a list of sizes")
        d["shape"] = tuple(shape)
    _choice(d.get("interpolation"), INTERPOLATIONS, f"{what}.interpolation")
    _choice(d.get("clock"), CLOCKS, f"{what}.clock")
    _choice(d.get("role"), ROLES, f"{what}.role")
    d["max_age"] = _positive(d.get("max_age"), f"{what}.max_age")
    if not _is_number(d.get("shift", 0.0)):
        raise ConfigError(f"{what}.shift is {d['shift']!r}: expected seconds")
    if not _is_int(d.get("shift_steps", 0)):
        raise ConfigError(f"{what}.shift_steps is {d['shift_steps']!r}: expected a whole number")
    if not isinstance(d.get("latched", False), bool):
        raise ConfigError(f"{what}.latched is {d['latched']!r}: expected true or false")
    return KeyMap(**d)


def _episodes(given: Any) -> EpisodeMap:
    d = _known(given, EpisodeMap, "episodes")
    d["gap"] = _positive(d.get("gap"), "episodes.gap")
    if not _is_number(d.get("min_length", 0.0)):
        raise ConfigError(f"episodes.min_length is {d['min_length']!r}: expected seconds")
    if (times := d.get("times")) is not None:
        good = isinstance(times, list | tuple) and all(
            isinstance(t, list | tuple) and len(t) == 2 and all(map(_is_number, t)) and t[0] < t[1] for t in times
        )
        if not good or not times:
            raise ConfigError(f"episodes.times is {times!r}: expected [[start, end], ...] in seconds")
        d["times"] = tuple((float(a), float(b)) for a, b in times)
    ways = [name for name in ("topic", "gap", "times") if d.get(name) is not None]
    if len(ways) > 1:
        raise ConfigError(f"episodes: {' and '.join(ways)} are both given: choose one")
    return EpisodeMap(**d)


def _column(name: str, given: Any) -> ColumnMap:
    if isinstance(given, str | bool | int | float):
        return ColumnMap(value=given)
    d = _known(given, ColumnMap, f"columns.{name}")
    if not isinstance(d.get("topic"), str):
        raise ConfigError(f"columns.{name}: give a value, or a topic and a field")
    return ColumnMap(**d)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or value <= 0:
        raise ConfigError(f"{what} is {value!r}: expected a number above 0")
    return float(value)


def _choice(value: Any, known: Iterable[str], what: str) -> str | None:
    if value is not None and value not in known:
        raise ConfigError(f"{what} is {value!r}. {nearest(str(value), known)}")
    return None if value is None else str(value)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{what} is {value!r}: expected a list of names")
    return tuple(value)
