"""Goals and texts for acting: where they come from, and how an environment hands them to a policy."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visuomotor.data.batches import goal_key, is_goal
from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.ingest import plan_array, read_steps
from visuomotor.data.parts import PartConfig
from visuomotor.data.store import DemoStore
from visuomotor.data.texts import encode_texts
from visuomotor.envs.base import Obs, Step, VecEnv
from visuomotor.policies.draws import mix_seed
from visuomotor.policies.spec import PolicySpec

__all__ = ["GoalEnv", "GoalTable", "load_goals"]

_MOST = 256
_GOAL_STREAM = 0x60A1  # so that goals are not drawn from the numbers that the noise is drawn from


@dataclass(frozen=True)
class GoalTable:
    """Goals and texts to choose from; what stands in one row belongs together."""

    values: Mapping[str, Tensor]  # {"goal/<key>" or text key: [n, ...]}, raw units

    def __post_init__(self) -> None:
        sizes = {k: len(v) for k, v in self.values.items()}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise ConfigError(f"goals of different number: {sizes}; expected the same, at least one")

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    @classmethod
    def from_store(cls, store: DemoStore, spec: PolicySpec, *, texts: bool = True) -> GoalTable:
        """The last step of up to 256 episodes, evenly spaced, with their ``texts`` if wanted.

        Raises:
            DataError: the store lacks an array or column, or has it in another shape or type.
        """
        last = [int(end) - 1 for end in store.episode_ends]
        chosen = np.unique(np.linspace(0, len(last) - 1, min(len(last), _MOST)).astype(int))
        values: dict[str, Tensor] = {}
        for key in sorted(spec.constant_keys):
            if not is_goal(key):
                if texts:
                    values[key] = _column(store, key, chosen, spec.obs[key].shape[0])
                continue
            name = key.removeprefix("goal/")
            store.require([name])
            rows = read_steps(store, plan_array(name, store.specs[name], store.n_steps), [last[e] for e in chosen])
            values[key] = _conform(key, rows, spec, store.path)
        return cls(values)

    @classmethod
    def from_npz(cls, path: str | Path, spec: PolicySpec) -> GoalTable:
        """Goals from a file of arrays ``<key>`` or ``goal/<key>``, each ``[...]`` or ``[n, ...]``.

        Raises:
            DataError: the file cannot be read, or an array is missing or has another shape or type than the goal.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                given = {goal_key(k.removeprefix("goal/")): file[k] for k in file.files}
        except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as e:
            raise DataError(f"{path} cannot be read as an npz file of arrays: {e}") from None
        values = {}
        for key in sorted(k for k in spec.constant_keys if is_goal(k)):
            if key not in given:
                raise DataError(f"{path} has no goal {key!r}. {nearest(key, given)}")
            values[key] = _conform(key, given[key], spec, path)
        return cls(values)

    def with_text(self, text: str, spec: PolicySpec) -> GoalTable:
        """The same goals with ``text`` for every text that the policy reads.

        Raises:
            ConfigError: the policy reads no text.
            DataError: a text that is too long.
        """
        keys = [k for k in spec.constant_keys if not is_goal(k)]
        if not keys:
            raise ConfigError(f"the policy reads no text, but was given {text!r}")
        n = len(self) if self.values else 1
        return GoalTable(
            {**self.values, **{k: _text(text, spec.obs[k].shape[0]).expand(n, -1).contiguous() for k in keys}}
        )

    def rows(self, seeds: Sequence[int]) -> Tensor:
        """Row of each episode, int64 ``[N]``, as a function of the episode's seed."""
        return torch.tensor([mix_seed(seed, _GOAL_STREAM) % len(self) for seed in seeds])


def load_goals(
    spec: PolicySpec, source: str | Path, text: str | None = None, parts: Mapping[str, PartConfig] | None = None
) -> GoalTable | None:
    """Goals and texts for a policy; None if it reads neither.

    Args:
        spec: of the policy.
        source: a store of demonstrations, or an ``.npz`` file (see :meth:`GoalTable.from_npz`).
        text: the text for every episode instead of those in the store.
        parts: components of its arrays that the policy knows under names of their own.

    Raises:
        DataError: nothing usable is at ``source``.
        ConfigError: a text for a policy that reads none.
    """
    if not spec.constant_keys and text is None:
        return None
    if all(not is_goal(k) for k in spec.constant_keys) and text is not None:
        return GoalTable({}).with_text(text, spec)
    if Path(source).suffix == ".npz":
        table = GoalTable.from_npz(source, spec)
    else:
        with DemoStore.open(source) as store:
            for name, part in (parts or {}).items():
                if goal_key(name) in spec.constant_keys:  # a store of goals need not hold what others are made of
                    store.add_part(name, part)
            table = GoalTable.from_store(store, spec, texts=text is None)
    return table if text is None else table.with_text(text, spec)


def _column(store: DemoStore, name: str, episodes: NDArray[np.int64], length: int) -> Tensor:
    columns = store.episode_columns
    if name not in columns:
        raise DataError(f"{store.path} has no column meta/{name}. {nearest(name, columns)}")
    return torch.from_numpy(encode_texts([columns[name][e] for e in episodes], length))


def _text(text: str, length: int) -> Tensor:
    return torch.from_numpy(encode_texts([text], length))


def _conform(key: str, value: NDArray[np.generic], spec: PolicySpec, path: str | Path) -> Tensor:
    wanted = spec.obs[key]
    value = value[None] if value.shape == wanted.shape else value
    if value.shape[1:] != wanted.shape:
        raise DataError(f"{path}: goal {key!r} has shape {value.shape}: expected {wanted.shape}, or [n] of these")
    if (wanted.dtype == "uint8") != (value.dtype == np.uint8) or value.dtype.kind not in "biuf":
        raise DataError(f"{path}: goal {key!r} holds {value.dtype}: expected {wanted.dtype}")
    tensor = torch.from_numpy(value.astype(wanted.dtype))
    if not bool(torch.isfinite(tensor).all()):
        raise DataError(f"{path}: goal {key!r} holds NaN or infinity")
    return tensor


class GoalEnv(VecEnv):
    """An environment whose observations also hold the episode's goal and texts, chosen by the episode's seed.

    Args:
        env: the environment; what it provides itself of goals and texts stays.
        table: the goals to choose from.
        spec: of the policy.

    Raises:
        ConfigError: the table lacks a goal or text that the policy reads and the environment does not give.
    """

    def __init__(self, env: VecEnv, table: GoalTable, spec: PolicySpec) -> None:
        self._env = env
        supplied = sorted(k for k in spec.constant_keys if k not in env.obs_spec)
        missing = [k for k in supplied if k not in table.values]
        if missing:
            raise ConfigError(
                f"the policy reads {missing[0]!r}, which was not given. {nearest(missing[0], table.values)}"
            )
        self._table = replace(table, values={k: table.values[k].to(env.device) for k in supplied})
        self.num_envs, self.device, self.fps = env.num_envs, env.device, env.fps
        self.obs_spec = {**env.obs_spec, **{k: spec.obs[k] for k in supplied}}
        self.action_spec, self.max_episode_steps = env.action_spec, env.max_episode_steps
        self.action_low, self.action_high = env.action_low, env.action_high
        self._seeds = list(range(env.num_envs))
        self._rows = table.rows(self._seeds).to(env.device)

    def reset(self, *, seeds: Sequence[int] | None = None, mask: Tensor | None = None) -> Obs:
        which = range(self.num_envs) if mask is None else mask.nonzero().flatten().tolist()
        obs = self._env.reset(seeds=seeds, mask=mask)
        for i in which:
            self._seeds[i] = mix_seed(self._seeds[i], 1) if seeds is None else int(seeds[i])
        self._rows = self._table.rows(self._seeds).to(self.device)
        return self._with_goal(obs)

    def advance(self, action: Tensor, active: Tensor) -> Step:
        step = self._env.advance(action, active)
        return replace(step, obs=self._with_goal(step.obs), final_obs=self._with_goal(step.final_obs))

    def render(self, index: int) -> np.ndarray:
        return self._env.render(index)

    def close(self) -> None:
        self._env.close()

    def _with_goal(self, obs: Obs) -> Obs:
        return {**obs, **{k: v[self._rows] for k, v in self._table.values.items()}}
