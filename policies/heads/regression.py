"""Plain regression of the chunk: one pass, one answer, no noise. Averages where the data have several modes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import ChunkSizes, Head, HeadConfig, NetFn
from visuomotor.policies.draws import Draws

__all__ = ["LOSSES", "RegressionConfig", "RegressionHead", "regression_error"]

LOSSES = ("l1", "l2", "huber")


@dataclass(kw_only=True, slots=True)
class RegressionConfig(HeadConfig):
    """What is minimised.

    Attributes:
        loss: ``l2`` (its optimum is the mean of the demonstrated actions), ``l1`` (the median) or ``huber``.
        huber_delta: error [normalised units] above which ``huber`` is linear.
    """

    loss: str = "l2"
    huber_delta: float = 0.1

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(f"head regression: unknown loss {self.loss!r}. {nearest(self.loss, LOSSES)}")
        if not self.huber_delta > 0:
            raise ConfigError(f"head regression: huber_delta={self.huber_delta}: expected a positive error")


def regression_error(kind: str, prediction: Tensor, target: Tensor, *, delta: float = 1.0) -> Tensor:
    """``|e|``, ``e^2`` or Huber's loss divided by ``delta`` (so ``|e| - delta / 2`` far out), elementwise."""
    if kind == "l1":
        return (prediction - target).abs()
    if kind == "l2":
        return (prediction - target).square()
    return F.huber_loss(prediction, target, reduction="none", delta=delta) / delta


class RegressionHead(Head):
    """``net(0, 0)`` is the chunk. Consumes no noise: ``M`` is 0, and the empty noise only tells the batch size."""

    denoises = False
    needs_chunk = False

    def __init__(self, config: RegressionConfig, sizes: ChunkSizes) -> None:
        super().__init__(sizes)
        self.config = config

    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        t = torch.zeros(len(action), device=action.device)
        prediction = net(torch.zeros_like(action), t).float()
        return regression_error(self.config.loss, prediction, action, delta=self.config.huber_delta).mean(-1)

    def noise_count(self) -> int:
        return 0

    def sample(self, net: NetFn, noise: Tensor) -> Tensor:
        (predict,) = net.at(torch.zeros(1))
        return predict(noise.new_zeros(len(noise), *noise.shape[2:]))
