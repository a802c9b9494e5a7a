"""Smooth exploration for Gaussian policies: generalised state-dependent exploration (Raffin et al. 2021, gSDE).

Independent noise at every decision makes an arm shake. Here the noise is ``theta z(s)``: ``z`` are features of what is
seen and ``theta`` a random matrix for each world, held for several decisions, so that like observations get like noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import NetFn, Observed
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gaussian import ChunkGaussian, GaussianHead, gaussian_log_prob
from visuomotor.policies.likelihoods.base import Evaluation, Likelihood, LikelihoodConfig, Record, gaussian_entropy
from visuomotor.policies.policy import Policy

__all__ = ["GSDEConfig", "GSDELikelihood"]


@dataclass(kw_only=True, slots=True)
class GSDEConfig(LikelihoodConfig):
    """How much noise, and for how long it is held.

    Attributes:
        hold: decisions for which the matrix of a world is held; 1 draws a new one at every decision.
        std_init: standard deviation before training, in normalised units.
        std_min: standard deviation of the independent noise that is added, which bounds the whole from below.
    """

    hold: int = 8
    std_init: float = 0.5
    std_min: float = 0.02

    def __post_init__(self) -> None:
        LikelihoodConfig.__post_init__(self)
        if self.hold < 1:
            raise ConfigError(f"likelihood.hold={self.hold}: expected at least 1 decision")
        if not 0.0 < self.std_min < self.std_init:
            raise ConfigError(
                f"likelihood: std_min={self.std_min:g} and std_init={self.std_init:g}: expected 0 < std_min < std_init"
            )


class GSDELikelihood(Likelihood):
    """``M`` = 1. The mean is the head's, the spread is this one's: ``std_j^2 = sum_i (z_i sigma_ij)^2 + std_min^2``.

    ``z`` is what the backbone makes of the observations before it knows a time (with ``backbone=perceptron`` the
    encoded observations themselves), scaled to length 1 and without gradient (as in Raffin et al.); ``sigma [D, Da]``
    is learned, ``theta_ij ~ N(0, sigma_ij^2)``. The density of a decision is exact; that successive ones share a matrix
    is not in it, as in the paper. Every position of a chunk has a matrix of its own: noise is smooth from decision to
    decision, not within a chunk, where perfectly dependent noise would have no density.

    The matrix is a function of the seed, the update, and the number of the decision divided by ``hold``: nothing is
    kept between decisions, and a resumed run draws the same. The worlds change it all at once, at episode ends too.

    Raises:
        ConfigError: the policy's head is no Gaussian.
    """

    n_terms = 1

    def __init__(self, policy: Policy, config: GSDEConfig) -> None:
        head = policy.head
        if not isinstance(head, GaussianHead):
            raise ConfigError(f"likelihood gsde: the policy's head is a {type(head).__name__}")
        super().__init__(policy, config)
        self._head, self._hold, self._floor = head, config.hold, config.std_min
        sigma = math.sqrt(config.std_init**2 - config.std_min**2)
        self.log_sigma = nn.Parameter(torch.full((_feature_dim(policy), policy.spec.action.size), math.log(sigma)))
        self.log_sigma.data = self.log_sigma.data.to(policy.device)

    @torch.no_grad()
    def rollout(self, obs: Mapping[str, Tensor], draws: Draws) -> Record:
        found, z = self._found(self.policy.net(obs))
        batch, horizon, size = found.mean.shape
        theta = draws.held(self._hold).normal((batch, z.shape[1], horizon, size)) * self.log_sigma.exp()[:, None]
        noise = torch.einsum("bd,bdhj->bhj", z, theta) + self._floor * draws.normal((batch, horizon, size))
        x = found.mean + noise
        log_prob = gaussian_log_prob(x, found.mean, found.std).sum(-1)[:, None]
        return Record(x.tanh() if found.squash else x, {"x": x, "log_prob": log_prob})

    def evaluate(self, obs: Mapping[str, Tensor], record: Record) -> Evaluation:
        found, _ = self._found(self.policy.net(obs))
        log_prob = found.unsquashed_log_prob(record.aux["x"]).sum(-1)[:, None]
        mean, std = found.mean[:, None], found.std[:, None]
        return Evaluation(log_prob - record.aux["log_prob"], gaussian_entropy(std), mean, std)

    def _found(self, net: NetFn) -> tuple[ChunkGaussian, Tensor]:
        """The distribution, and the features ``[B, D]`` of length 1."""
        told = self._head.distribution(net)
        z = F.normalize(self.policy.backbone.condition(net.seen).vector.detach().float(), dim=-1)
        variance = z.square() @ (2.0 * self.log_sigma).exp() + self._floor**2  # [B, Da]
        return ChunkGaussian(told.mean, variance.sqrt()[:, None].expand_as(told.mean), told.squash), z


@torch.no_grad()
def _feature_dim(policy: Policy) -> int:
    """``D``: how long the vector is that the backbone makes of observations."""
    encoder, device = policy.encoder, policy.device
    tokens = torch.zeros(1, 1, encoder.token_dim, device=device) if encoder.token_dim else None
    features = torch.zeros(1, policy.spec.window.n_obs, max(1, encoder.feature_dim), device=device)
    return policy.backbone.condition(Observed(features, tokens)).vector.shape[-1]
