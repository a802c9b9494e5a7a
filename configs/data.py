"""``visuomotor data inspect | validate | generate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from visuomotor.data.describe import describe
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.store import DemoStore

__all__ = ["main"]

USAGE = """\
visuomotor data inspect <zarr> [json]   episodes, arrays and statistics; as JSON for programs
visuomotor data validate <zarr>         decode everything and name what is wrong: array, episode, step;
                                        fix=<zarr> mends it; exit status 1 if there is an error
visuomotor data edit <zarr> <out> <operation>   filter, split, merge, trim, resample, ...; its --help lists them
visuomotor data import <path> <zarr>    demonstrations of another format; its --help lists the settings
visuomotor data export <zarr> <path> format=<format>   write it as others read it
visuomotor data weigh <zarr> <out>      how much each step should count in training; its --help lists the settings
visuomotor data replay <zarr> <new zarr> sites=[...] cameras=[...]   poses and pictures of recorded simulator states
visuomotor data report <zarr> [<html>]  one page: pictures, distributions, coverage, findings, episodes
visuomotor data view <zarr>             episodes in the rerun viewer; save=<rrd> writes a file for it
visuomotor data video <zarr> episode=<index> camera=<name>      one camera of one episode as mp4
visuomotor data generate task=<task>    demonstrations by the task's scripted expert; its --help lists the settings
"""
_COMPONENTS = 8  # shown of each array
_PIPED_WIDTH = 140


def main(words: Sequence[str]) -> int:
    """Run ``inspect``, ``validate`` or ``generate``; returns the exit status."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    verbs = {"inspect": _inspect}
    if words[0] == "validate":
        from visuomotor.configs.validate_data import main as validate

        return validate(words[1:])
    if words[0] == "edit":
        from visuomotor.configs.edit_data import main as edit

        return edit(words[1:])
    if words[0] == "generate":
        return _generate(words[1:])
    if words[0] == "import":
        from visuomotor.configs.import_data import main as import_data

        return import_data(words[1:])
    if words[0] == "export":
        from visuomotor.configs.export_data import main as export

        return export(words[1:])
    if words[0] == "replay":
        from visuomotor.configs.replay import main as replay  # a simulator, which the others do not need

        return replay(words[1:])
    if words[0] == "weigh":
        from visuomotor.configs.weigh_data import main as weigh  # torch, which most others do not need

        return weigh(words[1:])
    if words[0] in ("view", "report", "video"):
        from visuomotor.configs import view_data

        return {"view": view_data.view, "report": view_data.report, "video": view_data.video}[words[0]](words[1:])
    if words[0] not in verbs:
        known = [*verbs, "edit", "export", "generate", "report", "validate", "video", "view", "weigh"]
        raise ConfigError(f"unknown command 'data {words[0]}'. {nearest(words[0], known)}")
    if len(words) < 2:
        raise ConfigError(f"data {words[0]}: give the path of a Zarr store")
    with DemoStore.open(words[1].removeprefix("path=")) as store:
        return verbs[words[0]](store, list(words[2:]))


def _generate(words: Sequence[str]) -> int:
    if not words or any(w in ("-h", "--help", "help") for w in words):
        from visuomotor.configs.help import generate_help

        print(generate_help(), end="")
        return 0
    from visuomotor.configs.generate import main as generate  # torch and simulators, which the others do not need

    return generate(words)


def _inspect(store: DemoStore, options: list[str]) -> int:
    if options not in ([], ["json"]):
        raise ConfigError(f"data inspect: unknown option {options[0]!r}. Known: json")
    document = describe(store)
    if options:
        print(json.dumps(document, indent=1))
        return 0
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    lengths = document["lengths"] or {"min": 0, "median": 0, "max": 0}
    rate = "unknown rate" if document["fps"] is None else f"{document['fps']:g} Hz"
    console.print(
        f"{document['path']}: {document['n_episodes']} episodes, {document['n_steps']} steps, {rate}; episode length "
        f"{lengths['min']} / {lengths['median']:g} / {lengths['max']} (min / median / max)",
        highlight=False,
        soft_wrap=True,
    )
    for column, kind in document["episode_columns"].items():
        console.print(f"  per episode: {column} ({kind})", highlight=False)
    console.print(_table(document["keys"]))
    for key, reason in document["unusable"].items():
        console.print(f"[yellow]{key} cannot be used: {reason}[/yellow]")
    return 0


def _table(keys: dict[str, Any]) -> Table:
    table = Table("array", "step", "type", "role", "unit", "component", "min", "max", "mean", "std")
    for name, key in keys.items():
        head = [name, str(tuple(key["shape"])), key["dtype"], key["role"], key["unit"] or ""]
        stats = key.get("stats")
        n = len(stats["min"]) if stats else 0
        if not n:
            table.add_row(*head)
        for i in range(min(n, _COMPONENTS)):
            label = key["names"][i] if key["names"] and len(key["names"]) == n else str(i)
            figures = [_figure(stats[s][i]) for s in ("min", "max", "mean", "std")]
            table.add_row(*(head if i == 0 else [""] * 5), label, *figures)
        if n > _COMPONENTS:
            table.add_row(*[""] * 5, f"… {n - _COMPONENTS} more")
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
