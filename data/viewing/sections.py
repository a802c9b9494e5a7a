"""The sections of the report of a store. Whatever came from the store is escaped here or in the charts."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from visuomotor.data.store import DemoStore
from visuomotor.data.validate import Finding
from visuomotor.data.viewing.charts import coverage_figure, distribution_figure, figure_text, lengths_figure
from visuomotor.data.viewing.pictures import camera_keys, picture_kind
from visuomotor.data.viewing.strips import Strip, choose_episodes
from visuomotor.data.viewing.survey import Survey

__all__ = ["arrays", "cards", "coverage", "distributions", "episodes", "findings", "origin", "pictures"]

_ORDER = {"error": 0, "warning": 1, "info": 2}
_SHOWN = 8  # findings of a group before they are folded
_LISTED = 200  # of a group at all
_ROWS = 3000  # of the table of episodes
_TEXT = 160  # characters of a column's text in the table
_ORIGIN = 20_000


def _sentence(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _card(name: str, value: str, more: str = "") -> str:
    return (
        f'<div class="card"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="more">{escape(more)}</div></div>'
    )


def cards(store: DemoStore, found: Sequence[Finding] | None) -> str:
    """Episodes, steps, duration, cameras, findings."""
    lengths = np.diff(store.episode_ends, prepend=0)
    each = f"{lengths.min()} to {lengths.max()} steps, median {np.median(lengths):g}" if len(lengths) else "empty"
    rate = f"{store.fps:g} Hz" if store.fps else "rate unknown"
    duration = _duration(store.n_steps / store.fps) if store.fps else "unknown"
    n_cameras = len(camera_keys(store))
    out = [
        _card("Episodes", f"{store.n_episodes:,}", each),
        _card("Steps", f"{store.n_steps:,}", rate),
        _card("Duration", duration, "" if store.fps else "the store does not say its rate"),
        _card("Arrays", f"{len(store.specs)}", f"{n_cameras} of them camera{'' if n_cameras == 1 else 's'}"),
    ]
    if found is not None:
        kinds = {kind: sum(f.severity == kind for f in found) for kind in _ORDER}
        names = {"error": "error(s)", "warning": "warning(s)", "info": "note(s)"}
        more = ", ".join(f"{n} {names[kind]}" for kind, n in kinds.items() if n)
        out.append(_card("Findings", f"{len(found):,}", more or "nothing found"))
    return "".join(out)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def findings(found: Sequence[Finding] | None, linked: set[int]) -> str:
    """What ``validate`` found, by severity and array, with links to the episodes in ``linked``."""
    if found is None:
        return _sentence("Values were not checked (check=false).")
    if not found:
        return _sentence("Nothing was found.")
    groups: dict[tuple[int, str, str], list[Finding]] = {}
    for f in found:
        groups.setdefault((_ORDER.get(f.severity, 3), f.severity, f.array or ""), []).append(f)
    return "".join(_group(kind, array, group, linked) for (_, kind, array), group in sorted(groups.items()))


def _group(kind: str, array: str, group: Sequence[Finding], linked: set[int]) -> str:
    lines = [f"<li>{_place(f, linked)}{escape(f.message)}{_mend(f)}</li>" for f in group[:_LISTED]]
    if len(group) > _LISTED:
        lines.append(f'<li class="soft">{len(group) - _LISTED:,} more are not listed</li>')
    body = f"<ul>{''.join(lines[:_SHOWN])}</ul>"
    if len(lines) > _SHOWN:
        body += f"<details><summary>{len(group) - _SHOWN:,} more</summary><ul>{''.join(lines[_SHOWN:])}</ul></details>"
    badge = f'<span class="badge {kind if kind in _ORDER else "info"}">{escape(kind)}</span>'
    return f'<div class="panel group"><h3>{badge}{escape(array or "the store")}</h3>{body}</div>'


def _mend(f: Finding) -> str:
    return f' <span class="soft">(mended by: {escape(f.fix)})</span>' if f.fix else ""


def _place(f: Finding, linked: set[int]) -> str:
    if f.episode is None:
        return ""
    name = f"episode {f.episode}" + (f", step {f.row}" if f.row is not None else "")
    return f'<a href="#e{int(f.episode)}">{name}</a>: ' if f.episode in linked else f"{name}: "


def pictures(strips: Sequence[Strip], store: DemoStore) -> str:
    """A strip of pictures for each episode and camera."""
    if not camera_keys(store):
        return _sentence("The store has no cameras.")
    shown = sorted({s.episode for s in strips})
    if not shown:
        return _sentence("No pictures were asked for.")
    some = f"{len(shown)} of {store.n_episodes:,} episodes, evenly spread, those with findings first"
    told = "All episodes" if len(shown) == store.n_episodes else some
    n = max(len(s.steps) for s in strips)
    out = []
    for episode in shown:
        mine = [_strip(s) for s in strips if s.episode == episode]
        title = f'<h3><a href="#e{episode}">Episode {episode}</a></h3>'
        out.append(f'<div class="panel strips" id="p{episode}">{title}{"".join(mine)}</div>')
    intro = _sentence(f"{told}; up to {n} pictures of each, from its first step to its last.")
    return f'{intro}<div class="grid2">{"".join(out)}</div>'


def _strip(s: Strip) -> str:
    if s.problem:
        return f'<p class="note">{escape(s.camera)}: {escape(s.problem)}</p>'
    data = base64.b64encode(s.jpeg).decode("ascii")
    alt = escape(f"{s.camera}, steps {', '.join(map(str, s.steps))}", quote=True)
    width, height = s.size
    return (
        f'<figure><figcaption>{escape(s.camera)}</figcaption><img loading="lazy" width="{width}" height="{height}" '
        f'alt="{alt}" title="{alt}" src="data:image/jpeg;base64,{data}"></figure>'
    )


def distributions(figures: Survey) -> str:
    """A histogram for each component of each array."""
    out = []
    for key, components in figures.distributions.items():
        role = components[0].role if components else ""
        drawn = "".join(distribution_figure(d) for d in components)
        note = f'<p class="soft">{escape(figures.left_out[key])}</p>' if key in figures.left_out else ""
        out.append(
            f'<div class="panel array"><h3>{escape(key)} <span class="soft">{escape(role)}</span></h3>{note}'
            f'<div class="smalls">{drawn}</div></div>'
        )
    out += [_sentence(f"{k}: {why}") for k, why in figures.left_out.items() if k not in figures.distributions]
    return "".join(out) or _sentence("There are no arrays of few values.")


def coverage(figures: Survey) -> str:
    """Where positions lie, and where episodes begin."""
    if not figures.coverages:
        return _sentence("No array has names or a size that tell positions in a plane (x then y).")
    legend = '<p class="soft">Density of all steps (logarithmic); <span class="dot"></span> where episodes begin.</p>'
    return f'{legend}<div class="planes">{"".join(coverage_figure(c) for c in figures.coverages)}</div>'


def episodes(
    store: DemoStore, figures: Survey, found: Sequence[Finding] | None, pictured: set[int]
) -> tuple[str, set[int]]:
    """Lengths, and a table of the episodes; also which episodes have a row."""
    n = store.n_episodes
    if not n:
        return _sentence("The store is empty."), set()
    counts = np.zeros(n, np.int64)
    for f in found or ():
        if f.episode is not None and 0 <= f.episode < n:
            counts[f.episode] += 1
    rows = choose_episodes(n, _ROWS, [*sorted(pictured), *np.flatnonzero(counts).tolist()])
    lengths, columns = np.diff(store.episode_ends, prepend=0), store.episode_columns
    head = ["episode", "steps", *(["seconds"] if store.fps else []), *columns]
    head += [*(["reward"] if figures.returns is not None else []), "findings"]
    body = []
    for e in rows:
        cells = [f'<a href="#p{e}">{e}</a>' if e in pictured else str(e), f"{lengths[e]}"]
        cells += [f"{lengths[e] / store.fps:.2f}"] if store.fps else []
        cells += [_value(column[e]) for column in columns.values()]
        cells += [figure_text(float(figures.returns[e]))] if figures.returns is not None else []
        cells.append(str(counts[e]))
        body.append(f'<tr id="e{e}">{"".join(f"<td>{c}</td>" for c in cells)}</tr>')
    top = "".join(f'<th><button type="button">{escape(h)}</button></th>' for h in head)
    part = "" if len(rows) == n else _sentence(f"{len(rows):,} of {n:,} episodes, evenly spread; flagged ones first.")
    table = f'<table class="sortable"><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return f'{lengths_figure(lengths)}{part}<div class="panel scroll">{table}</div>', set(rows)


def _value(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return figure_text(float(value))
    text = str(value)
    return escape(text if len(text) <= _TEXT else text[:_TEXT] + " …")


def arrays(store: DemoStore) -> str:
    """What each array is, and the columns."""
    head = ["array", "step", "type", "role", "unit", "source", "components"]
    body = []
    for key, spec in store.specs.items():
        shape = " × ".join(map(str, spec.shape)) or "scalar"
        kind = {"depth": " (depth)", "segmentation": " (segmentation)"}.get(picture_kind(key, spec) or "", "")
        cells = [key, shape + kind, spec.dtype, spec.role, spec.unit or "", spec.source or ""]
        cells.append(", ".join(spec.names or ()))
        body.append("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>")
    top = "".join(f"<th>{h}</th>" for h in head)
    out = f'<div class="panel scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    out += "".join(
        f'<p class="note">{escape(k)} cannot be used: {escape(why)}</p>' for k, why in store.unusable.items()
    )
    if store.column_types:
        out += _sentence("Per episode: " + ", ".join(f"{k} ({kind})" for k, kind in store.column_types.items()) + ".")
    return out


def origin(store: DemoStore) -> str:
    """How the demonstrations were made, as the store says it."""
    if not store.origin:
        return _sentence("The store does not say how its demonstrations were made.")
    text = json.dumps(store.origin, indent=1, ensure_ascii=False, default=str)
    cut = f"\n… {len(text) - _ORIGIN:,} characters more" if len(text) > _ORIGIN else ""
    return f'<div class="panel"><pre>{escape(text[:_ORIGIN] + cut)}</pre></div>'
