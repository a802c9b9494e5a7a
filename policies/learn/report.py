"""The page that a training run ends with: one HTML file that shows what happened and how to repeat it.

Everything is inline: style, script, charts as SVG, videos as base64. What the run did not leave behind is replaced by a
sentence that says so, so an interrupted run gives a report too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from visuomotor.data.errors import UserError
from visuomotor.policies.learn import report_parts as parts
from visuomotor.policies.learn import report_rl

__all__ = ["read_metrics", "write_report"]

_NO_DATA = parts.sentence("Learnt in the task's worlds. Settings and command below say what it began with.")


def write_report(run_dir: Path) -> Path:
    """Write ``<run_dir>/report.html`` from the files of a run and return its path.

    Reads ``config.yaml``, ``command.txt``, ``dataset.json``, ``metrics.jsonl``, ``environment.json``,
    ``eval/final.json`` and the videos that it names; each may be absent or damaged. An existing report is replaced
    in one step, so a reader never sees half a page.

    Raises:
        UserError: ``run_dir`` is not a folder.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"no run to report on: {run_dir} is not a folder")
    notes: list[str] = []
    metrics, unreadable = read_metrics(run_dir / "metrics.jsonl")
    if unreadable:
        notes.append(f"{unreadable} unreadable line(s) of metrics.jsonl were left out.")
    final = _read_json(run_dir / "eval" / "final.json", notes)
    dataset = _read_json(run_dir / "dataset.json", notes)
    environment = _read_json(run_dir / "environment.json", notes)
    if final is None:
        notes.append("There is no final evaluation: the run was interrupted before it, or it was switched off.")

    elif isinstance(final.get("warnings"), list):
        notes += map(str, final["warnings"])

    def section(render: Callable[[], str], source: str) -> str:
        try:
            return render()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            return parts.sentence(f"{source} does not have the expected form ({type(error).__name__}: {error}).")

    task = (final or {}).get("task")
    rl = report_rl.is_rl(metrics, final)
    own = report_rl if rl else parts
    page = Template((files(__package__) / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(" · ".join(str(part) for part in (task, run_dir.resolve().name) if part)),
        subtitle=section(lambda: own.subtitle(metrics, final), "eval/final.json"),
        headline=section(lambda: own.headline(metrics, final, environment), "eval/final.json or environment.json"),
        curves=section(lambda: own.curves(metrics), "metrics.jsonl"),
        evaluation=section(lambda: parts.evaluation(final), "eval/final.json"),
        videos=section(lambda: parts.videos(run_dir, report_rl.videos(final) if rl else final), "eval/final.json"),
        dataset=section(lambda: _NO_DATA if rl else parts.dataset(dataset), "dataset.json"),
        command=_text_file(run_dir / "command.txt", "command", copy=True),
        config=_text_file(run_dir / "config.yaml", "panel"),
        environment=section(lambda: parts.pairs(environment, "environment.json"), "environment.json"),
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in notes),
    )
    path, draft = run_dir / "report.html", run_dir / f".report.{os.getpid()}.html"
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, path)
    return path


def read_metrics(path: Path) -> tuple[list[parts.Json], int]:
    """Rows of a ``metrics.jsonl`` by rising step, and the number of lines that could not be read.

    Rows of one step are merged and the later line wins: a resumed run logs the steps after its checkpoint again.
    """
    rows: dict[int, parts.Json] = {}
    unreadable = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            rows.setdefault(int(row["step"]), {}).update(row)
        except (ValueError, TypeError, KeyError):
            unreadable += bool(line.strip())
    return [rows[step] for step in sorted(rows)], unreadable


def _read_json(path: Path, notes: list[str]) -> parts.Json | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        notes.append(f"{path.name} could not be read: {error}")
        return None
    if not isinstance(value, dict):
        notes.append(f"{path.name} could not be read: it holds a {type(value).__name__}, not an object")
        return None
    return value


def _text_file(path: Path, kind: str, *, copy: bool = False) -> str:
    if not path.is_file():
        return parts.sentence(f"{path.name} is missing.")
    text = escape(path.read_text(encoding="utf-8", errors="replace").strip())
    button = '<button type="button" data-copy>Copy</button>' if copy else ""
    return f'<div class="panel {kind}"><pre>{text}</pre>{button}</div>'
