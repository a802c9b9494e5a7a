"""Training batches straight from the flat cache: one index gather a key, no workers, no work per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visuomotor.data.cache import TrainingCache
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.windows import WindowTable

__all__ = ["GOAL_STRATEGIES", "Batch", "BatchSource", "concat", "goal_key", "is_goal"]

GOAL_STRATEGIES = ("final", "future")
_GOLDEN = 0.6180339887498949  # fractional parts of its multiples fill [0, 1) evenly


def goal_key(key: str) -> str:
    """Name under which a batch and a policy hold the goal that ``key`` shall reach."""
    return f"goal/{key}"


def is_goal(key: str) -> bool:
    """Whether ``key`` is a name that :func:`goal_key` gave."""
    return key.startswith("goal/")


@dataclass(frozen=True)
class Batch:
    """``B`` windows. Low-dimensional arrays are float32, images uint8, both in the units of the store."""

    obs: dict[str, Tensor]  # {key: [B, To, ...]}; goals and what belongs to a whole episode: [B, 1, ...]
    action: Tensor  # [B, H, Da]
    is_pad: Tensor  # [B, H] bool, true where the step is a copy from the episode's edge
    action_mask: Tensor | None = None  # [B, Da] bool, false where the robot of this window has no such component

    def __len__(self) -> int:
        return len(self.action)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        obs = {k: v.to(device, non_blocking=True) for k, v in self.obs.items()}
        mask = None if self.action_mask is None else self.action_mask.to(device, non_blocking=True)
        return Batch(obs, self.action.to(device, non_blocking=True), self.is_pad.to(device, non_blocking=True), mask)


def concat(parts: Sequence[Batch]) -> Batch:
    """The windows of all ``parts``, which have the same keys, in order."""
    if len(parts) == 1:
        return parts[0]
    masks = [p.action_mask for p in parts if p.action_mask is not None]
    return Batch(
        {k: torch.cat([p.obs[k] for p in parts]) for k in parts[0].obs},
        torch.cat([p.action for p in parts]),
        torch.cat([p.is_pad for p in parts]),
        torch.cat(masks) if masks else None,
    )


class BatchSource:
    """An endless stream of batches in which batch ``step`` is a function of ``(seed, step)`` alone.

    The stream of samples is one permutation of all windows after another, a permutation an epoch; batch ``step`` is
    its next ``batch_size`` samples, so a batch may lie across two epochs and none is dropped. Ranks take adjacent
    slices of that global batch: the data seen does not depend on how many processes there are.

    Args:
        cache: the arrays, on any device; batches are born on that device.
        table: the windows, from :func:`~visuomotor.data.windows.window_table`.
        obs_keys: arrays read for the first ``n_obs`` steps of a window.
        action_key: array read for all ``horizon`` steps.
        n_obs: ``To``.
        horizon: ``H``.
        batch_size: global batch, over all ranks.
        seed: 0 or more.
        rank: this process.
        world_size: number of processes; must divide ``batch_size``.
        goal_keys: arrays of which a later step is the goal; in a batch they are ``goal/<key>``.
        goal_strategy: ``final``: the last step of the episode; ``future``: any step after the present, all equally
            likely (hindsight relabelling, Andrychowicz et al. 2017); at the last step, that one.
        episode_tables: ``{key: [E, ...]}``, observations that stay the same for a whole episode.
        order: another stream: ``order(step)`` gives the windows of a whole global batch, int64 ``[batch_size]``.
        action_masks: ``[E, Da]`` bool, the components of the action that the robot of an episode has.

    Raises:
        ConfigError: a key that the cache does not hold, or numbers that contradict each other.
    """

    def __init__(
        self,
        cache: TrainingCache,
        table: WindowTable,
        *,
        obs_keys: Sequence[str],
        action_key: str,
        n_obs: int,
        horizon: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        goal_keys: Sequence[str] = (),
        goal_strategy: str = "final",
        episode_tables: Mapping[str, Tensor] | None = None,
        order: Callable[[int], np.ndarray] | None = None,
        action_masks: Tensor | None = None,
    ) -> None:
        known = {**cache.arrays, **cache.rows}
        for key in (*obs_keys, *goal_keys, action_key):
            if key not in known:
                raise ConfigError(f"{key!r} is not in the training cache. {nearest(key, known)}")
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise ConfigError(
                f"batch_size={batch_size} over world_size={world_size} processes: expected a positive multiple"
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank={rank}: expected 0..{world_size - 1}")
        if seed < 0:
            raise ConfigError(f"seed={seed}: expected 0 or more")
        if not 1 <= n_obs <= horizon:
            raise ConfigError(f"n_obs={n_obs} and horizon={horizon}: expected 1 <= n_obs <= horizon")
        if goal_strategy not in GOAL_STRATEGIES:
            raise ConfigError(f"unknown goal strategy {goal_strategy!r}. {nearest(goal_strategy, GOAL_STRATEGIES)}")
        self._n_obs, self._batch_size, self._seed = n_obs, batch_size, seed
        self._local = batch_size // world_size
        self._first = rank * self._local
        device = cache.arrays[action_key].device
        # [T, values] views: index_select copies whole rows, five to ten times as fast as advanced indexing.
        stored = (*obs_keys, *goal_keys, action_key)
        self._flat = {k: cache.arrays[k].reshape(len(cache.arrays[k]), -1) for k in stored if k in cache.arrays}
        self._shape = {k: cache.arrays[k].shape[1:] for k in self._flat}
        self._elsewhere = {k: cache.rows[k] for k in stored if k in cache.rows}
        self._obs_keys, self._action_key = tuple(obs_keys), action_key
        self._start, self._ep_start, self._ep_stop = (
            torch.from_numpy(a).to(device)[:, None] for a in (table.start, table.ep_start, table.ep_stop)
        )
        self._goal_keys, self._goal_strategy = tuple(goal_keys), goal_strategy
        self._episode = torch.from_numpy(table.episode).to(device)
        self._window_episode = table.episode
        self._whole_order = order
        self._masks = None if action_masks is None else action_masks.to(device)
        self._tables = {k: v.to(device) for k, v in (episode_tables or {}).items()}
        self._offsets = torch.arange(horizon, device=device)[None]
        self._order: dict[int, np.ndarray] = {}  # permutations of the epochs in use

    def __len__(self) -> int:
        """Number of windows ``W``, the samples of an epoch."""
        return len(self._start)

    def batch(self, step: int) -> Batch:
        """This rank's part of global batch ``step`` (0 or more)."""
        return self.gather(self.window_indices(step), self._fraction(step))

    def _fraction(self, step: int) -> Tensor | None:
        if not self._goal_keys or self._goal_strategy != "future":
            return None
        whole = np.random.default_rng([self._seed, step, 1]).random(self._batch_size)
        return torch.from_numpy(whole[self._first : self._first + self._local])

    def window_indices(self, step: int) -> np.ndarray:
        """Windows of this rank's part of global batch ``step``: int64 ``[B]``."""
        if self._whole_order is not None:
            return self._whole_order(step)[self._first : self._first + self._local]
        first = step * self._batch_size + self._first
        position = np.arange(first, first + self._local)
        epoch = position // len(self)
        out = np.empty(self._local, np.int64)
        needed = range(int(epoch[0]), int(epoch[-1]) + 1)
        self._order = {e: self._order[e] if e in self._order else self._permutation(e) for e in needed}
        for e in needed:
            here = epoch == e
            out[here] = self._order[e][position[here] - e * len(self)]
        return out

    def gather(self, window_indices: np.ndarray | Tensor, fraction: Tensor | None = None) -> Batch:
        """The batch of the windows ``[B]``, int64.

        ``fraction [B]`` in [0, 1) tells where between the present and the end of the episode a ``future`` goal lies;
        None takes a number that is fixed for each window, so that evaluation always sees the same goals.
        """
        index, row, padded = self._rows(window_indices)
        obs_row = row[:, : self._n_obs]
        obs = {k: self._select(k, obs_row) for k in self._obs_keys}
        if self._goal_keys:
            goal_row = self._goal_row(index, obs_row[:, -1:], self._ep_stop[index] - 1, fraction)  # [B, 1]
            obs |= {goal_key(k): self._select(k, goal_row) for k in self._goal_keys}
        obs |= {k: v[self._episode[index]][:, None] for k, v in self._tables.items()}
        return Batch(obs, self._select(self._action_key, row), padded, self._mask(index))

    def gather_actions(self, window_indices: np.ndarray | Tensor, *, beside: str | None = None) -> Batch:
        """As :meth:`gather`, with no observation but ``beside``: passing over all windows must not read all images."""
        index, row, padded = self._rows(window_indices)
        obs = {} if beside is None else {beside: self._select(beside, row[:, : self._n_obs])}
        return Batch(obs, self._select(self._action_key, row), padded, self._mask(index))

    def _mask(self, index: Tensor) -> Tensor | None:
        return None if self._masks is None else self._masks[self._episode[index]]

    def _rows(self, window_indices: np.ndarray | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Index of the windows ``[B]``, their rows ``[B, H]``, and where these are copies of an episode's edge."""
        index = torch.as_tensor(window_indices, device=self._start.device)
        wanted = self._start[index] + self._offsets  # [B, H]
        first, stop = self._ep_start[index], self._ep_stop[index]
        row = torch.minimum(torch.maximum(wanted, first), stop - 1)
        return index, row, row != wanted

    def _goal_row(self, index: Tensor, present: Tensor, last: Tensor, fraction: Tensor | None) -> Tensor:
        if self._goal_strategy == "final":
            return last
        u = (index.double() * _GOLDEN).frac() if fraction is None else fraction.to(index.device)
        later = present + 1 + (u[:, None] * (last - present)).long()  # [B, 1], uniform over present + 1 .. last
        return torch.minimum(later, last)

    def _select(self, key: str, row: Tensor) -> Tensor:
        if key in self._elsewhere:
            rows = self._elsewhere[key]
            return rows.take(row.reshape(-1)).view(*row.shape, *rows.shape)
        values = torch.index_select(self._flat[key], 0, row.reshape(-1))
        return values.view(*row.shape, *self._shape[key])

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self))
