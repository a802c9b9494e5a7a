"""Statistics as LeRobot keeps them: of each episode, and merged over all. Only its training uses them, not ours.

Source: huggingface/lerobot 0.4, ``lerobot/datasets/compute_stats.py``.
"""

from __future__ import annotations

import numpy as np

__all__ = ["Stats", "array_stats", "merge_stats", "picture_stats"]

Stats = dict[str, np.ndarray]

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_FRAMES, _SIDE = 32, 150  # pictures looked at in an episode, and pixels along the longer side


def array_stats(values: np.ndarray) -> Stats:
    """min, max, mean, std and quantiles over the rows of ``[L, *shape]`` (scalars as ``[1]``), and count ``[1]``."""
    v = values.reshape(len(values), -1).astype(np.float64)
    shape = values.shape[1:] or (1,)
    parts = {"min": v.min(0), "max": v.max(0), "mean": v.mean(0), "std": v.std(0)}
    parts |= dict(zip(_QUANTILES, np.quantile(v, list(_QUANTILES.values()), axis=0), strict=True))
    return {**{k: p.reshape(shape) for k, p in parts.items()}, "count": np.array([len(values)])}


def picture_stats(frames: np.ndarray) -> Stats:
    """The same of uint8 ``[L, H, W, 3]``: per channel ``[3, 1, 1]``, in 0..1, of evenly spaced frames and pixels."""
    rows = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES)).round().astype(np.int64))
    step = max(1, max(frames.shape[1:3]) // _SIDE)
    pixels = frames[rows, ::step, ::step].reshape(-1, 3)
    found = array_stats(pixels / 255.0)
    return {**{k: v.reshape(3, 1, 1) for k, v in found.items() if k != "count"}, "count": np.array([len(rows)])}


def merge_stats(a: Stats | None, b: Stats) -> Stats:
    """Of two sets together. Quantiles are averaged by count, as LeRobot does: they are approximate."""
    if a is None:
        return b
    n = a["count"] + b["count"]
    share = b["count"] / n
    delta = b["mean"] - a["mean"]
    merged = {"min": np.minimum(a["min"], b["min"]), "max": np.maximum(a["max"], b["max"])}
    merged["mean"] = a["mean"] + delta * share
    variance = a["std"] ** 2 * (1 - share) + b["std"] ** 2 * share + delta**2 * share * (1 - share)
    merged["std"] = np.sqrt(variance)
    merged |= {q: a[q] * (1 - share) + b[q] * share for q in _QUANTILES}
    return {**merged, "count": n}
