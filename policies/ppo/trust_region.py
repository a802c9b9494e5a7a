"""A bound on how far one update may move the policy, at every decision of its rollout."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visuomotor.policies.likelihoods.base import Evaluation
from visuomotor.policies.ppo.objective import approximate_kl
from visuomotor.policies.ppo.processes import Processes

__all__ = ["TrustRegion", "divergence"]

_MARGIN = 3.0  # the penalty aims at a third of the bound (C_beta of the paper)
_RATE = 0.1  # of the logarithm of the penalty's weight, per optimiser step
_LOG_WEIGHTS = (-10.0, 10.0)


def divergence(found: Evaluation, mean: Tensor | None, std: Tensor | None, mask: Tensor) -> Tensor:
    """KL(then || now) [nats] of every decision ``[B]``, summed over all that counts in ``mask [B, M, H]``.

    In closed form between Gaussian steps ``mean`` and ``std`` of then (``[B, M, H, Da]``) and those of ``found``;
    without them the estimate ``r - 1 - log r`` of the record, which is unbiased and never negative.
    """
    if mean is None or std is None or found.mean is None or found.std is None:
        return approximate_kl(torch.where(mask, found.log_ratio, 0.0).sum((1, 2)))
    variance = (std.square() + (mean - found.mean).square()) / (2.0 * found.std.square())
    return torch.where(mask, ((found.std / std).log() + variance - 0.5).sum(-1), 0.0).sum((1, 2))


class TrustRegion:
    """Keeps KL(then || now) of every decision within ``bound`` [nats], as FixPO does (Zentner et al. 2023).

    *Penalty phase*: the mean divergence is added to the loss with a weight that rises while the largest divergence of a
    minibatch is above a third of the bound, and falls while it is below. *Fix-up phase*, after the update: steps on the
    divergence alone until no minibatch has a decision out of bounds. Where that takes more than some passes, the
    weights go back halfway to those of before the update until it holds: at these the divergence is 0. The speed of the
    penalty's weight is relative to the bound, and at most a tenth of its logarithm a step, where the paper's is not.

    Args:
        bound: the largest divergence of a decision.
        params: the policy's.
        processes: which decide together.
    """

    def __init__(self, bound: float, params: Sequence[nn.Parameter], processes: Processes) -> None:
        self.bound, self._params, self._processes = bound, list(params), processes
        self._log_weight = torch.zeros((), device=processes.device)
        self._before: list[Tensor] = []

    def begin(self) -> None:
        """An update begins with the weights of now."""
        self._before = [p.detach().clone() for p in self._params]

    def penalty(self, divergence: Tensor, valid: Tensor, count: Tensor) -> Tensor:
        """What the ``divergence [B]`` of a minibatch costs; adapts the weight."""
        loss = self._log_weight.exp() * (divergence * valid).sum() / count
        largest = self.largest(divergence, valid)
        excess = (_MARGIN * largest / self.bound - 1.0).clamp(-1.0, 1.0)
        self._log_weight = (self._log_weight + _RATE * excess).clamp(*_LOG_WEIGHTS)
        return loss

    def largest(self, divergence: Tensor, valid: Tensor) -> Tensor:
        """The largest ``divergence [B]`` of a minibatch, over all processes; infinite where one is not a number."""
        here = torch.where(valid > 0, divergence.detach(), 0.0).nan_to_num(nan=math.inf, posinf=math.inf)
        return self._processes.largest(torch.cat([here, here.new_zeros(1)]).amax())

    @torch.no_grad()
    def step_back(self, share: float) -> None:
        """Go ``share`` (0..1) of the way back to the weights of before the update."""
        for p, old in zip(self._params, self._before, strict=True):
            p.copy_(old if share >= 1.0 else torch.lerp(p, old, share))

    @property
    def weight(self) -> float:
        """Of the penalty."""
        return math.exp(float(self._log_weight))

    def state(self) -> dict[str, Tensor]:
        """The weight of the penalty, for going on bit for bit."""
        return {"trust_region": self._log_weight}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state`."""
        if "trust_region" in state:
            self._log_weight = state["trust_region"].to(self._processes.device).clone()
