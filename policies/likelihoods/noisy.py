"""A Gaussian around what a policy makes of its noise, for heads that have no density of their own.

``chunk = sample(obs, z) + std eps``: given the noise ``z``, which the record keeps, this is a Gaussian policy whose
mean is the whole sampler, through which the gradient goes. ``z`` is drawn alike before and after an update, so the
ratio is that of the conditional density. Deployed, the policy is its mean.

Where a head bounds the finished chunk (MeanFlow, shortcut), the bound comes after the noise, when the chunk is
executed: a mean that is cut off before has no gradient, and a component beyond its bound would not come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visuomotor.policies.base import NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.average_velocity import AverageVelocityHead
from visuomotor.policies.heads.gaussian import bounded_std, gaussian_log_prob
from visuomotor.policies.likelihoods.base import (
    Evaluation,
    Likelihood,
    LikelihoodConfig,
    Record,
    bounded_normal,
    gaussian_entropy,
)
from visuomotor.policies.likelihoods.noise_net import check_noise
from visuomotor.policies.policy import Policy

__all__ = ["NoisyOutput", "NoisyOutputConfig"]


@dataclass(kw_only=True, slots=True)
class NoisyOutputConfig(LikelihoodConfig):
    """The noise on the chunk, learnt for every position and component. All in normalised units.

    Attributes:
        steps: sampling steps, in training and when deployed, where the head has a choice; null keeps those of the
            policy. The gradient goes through all of them.
        std_min: least standard deviation.
        std_init: standard deviation at the beginning.
        std_max: largest one.
    """

    steps: int | None = None
    std_min: float = 0.05
    std_init: float = 0.2
    std_max: float = 0.4

    def __post_init__(self) -> None:
        LikelihoodConfig.__post_init__(self)
        check_noise(self.std_min, self.std_init, self.std_max)


class NoisyOutput(Likelihood):
    """``M`` = 1.

    Args:
        policy: with a head whose samples have a gradient by the weights.
        config: settings.
    """

    n_terms = 1

    def __init__(self, policy: Policy, config: NoisyOutputConfig) -> None:
        super().__init__(policy, config)
        if config.steps is not None:
            policy.head.set_solver(steps=config.steps)
        _, horizon, action_dim = policy.noise_shape
        self._bounds = {"low": config.std_min, "init": config.std_init, "high": config.std_max}
        self.raw_std = nn.Parameter(torch.zeros(horizon, action_dim, device=policy.device))

    @torch.no_grad()
    def rollout(self, obs: Mapping[str, Tensor], draws: Draws) -> Record:
        net = self.policy.net(obs)
        z = draws.normal((len(net.seen.features), *self.policy.noise_shape))
        mean, std = self._mean(net, z), self._std()
        chunk = mean + std * bounded_normal(draws, tuple(mean.shape))
        return Record(chunk, {"z": z, "log_prob": gaussian_log_prob(chunk, mean, std).sum(-1)[:, None]})

    def evaluate(self, obs: Mapping[str, Tensor], record: Record) -> Evaluation:
        mean = self._mean(self.policy.net(obs), record.aux["z"])
        std = self._std().expand_as(mean)
        log_prob = gaussian_log_prob(record.chunk, mean, std).sum(-1)[:, None]
        return Evaluation(
            log_prob - record.aux["log_prob"], gaussian_entropy(std)[:, None], mean[:, None], std[:, None]
        )  # fmt: skip

    def action(self, record: Record, obs: Mapping[str, Tensor], bound: float | None) -> Tensor:
        head = self.policy.head
        if isinstance(head, AverageVelocityHead):
            record = record._replace(chunk=head.bounded(record.chunk))
        return super().action(record, obs, bound)

    def _mean(self, net: NetFn, z: Tensor) -> Tensor:
        head = self.policy.head
        chunk = head.unbounded(net, z) if isinstance(head, AverageVelocityHead) else head.sample(net, z)
        return chunk.float()

    def _std(self) -> Tensor:
        return bounded_std(self.raw_std, **self._bounds)
