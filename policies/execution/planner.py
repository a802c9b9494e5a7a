"""Asking a policy for chunks: histories of observations and the noise of every world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Head
from visuomotor.policies.conditioned import Prefix
from visuomotor.policies.draws import mix_seed
from visuomotor.policies.iterative import Guide, WarmStart
from visuomotor.policies.policy import LossConfig
from visuomotor.policies.spec import PolicySpec

__all__ = ["ChunkPolicy", "Planner", "Previous", "Ranker", "Sampler"]

_BLOCK = 16


class ChunkPolicy(Protocol):
    """What execution asks of a policy: a ``Policy``, or several of them composed."""

    @property
    def spec(self) -> PolicySpec: ...
    @property
    def head(self) -> Head: ...
    @property
    def loss_config(self) -> LossConfig: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def noise_shape(self) -> tuple[int, int, int]: ...
    def sample(
        self, obs: Mapping[str, Tensor], noise: Tensor, *, prefix: Prefix | None = None, guide: Guide | None = None,
        start: WarmStart | None = None,
    ) -> Tensor: ...  # fmt: skip
    def normalize_action(self, action: Tensor, obs: Mapping[str, Tensor]) -> Tensor: ...
    def unnormalize_action(self, chunk: Tensor, obs: Mapping[str, Tensor]) -> Tensor: ...


class Previous(NamedTuple):
    """What a world has executed and would go on executing, on the time axis of the chunk that is asked for now.

    Up to the present it holds what was executed, from the present on the current chunk, whose last action is repeated
    where it ends.
    """

    chunk: Tensor  # [B, H, Da], raw
    exists: Tensor  # [B] bool; False at the beginning of an episode

    def at(self, rows: Tensor) -> Previous:
        """The given rows."""
        return Previous(self.chunk[rows], self.exists[rows])


class Sampler(Protocol):
    """How a chunk is made."""

    def __call__(self, obs: Mapping[str, Tensor], noise: Tensor, previous: Previous) -> Tensor:
        """``{key: [B, To, ...]}``, ``noise [B, M, H, Da]`` to chunks ``[B, H, Da]`` in raw units."""


class Ranker(Protocol):
    """How several chunks for the same observation are compared."""

    def __call__(self, obs: Mapping[str, Tensor], chunks: Tensor, previous: Previous) -> Tensor:
        """``{key: [B, To, ...]}``, raw ``chunks [B, K, H, Da]`` to values ``[B, K]``, larger is better."""


class Planner:
    """Keeps the observation history and the noise of every world, and asks the policy for chunks.

    The noise of a world is a function of its episode's seed and of how often it has planned: an episode does not depend
    on its neighbours.

    Args:
        policy: the policy; it is left as it is (put it in ``eval`` mode first).
        num_envs: ``N`` worlds.
        sampler: how a chunk is made.
        candidates: ``K`` chunks that are made for each world.
        ranker: which of them is taken; needed for more than one.
    """

    def __init__(
        self, policy: ChunkPolicy, *, num_envs: int, sampler: Sampler, candidates: int = 1, ranker: Ranker | None = None
    ) -> None:
        if candidates < 1 or (candidates > 1) != (ranker is not None):
            raise ConfigError(
                f"candidates={candidates} {'with' if ranker else 'without'} rank_by: several chunks need something to "
                "choose among them by, and one chunk needs nothing"
            )
        self.spec, self.device, self.num_envs = policy.spec, policy.device, num_envs
        self._noise_shape, self._sampler = policy.noise_shape, sampler
        self._k, self._ranker = candidates, ranker
        self._history: dict[str, Tensor] = {}  # {key: [N, To, ...]}
        self._fresh = torch.ones(num_envs, dtype=torch.bool)  # no observation of this episode yet
        self._seeds, self._plans = list(range(num_envs)), [0] * num_envs
        self._generator = torch.Generator()

    def reset(self, seeds: Sequence[int] | None = None, mask: Tensor | None = None) -> Tensor:
        """Begin new episodes in the worlds of ``mask [N]`` (all without it), with one seed a world; their indices."""
        n = self.num_envs
        which = torch.arange(n) if mask is None else mask.cpu().nonzero().flatten()
        if seeds is not None and len(seeds) != n:
            raise ConfigError(f"{len(seeds)} seeds for {n} worlds: expected one each")
        for i in which.tolist():
            self._seeds[i] = int(seeds[i]) if seeds is not None else mix_seed(self._seeds[i], 1)
            self._plans[i] = 0
        self._fresh[which] = True
        return which

    def observe(self, obs: Mapping[str, Tensor]) -> None:
        """Take what every world observes now, ``{key: [N, ...]}``, into its history."""
        fresh = self._fresh
        for key in self.spec.obs:
            now = obs[key].to(self.device)
            n_obs = 1 if key in self.spec.constant_keys else self.spec.window.n_obs
            if key not in self._history:
                self._history[key] = now[:, None].repeat(1, n_obs, *[1] * (now.ndim - 1))
                continue
            rolled = torch.cat([self._history[key][:, 1:], now[:, None]], dim=1)
            # A new episode knows only its first observation: repeat it, as the windows of training do.
            first = fresh.to(self.device).view(-1, *[1] * now.ndim)
            self._history[key] = torch.where(first, now[:, None].expand_as(rolled), rolled)
        self._fresh = torch.zeros_like(fresh)

    def plan(self, worlds: Tensor, previous: Previous) -> Tensor:
        """New chunks ``[n, H, Da]`` (raw) for ``worlds [n]``; ``previous`` has a row for each."""
        n, k = len(worlds), self._k
        rows = torch.arange(n)
        if self.num_envs > 1:  # whole blocks only: the rounding of a matrix product depends on the number of its rows
            rows = torch.cat([rows, rows.new_zeros(-n % _BLOCK)])
        at = worlds[rows].to(self.device)
        obs = {key: v[at] for key, v in self._history.items()}
        noise = self._noise(worlds)[rows].to(self.device)  # [n', K, M, H, Da]
        before = previous.at(rows.to(self.device))
        if self._ranker is None:
            return self._sampler(obs, noise[:, 0], before)[:n]
        each = torch.arange(len(rows), device=self.device).repeat_interleave(k)
        chunks = self._sampler({key: v[each] for key, v in obs.items()}, noise.flatten(0, 1), before.at(each))
        chunks = chunks.unflatten(0, (len(rows), k))
        value = self._ranker(obs, chunks, before)
        if value.shape != (len(rows), k) or not bool(torch.isfinite(value).all()):
            raise ConfigError(
                f"rank_by: values of shape {tuple(value.shape)} for {len(rows)} worlds with {k} chunks each: expected "
                f"one finite value a chunk, {(len(rows), k)}"
            )
        return chunks[torch.arange(len(rows), device=self.device), value.to(self.device).argmax(1)][:n]

    def _noise(self, worlds: Tensor) -> Tensor:
        """``[n, K, M, H, Da]``; the first of the candidates is what a single one would be."""
        noise = torch.empty(len(worlds), self._k, *self._noise_shape)
        for row, i in enumerate(worlds.tolist()):
            for j in range(self._k):
                part = (self._seeds[i], self._plans[i], j) if j else (self._seeds[i], self._plans[i])
                self._generator.manual_seed(mix_seed(*part))
                noise[row, j] = torch.randn(self._noise_shape, generator=self._generator)
            self._plans[i] += 1
        return noise
