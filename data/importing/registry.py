"""Formats by name; other packages add theirs by entry points of the group ``visuomotor.importers``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from visuomotor.data.errors import ConfigError, DataError, MissingExtraError, UserError, nearest
from visuomotor.data.importing.source import Source

__all__ = ["detect", "format_names", "open_source"]

_GROUP = "visuomotor.importers"
# Loaded when asked for: most need a package of their own. The order is that of detection, the strictest first.
_FORMATS: dict[str, str] = {
    "lerobot": "visuomotor.data.importing.lerobot:LeRobotSource",
    "robomimic": "visuomotor.data.importing.robomimic:RobomimicSource",
    "aloha": "visuomotor.data.importing.aloha:AlohaSource",
    "minari": "visuomotor.data.importing.minari:MinariSource",
    "zarr": "visuomotor.data.importing.zarr_buffer:ZarrSource",
    "npz": "visuomotor.data.importing.npz:NpzSource",
    "bag": "visuomotor.data.importing.bags:BagSource",
    "rlds": "visuomotor.data.importing.rlds:RldsSource",
}


def format_names() -> list[str]:
    """Names of all formats."""
    return [*_FORMATS, *sorted(_outside())]


def detect(path: Path) -> str:
    """Name of the format of ``path``.

    Raises:
        DataError: nothing is there, or no format or several recognise it.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist")
    found = {}
    for name in format_names():
        try:
            why = _source_class(name).recognises(path)
        except (MissingExtraError, OSError):  # what cannot be looked at is not recognised; format= says why
            continue
        if why:
            found[name] = why
    if not found:
        raise DataError(f"{path} is of no format known here. Known: {', '.join(format_names())}; say which by format=")
    if len(found) > 1:
        seen = "; ".join(f"{n}: {why}" for n, why in found.items())
        raise DataError(f"{path} looks like several formats ({seen}): say which by format=")
    return next(iter(found))


def open_source(path: str | Path, format: str | None = None, options: Mapping[str, Any] | None = None) -> Source:
    """Open demonstrations of another format.

    Raises:
        ConfigError: an unknown format or option.
        DataError: not of that format, or damaged.
        MissingExtraError: a package that reads it is not installed.
    """
    path = Path(path).expanduser()
    if format is not None and format not in format_names():
        raise ConfigError(f"unknown format {format!r}. {nearest(format, format_names())}")
    if not path.exists():
        raise DataError(f"{path} does not exist")
    make: Callable[..., Source] = _source_class(format or detect(path))
    try:
        return make(path, dict(options or {}))
    except UserError:
        raise
    except MemoryError:
        raise DataError(f"{path}: reading what describes it takes more memory than there is") from None
    except Exception as error:  # decoders of other packages raise types of their own for damaged files
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _source_class(name: str) -> type[Source]:
    if name in _FORMATS:
        module, attribute = _FORMATS[name].split(":")
        found: type[Source] = getattr(import_module(module), attribute)
        return found
    loaded: type[Source] = _outside()[name].load()
    return loaded


@cache
def _outside() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=_GROUP)}
