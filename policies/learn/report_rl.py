"""The sections of a report that are particular to reinforcement learning. As in ``report_parts``, texts are escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape

from visuomotor.policies.learn import report_parts as parts
from visuomotor.policies.learn.charts import Series, human, line_chart, smooth, thin
from visuomotor.policies.learn.report_parts import Json

__all__ = ["curves", "headline", "is_rl", "subtitle", "videos"]

_POINTS = 500


def is_rl(metrics: Sequence[Json], final: Json | None) -> bool:
    """Whether the run learnt in worlds, rather than from demonstrations."""
    return any("env_steps" in m for m in metrics) or "before" in (final or {})


def subtitle(metrics: Sequence[Json], final: Json | None) -> str:
    """Steps, episodes, and which checkpoint was chosen."""
    steps = max((m.get("env_steps", 0) for m in metrics), default=0)
    out = [f"{steps:,.0f} environment steps in {metrics[-1]['step']:,} updates"] if metrics else ["nothing was learnt"]
    if final:
        out += [f"{final['n_episodes']} test episodes", f"checkpoint {final.get('checkpoint', 'unknown')}"]
    return escape(" · ".join(out))


def headline(metrics: Sequence[Json], final: Json | None, environment: Json | None) -> str:
    """Success and score before and after, their paired difference, time and size."""
    cards = []
    if final:
        before = final.get("before")
        for name, key, form in (("Success", "success", ".1%"), ("Score", "score", ".3f")):
            value = "rate" if key == "success" else "mean"
            name += f" (before: {before[key][value]:{form}})" if before else ""
            cards.append(parts.estimate(name, final[key][value], f"{final['n_episodes']} seeds", final[key], form))
        if difference := final.get("difference"):
            low, high = difference["success_interval"]
            more = f"{difference['n']} paired seeds, McNemar p = {difference['p_value']:.3g}"
            if low is not None:
                more += f", 95 % interval {100 * low:+.0f} to {100 * high:+.0f}"
            cards.append(parts.card("Change of success", f"{100 * difference['success_difference']:+.0f} points", more))
    _, seconds = parts.column(metrics, "train_s")
    _, speed = parts.column(metrics, "steps_per_s")
    steps = max((m.get("env_steps", 0) for m in metrics), default=0)
    rate = f", {human(sorted(speed)[len(speed) // 2])} steps/s" if speed else ""
    cards.append(
        parts.card("Training", f"{seconds[-1] / 60:.1f} min" if seconds else "unknown", f"{human(steps)} steps{rate}")
    )
    n_parameters = (environment or {}).get("n_parameters")
    device = str((environment or {}).get("device", ""))
    cards.append(parts.card("Parameters", human(n_parameters) if n_parameters else "unknown", f"on {device}"))
    return "".join(cards)


def curves(metrics: Sequence[Json]) -> str:
    """Learning curves over environment steps."""
    rows = [m for m in metrics if isinstance(m.get("env_steps"), int | float)]
    if not rows:
        return parts.sentence("No metrics were logged.")
    x_range = (0.0, max(float(m["env_steps"]) for m in rows))

    def points(name: str) -> list[tuple[float, float]]:
        return [(float(m["env_steps"]), float(m[name])) for m in rows if isinstance(m.get(name), int | float)]

    def curve(title: str, name: str, colour: int, *, style: str = "line", smoothed: bool = False) -> Series:
        found = [(x, y) for x, y in points(name) if y == y]
        if smoothed:
            ys = smooth([y for _, y in found], max(2.0, len(found) / 50))
            found = [(x, y) for (x, _), y in zip(found, ys, strict=True)]
        found = thin(found, _POINTS)
        return Series(title, [x for x, _ in found], [y for _, y in found], style, colour)

    def chart(title: str, *series: Series, log_y: bool = False, y_range: tuple[float, float] | None = None) -> str:
        return line_chart(title, series, log_y=log_y, x_range=x_range, y_range=y_range, x_label="environment steps")

    explained = [y for _, y in points("explained_variance")]
    charts = [
        chart(
            "Return of an episode",
            curve("raw", "return", 1, style="faint"),
            curve("exploring, smoothed", "return", 1, smoothed=True),
            curve("evaluation", "eval_return", 3, style="dots"),
        ),
        chart(
            "Success",
            curve("raw", "success", 2, style="faint"),
            curve("exploring, smoothed", "success", 2, smoothed=True),
            curve("evaluation", "eval_success", 3, style="dots"),
            curve("score in evaluation", "eval_score", 4, style="dots"),
            y_range=(0.0, 1.0),
        ),
        chart("Divergence of an update [nat] (log scale)", curve("KL", "kl", 4), log_y=True),
        chart("Clip fraction", curve("clip fraction", "clip_fraction", 3), y_range=(0.0, 1.0)),
        chart(
            "Explained variance of the returns",
            curve("explained variance", "explained_variance", 2),
            y_range=(max(-1.0, min([0.0, *explained])), 1.0),
        ),
        chart("Entropy [nat per component]", curve("entropy", "entropy", 1)),
        chart("Critic's loss (log scale)", curve("critic's loss", "value_loss", 3), log_y=True),
        chart("Learning rate", curve("learning rate", "lr", 4)),
        chart("Environment steps/s", curve("steps/s", "steps_per_s", 1)),
        chart(
            "Share of the time",
            *(curve(name, f"share_{name}", i) for i, name in enumerate(("simulate", "infer", "learn"), 1)),
            y_range=(0.0, 1.0),
        ),
    ]
    grid = f'<div class="grid2">{"".join(charts)}</div>'
    return grid + _randomisation(rows, chart, curve)


def _randomisation(rows: Sequence[Json], chart: Callable[..., str], curve: Callable[..., Series]) -> str:
    """How the distributions of randomised quantities changed: what nine of ten numbers lay between, and why."""
    names = dict.fromkeys(k.removeprefix("dr_low/") for m in rows for k in m if k.startswith("dr_low/"))
    if not names:
        return ""
    charts = [
        chart("Share of the ranges in use", curve("share", "dr_width", 1), y_range=(0.0, 1.0)),
        chart("Entropy below the largest [nat per parameter]", curve("entropy", "dr_entropy", 4)),
        chart(
            "What the curriculum judges by",
            curve("success in the distribution", "dr_success", 2),
            curve("effective samples", "dr_effective", 3),
            y_range=(0.0, 1.0),
        ),
    ]
    for name in names:
        low, high = curve("", f"dr_low/{name}", 1), curve("nine of ten draws", f"dr_high/{name}", 1)
        charts.append(chart(f"Drawn: {name}", replace(high, base=low.y)))
    return f'<h3>Randomisation</h3><div class="grid2">{"".join(charts)}</div>'


def videos(final: Json | None) -> Json | None:
    """What :func:`report_parts.videos` shows: the films before and after."""
    if final is None:
        return None
    before = (final.get("before") or {}).get("videos") or []
    shown = [("before", v) for v in before] + [("after", v) for v in final.get("videos") or []]
    return {"videos": [{**v, "kind": f"{when}, {v['kind']}"} for when, v in shown]}
