"""One HTML page about what a policy survives: damage by factor, heat map, all factors together, pictures."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

__all__ = ["write_report"]

Json = Mapping[str, Any]


def write_report(
    out: Path, document: Json, factors: Mapping[str, Json], pictures: Mapping[str, Mapping[str, bytes]]
) -> Path:
    """Write ``out/robustness.html`` and return its path.

    Args:
        document: as ``robustness.json`` has it.
        factors: their settings.
        pictures: JPEG by factor and level; that of the nominal world under two empty names.
    """
    policies: Sequence[Json] = document["policies"]
    first = policies[0]
    body = [_cards(first)]
    if len(policies) > 1:
        body += ["<h2>Policies, the most promising first</h2>", _ranking(policies, document["ranking"])]
    body += ["<h2>Which factor costs most</h2>", _damage(first["damage"])]
    body += ["<h2>Success by level</h2>", _heat(first, factors, pictures)]
    if "grid" in first:
        body += ["<h2>The two most damaging factors together</h2>", _grid(first["grid"], factors)]
    if "joint" in first:
        body += ["<h2>All factors together</h2>", _joint(first)]
    page = Template((files(__package__) / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"Robustness of {first['name']}"),
        subtitle=escape(f"task {first['task']} · {first['checkpoint']}"),
        body="\n".join(body),
    )  # fmt: skip
    path, draft = out / "robustness.html", out / f".robustness.{os.getpid()}.html"
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, path)
    return path


def _percent(x: float) -> str:
    return f"{100 * x:.0f} %"


def _interval(found: Json) -> str:
    return f"{100 * found['low']:.0f} to {100 * found['high']:.0f}"


def _card(name: str, value: str, more: str) -> str:
    return (
        f'<div class="card"><div class="soft">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="soft">{escape(more)}</div></div>'
    )


def _cards(p: Json) -> str:
    nominal = p["nominal"]
    more = f"{nominal['n_episodes']} seeds, {_interval(nominal['success'])}"
    cards = [_card("As it was trained", _percent(nominal["success"]["rate"]), more)]
    if "risk" in p:
        r = p["risk"]
        more = f"{len(p['joint'])} conditions, {100 * r['mean_low']:.0f} to {100 * r['mean_high']:.0f}"
        cards.append(_card("All factors together", _percent(r["mean"]), more))
        more = f"mean of the worst {_percent(r['share'])}, {100 * r['cvar_low']:.0f} to {100 * r['cvar_high']:.0f}"
        cards.append(_card("In the worst conditions", _percent(r["cvar"]), more))
    if "strangeness" in p:
        s = p["strangeness"]
        more = f"1 is like what it met in simulation; by a Gaussian {s['mahalanobis']:.2f}"
        cards.append(_card("Strangeness of real data", f"{s['nearest']:.2f}", more))
    if "held_out" in p:
        h = p["held_out"]
        cards.append(_card("In the held-out world", _percent(h["success"]["rate"]), _interval(h["success"])))
    return f'<div class="cards">{"".join(cards)}</div>'


def _damage(ranked: Sequence[Json]) -> str:
    """Bars of lost points, with intervals."""
    largest = max(max(abs(d["worst"]), abs(d["mean"]), 0.05) for d in ranked)
    rows = []
    for d in ranked:
        width = 100 * max(0.0, d["mean"]) / largest
        mark = 100 * max(0.0, d["worst"]) / largest
        of = "" if d["low"] is None else f" [{_points(d['high'])}, {_points(d['low'])}]"
        rows.append(
            f"<tr><th>{escape(d['factor'])}</th><td class=bar><i style='width:{width:.1f}%'></i>"
            f"<b style='left:{mark:.1f}%'></b></td><td class=number>{_points(d['mean'])}{of}</td>"
            f"<td class=number>{_points(d['worst'])} at {escape(_level(d['worst_level']))}</td></tr>"
        )
    head = "<tr><th>factor</th><th></th><th>points of success, mean over levels [95 %]</th><th>worst level</th></tr>"
    return f"<table class=damage>{head}{''.join(rows)}</table>"


def _points(lost: float) -> str:
    """Points of success gained (``+``) or lost."""
    return f"{round(-100 * lost) + 0:+d}"


def _level(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(found: Json, picture: bytes | None = None, head: str = "") -> str:
    rate = found["success"]["rate"]
    image = "" if picture is None else f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
    title = f"{_interval(found['success'])} of {found['n_episodes']} episodes"
    return (
        f'<td class=cell style="--rate:{100 * rate:.0f}%" title="{escape(title)}"><div class=soft>{escape(head)}</div>'
        f"{image}<strong>{100 * rate:.0f}</strong></td>"
    )


def _heat(p: Json, factors: Mapping[str, Json], pictures: Mapping[str, Mapping[str, bytes]]) -> str:
    nominal = pictures.get("", {}).get("")
    order = [d["factor"] for d in p["damage"]]
    rows = [f"<tr><th>as it was trained</th>{_cell(p['nominal'], nominal)}</tr>"]
    for name in order:
        unit = factors[name].get("unit", "")
        cells = []
        for found in p["single"]:
            if name in found["levels"]:
                level = found["levels"][name]
                shown = pictures.get(name, {}).get(str(level))
                cells.append(_cell(found, shown, f"{_level(level)} {unit}"))
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    return f"<table class=heat>{''.join(rows)}</table>"


def _grid(grid: Sequence[Json], factors: Mapping[str, Json]) -> str:
    a, b = grid[0]["levels"]
    columns = list(dict.fromkeys(str(g["levels"][b]) for g in grid))
    rows: dict[str, list[str]] = {}
    for g in grid:
        rows.setdefault(_level(g["levels"][a]), []).append(_cell(g))
    head = "".join(f"<th>{escape(c)} {escape(factors[b].get('unit', ''))}</th>" for c in columns)
    body = "".join(
        f"<tr><th>{escape(level)} {escape(factors[a].get('unit', ''))}</th>{''.join(cells)}</tr>"
        for level, cells in rows.items()
    )
    caption = f"<p class=soft>rows: {escape(a)}, columns: {escape(b)}</p>"
    return f"{caption}<table class=heat><tr><th></th>{head}</tr>{body}</table>"


def _joint(p: Json) -> str:
    """The worst conditions, and how success is distributed over all."""
    rows = sorted(p["joint"], key=lambda x: x["success"]["rate"])
    names = list(rows[0]["levels"])
    head = "".join(f"<th>{escape(n)}</th>" for n in names)
    body = "".join(
        "<tr>" + _cell(r) + "".join(f"<td class=number>{escape(_level(r['levels'][n]))}</td>" for n in names) + "</tr>"
        for r in rows[:8]
    )
    bars = "".join(
        f'<i style="height:{max(2.0, 100 * r["success"]["rate"]):.0f}%" title="{_percent(r["success"]["rate"])}"></i>'
        for r in rows
    )
    return (
        f"<div class=sorted>{bars}</div><p class=soft>Success in each of {len(rows)} conditions, sorted. The worst:</p>"
        f"<table class=heat><tr><th>%</th>{head}</tr>{body}</table>"
    )


def _ranking(policies: Sequence[Json], ranking: Json) -> str:
    scores = dict(zip([p["name"] for p in policies], ranking["score"], strict=True))
    rows = []
    for p in sorted(policies, key=lambda p: -scores[p["name"]]):
        cells = [f"{scores[p['name']]:+.2f}", _percent(p["nominal"]["success"]["rate"])]
        cells += [_percent(p["risk"]["mean"]), _percent(p["risk"]["cvar"])] if "risk" in p else ["", ""]
        cells.append(f"{p['strangeness']['nearest']:.2f}" if "strangeness" in p else "")
        cells.append(_percent(p["held_out"]["success"]["rate"]) if "held_out" in p else "")
        rows.append(f"<tr><th>{escape(p['name'])}</th>{''.join(f'<td class=number>{c}</td>' for c in cells)}</tr>")
    titles = ("policy", "score", "nominal", "together", "worst", "strangeness", "held out")
    table = f"<table><tr>{''.join(f'<th>{t}</th>' for t in titles)}</tr>{''.join(rows)}</table>"
    if not (found := ranking.get("rank_correlation")):
        return table
    said = ", ".join(f"{k} {'unknown' if v is None else format(v, '+.2f')}" for k, v in found.items())
    return f"{table}<p>Rank correlation with success in the held-out world: {escape(said)}.</p>"
