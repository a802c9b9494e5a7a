"""Several chunks for one observation, and what the best of them is.

Coherence with the chunk before (Liu et al. 2025, "Bidirectional Decoding", arXiv:2408.17355), likelihood to another
policy, or a value function of another package (V-GPS, Nakamoto et al. 2024, arXiv:2410.13816).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Head
from visuomotor.policies.execution.planner import ChunkPolicy, Previous
from visuomotor.policies.policy import Policy

__all__ = ["Coherence", "Likelihood", "Value", "value_functions"]

_GROUP = "visuomotor.values"
_DECAY = 0.5  # of BID's published settings


class Coherence:
    """The less a chunk differs from what the previous one still had to say, the better; nearer steps count more.

    ``-sum_i 0.5^i |a_i - a'_i|^2`` over the steps that both have, in normalised units (BID, eq. 5).

    Args:
        policy: whose chunks are compared.
        n_exec: control steps from one chunk to the next.
    """

    def __init__(self, policy: ChunkPolicy, *, n_exec: int) -> None:
        window = policy.spec.window
        self._policy, self._first = policy, window.n_obs - 1
        overlap = window.horizon - self._first - n_exec
        if overlap < 1:
            raise ConfigError(
                f"rank_by=coherence with n_exec={n_exec}: the previous chunk ends where the next begins, so there is "
                "nothing to compare; execute fewer steps"
            )
        self._weight = _DECAY ** torch.arange(overlap, device=policy.device)

    def __call__(self, obs: Mapping[str, Tensor], chunks: Tensor, previous: Previous) -> Tensor:
        b, k = chunks.shape[:2]
        steps = slice(self._first, self._first + len(self._weight))
        each = torch.arange(b, device=chunks.device).repeat_interleave(k)
        again = {key: v[each] for key, v in obs.items()}
        new = self._policy.normalize_action(chunks.flatten(0, 1), again).unflatten(0, (b, k))
        old = self._policy.normalize_action(previous.chunk, obs)[:, None]
        distance = (new - old)[:, :, steps].square().sum(-1)  # [B, K, overlap]
        return -(distance * self._weight).sum(-1) * previous.exists[:, None]


class Likelihood:
    """The likelier a chunk is to another policy (its density or energy), the better.

    Args:
        judge: the other policy, in eval mode.
        policy: whose chunks are compared.

    Raises:
        ConfigError: policies for other observations or actions, or a judge without a density or energy.
    """

    def __init__(self, judge: Policy, policy: ChunkPolicy) -> None:
        if type(judge.head).uncertainty is Head.uncertainty:
            raise ConfigError(
                f"rank_by: {type(judge.head).__name__} has no density or energy to rank chunks by; train a Gaussian, "
                "GMM, CARP or energy-based policy for that"
            )
        mine, theirs = judge.spec, policy.spec
        missing = sorted(set(mine.obs) - set(theirs.obs))
        if missing:
            raise ConfigError(f"rank_by: the judge observes {missing[0]!r}, which the acting policy does not")
        ours, other = (mine.window.n_obs, mine.window.horizon), (theirs.window.n_obs, theirs.window.horizon)
        if ours != other or mine.action != theirs.action:
            raise ConfigError(
                f"rank_by: the judge was trained on chunks of (n_obs, horizon) = {ours} of the action {mine.action}, "
                f"the acting policy on {other} of {theirs.action}"
            )
        self._judge = judge

    def __call__(self, obs: Mapping[str, Tensor], chunks: Tensor, previous: Previous) -> Tensor:
        b, k = chunks.shape[:2]
        each = torch.arange(b, device=chunks.device).repeat_interleave(k)
        again = {key: obs[key][each] for key in self._judge.spec.obs}
        return -self._judge.uncertainty(again, chunks.flatten(0, 1)).unflatten(0, (b, k))


class Value:
    """A value function of another package: ``function({key: [B, To, ...]}, chunks [B, K, H, Da]) -> [B, K]``."""

    def __init__(self, name: str, function: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> None:
        self._name, self._function = name, function

    def __call__(self, obs: Mapping[str, Tensor], chunks: Tensor, previous: Previous) -> Tensor:
        value = self._function(obs, chunks)
        if not isinstance(value, Tensor):
            raise ConfigError(f"rank_by={self._name} returned a {type(value).__name__}: expected a tensor [B, K]")
        return value


def value_functions() -> dict[str, Any]:
    """Entry points of the group ``visuomotor.values`` by name; each is the function that :class:`Value` calls."""
    return {point.name: point for point in entry_points(group=_GROUP)}
