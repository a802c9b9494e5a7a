"""The likelihood of a Gaussian policy, plain or squashed: its own density, one stochastic step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gaussian import ChunkGaussian, GaussianHead
from visuomotor.policies.likelihoods.base import Evaluation, Likelihood, LikelihoodConfig, Record
from visuomotor.policies.policy import Policy

__all__ = ["GaussianLikelihood", "GaussianLikelihoodConfig"]


@dataclass(kw_only=True, slots=True)
class GaussianLikelihoodConfig(LikelihoodConfig):
    """Squashing is a setting of the head; so is the spread, but one learnt from demonstrations may be too narrow.

    Attributes:
        std_floor: least standard deviation when exploring, in normalised units; 0 leaves that of the policy. Imitation
            makes it as small as the demonstrations are precise, and then the slightest change is a large divergence.
        std_ceiling: largest standard deviation when exploring; null leaves that of the policy. Imitation makes it as
            large as the demonstrations disagree, and noise of that size may spoil what needs precision.
    """

    std_floor: float = 0.0
    std_ceiling: float | None = None

    def __post_init__(self) -> None:
        LikelihoodConfig.__post_init__(self)
        if self.std_floor < 0:
            raise ConfigError(f"likelihood.std_floor={self.std_floor}: expected 0 or more")
        if self.std_ceiling is not None and not self.std_ceiling >= max(self.std_floor, 1e-6):
            raise ConfigError(
                f"likelihood.std_ceiling={self.std_ceiling}: expected more than 0 and no less than "
                f"std_floor={self.std_floor}"
            )


class GaussianLikelihood(Likelihood):
    """``M`` = 1. A squashed policy is rated before tanh, where the ratio is the same and no edge is near.

    Raises:
        ConfigError: the policy's head is no Gaussian.
    """

    n_terms = 1

    def __init__(self, policy: Policy, config: GaussianLikelihoodConfig) -> None:
        if not isinstance(policy.head, GaussianHead):
            raise ConfigError(f"likelihood gaussian: the policy's head is a {type(policy.head).__name__}")
        super().__init__(policy, config)
        self._head, self._floor, self._ceiling = policy.head, config.std_floor, config.std_ceiling

    def _distribution(self, obs: Mapping[str, Tensor]) -> ChunkGaussian:
        found = self._head.distribution(self.policy.net(obs))
        if not self._floor and self._ceiling is None:
            return found
        return replace(found, std=found.std.clamp(self._floor, self._ceiling))

    @torch.no_grad()
    def rollout(self, obs: Mapping[str, Tensor], draws: Draws) -> Record:
        found = self._distribution(obs)
        x = found.mean + found.std * draws.normal(tuple(found.mean.shape))
        log_prob = found.unsquashed_log_prob(x).sum(-1)[:, None]
        return Record(x.tanh() if found.squash else x, {"x": x, "log_prob": log_prob})

    def evaluate(self, obs: Mapping[str, Tensor], record: Record) -> Evaluation:
        found = self._distribution(obs)
        log_prob = found.unsquashed_log_prob(record.aux["x"]).sum(-1)[:, None]
        mean, std = found.mean[:, None], found.std[:, None].expand_as(found.mean[:, None])
        return Evaluation(log_prob - record.aux["log_prob"], found.entropy().sum(-1)[:, None], mean, std)
