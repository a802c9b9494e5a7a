"""Push-T: push a T-shaped block onto its outline with a round finger (Chi et al. 2023, Diffusion Policy, section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.base import Obs
from visuomotor.envs.gym_adapter import GymVecEnv

__all__ = ["PushT", "PushTConfig"]

FPS = 10.0
_STATE_NAMES = ("agent_x", "agent_y", "block_x", "block_y", "block_angle")
_OBS = {
    "state": {
        "state": ArraySpec(
            shape=(5,), role="observation", names=_STATE_NAMES, source="gym-pusht; px, the angle in rad"
        ),
    },
    "image": {
        "img": ArraySpec(shape=(96, 96, 3), dtype="uint8", role="observation", source="gym-pusht"),
        "agent_pos": ArraySpec(shape=(2,), role="observation", unit="px", names=_STATE_NAMES[:2], source="gym-pusht"),
    },
}
_REWARDS = ("score", "progress")
_ACTION = ArraySpec(shape=(2,), role="action", unit="px", names=("target_x", "target_y"))


@dataclass(kw_only=True, slots=True)
class PushTConfig:
    """Settings of the task.

    Attributes:
        obs: ``"state"`` (key ``state [5]``: agent x, y, block x, y [px, 0..512], angle [rad, 0..2 pi]) or ``"image"``
            (keys ``img`` uint8 ``[96, 96, 3]`` and ``agent_pos [2]``).
        reward: ``score``, or ``progress``: by how much a step has raised the best score of the episode. Success ends
            the episode, so a policy that maximises the sum of the first learns to stay short of it; reinforcement
            learning takes the second.
        max_episode_steps: time limit, 300 as published.
        workers: processes that share the worlds; 0 steps them in this process, -1 takes one a core.
        render_size: side of a rendered picture [px].
    """

    obs: str = "state"
    reward: str = "score"
    max_episode_steps: int = 300
    workers: int = -1
    render_size: int = 384

    def __post_init__(self) -> None:
        if self.obs not in _OBS:
            raise ConfigError(f"unknown Push-T observation {self.obs!r}. {nearest(self.obs, _OBS)}")
        if self.reward not in _REWARDS:
            raise ConfigError(f"unknown Push-T reward {self.reward!r}. {nearest(self.reward, _REWARDS)}")
        for name, low in (("max_episode_steps", 1), ("workers", -1), ("render_size", 32)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}; expected at least {low}")


def _score(reward: float, info: Mapping[str, Any]) -> float:
    return float(info.get("score", reward))  # a reset has none


class PushT(GymVecEnv):
    """``num_envs`` Push-T worlds at 10 Hz; the action ``[2]`` is the finger's target [px, 0..512].

    ``info["coverage"]`` is the share of the goal that the block covers, ``info["score"]`` is
    ``clip(coverage / 0.95, 0, 1)`` and by default the reward, and ``info["success"]`` is ``coverage > 0.95`` (strictly,
    as in gym-pusht), which ends the episode. Published results take the maximum of the score over the episode.

    Raises:
        MissingExtraError: gym-pusht is not installed.
    """

    def __init__(self, config: PushTConfig, num_envs: int) -> None:
        from visuomotor.envs.tasks.pusht_gym import PushTGym  # optional dependency

        make = partial(
            PushTGym,
            image=config.obs == "image",
            render_size=config.render_size,
            progress=config.reward == "progress",
        )
        super().__init__(
            [make] * num_envs,
            max_episode_steps=config.max_episode_steps,
            fps=FPS,
            workers=config.workers,
            score=_score,
            obs_spec=_OBS[config.obs],
            action_spec=_ACTION,
        )

    def set_state(self, world: int, state: Sequence[float] | torch.Tensor) -> Obs:
        """Start an episode in one world from exactly ``state [5]`` (see ``obs="state"``), everything at rest.

        Returns the observations of all worlds. A finger placed inside the block pushes it away in the first step.
        """
        options: dict[str, Any] = {"state": [float(x) for x in state]}
        return self.reset_one(world, options)
