"""Charts as inline SVG: no plotting library, no script needed to see them. Colours come from the page's style sheet.

The picture is drawn on a fixed canvas of 480 x 260 units and scales with the page. Every chart carries its points as
JSON in ``data-chart`` so that the page's script can show read-outs under the pointer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Series", "histogram", "human", "line_chart", "linear_ticks", "log_ticks", "smooth", "thin"]

WIDTH, HEIGHT = 480.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 12.0, 40.0


@dataclass(frozen=True)
class Series:
    """A named curve; ``style`` is ``"line"``, ``"faint"`` (no legend, no read-out) or ``"dots"``, ``colour`` 1..4.

    With ``base``, the lower edge of a band whose upper edge is ``y``, the band is filled.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"
    colour: int = 1
    base: Sequence[float] | None = None


def human(value: float) -> str:
    """Short readable number: 1234567 -> ``1.23M``, 20000 -> ``20k``, 0.00012 -> ``1.2e-4``."""
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= scale:
            return f"{value / (1e3 if suffix == 'k' else scale):.3g}{suffix}"
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Exponential average over about ``span`` points, corrected for its start at zero (as Adam's moments are)."""
    decay, total, weight, out = math.exp(-1.0 / max(span, 1e-9)), 0.0, 0.0, []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1.0
        out.append(total / weight)
    return out


def thin(points: Sequence[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """At most ``limit`` of the points, evenly spread, always with the last one."""
    if len(points) <= limit:
        return list(points)
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]


def linear_ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) within ``[low, high]``, about ``n`` of them."""
    raw = (high - low) / max(n, 1)
    if raw <= 0 or not math.isfinite(raw):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: decades; with 2 and 5 between them, or round numbers, where decades are too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 2, 5)):
        ticks = [d * 10.0**e for e in decades for d in digits if low * (1 - 1e-9) <= d * 10.0**e <= high * (1 + 1e-9)]
        if len(ticks) >= 3:
            return ticks
    return [t for t in linear_ticks(low, high, 4) if t > 0]


def _padded(values: Sequence[float], log: bool) -> tuple[float, float]:
    """Range of the values with a margin of 5 %; never empty."""
    low, high = min(values), max(values)
    if log:
        margin = max(high / low, 1.02) ** 0.05
        return low / margin, high * margin
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _axes(x_ticks: list[tuple[float, str]], y_ticks: list[tuple[float, str]], x_label: str) -> str:
    parts = []
    for at, text in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    floor = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    parts += [f'<text x="{at:.1f}" y="{floor + 17}" text-anchor="middle">{escape(text)}</text>' for at, text in x_ticks]
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(parts)


def _figure(title: str, body: str, chart: object, legend: str = "") -> str:
    data = escape(json.dumps(chart, separators=(",", ":")), quote=True)
    return (
        f'<figure class="chart" data-chart="{data}"><figcaption>{escape(title)}{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(title, quote=True)}">{body}'
        '<line class="cursor" y1="12" y2="220" hidden/></svg><div class="tip" hidden></div></figure>'
    )


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    log_y: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    x_label: str = "step",
) -> str:
    """Curves over training steps as one ``<figure>``; values that no axis can show (NaN, log of 0) are left out.

    Returns:
        The figure, or an empty string when no point can be drawn.
    """
    drawn = [
        (s, [(x, y) for x, y in zip(s.x, s.y, strict=True) if math.isfinite(y) and (y > 0 or not log_y)])
        for s in series
    ]
    drawn = [(s, points) for s, points in drawn if points]
    if not drawn:
        return ""
    xs, ys = [[p[i] for _, points in drawn for p in points] for i in (0, 1)]
    ys += [y for s, _ in drawn for y in s.base or ()]
    x0, x1 = x_range or (min(xs), max(xs))
    x1 = max(x1, x0 + 1)  # a single point has an axis too
    y0, y1 = y_range or _padded(ys, log_y)
    scale: Callable[[float], float] = math.log10 if log_y else float

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        part = (scale(y) - scale(y0)) / (scale(y1) - scale(y0))
        return HEIGHT - BOTTOM - min(max(part, 0.0), 1.0) * (HEIGHT - BOTTOM - TOP)

    body, chart, legend = [], [], []
    for s, points in drawn:
        at = [(round(px(x), 1), round(py(y), 1)) for x, y in points]
        if s.base is not None:
            edge = [*at, *[(round(px(x), 1), round(py(y), 1)) for x, y in zip(s.x, s.base, strict=True)][::-1]]
            body.append(f'<polygon class="c{s.colour}" points="{" ".join(f"{x},{y}" for x, y in edge)}"/>')
        elif len(at) > 1:
            body.append(f'<polyline class="{s.style} c{s.colour}" points="{" ".join(f"{x},{y}" for x, y in at)}"/>')
        if s.style == "dots" or len(at) == 1:
            body += [f'<circle class="c{s.colour}" cx="{x}" cy="{y}" r="3"/>' for x, y in at]
        if s.style != "faint":
            legend.append(f'<span class="key c{s.colour}">{escape(s.name)}</span>')
            text = [f"{human(y)} at {x:,.0f}" for x, y in points]
            if s.base is not None:
                text = [f"{human(b)} to {t}" for b, t in zip(s.base, text, strict=True)]
            chart.append({"name": s.name, "colour": s.colour, "at": at, "text": text})
    ticks = log_ticks(y0, y1) if log_y else linear_ticks(y0, y1)
    axes = _axes(
        [(px(t), human(t)) for t in linear_ticks(x0, x1)], [(py(t), human(t)) for t in ticks if y0 <= t <= y1], x_label
    )
    return _figure(
        title, axes + "".join(body), chart, f'<span class="legend">{"".join(legend)}</span>' if legend else ""
    )


def histogram(title: str, scores: Sequence[float], success: Sequence[bool], bins: int = 20) -> str:
    """Scores in 0..1 as stacked bars, successes above failures; scores outside are counted at the nearest end."""
    counts = [[0, 0] for _ in range(bins)]
    for score, reached in zip(scores, success, strict=True):
        counts[min(max(int(score * bins), 0), bins - 1)][bool(reached)] += 1
    top = max(1, max(sum(c) for c in counts))
    width, height, floor = (WIDTH - LEFT - RIGHT) / bins, HEIGHT - BOTTOM - TOP, HEIGHT - BOTTOM
    bars = []
    for i, (bad, good) in enumerate(counts):
        y = floor
        for n, colour in ((bad, 3), (good, 2)):
            y -= n / top * height
            if n:
                bars.append(
                    f'<rect class="c{colour}" x="{LEFT + i * width + 1:.1f}" y="{y:.1f}" width="{width - 2:.1f}" '
                    f'height="{n / top * height:.1f}"><title>score {i / bins:.2f} to {(i + 1) / bins:.2f}: '
                    f"{good} succeeded, {bad} did not</title></rect>"
                )
    x_ticks = [(LEFT + t * (WIDTH - LEFT - RIGHT), f"{t:.1f}") for t in (0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    y_ticks = [(floor - t / top * height, f"{t:.0f}") for t in linear_ticks(0, top, 4) if t == int(t)]
    legend = '<span class="legend"><span class="key c2">succeeded</span><span class="key c3">did not</span></span>'
    return _figure(title, _axes(x_ticks, y_ticks, "score") + "".join(bars), [], legend)
