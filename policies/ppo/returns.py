"""Advantages and returns over decisions of different length. Pure functions.

A decision is a chunk of which ``n`` control steps were executed. Its reward is ``R = sum_j gamma^j r_j`` and what
follows is worth ``gamma^n`` as much, so an episode that ends in mid-chunk needs no special case.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["chunk_reward", "generalized_advantage"]


def chunk_reward(reward: Tensor, gamma: float) -> Tensor:
    """``reward [..., Ta]`` of the executed steps (0 where not executed) to their discounted sum ``[...]``."""
    powers = gamma ** torch.arange(reward.shape[-1], dtype=torch.float32, device=reward.device)
    return (reward * powers).sum(-1)


def generalized_advantage(
    reward: Tensor, discount: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, truncated: Tensor,
    lam: float, trace: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Generalised advantage estimates ``[T, N]`` (Schulman et al. 2016).

    ``A_t = delta_t + discount_t * lam * A_{t+1}`` within an episode, with
    ``delta_t = R_t + discount_t * next_value_t - V_t``. Where the episode terminated nothing follows; where it was cut
    off by a time limit the value of its final observation follows, and in both cases no advantage of the next episode
    leaks in. Terminated and truncated at once counts as terminated.

    Args:
        reward: ``R``, ``[T, N]``.
        discount: ``gamma^n`` of every decision, ``[T, N]``.
        value: ``V`` of what each decision saw, ``[T, N]``.
        next_value: value of the observation that the decision led to, **before** any reset, ``[T, N]``.
        terminated, truncated: bool ``[T, N]``.
        lam: weight of longer estimates, 0..1, per decision.
        trace: how far each decision is one of the policy of now, 0..1, ``[T, N]``: an estimate goes beyond it with this
            weight besides (V-trace); None for decisions of the policy itself.
    """
    delta = reward + discount * next_value.masked_fill(terminated, 0.0) - value
    carry, over = discount * lam, terminated | truncated
    advantage = torch.empty_like(delta)
    running = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        following = running if trace is None or t + 1 == len(delta) else running * trace[t + 1]
        following = following.masked_fill(over[t], 0.0)  # not a factor of 0, which keeps what is not a number
        running = torch.addcmul(delta[t], carry[t], following)
        advantage[t] = running
    return advantage
