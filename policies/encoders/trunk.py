"""The contract of a network that reads images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["Trunk"]


class Trunk(nn.Module, ABC):
    """Images to a map of features.

    Attributes:
        out_channels: size of the features.
        mean, std: images in 0..1 must come as ``(x - mean) / std``; one number a channel, or one for all.
    """

    out_channels: int
    mean: Sequence[float] = (0.5,)
    std: Sequence[float] = (0.5,)

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """``[n, C, H, W] -> [n, out_channels, h, w]``."""
