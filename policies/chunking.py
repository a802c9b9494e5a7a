"""Executing chunks: which action of which chunk each world runs now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import mix_seed
from visuomotor.policies.policy import Policy

__all__ = ["RecedingHorizon"]

_BLOCK = 16


class RecedingHorizon:
    """Observe ``n_obs`` steps, predict ``horizon``, execute ``n_exec`` from the present one on, predict again.

    Keeps the observation history, the chunk and the place in it for every world, so worlds may start and end at any
    time; evaluation and robot use the same object. The noise of a world is a function of its episode's seed and of how
    often it has planned: an episode does not depend on its neighbours.

    Args:
        policy: the policy; it is left as it is (put it in ``eval`` mode first).
        num_envs: ``N`` worlds.
        n_exec: executed steps of each chunk; None takes the policy's own.
    """

    def __init__(self, policy: Policy, *, num_envs: int, n_exec: int | None = None) -> None:
        window = policy.spec.window
        self._policy, self._n = policy, num_envs
        self._n_obs, self._n_exec = window.n_obs, window.n_exec if n_exec is None else n_exec
        if not 1 <= self._n_exec <= window.horizon - window.n_obs + 1:
            raise ConfigError(
                f"n_exec={self._n_exec}: the policy predicts {window.horizon} steps from the first of {window.n_obs} "
                f"observed ones, so 1 to {window.horizon - window.n_obs + 1} can be executed"
            )
        self._history: dict[str, Tensor] = {}  # {key: [N, To, ...]}
        self._chunk = torch.zeros(num_envs, self._n_exec, policy.spec.action.size, device=policy.device)
        self._next = torch.full((num_envs,), self._n_exec)  # place in the chunk; n_exec asks for a new one
        self._fresh = torch.ones(num_envs, dtype=torch.bool)  # no observation of this episode yet
        self._seeds, self._plans = list(range(num_envs)), [0] * num_envs
        self._generator = torch.Generator()

    def reset(self, seeds: Sequence[int] | None = None, mask: Tensor | None = None) -> None:
        """Begin new episodes in the worlds of ``mask [N]`` (all without it), with one seed a world."""
        which = range(self._n) if mask is None else mask.nonzero().flatten().tolist()
        if seeds is not None and len(seeds) != self._n:
            raise ConfigError(f"{len(seeds)} seeds for {self._n} worlds: expected one each")
        for i in which:
            self._seeds[i] = int(seeds[i]) if seeds is not None else mix_seed(self._seeds[i], 1)
            self._plans[i] = 0
            self._next[i] = self._n_exec
            self._fresh[i] = True

    def act(self, obs: Mapping[str, Tensor], active: Tensor | None = None) -> Tensor:
        """The next action of every world, ``{key: [N, ...]} -> [N, Da]``. Nothing is planned outside ``active [N]``."""
        self._observe(obs)
        due = self._next >= self._n_exec
        if active is not None:
            due &= active.cpu()
        worlds = due.nonzero().flatten()
        if len(worlds):
            self._plan(worlds)
        action = self._chunk[torch.arange(self._n), self._next.clamp(max=self._n_exec - 1)]
        self._next += 1
        return action

    def _observe(self, obs: Mapping[str, Tensor]) -> None:
        device, fresh = self._policy.device, self._fresh
        for key in self._policy.spec.obs:
            now = obs[key].to(device)
            if key not in self._history:
                self._history[key] = now[:, None].repeat(1, self._n_obs, *[1] * (now.ndim - 1))
                continue
            rolled = torch.cat([self._history[key][:, 1:], now[:, None]], dim=1)
            # A new episode knows only its first observation: repeat it, as the windows of training do.
            first = fresh.to(device).view(-1, *[1] * now.ndim)
            self._history[key] = torch.where(first, now[:, None].expand_as(rolled), rolled)
        self._fresh = torch.zeros_like(fresh)

    def _plan(self, worlds: Tensor) -> None:
        shape = self._policy.noise_shape
        noise = torch.empty(len(worlds), *shape)
        for row, i in enumerate(worlds.tolist()):
            self._generator.manual_seed(mix_seed(self._seeds[i], self._plans[i]))
            noise[row] = torch.randn(shape, generator=self._generator)
            self._plans[i] += 1
        at = worlds.to(self._policy.device)
        if self._n > 1:  # whole blocks only: the rounding of a matrix product depends on the number of its rows
            fill = -len(at) % _BLOCK
            at_filled = torch.cat([at, at[:1].expand(fill)])
            noise = torch.cat([noise, noise[:1].expand(fill, *shape)])
        else:
            at_filled = at
        obs = {k: v[at_filled] for k, v in self._history.items()}
        chunk = self._policy.sample(obs, noise.to(self._policy.device))[: len(at)]
        present = self._n_obs - 1
        self._chunk[at] = chunk[:, present : present + self._n_exec]
        self._next[worlds] = 0
