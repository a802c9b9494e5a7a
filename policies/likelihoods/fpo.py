"""Ratios from matching losses: FPO and FPO++, for heads that are trained by flow matching or denoising.

The matching loss of a chunk bounds its negative log-likelihood, up to the weighting of the times, so a loss that falls
stands for a likelihood that rises: ``ratio = exp(loss then - loss now)``, with both losses at the same pairs of a time
and a noise. Nothing of it depends on how the chunk was sampled.

FPO (McAllister et al. 2025, arXiv:2507.21053) averages over the pairs before the exponential: ``ppo.level=chain``,
``ppo.reduce=mean``. FPO++ (Yi, Choi et al. 2026, arXiv:2602.02481) has one ratio a pair, ``ppo.level=step``, and in
training from scratch the surrogate ``ppo.surrogate=asymmetric``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.flow import FlowHead
from visuomotor.policies.heads.matching import MatchingHead
from visuomotor.policies.likelihoods.base import Evaluation, Likelihood, LikelihoodConfig, Record
from visuomotor.policies.policy import Policy

__all__ = ["FPOConfig", "FPOLikelihood", "FPOPlusConfig"]


@dataclass(kw_only=True, slots=True)
class FPOConfig(LikelihoodConfig):
    """How losses are compared.

    Attributes:
        pairs: times and noises of every chunk, ``M``. Each is a pass of the network in every epoch; the papers take 8
            to 32.
        scale: factor of the difference of losses (sums over components). The loss is the head's own. For a predicted
            chunk ``1 / (2 s^2)`` compares it as the log-likelihood of Gaussians with a standard deviation ``s`` in
            normalised units: 50 for 0.1. It should not exceed the spread of the policy's chunks by much: within a
            larger one PPO's clip lets the policy step over what it explored. For a loss of velocities papers take 1.
        max_loss: losses of a step are cut off here before they are compared, against outliers of the noise (FPO++);
            null for never. In units of the head's loss.
        std: standard deviation of Gaussian noise on the sampled chunk, in normalised units: exploration besides that of
            the initial noise. The ratio needs none.
        steps: of the head's solver; null keeps those that it has.
    """

    pairs: int = 4
    scale: float = 50.0
    max_loss: float | None = None
    std: float = 0.0
    steps: int | None = None

    def __post_init__(self) -> None:
        LikelihoodConfig.__post_init__(self)
        if self.pairs < 1:
            raise ConfigError(f"likelihood.pairs={self.pairs}: expected at least 1")
        if self.scale <= 0.0 or self.std < 0.0 or (self.max_loss is not None and self.max_loss <= 0.0):
            raise ConfigError(
                f"likelihood: scale={self.scale:g} and max_loss={self.max_loss} must be positive (max_loss or null) "
                f"and std={self.std:g} 0 or more"
            )


@dataclass(kw_only=True, slots=True)
class FPOPlusConfig(FPOConfig):
    """The same; what sets FPO++ apart are settings of PPO."""


class FPOLikelihood(Likelihood):
    """``M`` pairs of a time and a noise; the head's own loss, solver and time distribution.

    The loss of a position is no density of its own: it is that of the position within its noisy chunk. Only executed
    positions count, whatever ``mask`` says.

    Raises:
        ConfigError: a head that has no loss at one time and noise, or a flow that begins at zero without noise.
    """

    def __init__(self, policy: Policy, config: FPOConfig) -> None:
        head = policy.head
        if not isinstance(head, MatchingHead):
            raise ConfigError(f"likelihood fpo: {type(head).__name__} has no loss at one time and one noise")
        if isinstance(head, FlowHead) and head.config.start == "zeros" and not config.std:
            raise ConfigError(
                "likelihood fpo: the head begins at zero (start=zeros) and always makes the same chunk, so nothing "
                "would be explored: set likelihood.std, or policy.start=noise"
            )
        super().__init__(policy, config)
        self._head, self._own, self.n_terms = head, config, config.pairs
        if config.steps is not None:
            head.set_solver(steps=config.steps)

    @torch.no_grad()
    def rollout(self, obs: Mapping[str, Tensor], draws: Draws) -> Record:
        net, n = self.policy.net(obs), self.n_terms
        batch = len(net.seen.features)
        chunk = self._head.sample(net, draws.normal((batch, *self.policy.noise_shape))).float()
        if self._own.std:
            chunk = chunk + self._own.std * draws.normal(tuple(chunk.shape))
        # Through the batch axis, which is the one that processes share.
        time = self._head.draw_times(batch * n, draws).view(batch, n)
        noise = draws.normal((batch, n, *chunk.shape[1:]))
        return Record(chunk, {"time": time, "noise": noise, "loss": self._losses(net, chunk, time, noise)})

    def evaluate(self, obs: Mapping[str, Tensor], record: Record) -> Evaluation:
        now = self._losses(self.policy.net(obs), record.chunk, record.aux["time"], record.aux["noise"])
        return Evaluation(self._own.scale * record.chunk.shape[-1] * (record.aux["loss"] - now))

    def mask(self, executed: Tensor, record: Record) -> Tensor:
        return executed[:, None].expand(-1, self.n_terms, -1)

    def _losses(self, net: NetFn, chunk: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """The head's loss ``[B, M, H]`` of ``chunk [B, H, Da]`` at ``time [B, M]`` and ``noise [B, M, H, Da]``."""
        batch, n = time.shape
        row = torch.arange(batch, device=chunk.device).repeat_interleave(n)
        loss = self._head.loss_at(net.rows(row), chunk[row], time.flatten(), noise.flatten(0, 1)).float()
        loss = loss if self._own.max_loss is None else loss.clamp(max=self._own.max_loss)
        return loss.view(batch, n, -1)
