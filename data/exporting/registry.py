"""Formats to export to, by name; other packages add theirs by entry points of the group ``visuomotor.exporters``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.exporting.job import Exporter, ExportJob
from visuomotor.data.reader import StoreReader

__all__ = ["export_demos", "export_formats"]

_GROUP = "visuomotor.exporters"
# Loaded when asked for: most need a package of their own.
_FORMATS: dict[str, str] = {
    "lerobot": "visuomotor.data.exporting.lerobot:export_lerobot",
    "mcap": "visuomotor.data.exporting.mcap:export_mcap",
    "npz": "visuomotor.data.exporting.npz:export_npz",
    "robomimic": "visuomotor.data.exporting.robomimic:export_robomimic",
}


def export_formats() -> list[str]:
    """Names of all formats that can be written."""
    return sorted({*_FORMATS, *_outside()})


def export_demos(
    store: StoreReader, path: str | Path, format: str, *, keys: Sequence[str] = (), drop: Sequence[str] = (),
    episodes: Sequence[int] | None = None, options: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:  # fmt: skip
    """Write a store in another format; ``path`` appears when it is complete.

    Args:
        store: what to write.
        path: file or folder to make.
        format: one of :func:`export_formats`.
        keys: arrays to write; empty writes all.
        drop: arrays to leave out.
        episodes: indices of the episodes to write; None writes all.
        options: settings of the format.
        on_progress: called with (episodes done, episodes in all).

    Returns:
        What the user should know of the result, one sentence each.

    Raises:
        ConfigError: an unknown format or option.
        DataError: something is at ``path`` already; unknown arrays or episodes; what the format cannot hold.
        MissingExtraError: a package that writes it is not installed.
    """
    if format not in export_formats():
        raise ConfigError(f"unknown format {format!r}. {nearest(format, export_formats())}")
    path = Path(path).expanduser()
    if path.exists():
        raise DataError(f"{path} exists already: give another path, or remove it")
    store.require([*keys, *drop])
    wanted = tuple(k for k in (keys or store.keys) if k not in drop)
    chosen = range(store.n_episodes) if episodes is None else dict.fromkeys(episodes)
    for i in chosen:
        store.episode_slice(i)
    if not wanted or not chosen:
        raise DataError(f"{store.path}: nothing to export ({len(wanted)} arrays, {len(chosen)} episodes)")
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    job = ExportJob(
        store=store, path=part, keys=wanted, episodes=tuple(i % store.n_episodes for i in chosen),
        options=dict(options or {}), on_progress=on_progress,
    )  # fmt: skip
    exporter = _exporter(format)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        notes = exporter(job)
        part.rename(path)
    except OSError as error:
        raise DataError(f"{path} could not be written: {error.strerror or error}") from None
    finally:
        _remove(part)
    return notes


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _exporter(name: str) -> Exporter:
    if name in _FORMATS:
        module, attribute = _FORMATS[name].split(":")
        found: Exporter = getattr(import_module(module), attribute)
        return found
    loaded: Exporter = _outside()[name].load()
    return loaded


def _outside() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=_GROUP)}
