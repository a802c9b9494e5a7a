"""Fixtures for all parts: a tiny demonstration store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

DEMO_LENGTHS = (5, 1, 8)


@pytest.fixture
def demo_store(tmp_path: Path) -> Path:
    """Path of a store: 3 episodes (5, 1, 8 steps), 10 Hz, ``state [3]``, ``action [2]``, ``img [16, 16, 3]`` uint8.

    ``state`` counts the global step in all components, ``action`` is half of it, every pixel is the global step.
    """
    specs = {
        "state": ArraySpec(shape=(3,), role="observation", unit="m", names=("x", "y", "z")),
        "action": ArraySpec(shape=(2,), role="action"),
        "img": ArraySpec(shape=(16, 16, 3), dtype="uint8", role="observation"),
    }
    path = tmp_path / "demo.zarr"
    with DemoStore.create(path, specs, fps=10.0, episode_columns={"task": "str", "success": "bool"}) as store:
        start = 0
        for i, length in enumerate(DEMO_LENGTHS):
            step = np.arange(start, start + length)
            store.append_episode(
                {
                    "state": np.repeat(step[:, None], 3, 1).astype(np.float32),
                    "action": np.repeat(step[:, None], 2, 1) / 2.0,
                    "img": np.broadcast_to(step[:, None, None, None], (length, 16, 16, 3)).astype(np.uint8),
                },
                columns={"task": f"task {i}", "success": i != 1},
            )
            start += length
    return path
