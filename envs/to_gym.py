"""A :class:`~visuomotor.envs.base.VecEnv` as Gymnasium has it: one world, or a vector with same-step auto-reset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from visuomotor.data.errors import ConfigError
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.base import Obs, VecEnv

__all__ = ["ToGym", "ToGymVector"]


class ToGym(gym.Env[Any, Any]):
    """Gymnasium's interface over an environment of one world. ``info`` has ``success`` and ``score``.

    ``reset(seed=s)`` gives the episode of seed ``s``, the same as in any number of worlds; without a seed the episode's
    seed comes from ``np_random``. Gymnasium's ``TimeLimit`` is not needed: episodes are truncated by the environment.

    Raises:
        ConfigError: an environment of several worlds, or a render mode other than ``rgb_array``.
    """

    def __init__(self, env: VecEnv, render_mode: str | None = None) -> None:
        if env.num_envs != 1:
            raise ConfigError(f"{env.num_envs} worlds; expected 1 (ToGymVector takes several)")
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(
                f"render_mode={render_mode!r}: expected None or 'rgb_array'; `visuomotor play` shows a task in a window"
            )
        self.env, self.render_mode = env, render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": env.fps}
        self.observation_space, self._single = _observation_space(env)
        self.action_space = _action_space(env)
        self._active = torch.ones(1, dtype=torch.bool, device=env.device)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the episode of ``seed``."""
        super().reset(seed=seed)
        if options:
            raise ConfigError(f"reset options {sorted(options)} are not known here; expected none")
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        return self._first(self.env.reset(seeds=[chosen])), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One control step; an episode that has ended must be reset."""
        batch = torch.as_tensor(np.asarray(action)[None], device=self.env.device).view(1, -1)
        s = self.env.advance(batch, self._active)
        info = {k: v[0].item() if v.ndim == 1 else v[0].cpu().numpy() for k, v in s.info.items()}
        return self._first(s.obs), float(s.reward[0]), bool(s.terminated[0]), bool(s.truncated[0]), info

    def render(self) -> np.ndarray | None:
        """Picture ``[H, W, 3]`` uint8; None without a render mode."""
        return None if self.render_mode is None else self.env.render(0)

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()

    def _first(self, obs: Obs) -> Any:
        arrays = {k: v[0].cpu().numpy() for k, v in obs.items()}
        return arrays if self._single is None else arrays[self._single]


class ToGymVector(VectorEnv[Any, Any, Any]):
    """Gymnasium's vector interface over ``env``, in numpy, for libraries that train on it.

    One observation array gives a Box space, several give a Dict. A world that ends is reset within the same step:
    ``infos["final_obs"]`` (object array, one observation a world) and ``infos["final_info"]`` then hold what the step
    itself gave, marked by ``infos["_final_obs"]`` and ``infos["_final_info"]``; other infos carry a mask ``_name``
    too. Only of worlds that go on: the contract gives no infos of a reset.
    """

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.metadata = {
            "autoreset_mode": AutoresetMode.SAME_STEP,
            "render_modes": ["rgb_array"],
            "render_fps": env.fps,
        }
        self.render_mode = "rgb_array"
        self.single_observation_space, self._single = _observation_space(env)
        self.single_action_space = _action_space(env)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset every world; an integer ``seed`` gives world ``i`` the seed ``seed + i``."""
        if options:
            raise ConfigError(f"reset options {sorted(options)} are not known here; expected none")
        seeds = [int(seed) + i for i in range(self.num_envs)] if isinstance(seed, (int, np.integer)) else seed
        return self._numpy(self.env.reset(seeds=seeds)), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every world, ``actions [N, ...]``; rewards are float64 ``[N]``, as Gymnasium's own."""
        action = torch.as_tensor(np.asarray(actions), device=self.env.device).view(self.num_envs, -1)
        s = self.env.step(action)
        terminated, truncated = s.terminated.cpu().numpy(), s.truncated.cpu().numpy()
        ended = terminated | truncated
        info = {k: v.cpu().numpy() for k, v in s.info.items()}
        infos = _masked(info, ~ended) if not ended.all() else {}
        if ended.any():
            infos["final_obs"], infos["_final_obs"] = self._per_world(self._numpy(s.final_obs), ended), ended
            infos["final_info"], infos["_final_info"] = _masked(info, ended), ended.copy()
        return self._numpy(s.obs), s.reward.cpu().numpy().astype(np.float64), terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...]:
        """One picture a world."""
        return tuple(self.env.render(i) for i in range(self.num_envs))

    def close_extras(self) -> None:
        """Close the wrapped environment."""
        self.env.close()

    def _numpy(self, obs: Obs) -> Any:
        arrays = {k: v.cpu().numpy() for k, v in obs.items()}
        return arrays if self._single is None else arrays[self._single]

    def _per_world(self, obs: Any, ended: np.ndarray) -> np.ndarray:
        out = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(ended):
            out[i] = {k: v[i] for k, v in obs.items()} if isinstance(obs, dict) else obs[i]
        return out


def _masked(info: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for k, v in info.items():
        shaped = mask.reshape(-1, *[1] * (v.ndim - 1))
        out[k], out[f"_{k}"] = np.where(shaped, v, np.zeros_like(v)), mask.copy()
    return out


def _observation_space(env: VecEnv) -> tuple[gym.Space[Any], str | None]:
    """Its space, and the key of the observation if there is only one: that is a Box, not a Dict."""
    boxes: dict[str, gym.Space[Any]] = {k: _box(s) for k, s in env.obs_spec.items()}
    single = next(iter(boxes)) if len(boxes) == 1 else None
    return (gym.spaces.Dict(boxes), None) if single is None else (boxes[single], single)


def _box(spec: ArraySpec) -> gym.spaces.Box:
    dtype = np.dtype(spec.dtype)
    if np.issubdtype(dtype, np.floating):
        return gym.spaces.Box(-np.inf, np.inf, spec.shape, dtype.type)
    low, high = (0, 1) if dtype == np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return gym.spaces.Box(low, high, spec.shape, dtype.type)


def _action_space(env: VecEnv) -> gym.Space[Any]:
    low, high = env.action_low.cpu().numpy(), env.action_high.cpu().numpy()
    if np.issubdtype(np.dtype(env.action_spec.dtype), np.integer):
        return gym.spaces.Discrete(int(high[0] - low[0]) + 1, start=int(low[0]))
    return gym.spaces.Box(low, high, dtype=np.float32)
