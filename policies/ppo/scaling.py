"""Running statistics of observations and of returns. They change between updates only, never inside a rollout."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from visuomotor.data.normalize import ArrayStats
from visuomotor.policies.ppo.processes import Processes

__all__ = ["ReturnScale", "RunningStats"]


class RunningStats(nn.Module):
    """Count, mean, variance and range of a vector, merged block by block (Chan, Golub and LeVeque 1979)."""

    count: Tensor
    mean: Tensor
    square: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        zero = torch.zeros(size, dtype=torch.float64)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", zero.clone())
        self.register_buffer("square", zero.clone())  # sum of squared deviations
        self.register_buffer("low", zero + float("inf"))
        self.register_buffer("high", zero - float("inf"))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in ``x [n, size]``; rows that are not finite are left out."""
        x = x[torch.isfinite(x).all(1)].double()
        if not len(x):
            return
        n = len(x)
        mean, total = x.mean(0), self.count + n
        step = mean - self.mean
        self.square += (x - mean).square().sum(0) + step.square() * (self.count * n / total)
        self.mean += step * (n / total)
        self.count.copy_(total)
        self.low.copy_(torch.minimum(self.low, x.amin(0)))
        self.high.copy_(torch.maximum(self.high, x.amax(0)))

    @property
    def std(self) -> Tensor:
        """Standard deviation ``[size]`` float64; 1 before there is anything."""
        if not bool(self.count):
            return torch.ones_like(self.mean)
        return (self.square / self.count).sqrt()

    def to_stats(self, shape: tuple[int, ...]) -> ArrayStats:
        """As statistics of an array; quantiles are not known from a stream, and the range stands for them."""
        mean, std, low, high = (
            v.cpu().numpy().reshape(shape).astype(np.float64) for v in (self.mean, self.std, self.low, self.high)
        )
        return ArrayStats(max(1, int(self.count)), low, high, mean, std, low, high)


class ReturnScale(nn.Module):
    """Standard deviation of the discounted return so far, by which rewards are divided (Engstrom et al. 2020).

    Args:
        num_envs: worlds.
        bound: largest scaled reward.
    """

    running: Tensor
    scale: Tensor

    def __init__(self, num_envs: int, bound: float = 10.0) -> None:
        super().__init__()
        self._bound = bound
        self.stats = RunningStats(1)
        self.register_buffer("running", torch.zeros(num_envs))
        self.register_buffer("scale", torch.zeros(()))  # 0: nothing seen yet

    def __call__(self, reward: Tensor) -> Tensor:
        """``reward [T, N]`` divided by the scale that held before these were seen."""
        return (reward / self.scale.clamp_min(1e-8)).clamp(-self._bound, self._bound) if self.scale > 0 else reward

    @torch.no_grad()
    def update(self, reward: Tensor, discount: Tensor, ended: Tensor, processes: Processes) -> None:
        """Take in a block ``[T, N]``: rewards of decisions, their ``gamma^n``, and where an episode ended.

        The scale is that of the worlds of all ``processes``.
        """
        seen = []
        for r, g, end in zip(reward, discount, ended, strict=True):
            self.running.mul_(g).add_(r)
            seen.append(self.running.clone())
            self.running.masked_fill_(end, 0.0)
        self.stats.update(processes.gather(torch.stack(seen).reshape(-1, 1)))
        self.scale.copy_(self.stats.std[0])
