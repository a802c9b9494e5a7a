"""The sections of a run's report: each turns one file of the run, already read, into a piece of HTML.

Whatever came from a file is escaped here. A section given None (the file is absent) returns a sentence that says so.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from visuomotor.policies.learn.charts import Series, histogram, human, line_chart, smooth, thin

__all__ = [
    "Json",
    "card",
    "column",
    "curves",
    "dataset",
    "estimate",
    "evaluation",
    "headline",
    "pairs",
    "sentence",
    "subtitle",
    "videos",
]

Json = dict[str, Any]
CURVE_POINTS = 500  # more than a chart has pixels for
MAX_COMPONENTS = 40  # rows of the statistics table for one array
MAX_VIDEO_BYTES = 30_000_000  # base64 of anything longer makes a page that browsers choke on


def sentence(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def column(metrics: Sequence[Json], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have a number called ``name``."""
    rows = [(m["step"], m[name]) for m in metrics if isinstance(m.get(name), int | float)]
    return [float(step) for step, _ in rows], [float(value) for _, value in rows]


def subtitle(metrics: Sequence[Json], final: Json | None) -> str:
    parts = [f"{metrics[-1]['step']:,} training steps"] if metrics else ["no training steps logged"]
    if final:
        parts += [f"{final['n_episodes']} test episodes", f"checkpoint {final.get('checkpoint', 'unknown')}"]
    return escape(" · ".join(parts))


def card(name: str, value: str, more: str = "", track: str = "") -> str:
    return (
        f'<div class="card"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>{track}'
        f'<div class="more">{escape(more)}</div></div>'
    )


def _track(value: float, low: float, high: float) -> str:
    """The interval ``[low, high]`` within 0..1 as a bar, the value as a mark."""
    at, left, right = (100 * min(max(x, 0.0), 1.0) for x in (value, low, high))
    band = f'<i style="left:{left:.1f}%;width:{right - left:.1f}%"></i>'
    return f'<div class="track">{band}<b style="left:{at:.1f}%"></b></div>'


def estimate(name: str, value: float, what: str, interval: Json, form: str) -> str:
    """A card with a value in 0..1 and its interval; a single episode has no interval of its score."""
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return card(name, format(value, form), what)
    more = f"{what}, 95 % interval {format(low, form)} to {format(high, form)}"
    return card(name, format(value, form), more, _track(value, low, high))


def headline(metrics: Sequence[Json], final: Json | None, environment: Json | None) -> str:
    cards = []
    if final:
        score, success, n = final["score"], final["success"], final["n_episodes"]
        counted = f"{success['count']} of {n}"
        cards.append(estimate("Score", score["mean"], f"mean of {n} seeds", score, ".3f"))
        cards.append(estimate("Success", success["rate"], counted, success, ".1%"))
        if teacher := final.get("teacher"):
            low, high = (100 * x if x is not None else math.nan for x in teacher["success_interval"])
            more = f"points of success, 95 % interval {low:+.1f} to {high:+.1f}; the teacher {teacher['success']:.1%}"
            cards.append(card("Against the teacher", f"{100 * teacher['success_difference']:+.1f}", more))
    _, seconds = column(metrics, "time_s")
    _, speed = column(metrics, "samples_per_s")
    steps = f"{metrics[-1]['step']:,} steps" if metrics else "nothing was logged"
    rate = f", {human(sorted(speed)[len(speed) // 2])} samples/s" if speed else ""
    cards.append(card("Training", f"{seconds[-1] / 60:.1f} min" if seconds else "unknown", steps + rate))
    n_parameters = (environment or {}).get("n_parameters")
    device = str((environment or {}).get("device", ""))
    cards.append(card("Parameters", human(n_parameters) if n_parameters else "unknown", device and f"on {device}"))
    return "".join(cards)


def curves(metrics: Sequence[Json]) -> str:
    steps, loss = column(metrics, "loss")
    finite = [(s, v) for s, v in zip(steps, loss, strict=True) if 0 < v < float("inf")]
    span = max(2.0, len(finite) / 50)
    smoothed = list(zip([s for s, _ in finite], smooth([v for _, v in finite], span), strict=True))

    def curve(name: str, drawn: Sequence[tuple[float, float]], style: str, colour: int) -> Series:
        thinned = thin(drawn, CURVE_POINTS)
        return Series(name, [x for x, _ in thinned], [y for _, y in thinned], style, colour)

    def points(name: str) -> list[tuple[float, float]]:
        return list(zip(*column(metrics, name), strict=True))

    x_range = (0.0, float(metrics[-1]["step"])) if metrics else None  # one axis for all, so that charts line up
    charts = [
        line_chart(
            "Loss (log scale)",
            [
                curve("raw", finite, "faint", 1),
                curve("training, smoothed", smoothed, "line", 1),
                curve("validation", points("val_loss"), "dots", 3),
            ],
            log_y=True,
            x_range=x_range,
        ),
        line_chart(
            "Evaluation while training",
            [curve("score", points("eval_score"), "dots", 1), curve("success", points("eval_success"), "dots", 2)],
            x_range=x_range,
            y_range=(0.0, 1.0),
        ),
        line_chart("Learning rate", [curve("learning rate", points("lr"), "line", 4)], x_range=x_range),
        line_chart(
            "Gradient norm (log scale)",
            [curve("gradient norm", points("grad_norm"), "line", 3)],
            log_y=True,
            x_range=x_range,
        ),
    ]
    drawn = "".join(charts)
    bad = len(loss) - len(finite)
    odd = sentence(f"{bad} loss value(s) were not finite and positive, and are not drawn.") if bad else ""
    return f'{odd}<div class="grid2">{drawn}</div>' if drawn else odd + sentence("No metrics were logged.")


def evaluation(final: Json | None) -> str:
    if not final or not final["episodes"]:
        return sentence(
            "No evaluation episodes: the run was interrupted before its final evaluation, or it was switched off."
        )
    episodes = sorted(final["episodes"], key=lambda e: e["score"])
    chart = histogram("Score over the test seeds", [e["score"] for e in episodes], [e["success"] for e in episodes])
    rows = [
        [str(e["seed"]), f"{e['score']:.3f}", "yes" if e["success"] else "no", str(e["length"]), f"{e['return']:.2f}"]
        for e in episodes
    ]
    speed = (
        f"{final['seconds']:.0f} s, {human(final['steps_per_s'])} environment steps/s" if final.get("seconds") else ""
    )
    return (
        f'<div class="grid2">{chart}<div class="panel episodes"><h3>All {len(rows)} episodes, worst first</h3>'
        f"{_table(['seed', 'score', 'success', 'steps', 'return'], rows)}</div></div>"
        f'<p class="soft small">{escape(speed)}</p>'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 0) -> str:
    """A table; the columns after the first ``text_columns`` are numbers, set flush right."""
    kind = ["" if i < text_columns else ' class="n"' for i in range(len(head))]
    top = "".join(f"<th{k}>{escape(h)}</th>" for k, h in zip(kind, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{escape(c)}</td>" for k, c in zip(kind, row, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def videos(run_dir: Path, final: Json | None) -> str:
    recorded = (final or {}).get("videos") or []
    if not recorded:
        return sentence("No videos were recorded.")
    return f'<div class="videos">{"".join(_video(run_dir, v) for v in recorded)}</div>'


def _video(run_dir: Path, video: Json) -> str:
    path = run_dir / video["path"]
    outcome = "success" if video["success"] else "no success"
    caption = f"{video['kind']}: seed {video['seed']}, score {video['score']:.3f}, {outcome}"
    if not path.is_file():
        player = f'<p class="note">{escape(video["path"])} is missing.</p>'
    elif path.stat().st_size > MAX_VIDEO_BYTES:
        player = f'<p class="note">{escape(video["path"])} is too long to embed.</p>'
    else:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        player = (
            f'<video controls loop muted playsinline preload="metadata" src="data:video/mp4;base64,{data}"></video>'
        )
    return f'<figure class="panel">{player}<figcaption>{escape(caption)}</figcaption></figure>'


def dataset(data: Json | None) -> str:
    if data is None:
        return sentence("dataset.json is missing: the run was interrupted before the data was read.")
    lengths = data.get("lengths") or {}
    skipped, cache = data.get("skipped_episodes") or [], data.get("cache")
    split = f"{data.get('n_train_episodes', '?')} train, {data.get('n_val_episodes', '?')} held out"
    facts = {
        "path": data.get("path"),
        "episodes": f"{data['n_episodes']} ({split})",
        "steps": f"{data['n_steps']:,}",
        "rate": f"{data['fps']:g} Hz" if data.get("fps") else "unknown",
        "episode length": ", ".join(f"{name} {human(value)}" for name, value in lengths.items()),
        "windows": f"{data['windows']:,}" if isinstance(data.get("windows"), int) else data.get("windows"),
        "training arrays": f"in {cache['placement']}: {cache['reason']}" if cache else "unknown",
        "episodes without a window": ", ".join(map(str, skipped)) if skipped else "none",
    }
    rows = [row for name, spec in data["keys"].items() for row in _array_rows(name, spec)]
    head = ["array", "shape", "type", "role", "unit", "component", "min", "max", "mean", "std", "not finite"]
    return (
        pairs(facts, "dataset.json")
        + f'<div class="panel" style="margin-top:12px">{_table(head, rows, text_columns=5)}</div>'
    )


def _array_rows(name: str, spec: Json) -> list[list[str]]:
    """Rows of the statistics table for one array: one per component, the array's own facts on the first."""
    shape = " x ".join(map(str, spec["shape"])) or "scalar"
    facts = [name, shape, str(spec["dtype"]), str(spec.get("role") or ""), str(spec.get("unit") or "")]
    stats = spec.get("stats")
    if not stats:
        return [[*facts, "", "", "", "", "", ""]]
    columns = [stats[name] for name in ("min", "max", "mean", "std", "n_nonfinite")]
    n = len(columns[0])
    given = spec.get("names") or ()
    names = list(given) if len(given) == n else list(range(n))
    shown = range(min(n, MAX_COMPONENTS))
    rows = [[*([""] * 5), str(names[i]), *("" if c[i] is None else human(c[i]) for c in columns)] for i in shown]
    rows[0][:5] = facts
    if n > MAX_COMPONENTS:
        rows.append([*([""] * 5), f"{n - MAX_COMPONENTS} more", "", "", "", "", ""])
    return rows


def pairs(facts: Json | None, source: str) -> str:
    if facts is None:
        return sentence(f"{source} is missing.")
    rows = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(_plain(v))}</dd>" for k, v in facts.items())
    return f'<dl class="panel">{rows}</dl>'


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)
