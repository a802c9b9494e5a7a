"""A store to edit, and what is in the result; for the tests of editing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from visuomotor.data.editing.edit import edit
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

__all__ = ["columns", "run", "states", "write_operators"]


def run(source: Path, out: Path, *words: str) -> Path:
    edit(source, out, words)
    return out


def columns(path: Path) -> dict[str, list]:
    with DemoStore.open(path) as store:
        return {k: v.tolist() for k, v in store.episode_columns.items()}


def states(path: Path, key: str = "state") -> list[list[float]]:
    """First component of every step, by episode."""
    with DemoStore.open(path) as store:
        rows = [store.episode(i)[key] for i in range(store.n_episodes)]
        return [r.reshape(len(r), -1)[:, 0].tolist() for r in rows]


def write_operators(path: Path) -> Path:
    """12 episodes of 10 to 21 steps, 20 Hz, recorded by three operators."""
    specs = {
        "state": ArraySpec(shape=(2,), role="observation", unit="m", names=("x", "y")),
        "action": ArraySpec(shape=(2,), role="action", unit="m", names=("x", "y")),
    }
    kinds = {"operator": "str", "quality": "float64"}
    with DemoStore.create(path, specs, fps=20, episode_columns=kinds, origin={"by": "test"}) as store:
        for i in range(12):
            x = np.arange(10 + i)[:, None] + np.array([100 * i, 0])
            store.append_episode({"state": x, "action": x + 1}, {"operator": "abc"[i % 3], "quality": i / 10})
    return path
