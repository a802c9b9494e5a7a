"""The only file that imports gym_pusht: its environment with exact states and the dataset's observation names."""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym
import numpy as np

from visuomotor.data.errors import MissingExtraError, UserError

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
try:
    import shapely
    from gym_pusht.envs.pusht import PushTEnv
except ImportError as e:
    raise MissingExtraError(
        f"Push-T needs gym-pusht ({e}). Install it with: pip install 'visuomotor[pusht]' and then "
        "pip install --no-deps gym-pusht==0.1.8 (without --no-deps it replaces the headless OpenCV)."
    ) from None

__all__ = ["PushTGym"]


class PushTGym(PushTEnv):
    """gym-pusht's PushTEnv; resets exactly to ``options["state"]``, and is the same in every process.

    ``info["score"]`` is gym-pusht's reward, how much of the goal is covered.

    Args:
        image: observe ``{"img": uint8 [96, 96, 3], "agent_pos": [2]}`` instead of the state ``[5]``.
        render_size: side of a rendered picture [px].
        progress: the reward of a step is by how much it has raised the best score of the episode.
    """

    observation_space: gym.Space[Any]

    def __init__(self, *, image: bool, render_size: int, progress: bool = False) -> None:
        super().__init__(
            obs_type="pixels_agent_pos" if image else "state",
            visualization_width=render_size,
            visualization_height=render_size,
        )
        self._image = image
        if image:
            shown: Any = self.observation_space
            self.observation_space = gym.spaces.Dict({"img": shown["pixels"], "agent_pos": shown["agent_pos"]})
        self._goal: Any = None
        self._progress, self._best = progress, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(seed=seed)
        if options is not None and "state" in options:
            self._set_exact(np.asarray(options["state"], np.float64))
            obs, info = self.get_obs(), {**self._get_info(), "is_success": False}
        self._best = min(1.0, self._get_coverage() / self.success_threshold)
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, score, terminated, truncated, info = super().step(action)
        gained = max(0.0, float(score) - self._best)
        self._best += gained
        return obs, gained if self._progress else score, terminated, truncated, {**info, "score": score}

    def get_obs(self) -> Any:
        obs = super().get_obs()
        return {"img": obs["pixels"], "agent_pos": obs["agent_pos"]} if self._image else obs

    def _set_exact(self, state: np.ndarray) -> None:
        """Place all at rest. gym-pusht's own setter rotates the block after placing it, about another point."""
        if state.shape != (5,) or not np.isfinite(state).all():
            raise UserError(
                f"state {state.tolist()}; expected 5 finite numbers: agent x, y, block x, y [px], angle [rad]"
            )
        for prime in (True, False):
            self.agent.velocity = self.block.velocity = (0.0, 0.0)
            self.block.angular_velocity = 0.0
            self.agent.position = (state[0], state[1])
            self.block.angle = state[4]
            self.block.position = (state[2], state[3])
            self.space.reindex_shapes_for_body(self.block)
            self.space.reindex_shapes_for_body(self.agent)
            if prime:
                # The engine warm-starts from the last step's contacts: without a step here, a recording that begins in
                # contact replays 0.3 px off. What the step moved is put back.
                self.space.step(self.dt)

    def _get_coverage(self) -> float:
        # The base class walks over `block.shapes`, a set: its order, and so the last bits of the area, differ between
        # processes. It also builds the goal's outline anew at every step.
        if self._goal is None:
            self._goal = _outline(self.get_goal_pose_body(self.goal_pose), self._block_shapes)
        return float(self._goal.intersection(_outline(self.block, self._block_shapes)).area / self._goal.area)


def _outline(body: Any, shapes: Any) -> Any:
    rings = [[body.local_to_world(v) for v in s.get_vertices()] for s in shapes]
    return shapely.multipolygons(shapely.polygons(rings))
