"""The likelihood of a Gaussian policy, plain or squashed: its own density, one stochastic step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gaussian import GaussianHead
from visuomotor.policies.likelihoods.base import Evaluation, Likelihood, LikelihoodConfig, Record
from visuomotor.policies.policy import Policy

__all__ = ["GaussianLikelihood", "GaussianLikelihoodConfig"]


@dataclass(kw_only=True, slots=True)
class GaussianLikelihoodConfig(LikelihoodConfig):
    """Nothing besides: spread and squashing are settings of the head."""


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
        self._head = policy.head

    @torch.no_grad()
    def rollout(self, obs: Mapping[str, Tensor], draws: Draws) -> Record:
        found = self._head.distribution(self.policy.net(obs))
        x = found.mean + found.std * draws.normal(tuple(found.mean.shape))
        log_prob = found.unsquashed_log_prob(x).sum(-1)[:, None]
        return Record(x.tanh() if found.squash else x, {"x": x, "log_prob": log_prob})

    def evaluate(self, obs: Mapping[str, Tensor], record: Record) -> Evaluation:
        found = self._head.distribution(self.policy.net(obs))
        log_prob = found.unsquashed_log_prob(record.aux["x"]).sum(-1)[:, None]
        mean, std = found.mean[:, None], found.std[:, None].expand_as(found.mean[:, None])
        return Evaluation(log_prob - record.aux["log_prob"], found.entropy().sum(-1)[:, None], mean, std)
