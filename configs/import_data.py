"""``visuomotor data import``: demonstrations of another format into a store."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.console import Console

from visuomotor.configs.compose import parse_plain
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.importing.registry import format_names, open_source
from visuomotor.data.importing.run import ImportReport, Selection, import_demos
from visuomotor.data.importing.source import Source
from visuomotor.data.validate import Finding

__all__ = ["ImportConfig", "main"]

USAGE = """\
visuomotor data import <source> <store.zarr> [key=value ...]

Writes demonstrations of another format into a store. Said again after a stop, it goes on where it was.
Exit status 1 if something had to be left out.

  format=<name>          of the source; found out if not given. Known: {formats}
  keys=[a,b] drop=[c]    arrays to take, arrays to leave out, by the names of the source
  rename={{old: new}}      new names; roles={{name: privileged}} says what an array is
  episodes=[0,5,6]       indices of the episodes to take
  fps=10                 steps a second, for a source that does not say
  options.<name>=<value> settings of the format (docs/importing.md)
  workers=2              threads that decode and compress
  skip_damaged=false     stop at an episode that cannot be read, instead of leaving it out and naming it
  dry_run=true           list what there is and write nothing
  report=<file.json>     what was imported, left out and found, for programs
"""
_LITERAL = ("source", "store", "report")
_NAMED = 5  # episodes that are named of those with the same finding


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
        roles: of arrays, where the source's own say something else.
        episodes: indices of the episodes to take; null takes all.
        fps: steps per second [Hz], for a source that does not say.
        options: settings of the format, see docs/importing.md.
        workers: threads that decode and compress.
        skip_damaged: leave episodes out that cannot be read, and name them, instead of stopping.
        dry_run: list what there is and write nothing.
        report: JSON file to write; null writes none.
    """

    source: str = MISSING
    store: str = MISSING
    format: str | None = None
    keys: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)
    rename: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    episodes: list[int] | None = None
    fps: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    workers: int = 2
    skip_damaged: bool = True
    dry_run: bool = False
    report: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers}: expected 1 or more")


def main(words: Sequence[str]) -> int:
    """Run the import; exit status 1 if episodes or arrays had to be left out."""
    if not words or any(w in ("-h", "--help", "help") for w in words):
        print(USAGE.format(formats=", ".join(format_names())), end="")
        return 0
    c = parse_plain(ImportConfig, _named(words))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    source = open_source(c.source, c.format, c.options)
    try:
        console.print(f"{c.source}: {source.format}, {len(source.episodes)} episodes")
        selection = Selection(
            keys=tuple(c.keys), drop=tuple(c.drop), rename=dict(c.rename), roles=dict(c.roles), fps=c.fps,
            episodes=None if c.episodes is None else tuple(c.episodes),
        )  # fmt: skip
        if c.dry_run:
            _list(console, source, selection)
            return 0
        report = import_demos(
            source, c.store, selection=selection, options=c.options, workers=c.workers, skip_damaged=c.skip_damaged,
            on_progress=_progress if sys.stderr.isatty() else None,
        )  # fmt: skip
    finally:
        source.close()
    _print(console, c.store, report)
    if c.report is not None:
        _write(Path(c.report), source, report)
    return 1 if report.skipped or any(f.severity == "error" for f in report.findings) else 0


def _named(words: Sequence[str]) -> list[str]:
    """Words with the first two named, and paths quoted: they may hold spaces and commas."""
    names = ["source", "store"]
    named = [w if re.match(r"[a-z_.]+=", w) else f"{names.pop(0)}={w}" if names else w for w in words]
    out = []
    for word in named:
        key, _, value = word.partition("=")
        plain = key in _LITERAL and value not in ("", "null") and value[0] not in "'\""
        out.append("{}='{}'".format(key, value.replace("'", "\\'")) if plain else word)
    return out


def _list(console: Console, source: Source, selection: Selection) -> None:
    fps = selection.rate(source)
    console.print("unknown rate" if fps is None else f"{fps:g} Hz")
    specs = selection.specs(source.specs)
    for old, new in selection.names(source.specs).items():
        spec = specs[new]
        unit = f" [{spec.unit}]" if spec.unit else ""
        name = new if new == old else f"{new} (from {old})"
        console.print(f"  {name}: {spec.dtype} {list(spec.shape)}{unit}, {spec.role}")
    for column, kind in source.columns.items():
        console.print(f"  per episode: {column} ({kind})")
    wanted = selection.wanted(source.path, len(source.episodes))
    lengths = [source.episodes[i].length for i in wanted]
    steps = "unknown" if None in lengths else sum(n for n in lengths if n is not None)
    console.print(f"{len(wanted)} episodes, {steps} steps")
    _print_findings(console, source.findings)


def _progress(done: int, total: int) -> None:
    print(f"\r{done} of {total} episodes", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _print(console: Console, path: str, report: ImportReport) -> None:
    _print_findings(console, report.findings)
    kinds: dict[str, list[str]] = {}
    for name, why in report.skipped.items():
        kinds.setdefault(_kind(why), []).append(name)
    for first, *rest in kinds.values():
        console.print(f"left out: episode {first}: {report.skipped[first]}{_more(rest)}")
    console.print(
        f"{path}: {report.episodes} episodes, {report.steps} steps ({report.added} episodes added now, "
        f"{len(report.skipped)} left out)"
    )


def _print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """The first finding of each kind, and how many more there are: a hole in each of 90 episodes is one line."""
    kinds: dict[tuple[str, str | None, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.severity, finding.array, _kind(finding.message)), []).append(finding)
    for first, *rest in kinds.values():
        console.print(f"{first}{_more([f.episode for f in rest])}")


def _kind(message: str) -> str:
    """A message without its numbers and file names."""
    return re.sub(r"\S*[\d/]\S*", "#", message)


def _more(episodes: Sequence[Any]) -> str:
    if not episodes:
        return ""
    named = [str(e) for e in episodes[:_NAMED] if e is not None]
    which = f" (episodes {', '.join(named)}{', ...' if len(episodes) > _NAMED else ''})" if named else ""
    return f" -- and {len(episodes)} more like it{which}"


def _write(path: Path, source: Source, report: ImportReport) -> None:
    document = {"source": str(source.path), "format": source.format, **asdict(report)}
    try:
        path.expanduser().write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None
