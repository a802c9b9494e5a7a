"""Small charts as inline SVG; the colours are those of the page's style sheet."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np
from numpy.typing import NDArray

from visuomotor.data.viewing.survey import GRID, Coverage, Distribution

__all__ = ["coverage_figure", "distribution_figure", "figure_text", "lengths_figure"]

_WIDTH, _HEIGHT = 160, 56


def figure_text(value: float) -> str:
    """Four digits, or a dash for what is not a number."""
    return f"{value:.4g}" if np.isfinite(value) else "–"


def distribution_figure(d: Distribution) -> str:
    """Histogram of one component with its range below."""
    unit = f" {escape(d.unit)}" if d.unit else ""
    if d.low > d.high:
        body, below = "", "no finite value"
    elif d.low == d.high:
        body, below = _bars(d.counts), f"constant {figure_text(d.low)}{unit}"
    else:
        body, below = _bars(d.counts), f"<span>{figure_text(d.low)}</span><span>{figure_text(d.high)}{unit}</span>"
    lost = f'<div class="bad">{d.n_nonfinite:,} not finite</div>' if d.n_nonfinite else ""
    told = f"mean {figure_text(d.mean)}, standard deviation {figure_text(d.std)}"
    return (
        f'<figure class="small" title="{escape(told, quote=True)}"><figcaption>{escape(d.name)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">{body}</svg>'
        f'<div class="ends">{below}</div>{lost}</figure>'
    )


def lengths_figure(lengths: NDArray[np.int64]) -> str:
    """Histogram of the steps of an episode."""
    bins = min(40, int(np.ptp(lengths)) + 1, 4 + 2 * int(np.sqrt(len(lengths))))
    counts, edges = np.histogram(lengths, bins=bins)
    most = f"bars of {figure_text(float(edges[1] - edges[0]))} steps, at most {int(counts.max())} in one"
    ends = (
        f"<span>{int(lengths.min())}</span><span>median {np.median(lengths):g}</span><span>{int(lengths.max())}</span>"
    )
    return (
        f'<figure class="panel wide"><figcaption>Steps of an episode<span class="soft">{most}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">{_bars(counts)}</svg>'
        f'<div class="ends">{ends}</div></figure>'
    )


def _bars(counts: Sequence[int] | NDArray[np.int64]) -> str:
    """One path for all bars; bars that hold something are at least one unit high."""
    top, width = max(1, int(np.max(counts))), _WIDTH / len(counts)
    parts = []
    for i, n in enumerate(counts):
        if n:
            height = max(1.0, (_HEIGHT - 1) * float(n) / top)
            parts.append(f"M{i * width:.1f} {_HEIGHT}v{-height:.1f}h{max(width - 0.6, 0.5):.1f}V{_HEIGHT}z")
    return f'<path class="bars" d="{"".join(parts)}"/>'


def coverage_figure(c: Coverage) -> str:
    """Density of positions (logarithmic) with the places where episodes begin; y goes up, in pixels down."""
    down = c.unit == "px"
    starts = (c.starts - np.asarray(c.origin)) / c.side * 100
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y if down else 100 - y:.1f}" r=".9"/>' for x, y in starts)
    data = base64.b64encode(_density(c.counts if down else c.counts[::-1])).decode("ascii")
    unit = f" {escape(c.unit)}" if c.unit else ""
    low_x, low_y = c.origin
    guess = " · taken for a position by its place in the array" if c.guessed else ""
    x, y = (escape(f"component {name}" if name.isdigit() else name) for name in c.names)
    span = (
        f"{x}: {figure_text(low_x)} to {figure_text(low_x + c.side)}{unit}; {y}: {figure_text(low_y)} to "
        f"{figure_text(low_y + c.side)}{unit}{', downwards' if down else ''}{guess}"
    )
    return (
        f'<figure class="panel plane"><figcaption>{escape(c.key)}: {x}, {y}</figcaption>'
        f'<svg viewBox="0 0 100 100" role="img" aria-label="density of positions">'
        f'<rect width="100" height="100" class="field"/>'
        f'<image href="data:image/png;base64,{data}" width="100" height="100" preserveAspectRatio="none"/>'
        f'<g class="starts">{dots}</g></svg><div class="soft">{span}</div></figure>'
    )


def _density(counts: NDArray[np.int64]) -> bytes:
    """PNG of ``[GRID, GRID]``: one blue whose opacity grows with the logarithm, so that it suits any background."""
    part = np.log1p(counts) / max(np.log1p(counts.max(initial=0)), 1e-9)
    alpha = np.where(counts > 0, 40 + 215 * part, 0).astype(np.uint8)
    bgra = np.zeros((GRID, GRID, 4), np.uint8)
    bgra[..., :3] = (237, 111, 47)
    bgra[..., 3] = alpha
    done, code = cv2.imencode(".png", bgra)
    return bytes(code.tobytes()) if done else b""
