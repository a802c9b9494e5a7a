"""Gymnasium environments behind flat arrays: what a worker process runs. Imports without torch.

A :class:`Worlds` owns a few environments and exchanges everything but rare requests through arrays ``[n, ...]`` that
the caller may share between processes: it reads ``action``, ``mask`` and ``seed`` and writes the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.data.spec import ArraySpec

__all__ = [
    "Arrays",
    "Field",
    "MakeEnv",
    "ScoreFn",
    "Worlds",
    "WorldsLike",
    "action_spec_of",
    "map_fields",
    "obs_spec_of",
    "probe",
]

Arrays = dict[str, np.ndarray]
MakeEnv = Callable[[], gym.Env[Any, Any]]
ScoreFn = Callable[[float, Mapping[str, Any]], float]

_ALIGN = 64  # bytes; a cache line, so that two workers never write into one


@dataclass(frozen=True, kw_only=True)
class Field:
    """One exchanged array: ``[n, *shape]`` of ``dtype``."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def map_fields(fields: Sequence[Field], n: int, buffer: Any = None) -> tuple[Arrays, int]:
    """Lay the fields for ``n`` worlds out in ``buffer`` (or in fresh zeroed memory); also return the bytes needed."""
    offsets, end = [], 0
    for f in fields:
        offsets.append(end)
        size = n * int(np.prod(f.shape, dtype=np.int64)) * np.dtype(f.dtype).itemsize
        end += -(-size // _ALIGN) * _ALIGN
    memory = bytearray(end) if buffer is None else buffer
    arrays = {f.name: np.ndarray((n, *f.shape), f.dtype, memory, o) for f, o in zip(fields, offsets, strict=True)}
    return arrays, end


def obs_spec_of(space: gym.Space[Any], key: str) -> dict[str, ArraySpec]:
    """Observation spec of a Box (under ``key``) or of a flat Dict of boxes; 64- and 16-bit floats become float32."""
    boxes = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {key: space}
    spec = {}
    for name, box in boxes.items():
        if not isinstance(box, gym.spaces.Box):
            raise ConfigError(
                f"observation {name!r} is a {type(box).__name__} space; expected Box, or one flat Dict of Box. "
                "Wrap the environment, e.g. in gymnasium.wrappers.FlattenObservation."
            )
        dtype = "float32" if np.issubdtype(box.dtype, np.floating) else np.dtype(box.dtype).name
        spec[name] = ArraySpec(shape=box.shape, dtype=dtype, role="observation")
    return spec


def action_spec_of(space: gym.Space[Any]) -> tuple[ArraySpec, np.ndarray, np.ndarray]:
    """Action spec ``[Da]`` with its lower and upper bounds; a Discrete space is one integer component."""
    if isinstance(space, gym.spaces.Discrete):
        low = np.array([space.start], np.float32)
        return ArraySpec(shape=(1,), dtype="int64", role="action"), low, low + np.float32(space.n - 1)
    if isinstance(space, gym.spaces.Box):
        spec = ArraySpec(shape=(int(np.prod(space.shape)),), dtype="float32", role="action")
        return spec, space.low.astype(np.float32).ravel(), space.high.astype(np.float32).ravel()
    raise ConfigError(f"the action space is {type(space).__name__}; expected Box or Discrete")


def probe(env: gym.Env[Any, Any]) -> tuple[str, ...]:
    """Names of the numeric scalars that the environment reports in ``info``, seen at a reset and one step."""
    env.action_space.seed(0)
    _, at_reset = env.reset(seed=0)
    at_step = env.step(env.action_space.sample())[4]
    merged = {**at_reset, **at_step}
    scalar = (bool, int, float, np.number, np.bool_)
    named = {k for k, v in merged.items() if isinstance(v, scalar) or (isinstance(v, np.ndarray) and v.ndim == 0)}
    return tuple(sorted({"success" if k == "is_success" else k for k in named}))


class WorldsLike(Protocol):
    """What :class:`GymVecEnv` needs, whether the environments live here or in other processes."""

    arrays: Arrays

    def reset(self, seeded: bool) -> None: ...
    def advance(self) -> None: ...
    def reset_one(self, index: int, options: dict[str, Any]) -> None: ...
    def render(self, index: int) -> np.ndarray: ...
    def close(self) -> None: ...


class Worlds:
    """Environments stepped one after another in this process; see the module for the arrays.

    Args:
        make_env: one factory a world.
        arrays: ``action mask seed reward terminated truncated``, ``obs/<key>`` and ``info/<name>``, all ``[n, ...]``.
        limit: steps after which an episode is truncated here; None leaves it to the environment.
        score: gives ``info/score`` from reward and info; None takes ``info["score"]``.
    """

    def __init__(self, make_env: Sequence[MakeEnv], arrays: Arrays, limit: int | None, score: ScoreFn | None) -> None:
        self.arrays = arrays
        self._envs = [make() for make in make_env]
        self._limit, self._score = limit, score
        self._obs = {k[4:]: a for k, a in arrays.items() if k.startswith("obs/")}
        self._info = {k[5:]: a for k, a in arrays.items() if k.startswith("info/")}
        self._elapsed = [0] * len(self._envs)
        space = self._envs[0].action_space
        self._discrete = isinstance(space, gym.spaces.Discrete)
        self._action_shape, self._action_dtype = space.shape, space.dtype
        self._single = None if isinstance(self._envs[0].observation_space, gym.spaces.Dict) else next(iter(self._obs))

    def reset(self, seeded: bool) -> None:
        """Start new episodes in the worlds of ``mask``, from ``seed`` if ``seeded``."""
        for i in np.flatnonzero(self.arrays["mask"]).tolist():
            obs, info = self._envs[i].reset(seed=int(self.arrays["seed"][i]) if seeded else None)
            self._begin(i, obs, info)

    def reset_one(self, index: int, options: dict[str, Any]) -> None:
        """Start a new episode in one world with Gymnasium's reset ``options``."""
        obs, info = self._envs[index].reset(options=options)
        self._begin(index, obs, info)

    def advance(self) -> None:
        """One control step in the worlds of ``mask``."""
        a = self.arrays
        a["reward"].fill(0.0)
        a["terminated"].fill(False)
        a["truncated"].fill(False)
        for i in np.flatnonzero(a["mask"]).tolist():
            obs, reward, terminated, truncated, info = self._envs[i].step(self._action(i))
            self._elapsed[i] += 1
            a["reward"][i], a["terminated"][i] = reward, terminated
            a["truncated"][i] = truncated or self._elapsed[i] == self._limit
            self._write_obs(i, obs)
            self._write_info(i, float(reward), info)

    def render(self, index: int) -> np.ndarray:
        """Picture of one world: uint8 ``[H, W, 3]``. Raises UserError if it was made without ``rgb_array``."""
        frame = self._envs[index].render()
        if not isinstance(frame, np.ndarray):
            raise UserError(
                f"render() gave {type(frame).__name__}; expected a picture. "
                'Make the environment with render_mode="rgb_array".'
            )
        return np.ascontiguousarray(frame, dtype=np.uint8)

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _begin(self, i: int, obs: Any, info: Mapping[str, Any]) -> None:
        self._elapsed[i] = 0
        self._write_obs(i, obs)
        self._write_info(i, 0.0, info)

    def _action(self, i: int) -> Any:
        row = self.arrays["action"][i]
        if self._discrete:
            return int(row[0])
        return row.astype(self._action_dtype).reshape(self._action_shape)  # a copy: environments may keep it

    def _write_obs(self, i: int, obs: Any) -> None:
        if self._single is not None:
            self._obs[self._single][i] = obs
        else:
            for k, a in self._obs.items():
                a[i] = obs[k]

    def _write_info(self, i: int, reward: float, info: Mapping[str, Any]) -> None:
        for k, a in self._info.items():
            if k == "success":
                a[i] = bool(info.get("is_success", info.get("success", False)))
            elif k == "score" and self._score is not None:
                a[i] = self._score(reward, info)
            else:
                a[i] = info.get(k, np.nan)  # a scalar the environment leaves out of some steps
