"""What a store holds, in figures: for ``visuomotor data inspect`` and the training report."""

from __future__ import annotations

from typing import Any

import numpy as np

from visuomotor.data.store import DemoStore

__all__ = ["describe"]

_LOW_DIM = 256  # values in a step up to which each component gets its own figures


def describe(store: DemoStore) -> dict[str, Any]:
    """Return a JSON-ready description of a store.

    Keys: ``path, fps, n_episodes, n_steps, lengths {min, median, max}`` (None when empty), ``episode_columns {name:
    type}``, ``unusable {key: reason}``, and ``keys``: for each array ``shape, dtype, role, unit, names, source`` and,
    for low-dimensional ones, ``stats {min, max, mean, std, n_nonfinite}``: flat lists with one entry per component.

    Raises:
        DataError: a chunk is damaged.
    """
    lengths = np.diff(store.episode_ends, prepend=0)
    summary = None
    if len(lengths):
        summary = {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())}
    keys: dict[str, Any] = {}
    for key, spec in store.specs.items():
        keys[key] = spec.to_dict()
        if spec.size <= _LOW_DIM and store.n_steps:
            keys[key]["stats"] = _stats(store, key)
    return {
        "path": str(store.path),
        "fps": store.fps,
        "n_episodes": store.n_episodes,
        "n_steps": store.n_steps,
        "lengths": summary,
        "episode_columns": store.column_types,
        "unusable": dict(store.unusable),
        "keys": keys,
    }


def _stats(store: DemoStore, key: str) -> dict[str, list[float | None] | list[int]]:
    """Figures per component over the finite values, block by block (Chan et al. 1979, update of mean and squares)."""
    size = store.specs[key].size
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    n, mean, squares, lost = np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size, np.int64)
    for _, block in store.iter_blocks(key):
        x = block.reshape(len(block), size).astype(np.float64)  # [rows, size]
        finite = np.isfinite(x)
        m = finite.sum(axis=0)
        lost += len(x) - m
        low = np.minimum(low, np.where(finite, x, np.inf).min(axis=0))
        high = np.maximum(high, np.where(finite, x, -np.inf).max(axis=0))
        block_mean = np.where(finite, x, 0).sum(axis=0) / np.maximum(m, 1)
        shift, total = block_mean - mean, np.maximum(n + m, 1)
        squares += np.where(finite, (x - block_mean) ** 2, 0).sum(axis=0) + shift**2 * n * m / total
        mean += shift * m / total
        n += m
    std = np.sqrt(squares / np.maximum(n, 1))
    plain = {"min": low, "max": high, "mean": mean, "std": std}
    figures = {name: [float(v) if k else None for v, k in zip(x, n, strict=True)] for name, x in plain.items()}
    return {**figures, "n_nonfinite": lost.tolist()}
