"""Tiny environments for the tests of the adapters. No torch: environment workers import this too."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium as gym
import numpy as np


class Walk(gym.Env[Any, np.ndarray]):
    """Adds action and noise to a position; ends beyond 3. ``tripwire``: what happens when an action exceeds 100."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  # as gymnasium declares it
    observation_space = gym.spaces.Dict(
        {
            "position": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "picture": gym.spaces.Box(0, 255, (8, 10, 3), np.uint8),
        }
    )
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, tripwire: str = "raise", render_mode: str | None = "rgb_array") -> None:
        self.tripwire, self.render_mode = tripwire, render_mode
        self.position = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.normal(size=2) if options is None else np.asarray(options["position"], float)
        return self._obs(), {"distance": float(np.abs(self.position).max())}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action[0] > 100:
            if self.tripwire == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("the motor is on fire")
        self.position = self.position + action + 0.1 * self.np_random.normal(size=2)
        distance = float(np.abs(self.position).max())
        info = {"distance": distance, "is_success": distance > 3, "path": "not a number", "vector": self.position}
        return self._obs(), distance / 3, distance > 3, False, info

    def render(self) -> np.ndarray | None:
        return None if self.render_mode is None else self._obs()["picture"]

    def _obs(self) -> dict[str, np.ndarray]:
        level = np.uint8(min(255, 80 * np.abs(self.position).max()))
        return {"position": self.position, "picture": np.full((8, 10, 3), level)}
