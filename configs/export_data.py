"""``visuomotor data export``: a store in the format of others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from visuomotor.configs.compose import parse_plain
from visuomotor.data.exporting.registry import export_demos, export_formats
from visuomotor.data.store import DemoStore

__all__ = ["ExportDataConfig", "main"]


@dataclass(kw_only=True, slots=True)
class ExportDataConfig:
    """``visuomotor data export <store> <path> format=<format>``.

    Attributes:
        store: the Zarr store to write.
        path: file or folder to make.
        format: what to write, see docs/importing.md.
        keys: arrays to write; empty writes all.
        drop: arrays to leave out.
        episodes: indices of the episodes to write; null writes all.
        options: settings of the format, see docs/importing.md.
    """

    store: str = MISSING
    path: str = MISSING
    format: str = MISSING
    keys: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)
    episodes: list[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)


def main(words: Sequence[str]) -> int:
    """Run the export."""
    if not words or any(w in ("-h", "--help", "help") for w in words):
        from visuomotor.configs.help import settings_help  # knows every command, and so loads torch

        print(f"{settings_help(ExportDataConfig)}\nFormats: {', '.join(export_formats())}")
        return 0
    named = ["store=", "path="]
    words = [w if "=" in w else f"{named.pop(0)}{w}" if named else w for w in words]
    c = parse_plain(ExportDataConfig, words)
    with DemoStore.open(c.store) as store:
        notes = export_demos(
            store,
            c.path,
            c.format,
            keys=c.keys,
            drop=c.drop,
            episodes=c.episodes,
            options=c.options,
            on_progress=_progress if sys.stderr.isatty() else None,
        )
    for note in notes:
        print(note)
    print(f"{c.path}: written as {c.format}")
    return 0


def _progress(done: int, total: int) -> None:
    print(f"\r{done} of {total} episodes", end="\n" if done == total else "", file=sys.stderr, flush=True)
