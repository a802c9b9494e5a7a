"""The terms of PPO's objective. Pure functions over one minibatch.

Shapes: ``B`` decisions, ``M`` stochastic steps of one chunk, ``H`` positions, ``Da`` action size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Surrogate", "approximate_kl", "reduce_log_ratio", "surrogate", "value_loss"]

_LARGEST_LOG_RATIO = 20.0  # exp of more overflows before long; such a sample is clipped or lost anyway


@dataclass(frozen=True)
class Surrogate:
    """What each term loses, and what to report. All ``[B, M']``; ``M'`` is 1 where the chain has one ratio."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor  # bool: the clip holds the gradient back


def reduce_log_ratio(log_ratio: Tensor, mask: Tensor, action_dim: int, *, reduce: str, level: str) -> Tensor:
    """Log-ratios ``[B, M, H]`` to one a stochastic step ``[B, M]`` (``level=step``) or a chain ``[B, 1]``.

    ``reduce=sum`` gives the ratio of the densities. ``reduce=mean`` divides by the number of components that count
    (positions of ``mask [B, M, H]`` times ``action_dim``, and steps where the chain has one ratio), so that a clip
    range is one per component: with ``n`` of them it is ``n`` times as wide for the density (DPPO, ReinFlow).
    """
    total = torch.where(mask, log_ratio, 0.0).sum(-1)  # [B, M]; what was masked may be anything
    count = mask.sum(-1) * action_dim
    if level == "chain":
        total, count = total.sum(-1, keepdim=True), count.sum(-1, keepdim=True)
    return total / count.clamp_min(1) if reduce == "mean" else total


def surrogate(
    log_ratio: Tensor, advantage: Tensor, clip: Tensor, *, kind: str = "clip", start: Tensor | float = 0.0
) -> Surrogate:
    """What ``log_ratio [B, M']`` and ``advantage [B, M']`` cost, with the clip ranges ``[M']``.

    The range is about the ratio that the update begins with, whose logarithm is ``start [B, M']``: 0, and the ratio 1,
    unless the decision is one of an earlier policy.

    ``clip``: PPO's pessimistic clipping (Schulman et al. 2017). ``spo``: ``A r - |A| (r - 1)^2 / (2 clip)``, whose
    gradient pulls back what is outside (Xie et al., arXiv:2401.16025). ``asymmetric``: PPO's where the advantage is
    positive, the quadratic one where it is negative (FPO++, arXiv:2602.02481). ``none``: the plain ratio.
    """
    ratio = log_ratio.clamp(max=_LARGEST_LOG_RATIO).exp()
    middle = torch.as_tensor(start, device=ratio.device).clamp(max=_LARGEST_LOG_RATIO).exp()
    outside = torch.where(advantage >= 0.0, ratio > middle + clip, ratio < middle - clip)
    pessimistic = -torch.minimum(ratio * advantage, ratio.clamp(middle - clip, middle + clip) * advantage)
    quadratic = -(ratio * advantage - advantage.abs() * (ratio - middle).square() / (2.0 * clip))
    loss = {
        "clip": pessimistic,
        "spo": quadratic,
        "asymmetric": torch.where(advantage >= 0.0, pessimistic, quadratic),
        "none": -ratio * advantage,
    }[kind]
    return Surrogate(loss, ratio, outside)


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Estimate of KL(then || now) of every term: ``r - 1 - log r``, unbiased and never negative (Schulman 2020)."""
    return log_ratio.clamp(max=_LARGEST_LOG_RATIO).exp() - 1.0 - log_ratio


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float | None) -> Tensor:
    """Squared error ``[B]`` of the critic; with ``clip`` the worse of it and that of a value held near the old one."""
    plain = (value - target).square()
    if clip is None:
        return plain
    held = old_value + (value - old_value).clamp(-clip, clip)
    return torch.maximum(plain, (held - target).square())
