"""Numbers out of a decoded message: paths, all numbers of a part, joints by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.importing.bag_mapping import KeyMap
from visuomotor.data.importing.ros_types import Decoder

__all__ = ["FieldReader", "field_kind", "find", "stamp"]

_STEP = re.compile(r"([A-Za-z_]\w*)(?:\[(?:(-?\d+)|(\w+)=([^\]]+))\])?")
_PER_JOINT = ("name", "joint_names")


def _steps(path: str) -> list[re.Match[str]]:
    """A path cut at its dots; those inside of brackets (``[frame_id=arm.tool0]``) do not count."""
    steps = [_STEP.fullmatch(part) for part in re.split(r"\.(?![^\[]*\])", path)]
    if not path or any(s is None for s in steps):
        raise ConfigError(f"cannot read the field {path!r}: expected a.b, a[0].b or a[name=value].b")
    return [s for s in steps if s is not None]


def find(message: Any, path: str) -> Any:
    """The value at ``path``; None where the list has no such element.

    Raises:
        ConfigError: the message has no such field.
    """
    value = message
    for step in _steps(path):
        name, index, key, wanted = step.groups()
        if not isinstance(value, Mapping) or name not in value:
            known = list(value) if isinstance(value, Mapping) else []
            raise ConfigError(f"field {path!r}: there is no {name!r}. {nearest(name, known)}")
        value = value[name]
        if index is not None:
            if not -len(value) <= int(index) < len(value):
                return None
            value = value[int(index)]
        elif key is not None:
            value = next((v for v in value if isinstance(v, Mapping) and str(v.get(key)) == wanted), None)
            if value is None:
                return None
    return value


def _numbers(value: Any, name: str, out: list[float], names: list[str]) -> None:
    """All numbers in ``value``, with the names of their places; text is left out, the header as well."""
    if isinstance(value, Mapping):
        for part, inner in value.items():
            if part != "header":
                _numbers(inner, f"{name}.{part}" if name else part, out, names)
    elif isinstance(value, list | np.ndarray):
        for i, inner in enumerate(value):
            _numbers(inner if isinstance(value, list) else inner.item(), f"{name}[{i}]", out, names)
    elif isinstance(value, bool | int | float):
        out.append(value)
        names.append(name)


def stamp(message: Mapping[str, Any]) -> int | None:
    """Time in the header [ns]; None without a header, or where it was left at zero."""
    header = message.get("header")
    time = header.get("stamp") if isinstance(header, Mapping) else None
    if not isinstance(time, Mapping) or "sec" not in time:
        return None
    return int(time["sec"]) * 1_000_000_000 + int(time["nanosec"]) or None


def field_kind(decoder: Decoder, msgtype: str, path: str) -> str:
    """Column type (``"str"``, ``"bool"``, ``"int64"``, ``"float64"``) of the field at ``path``.

    Raises:
        ConfigError: there is no such field, or it is no single value.
    """
    desc: Any = ("name", msgtype)
    for step in _steps(path):
        fields = dict(decoder.types[desc[1]]) if desc[0] == "name" and desc[1] in decoder.types else {}
        if step[1] not in fields:
            raise ConfigError(f"{msgtype} has no field {path!r}: there is no {step[1]!r}. {nearest(step[1], fields)}")
        desc = fields[step[1]]
        if step[2] is not None or step[3] is not None:
            desc = desc[1] if desc[0] in ("array", "sequence") else desc
    if desc[0] != "base":
        raise ConfigError(f"{msgtype}.{path} is no single value")
    if desc[1] == "string":
        return "str"
    return "bool" if desc[1] == "bool" else "float64" if desc[1].startswith("float") else "int64"


class FieldReader:
    """Reads the components of one key from messages of its topic.

    Args:
        key: name, for messages to the user.
        spec: what the mapping says of it.
        first: a decoded message: it settles the joints (if the mapping names none) and the number of components.

    Attributes:
        width: number of components.
        names: of the components, ``()`` where they have none.
        integer: they are whole numbers in the message.

    Raises:
        ConfigError: a field that the message does not have.
        DataError: the message has no numbers there, or not these joints.
    """

    def __init__(self, key: str, spec: KeyMap, first: Mapping[str, Any]) -> None:
        self.key, self.spec = key, spec
        self.per_joint = next((n for n in _PER_JOINT if _is_names(first.get(n))), None)
        if spec.joints is not None and self.per_joint is None:
            raise ConfigError(f"keys.{key}: joints are given, but {spec.topic} names none in its messages")
        default = ("position",) if self.per_joint == "name" else tuple(n for n in first if n != "header")
        self.paths = spec.field or default
        self.joints = spec.joints or (tuple(first[self.per_joint]) if self.per_joint else None)
        self._order: tuple[list[str], np.ndarray] = ([], np.zeros(0, np.int64))
        read = self._read(first)
        if read is None:
            has = f": it has {', '.join(first[self.per_joint])}" if self.per_joint else ""
            raise DataError(f"keys.{key}: a message of {spec.topic} has no such part{has}")
        plain = all(n.startswith("[") for n in read[1])  # an array: its places have no names
        self.width, self.names = len(read[0]), () if plain else tuple(read[1])
        self.integer = read[2]
        if not self.width:
            raise DataError(f"keys.{key}: {spec.topic} has no numbers at {', '.join(self.paths)}")

    def __call__(self, message: Mapping[str, Any]) -> np.ndarray | None:
        """Components float64 ``[D]``; None if this message does not have them (other joints, another frame).

        Raises:
            DataError: another number of components than before.
        """
        read = self._read(message)
        if read is None:
            return None
        if len(read[0]) != self.width:
            raise DataError(f"keys.{self.key}: {len(read[0])} values on {self.spec.topic}, {self.width} before")
        return read[0]

    def _read(self, message: Mapping[str, Any]) -> tuple[np.ndarray, list[str], bool] | None:
        values: list[float] = []
        names: list[str] = []
        for path in self.paths:
            value = find(message, path)
            if value is None:
                return None
            if self.per_joint is not None and isinstance(value, np.ndarray):
                picked = self._by_name(message[self.per_joint], value)
                if picked is None:
                    return None
                values += picked.tolist()
                many = len(self.paths) > 1
                names += [f"{j}.{path}" if many else j for j in self.joints or ()]
            else:
                _numbers(value, path if len(self.paths) > 1 else "", values, names)
        if len(names) == 1 and not names[0]:
            names = [self.paths[0].rsplit(".", 1)[-1]]
        whole = all(isinstance(v, int) for v in values)
        return np.array(values, np.float64), [n.lstrip(".") for n in names], whole

    def _by_name(self, present: list[str], value: np.ndarray) -> np.ndarray | None:
        known, order = self._order  # one look: other threads may put another order there
        if present != known:
            where = {name: i for i, name in enumerate(present)}
            if any(j not in where for j in self.joints or ()):
                return None
            order = np.array([where[j] for j in self.joints or ()], np.int64)
            self._order = (list(present), order)
        if len(value) != len(present):
            return None  # publishers leave velocity or effort empty
        return np.asarray(value, np.float64)[order]


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
