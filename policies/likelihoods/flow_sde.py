"""Flow matching with one random step (Flow-GRPO, Liu et al. 2025, arXiv:2505.05470; pi_RL, arXiv:2510.25889).

In every decision one step of the solver, drawn at random, is stochastic, and the others are those of the ODE: one
evaluation of the network with gradients rates it.

The path is ``x_t = (1 - t) clean + t noise``, so the score of its marginals is ``-E[noise | x] / t``, with
``E[noise | x] = x + (1 - t) v``. Whatever the diffusion ``g(t)``, the process that runs from noise to data by

    x_{t - dt} = x_t - v dt - g^2 / (2 t) (x_t + (1 - t) v) dt + g sqrt(dt) z

has the same marginals as the ODE ``dx / dt = v`` (Song et al. 2021). Flow-GRPO takes ``g = a sqrt(t / (1 - t))``, which
has no bound at pure noise; here ``g = a sqrt(t)``. And the step is not that of Euler-Maruyama: from t to s it is

    x_s = (1 - s) clean + sqrt(s^2 - sigma^2) noise + sigma z,    sigma = a sqrt(t (t - s)),

with the estimates of clean chunk and noise at t, as in DDIM (Song et al. 2021): to first order the same, with exactly
the amount of noise that belongs to s, and without noise exactly Euler's step. (At s < sigma, in the last step, all the
noise is new: exploration around the clean chunk.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.flow import FlowHead
from visuomotor.policies.heads.gaussian import gaussian_log_prob
from visuomotor.policies.likelihoods.base import (
    Evaluation,
    Likelihood,
    LikelihoodConfig,
    Record,
    bounded_normal,
    gaussian_entropy,
)
from visuomotor.policies.policy import Policy

__all__ = ["FlowSDE", "FlowSDEConfig", "sde_step"]


@dataclass(kw_only=True, slots=True)
class FlowSDEConfig(LikelihoodConfig):
    """How the flow is integrated, and the noise of the random step.

    Attributes:
        mask: as everywhere; by default what was not executed counts at no step, which has less variance.
        steps: Euler steps, in training and when deployed.
        noise_level: ``a``: a step of length h from time t has noise of standard deviation ``a sqrt(t h)``.
    """

    mask: str = "executed"
    steps: int = 4
    noise_level: float = 0.5

    def __post_init__(self) -> None:
        LikelihoodConfig.__post_init__(self)
        if self.steps < 1 or self.noise_level <= 0.0:
            raise ConfigError(
                f"likelihood: steps={self.steps} and noise_level={self.noise_level}: expected at least 1, and above 0"
            )


def sde_step(t: float, s: float, noise_level: float) -> tuple[float, float, float]:
    """Weights of ``x`` and of the clean estimate, and the standard deviation, of the stochastic step from t to s."""
    std = noise_level * math.sqrt(t * (t - s))
    kept = math.sqrt(max(s**2 - std**2, 0.0))  # of the estimated noise (x - (1 - t) clean) / t
    return kept / t, (1.0 - s) - kept * (1.0 - t) / t, std


class FlowSDE(Likelihood):
    """``M`` = 1: the random step, whose index ``[B]`` is in the record with its beginning and its end.

    Args:
        policy: with a flow head.
        config: settings.
    """

    n_terms = 1
    weights: Tensor  # [K, 3] of x and clean estimate, and standard deviation, of every step if it is the random one

    def __init__(self, policy: Policy, config: FlowSDEConfig) -> None:
        super().__init__(policy, config)
        assert isinstance(policy.head, FlowHead)
        self._head = policy.head
        self._head.set_solver("euler", config.steps)
        times = [*(level.t for level in self._head.levels), 0.0]
        weights = torch.tensor([sde_step(t, s, config.noise_level) for t, s in pairwise(times)])
        self.register_buffer("weights", weights.to(policy.device), persistent=False)

    @torch.no_grad()
    def rollout(self, obs: Mapping[str, Tensor], draws: Draws) -> Record:
        net, head = self.policy.net(obs), self._head
        shape = (len(net.seen.features), *self.policy.noise_shape[1:])
        _, x = head.begin(draws.normal(shape))
        which = draws.integers(0, len(self.weights), shape[:1])
        z = bounded_normal(draws, shape)
        start = end = mean = torch.zeros_like(x)
        of_x, of_clean, std = self._weights_of(which)
        for k, (at, level, step) in enumerate(zip(net.at(head.times), head.levels, head.steps, strict=True)):
            clean = head.estimate(at, level, x).float()
            here = (which == k).view(-1, 1, 1)
            start, mean = torch.where(here, x, start), torch.where(here, of_x * x + of_clean * clean, mean)
            end = mean + std * z
            x = torch.where(here, end, step.output[0] * x + step.output[1] * clean)
        log_prob = gaussian_log_prob(end, mean, std).sum(-1)[:, None]
        return Record(x, {"start": start, "end": end, "step": which, "log_prob": log_prob})

    def evaluate(self, obs: Mapping[str, Tensor], record: Record) -> Evaluation:
        aux, which = record.aux, record.aux["step"]
        times = self._head.times.to(which.device)[which]
        clean = self._head.estimate_at(self.policy.net(obs), aux["start"], times).float()
        of_x, of_clean, std = self._weights_of(which)
        mean = of_x * aux["start"] + of_clean * clean
        std = std.expand_as(mean)
        log_prob = gaussian_log_prob(aux["end"], mean, std).sum(-1)[:, None]
        return Evaluation(
            log_prob - aux["log_prob"], gaussian_entropy(std)[:, None], mean[:, None], std[:, None]
        )  # fmt: skip

    def mask(self, executed: Tensor, record: Record) -> Tensor:
        """Exact: where the random step was not the last one, all its positions had a part in what was executed."""
        if self.config.mask == "executed":
            return executed[:, None]
        return (executed | (record.aux["step"] < len(self.weights) - 1)[:, None])[:, None]

    def _weights_of(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        of_x, of_clean, std = self.weights[which].unbind(1)
        return of_x.view(-1, 1, 1), of_clean.view(-1, 1, 1), std.view(-1, 1, 1)
