"""The report of an identification: what was found, how sure it is, and measured against simulated."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from visuomotor.policies.learn.charts import Series, line_chart, thin
from visuomotor.policies.learn.report_parts import card, sentence
from visuomotor.sim2real.identification.fit import Fitted, Problem
from visuomotor.sim2real.identification.posterior import Posterior
from visuomotor.sim2real.identification.recording import Recording

__all__ = ["write_page"]

_POINTS = 500
_UNITS = {"position": "rad", "velocity": "rad/s", "effort": "N m"}
_WIDTH, _ROW = 300, 14


def write_page(
    path: Path, title: str, fitted: Fitted, posterior: Posterior, recording: Recording,
    profiles: dict[str, list[tuple[float, float]]], notes: Sequence[str], command: str,
) -> None:  # fmt: skip
    """Write it in one step: a reader never sees half a page."""
    template = (files("visuomotor.policies.learn") / "report.html").read_text(encoding="utf-8")
    head, script = (template.partition(f"<{t}>")[2].partition(f"</{t}>")[0] for t in ("style", "script"))
    shown = fitted.validation or fitted.train
    which = "not fitted" if fitted.validation else "fitted"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{len(recording.episodes)} episodes, {len(fitted.train.episodes)} of them fitted</p>',
        *(f'<p class="note">{escape(n)}</p>' for n in notes),
        f'<section class="cards">{_cards(fitted, posterior)}</section>',
        "<h2>What was found</h2>", _estimates(posterior), "<h2>What the motion does not show</h2>",
        _directions(posterior), "<h2>Error of the simulation</h2>", _errors(fitted, recording.joints),
        f"<h2>Measured and simulated: episode {shown.episodes[0].index}, {which}</h2>",
        _motion(shown, fitted, recording.joints),
        *(["<h2>Profiles</h2>", _profiles(profiles)] if profiles else []),
        "<h2>Convergence</h2>", _trace(fitted),
        "<h2>Reproduce</h2>", f'<div class="panel command"><pre>{escape(command)}</pre></div>',
    ]  # fmt: skip
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{head}\ntd svg {{ width: {_WIDTH}px; }}</style></head>\n<body><main>{''.join(body)}</main>"
        f"<script>{script}</script></body></html>\n"
    )
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, path)


def _share(problem: Problem, fitted: Fitted) -> tuple[float, float]:
    """Median over channels of the error before and after, in units of the noise after the fit."""
    before, after = problem.rms(0 * fitted.z), problem.rms(fitted.z)
    return float(np.median(before / fitted.sigma)), float(np.median(after / fitted.sigma))


def _cards(fitted: Fitted, posterior: Posterior) -> str:
    counts = {v: sum(e.verdict == v for e in posterior.estimates) for v in ("identified", "weak", "not identifiable")}
    out = card("Identified", f"{counts['identified']} of {len(posterior.estimates)}",
               f"{counts['weak']} weak, {counts['not identifiable']} not identifiable")  # fmt: skip
    if fitted.validation is not None:
        before, after = _share(fitted.validation, fitted)
        out += card(
            "Error, episodes not fitted", f"{after / before:.2f}×", f"{before:.3g} σ before, {after:.3g} σ after"
        )
    before, after = _share(fitted.train, fitted)
    out += card("Error, fitted episodes", f"{after / before:.2f}×", f"{before:.3g} σ before, {after:.3g} σ after")
    return out + card("Condition number", f"{posterior.condition:.3g}", f"{posterior.samples:.0f} independent samples")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="panel scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _estimates(posterior: Posterior) -> str:
    rows = []
    for e in posterior.estimates:
        why = [e.verdict]
        if e.partner is not None:
            why.append(f"confused with {escape(e.partner[0])} (correlation {e.partner[1]:+.2f})")
        if e.at_bound:
            why.append("at the end of its range")
        found = f"<b>{e.value:.4g}</b> ± {e.std:.2g}"
        bar = _bar(e.shrunk, e.verdict == "identified")
        rows.append([escape(e.name), f"{e.nominal:.4g}", found, escape(e.unit), bar, ", ".join(why)])
    head = ("unknown", "model", "found ± standard deviation", "unit", "posterior width against prior", "verdict")
    return _table(head, rows)


def _bar(shrunk: float, identified: bool) -> str:
    """Log scale from 1/1000 to 1: full when nothing was learnt."""
    part = min(max(1 + math.log10(max(shrunk, 1e-3)) / 3, 0.0), 1.0)
    colour = 2 if identified else 3
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_ROW}"><rect class="c{colour}" x="0" y="3" width="{part * 220:.0f}" height="8"/>'
        f'<text x="{part * 220 + 6:.0f}" y="12">{shrunk:.3f}</text></svg>'
    )


def _directions(posterior: Posterior) -> str:
    if not posterior.directions:
        return sentence("Every combination of the unknowns is known better than half as well as before.")
    rows = [
        [f"{d.left:.0%}", escape(", ".join(f"{part:+.2f} {name}" for name, part in d.parts))]
        for d in posterior.directions
    ]
    return _table(("prior variance left", "combination, in standard deviations of the priors"), rows)


def _errors(fitted: Fitted, joints: Sequence[str]) -> str:
    rows = []
    sets = [("fitted", fitted.train), *([("not fitted", fitted.validation)] if fitted.validation else [])]
    figures = [(p.rms(0 * fitted.z), p.rms(fitted.z)) for _, p in sets]
    for c, (kind, j) in enumerate(fitted.train.channels):
        cells = [f"{x[c]:.2e}" for pair in figures for x in pair]
        rows.append([f"{escape(joints[j])}, {kind}", _UNITS[kind], *cells])
    head = ["root mean square", "unit", *(f"{name}: {when}" for name, _ in sets for when in ("before", "after"))]
    return _table(head, rows)


def _motion(problem: Problem, fitted: Fitted, joints: Sequence[str]) -> str:
    e = problem.episodes[0]
    both = np.stack([0 * fitted.z, fitted.z], axis=1)  # z = 0 is the nominal model
    simulated = problem.plant.simulate(problem.unknowns, both, [e])[0]
    ms, charts = e.time * 1e3, []
    for j, joint in enumerate(joints):
        measured = e.measured["position"][:, j]
        parts = [
            ("before", simulated["position"][0, :, j] - measured, 3),
            ("after", simulated["position"][1, :, j] - measured, 2),
        ]
        charts.append(line_chart(f"{joint} [rad]", [
            _curve("measured", ms, measured, 1), _curve("simulated after", ms, simulated["position"][1, :, j], 2),
        ], x_label="ms"))  # fmt: skip
        errors = [_curve(name, ms, values, colour) for name, values, colour in parts]
        charts.append(line_chart(f"{joint}: simulated − measured [rad]", errors, x_label="ms"))
    return f'<div class="grid2">{"".join(charts)}</div>'


def _curve(name: str, x: np.ndarray, y: np.ndarray, colour: int) -> Series:
    points = thin(list(zip(x.tolist(), y.tolist(), strict=True)), _POINTS)
    return Series(name, [p[0] for p in points], [p[1] for p in points], "line", colour)


def _profiles(profiles: dict[str, list[tuple[float, float]]]) -> str:
    charts = []
    for name, points in profiles.items():
        middle, span = np.mean([p[0] for p in points]), max(np.ptp([p[0] for p in points]), 1e-12)
        scaled = [100 * (p[0] - middle) / span for p in points]  # charts have whole numbers on their x axis
        label = f"{name}: rise of the cost, from {points[0][0]:.4g} to {points[-1][0]:.4g}"
        charts.append(line_chart(label, [Series("others fitted anew", scaled, [p[1] for p in points], "dots", 1)],
                                 x_label="% of the range"))  # fmt: skip
    return f'<div class="grid2">{"".join(charts)}</div>'


def _trace(fitted: Fitted) -> str:
    steps = list(range(len(fitted.trace)))
    chart = line_chart("Cost of the first round (log scale)", [Series("cost", steps, fitted.trace, "line", 1)],
                       log_y=True, x_label="iteration")  # fmt: skip
    ends = ", ".join(f"{c:.5g}" for c in fitted.cost)
    return sentence(f"Costs where the starts ended: {ends}.") + f'<div class="grid2">{chart}</div>'
