"""What importers share in names and options."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from visuomotor.data.errors import ConfigError, DataError, nearest

__all__ = ["choose", "numbered", "store_name"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]*")


def store_name(source: str, where: object = "") -> str:
    """A name for a store of a name in the file ``where``: of ``robot/pos.x`` it is ``robot_pos_x``.

    Raises:
        DataError: it has characters that no array of a store has.
    """
    name = re.sub(r"[/. :]", "_", source)
    if not _NAME.fullmatch(name):
        raise DataError(f"{where}: {source!r} is no name for an array: expected letters, digits, '_' and '-'")
    return name


def numbered(names: Iterable[str], prefix: str) -> list[str]:
    """Those of the form ``<prefix><number>``, by number: ``demo_2`` comes before ``demo_10``."""
    found = [n for n in names if re.fullmatch(rf"{re.escape(prefix)}[0-9]{{1,18}}", n)]
    return sorted(found, key=lambda n: (int(n[len(prefix) :]), n))


def choose(options: Mapping[str, Any], known: Mapping[str, Any], format: str) -> dict[str, Any]:
    """Options with their defaults ``known``; each of its default's type, or a positive number where that is None.

    Raises:
        ConfigError: an unknown option, or one of another type.
    """
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"{format} has no option {name!r}. {nearest(name, known)}")
        default = known[name]
        fits = _is_positive(value) if default is None else isinstance(value, type(default))
        if not (fits or value is None):
            expected = "a number above 0" if default is None else type(default).__name__
            raise ConfigError(f"{format}: option {name} is {value!r}: expected {expected}")
    return {**known, **{k: v for k, v in options.items() if v is not None}}


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
