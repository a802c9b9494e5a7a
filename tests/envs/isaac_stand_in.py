"""Stand-in for an Isaac Gym installation: this Python, with ``fake_isaacgym`` where Isaac Gym would be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import pytest

from visuomotor.envs.registry import get_task

__all__ = ["scene", "stand_in"]

FAKE = Path(__file__).parent / "fake_isaacgym"


@pytest.fixture(autouse=True, scope="module")
def stand_in() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(FAKE))
        patch.setenv("VISUOMOTOR_ISAAC_PYTHON", sys.executable)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def scene(task: Any) -> mujoco.MjModel:
    return task(get_task(task.name).config_class()).scene().compile()
