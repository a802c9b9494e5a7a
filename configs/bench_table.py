"""The table of ``visuomotor bench``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from visuomotor.data.errors import ConfigError
from visuomotor.policies.learn.statistics import bootstrap_mean_interval

__all__ = ["Row", "render", "replace_block"]


@dataclass(frozen=True)
class Row:
    """One head on one backbone; ``refused`` says why there are no numbers."""

    head: str
    backbone: str
    score: dict[str, float] = field(default_factory=dict)  # mean, low, high
    success: dict[str, float] = field(default_factory=dict)  # rate, low, high
    scores: list[float] = field(default_factory=list)  # of every seed, in their order
    minutes: float = 0.0
    steps: int = 0
    parameters: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def render(rows: Sequence[Row], *, minutes: float, episodes: int) -> str:
    """Markdown: best score first, with the paired difference to the best."""
    done = sorted((r for r in rows if not r.refused), key=lambda r: -r.score["mean"])
    columns = ["head", "backbone", "score", "success", "to the best (paired)", "ms/chunk p50 (p99)", "steps"]
    lines = ["| " + " | ".join([*columns, "training min", "parameters"]) + " |", "|---" * 9 + "|"]
    lines += [_line(r, done[0]) for r in done]
    lines += [f"| {r.head} | {r.backbone} | refused: {r.refused} |||||||" for r in rows if r.refused]
    what = f"{minutes:g} minutes of training each, {episodes} test seeds, the same for all; intervals at 95 %."
    return "\n".join([what, "", *lines]) + "\n"


def _line(r: Row, best: Row) -> str:
    return (
        f"| {r.head} | {r.backbone} | {r.score['mean']:.3f} [{r.score['low']:.3f}, {r.score['high']:.3f}] "
        f"| {r.success['rate']:.0%} [{r.success['low']:.0%}, {r.success['high']:.0%}] | {_difference(r, best)} "
        f"| {r.p50_ms:.1f} ({r.p99_ms:.1f}) | {r.steps:,} | {r.minutes:.1f} | {r.parameters / 1e6:.2f} M |"
    )


def _difference(row: Row, best: Row) -> str:
    if row is best:
        return "-"
    differences = [a - b for a, b in zip(row.scores, best.scores, strict=True)]
    low, high = bootstrap_mean_interval(differences)
    return f"{sum(differences) / len(differences):+.3f} [{low:+.3f}, {high:+.3f}]"


def replace_block(path: Path, task: str, text: str | None) -> None:
    """Put ``text`` between ``<!-- bench <task> -->`` and ``<!-- end bench <task> -->``; None: only check the place.

    Raises:
        ConfigError: no such file, or no such lines in it.
    """
    begin, end = f"<!-- bench {task} -->", f"<!-- end bench {task} -->"
    if not path.exists():
        raise ConfigError(f"table={path} does not exist: expected a Markdown file with the lines {begin} and {end}")
    before = path.read_text()
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(before):
        raise ConfigError(f"table={path} has no lines {begin} and {end}: the table goes between them")
    if text is not None:
        path.write_text(pattern.sub(lambda _: f"{begin}\n{text}{end}", before))
