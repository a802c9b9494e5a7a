"""Heads that are trained by an error at one random time with one random noise (flow matching, denoising)."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from visuomotor.policies.base import Head, NetFn
from visuomotor.policies.draws import Draws

__all__ = ["MatchingHead"]


class MatchingHead(Head):
    """The loss is the mean over times and noises of :meth:`loss_at`: a bound on the likelihood, up to its weighting.

    Whoever compares losses (FPO) holds times and noises fixed; training draws one of each for every chunk.
    """

    @abstractmethod
    def draw_times(self, n: int, draws: Draws) -> Tensor:
        """Training times ``[n]``, as the network takes them."""

    @abstractmethod
    def loss_at(self, net: NetFn, action: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """Loss ``[B, H]`` of ``action [B, H, Da]`` at ``time [B]`` with standard normal ``noise [B, H, Da]``."""

    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        time = self.draw_times(len(action), draws)
        return self.loss_at(net, action, time, draws.normal(tuple(action.shape)))
