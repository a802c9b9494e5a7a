"""What the episodes that ended in a rollout came to, counted on the device and read once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["EpisodeTally", "episode_totals"]


def episode_totals(x: Tensor, ended: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ``x [T, N]`` over each episode, and what the unfinished ones have so far ``[N]``.

    The first holds at ``[t, n]`` the sum since the episode began; read it where ``ended [T, N]`` (bool). ``carry [N]``
    is what the running episodes brought along. One pass over the block: no loop over steps or episodes.
    """
    total = x.cumsum(0) + carry
    number = torch.arange(len(x), device=x.device)[:, None]
    last_end = torch.where(ended, number, -1).cummax(0).values  # [T, N] of the latest end up to and with t
    before = torch.cat([torch.full_like(last_end[:1], -1), last_end[:-1]])
    base = torch.where(before < 0, 0.0, total.gather(0, before.clamp_min(0)))
    tail = torch.where(last_end[-1] < 0, 0.0, total.gather(0, last_end[-1:].clamp_min(0))[0])
    return total - base, total[-1] - tail


class EpisodeTally:
    """Returns, lengths and successes of ``num_envs`` running episodes."""

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self._carry = torch.zeros(3, num_envs, dtype=torch.float64, device=device)  # return, length, success

    def add(self, reward: Tensor, steps: Tensor, success: Tensor, ended: Tensor, counts: Tensor) -> Tensor:
        """Take in a block and sum up what ended in it.

        Args:
            reward: undiscounted, ``[T, N]``.
            steps: control steps of each decision, ``[T, N]``.
            success: whether the goal held during it, bool ``[T, N]``.
            ended: bool ``[T, N]``.
            counts: which of the ends to count, bool ``[T, N]`` (not of episodes that were cut short on purpose).

        Returns:
            ``[4]`` float64: number of episodes, and sums of their returns, lengths and successes.
        """
        sums, counted = [], ended & counts
        for i, x in enumerate((reward, steps, success)):
            totals, self._carry[i] = episode_totals(x.double(), ended, self._carry[i])
            totals = totals.clamp(max=1.0) if i == 2 else totals
            sums.append(torch.where(counted, totals, 0.0).sum())
        return torch.stack([counted.sum().double(), *sums])

    def state(self) -> dict[str, Tensor]:
        """What the running episodes have so far."""
        return {"episodes": self._carry}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`."""
        self._carry.copy_(state["episodes"])
