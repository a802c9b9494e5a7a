"""A clock that runs while a contender learns and stands while it is tested, for benchmarks/ppo.py.

Every contender is tested alike: the mean of its policy, without noise, in twenty episodes of Gymnasium's own
environment, whatever it was trained in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np

__all__ = ["TASKS", "Clock", "PPOTask"]

Act = Callable[[np.ndarray], np.ndarray]  # observations [n, D] to actions [n, Da]


@dataclass(frozen=True)
class PPOTask:
    """``target``: return to reach; ``interval``: seconds of learning between tests; ``steps``: when to give up."""

    gym_id: str
    target: float
    interval: float
    steps: int


TASKS = {
    "cartpole": PPOTask("InvertedPendulum-v5", 950.0, 0.5, 400_000),
    "reacher": PPOTask("Reacher-v5", -6.0, 2.0, 1_500_000),
    "hopper": PPOTask("Hopper-v5", 2_000.0, 5.0, 3_000_000),
}


@dataclass
class Clock:
    """Seconds of learning; ``curve`` holds (seconds, environment steps, return) of every test."""

    task: PPOTask
    limit: float  # seconds of learning after which to give up
    now: Callable[[], float] = time.perf_counter
    curve: list[tuple[float, int, float]] = field(default_factory=list)
    seconds: float = 0.0
    _since: float | None = None

    def start(self) -> None:
        """Learning begins or goes on."""
        self._since = self.now()

    def check(self, steps: int, act: Act) -> bool:
        """Call after every update; whether to stop: the target is reached, or it will not be in time."""
        assert self._since is not None
        self.seconds += self.now() - self._since
        tested = self.curve[-1][0] if self.curve else 0.0
        over = self.seconds > self.limit or steps >= self.task.steps
        if self.seconds - tested >= self.task.interval or over:
            self.curve.append((self.seconds, steps, _test(self.task.gym_id, act)))
        self.start()
        return over or bool(self.curve and self.curve[-1][2] >= self.task.target)

    def result(self) -> dict[str, object]:
        """Seconds and steps to the target, None where it was not reached."""
        seconds, steps, value = self.curve[-1]
        reached = value >= self.task.target
        out: dict[str, object] = {"seconds": seconds if reached else None, "steps": steps if reached else None}
        best = max(v for *_, v in self.curve)
        return out | {"best": best, "steps_per_s": steps / seconds, "curve": [list(point) for point in self.curve]}


def _test(gym_id: str, act: Act, episodes: int = 20) -> float:
    """Mean return of the first episode of each of ``episodes`` environments."""
    envs = gym.vector.SyncVectorEnv([lambda: gym.make(gym_id)] * episodes)
    obs, _ = envs.reset(seed=[10_000 + i for i in range(episodes)])
    running, total = np.ones(episodes, bool), np.zeros(episodes)
    low, high = envs.single_action_space.low, envs.single_action_space.high  # type: ignore[attr-defined]
    while running.any():
        obs, reward, terminated, truncated, _ = envs.step(np.clip(act(obs), low, high))
        total += np.where(running, reward, 0.0)
        running &= ~(terminated | truncated)
    envs.close()
    return float(total.mean())
