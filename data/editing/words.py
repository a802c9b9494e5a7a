"""How operations are written: conditions on columns, options, lists of numbers."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.editing.demos import Demos
from visuomotor.data.errors import ConfigError, nearest

__all__ = ["as_value", "numbers", "options", "where"]

_CONDITION = re.compile(r"([A-Za-z0-9_.\-]+?)(~=|==|!=|>=|<=|=|>|<)(.*)", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, ">": operator.gt, ">=": operator.ge, "<": operator.lt,
    "<=": operator.le,
}  # fmt: skip
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def where(demos: Demos, conditions: Sequence[str]) -> NDArray[np.bool_]:
    """Episodes ``[E]`` that meet all conditions, such as ``success=true``, ``task~=push``, ``length>=50``.

    ``~=`` is true where the text holds the words, in upper or lower case. Besides the columns there are ``episode``
    (its number), ``length`` [steps] and, where the rate is known, ``duration`` [s].

    Raises:
        ConfigError: no condition, an unknown column, or a value that its type does not have.
    """
    extra: dict[str, np.ndarray] = {"episode": np.arange(len(demos)), "length": demos.lengths}
    if demos.fps is not None:
        extra["duration"] = demos.lengths / demos.fps
    known = {**extra, **demos.columns}
    kinds = {"episode": "int64", "length": "int64", "duration": "float64", **demos.column_types}
    out = np.ones(len(demos), bool)
    for word in conditions:
        match = _CONDITION.fullmatch(word)
        if match is None:
            raise ConfigError(
                f"cannot read the condition {word!r}: expected <column><comparison><value>, as in length>50"
            )
        name, sign, text = match.groups()
        if name not in known:
            raise ConfigError(f"there is no column {name!r} to choose episodes by. {nearest(name, known)}")
        if sign == "~=":
            out &= np.array([text.lower() in str(v).lower() for v in known[name]], bool)
        else:
            value = as_value(name, text, kinds[name])
            out &= np.array([bool(_COMPARE[sign](v, value)) for v in known[name]], bool)
    return out


def as_value(name: str, text: str, kind: str) -> str | bool | int | float:
    """``text`` as a value of a column of type ``kind``.

    Raises:
        ConfigError: it is none.
    """
    try:
        match kind:
            case "str":
                return text
            case "bool" if text.lower() in ("true", "false"):
                return text.lower() == "true"
            case "int64" | "float64":
                number = float(text)
                if np.isfinite(number) and (kind == "float64" or number == int(number)):
                    return number if kind == "float64" else int(number)
    except ValueError:
        pass
    raise ConfigError(f"{name}: {text!r} is no {kind}")


def options(operation: str, words: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """``name=value`` words as a dict; ``known`` maps the names to what they mean.

    Raises:
        ConfigError: a word that is no option, or an option twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or name not in known:
            raise ConfigError(f"{operation} has no option {word!r}. {nearest(name, known)}")
        if name in found:
            raise ConfigError(f"{operation}: {name} is given twice")
        found[name] = value
    return found


def numbers(text: str, n: int, what: str) -> list[int]:
    """``3,7-9`` as ``[3, 7, 8, 9]``, each below ``n``.

    Raises:
        ConfigError: no such list, or a number that is too large.
    """
    out: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ConfigError(f"{what}: {text!r} is no list of numbers such as 3,7-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < n:
            raise ConfigError(f"{what}: {part}: expected numbers from 0 to {n - 1}")
        out += range(first, last + 1)
    return out
