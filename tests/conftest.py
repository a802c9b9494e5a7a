"""Fixtures for all parts: a tiny demonstration store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zarr

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


@pytest.fixture
def foreign_store(tmp_path: Path) -> Callable[..., Path]:
    """Make a store of 6 steps as other programs write it: no attributes, fill 0; ``action [2]``, ``state [3]``."""

    def make(name: str, *, zarr_format: Literal[2, 3] = 2, ends: Sequence[int] = (2, 6)) -> Path:
        group = zarr.open_group(tmp_path / name, mode="w", zarr_format=zarr_format)
        for key, width in (("action", 2), ("state", 3)):
            group.create_array(f"data/{key}", data=np.arange(6 * width, dtype=np.float32).reshape(6, width))
        group.create_array("meta/episode_ends", data=np.array(ends, dtype=np.int64))
        return tmp_path / name

    return make
