"""An adapter of the environments in toys.py, as a suite has one. Run by a worker process, by its path."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from toys import Walk


class Slow(Walk):
    """Never answers a step."""

    def reset(self, **kwargs: Any) -> Any:
        print("about to sleep", flush=True)
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> Any:
        time.sleep(60)
        return super().step(action)


class Loose(Walk):
    """Keeps none of its promises: other numbers at every reset, no outcome, no picture."""

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(seed=None)

    def step(self, action: np.ndarray) -> Any:
        return (*super().step(action)[:4], {})

    def render(self) -> None:
        return None


class Toys:
    def ids(self) -> list[str]:
        return ["slow", "still", "walk"]

    def make(self, id: str, images: list[str], image_size: int, settings: dict[str, Any]) -> Any:
        if id == "loose":
            return Loose()
        if id not in self.ids():
            raise ValueError(f"no environment {id!r} in this suite")
        if id == "walk":  # what it can do an action of 4 does at once, from wherever it is
            env = Walk(**settings)
            env.action_space = type(env.action_space)(-4, 4, (2,), np.float32)
            return env
        return Slow(**settings) if id == "slow" else Walk(render_mode=None)

    def expert(self, env: Any, id: str) -> Callable[[dict[str, Any]], Any] | None:
        """Away from the middle; from one side of it, it never arrives."""
        return None if id == "still" else lambda seen: 0.5 * np.sign(seen["position"]) * (seen["position"][0] > 0)
