"""The likelihood of a mixture policy: the density of the executed positions under the whole mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gmm import ChunkMixture, GMMHead
from visuomotor.policies.likelihoods.base import Evaluation, Likelihood, LikelihoodConfig, Record, gaussian_entropy
from visuomotor.policies.policy import Policy

__all__ = ["GMMLikelihood", "GMMLikelihoodConfig", "mixture_entropy"]


@dataclass(kw_only=True, slots=True)
class GMMLikelihoodConfig(LikelihoodConfig):
    """Modes and spread are settings of the head, but a spread learnt from demonstrations may be too narrow.

    Attributes:
        std_floor: least standard deviation when exploring, in normalised units; 0 leaves that of the policy.
    """

    std_floor: float = 0.0

    def __post_init__(self) -> None:
        LikelihoodConfig.__post_init__(self)
        if self.std_floor < 0:
            raise ConfigError(f"likelihood.std_floor={self.std_floor}: expected 0 or more")


class GMMLikelihood(Likelihood):
    """``M`` = 1. Which mode was drawn is not remembered: all modes are responsible for a chunk by their share.

    Positions before the present are not executed, and they would tell the mode: given them, nothing could be learnt
    about the modes' weights. The density is therefore that of the positions from the present on, each given those
    between, so the sum over the executed ones is exactly theirs, and the positions before the present have none.

    The entropy is the estimate of Kolchinsky and Tracey (2017) with the Bhattacharyya distance: a lower bound, exact
    where modes coincide or lie far apart, differentiable in weights, means and spreads.

    Raises:
        ConfigError: the policy's head is no mixture.
    """

    n_terms = 1

    def __init__(self, policy: Policy, config: GMMLikelihoodConfig) -> None:
        if not isinstance(policy.head, GMMHead):
            raise ConfigError(f"likelihood gmm: the policy's head is a {type(policy.head).__name__}")
        super().__init__(policy, config)
        self._head, self._past, self._floor = policy.head, policy.spec.window.n_obs - 1, config.std_floor

    @torch.no_grad()
    def rollout(self, obs: Mapping[str, Tensor], draws: Draws) -> Record:
        found = self._distribution(obs)
        batch, _, horizon, size = found.mean.shape
        chunk = found.sample(draws.uniform((batch,)), draws.normal((batch, horizon, size)))
        return Record(chunk, {"log_prob": self._log_prob(found, chunk)})

    def evaluate(self, obs: Mapping[str, Tensor], record: Record) -> Evaluation:
        found = self._distribution(obs)
        entropy = F.pad(mixture_entropy(self._present(found)), (self._past, 0))
        return Evaluation(self._log_prob(found, record.chunk) - record.aux["log_prob"], entropy[:, None])

    def _distribution(self, obs: Mapping[str, Tensor]) -> ChunkMixture:
        found = self._head.distribution(self.policy.net(obs))
        return replace(found, std=found.std.clamp_min(self._floor)) if self._floor else found

    def _log_prob(self, found: ChunkMixture, chunk: Tensor) -> Tensor:
        """``[B, 1, H]``; 0 before the present."""
        return F.pad(self._present(found).log_prob(chunk[:, self._past :]), (self._past, 0))[:, None]

    def _present(self, found: ChunkMixture) -> ChunkMixture:
        return replace(found, mean=found.mean[:, :, self._past :], std=found.std[:, :, self._past :])


def mixture_entropy(found: ChunkMixture) -> Tensor:
    """Estimate [nats] ``[B, H]`` of the entropy of each step given the steps before it (their sum: of the chunk).

    ``sum_i w_i H_i - sum_i w_i log sum_j w_j exp(-D_ij)``, Kolchinsky and Tracey, Estimating Mixture Entropy with
    Pairwise Distances, Entropy 19(7), 2017, eq. 10, with the Bhattacharyya distance ``D``.
    """
    mean, variance = found.mean, found.std.square()
    weight = found.log_weight.exp()
    own = gaussian_entropy(found.std)  # [B, K, H]
    between = 0.5 * (variance[:, :, None] + variance[:, None])  # [B, K, K, H, Da]
    distance = 0.125 * (mean[:, :, None] - mean[:, None]).square() / between
    distance = distance + 0.5 * between.log() - 0.25 * (variance.log()[:, :, None] + variance.log()[:, None])
    distance = distance.sum(-1).cumsum(-1)  # [B, K, K, H]
    overlap = torch.logsumexp(found.log_weight[:, None, :, None] - distance, 2)  # [B, K, H]
    until = (weight[..., None] * (own.cumsum(-1) - overlap)).sum(1)  # [B, H]
    return torch.cat([until[:, :1], until.diff(dim=1)], 1)
