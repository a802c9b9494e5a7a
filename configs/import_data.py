"""``visuomotor data import``: demonstrations of another format into a store."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING
from rich.console import Console

from visuomotor.configs.compose import parse_plain
from visuomotor.data.importing.registry import open_source
from visuomotor.data.importing.run import ImportReport, Selection, import_demos

__all__ = ["ImportConfig", "main"]


@dataclass(kw_only=True, slots=True)
class ImportConfig:
    """``visuomotor data import <source> <store>``.

    Attributes:
        source: file or folder of another format.
        store: the Zarr store to make, or to go on with after a stop.
        format: of the source; null finds out.
        keys: arrays to take; empty takes all.
        drop: arrays to leave out.
        rename: new names of arrays.
        episodes: indices of the episodes to take; null takes all.
        options: settings of the format, see docs/importing.md.
        workers: threads that decode.
        skip_damaged: leave episodes out that cannot be read, and name them, instead of stopping.
    """

    source: str = MISSING
    store: str = MISSING
    format: str | None = None
    keys: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)
    rename: dict[str, str] = field(default_factory=dict)
    episodes: list[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    workers: int = 2
    skip_damaged: bool = True


def main(words: Sequence[str]) -> int:
    """Run the import; exit status 1 if episodes had to be left out."""
    named = ["source=", "store="]
    words = [w if "=" in w else f"{named.pop(0)}{w}" if named else w for w in words]
    c = parse_plain(ImportConfig, words)
    source = open_source(c.source, c.format, c.options)
    console = Console()
    try:
        console.print(f"{c.source}: {source.format}, {len(source.episodes)} episodes", highlight=False, soft_wrap=True)
        selection = Selection(
            keys=tuple(c.keys),
            drop=tuple(c.drop),
            rename=dict(c.rename),
            episodes=None if c.episodes is None else tuple(c.episodes),
        )
        report = import_demos(
            source,
            c.store,
            selection=selection,
            options=c.options,
            workers=c.workers,
            skip_damaged=c.skip_damaged,
            on_progress=_progress if sys.stderr.isatty() else None,
        )
    finally:
        source.close()
    _print(console, c.store, report)
    return 1 if report.skipped else 0


def _progress(done: int, total: int) -> None:
    print(f"\r{done} of {total} episodes", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _print(console: Console, path: str, report: ImportReport) -> None:
    for finding in report.findings:
        console.print(str(finding), highlight=False, soft_wrap=True)
    for name, why in report.skipped.items():
        console.print(f"left out: episode {name}: {why}", highlight=False, soft_wrap=True)
    console.print(
        f"{path}: {report.episodes} episodes, {report.steps} steps ({report.added} episodes added now, "
        f"{len(report.skipped)} left out)",
        highlight=False,
        soft_wrap=True,
    )
