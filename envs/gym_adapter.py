"""Gymnasium environments as a :class:`~visuomotor.envs.base.VecEnv`, in this process or in several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.base import Obs, Step, VecEnv
from visuomotor.envs.workers import RemoteWorlds, resolve_workers
from visuomotor.envs.worlds import (
    Field,
    MakeEnv,
    ScoreFn,
    Worlds,
    WorldsLike,
    action_spec_of,
    map_fields,
    obs_spec_of,
    probe,
)

__all__ = ["GymVecEnv", "WorldsVecEnv", "fields_of"]


class WorldsVecEnv(VecEnv):
    """``N`` worlds that exchange arrays (see :mod:`visuomotor.envs.worlds`), wherever they are stepped.

    Args:
        worlds: the worlds; closed with this object.
        num_envs, obs_spec, action_spec, action_low, action_high, fps, max_episode_steps: as in :class:`VecEnv`.
        info_names: the scalars of ``info`` that are carried.
        device: where the tensors are wanted.
    """

    def __init__(
        self,
        worlds: WorldsLike,
        *,
        num_envs: int,
        obs_spec: Mapping[str, ArraySpec],
        action_spec: ArraySpec,
        action_low: Tensor,
        action_high: Tensor,
        fps: float,
        max_episode_steps: int,
        info_names: Sequence[str],
        device: str | torch.device = "cpu",
    ) -> None:
        self.num_envs, self.device = num_envs, torch.device(device)
        self.obs_spec, self.action_spec = obs_spec, action_spec
        self.action_low, self.action_high = action_low.to(self.device), action_high.to(self.device)
        self.fps, self.max_episode_steps = fps, max_episode_steps
        self._worlds, self._info_names = worlds, list(info_names)
        self._ended = np.ones(num_envs, np.bool_)  # worlds that need a reset before they can step

    def reset(self, *, seeds: Sequence[int] | None = None, mask: Tensor | None = None) -> Obs:
        arrays = self._worlds.arrays
        if seeds is not None:
            if len(seeds) != self.num_envs:
                raise UserError(f"{len(seeds)} seeds for {self.num_envs} worlds; expected one a world")
            arrays["seed"][:] = seeds
        arrays["mask"][:] = True if mask is None else mask.cpu().numpy()
        self._worlds.reset(seeds is not None)
        self._ended &= ~arrays["mask"]
        return self._obs()

    def reset_one(self, index: int, options: dict[str, Any]) -> Obs:
        """Start a new episode in one world with Gymnasium's reset ``options``; returns all worlds' observations."""
        self._worlds.reset_one(index, options)
        self._ended[index] = False
        return self._obs()

    def advance(self, action: Tensor, active: Tensor) -> Step:
        arrays = self._worlds.arrays
        arrays["mask"][:] = active.cpu().numpy()
        arrays["action"][:] = action.detach().to("cpu").numpy()
        self._check(arrays["action"], arrays["mask"])
        self._worlds.advance()
        self._ended |= arrays["terminated"] | arrays["truncated"]
        obs = self._obs()
        reward, terminated, truncated = (self._tensor(arrays[k]) for k in ("reward", "terminated", "truncated"))
        info = {k: self._tensor(arrays[f"info/{k}"]) for k in self._info_names}
        return Step(obs, reward, terminated, truncated, obs, info)

    def render(self, index: int) -> np.ndarray:
        return self._worlds.render(index)

    def close(self) -> None:
        self._worlds.close()

    def _obs(self) -> Obs:
        return {k: self._tensor(self._worlds.arrays[f"obs/{k}"]) for k in self.obs_spec}

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.copy()).to(self.device)  # a copy: the next step writes into the same memory

    def _check(self, action: np.ndarray, active: np.ndarray) -> None:
        if (late := active & self._ended).any():
            raise UserError(f"world {int(late.argmax())} has no running episode: reset it before stepping it")
        bad = active & ~np.isfinite(action).all(1)
        if bad.any():
            i = int(bad.argmax())
            raise UserError(f"the action of world {i} is {action[i].tolist()}; expected finite numbers")


class GymVecEnv(WorldsVecEnv):
    """``N`` Gymnasium environments stepped side by side, with the same results for any number of workers.

    Observations: a Box gives one array named ``obs_key``; a Dict gives its keys. 64- and 16-bit floats become float32,
    integers (images: uint8) stay. Actions: a Box is flattened to ``[Da]``; Discrete is one integer component. Numeric
    scalars of ``info`` become float32 tensors (NaN where a step leaves one out; a name that neither the reset nor the
    first step of a probing episode reports is not carried); ``is_success`` or ``success`` becomes bool ``success``.

    Args:
        make_env: one factory a world. With workers it travels by cloudpickle, so a lambda will do.
        max_episode_steps: time limit; needed where the environment has none of its own, and the shorter one holds.
        fps: control steps per second; None takes the environment's ``metadata["render_fps"]``.
        workers: processes that share the worlds; 0 steps them here, -1 takes one process a core.
        score: ``(reward, info) -> float`` in 0..1; None takes ``info["score"]`` if there is one.
        obs_key: name for the array of a Box observation.
        obs_spec, action_spec: units and names to state; shapes and types must be the environment's.
        device: where the tensors are wanted.

    Raises:
        ConfigError: spaces that do not fit, a missing time limit or rate, or factories that cannot travel.
        EnvWorkerError: an environment failed in a worker (here an exception passes through as it is).
    """

    def __init__(
        self,
        make_env: Sequence[MakeEnv],
        *,
        max_episode_steps: int | None = None,
        fps: float | None = None,
        workers: int = 0,
        score: ScoreFn | None = None,
        obs_key: str = "state",
        obs_spec: Mapping[str, ArraySpec] | None = None,
        action_spec: ArraySpec | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if not make_env:
            raise ConfigError("no environment: make_env is empty; expected one factory a world")
        first = make_env[0]()
        try:
            found_obs = obs_spec_of(first.observation_space, obs_key)
            found_action, low, high = action_spec_of(first.action_space)
            own_limit = first.spec.max_episode_steps if first.spec is not None else None
            own_fps = first.metadata.get("render_fps")
            infos = probe(first)
        finally:
            first.close()
        n = len(make_env)
        specs = _agreed(obs_spec or found_obs, found_obs)
        action = _agreed({"action": action_spec or found_action}, {"action": found_action})["action"]
        rate = float(_first("fps", "a rate [Hz]", fps, own_fps))
        limits = [x for x in (max_episode_steps, own_limit) if x is not None]
        limit = int(_first("max_episode_steps", "a time limit", min(limits, default=None)))
        names = sorted({*infos, "score"} if score is not None else infos)
        fields = fields_of(specs, action, names)
        count = resolve_workers(workers, n)
        worlds: WorldsLike
        if count:
            worlds = RemoteWorlds(make_env, fields, count, max_episode_steps, score)
        else:
            worlds = Worlds(make_env, map_fields(fields, n)[0], max_episode_steps, score)
        super().__init__(
            worlds,
            num_envs=n,
            obs_spec=specs,
            action_spec=action,
            action_low=torch.from_numpy(low),
            action_high=torch.from_numpy(high),
            fps=rate,
            max_episode_steps=limit,
            info_names=names,
            device=device,
        )


def _first(name: str, what: str, *options: float | None) -> float:
    for option in options:
        if option is not None:
            return option
    raise ConfigError(f"the environment states no {name}; give {what} as {name}=")


def _agreed(stated: Mapping[str, ArraySpec], found: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """The stated specs, after checking that keys, shapes and types are those that the environment has."""

    def kinds(specs: Mapping[str, ArraySpec]) -> dict[str, tuple[tuple[int, ...], str]]:
        return {k: (s.shape, s.dtype) for k, s in specs.items()}

    if kinds(stated) != kinds(found):
        raise ConfigError(f"the spec states {kinds(stated)}, but the environment gives {kinds(found)}")
    return dict(stated)


def fields_of(obs: Mapping[str, ArraySpec], action: ArraySpec, infos: Sequence[str]) -> list[Field]:
    """The arrays that worlds with these specs exchange, one ``info/<name>`` for each of ``infos``."""
    scalars = {"mask": "bool", "seed": "int64", "reward": "float32", "terminated": "bool", "truncated": "bool"}
    fields = [Field(name=f"obs/{k}", shape=s.shape, dtype=s.dtype) for k, s in obs.items()]
    fields.append(Field(name="action", shape=action.shape, dtype=action.dtype))
    fields += [Field(name=k, shape=(), dtype=t) for k, t in scalars.items()]
    return fields + [Field(name=f"info/{k}", shape=(), dtype="bool" if k == "success" else "float32") for k in infos]
