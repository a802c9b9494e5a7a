"""Dispersive loss: hidden representations of different samples are pushed apart (Wang and He, arXiv:2506.09027)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError

__all__ = ["DispersiveConfig", "dispersive_loss"]


@dataclass(kw_only=True, slots=True)
class DispersiveConfig:
    """Keeps a policy from giving like observations like features; MP1 (arXiv:2507.10543) adds it to MeanFlow.

    Attributes:
        weight: factor of the dispersive loss; 0 leaves it out, MP1 and Wang and He take 0.5.
        temperature: squared distances are divided by this; small values only push near neighbours apart.
    """

    weight: float = 0.0
    temperature: float = 0.5

    def __post_init__(self) -> None:
        if self.weight < 0.0 or self.temperature <= 0.0:
            raise ConfigError(
                f"dispersive: weight={self.weight} must not be negative and temperature={self.temperature} positive"
            )


def dispersive_loss(hidden: Tensor, temperature: float) -> Tensor:
    """``log mean_ij exp(-|h_i - h_j|^2 / (D temperature))`` of ``hidden [B, D]``: a scalar of at most 0.

    InfoNCE without positive pairs, in the l2 form of Wang and He; the mean is over all ordered pairs, those of a row
    with itself included, so that it is bounded below by ``-log B``. Computed in float32.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        h = hidden.float()
        square = h.square().sum(-1)
        distance = (square[:, None] + square - 2.0 * h @ h.t()).clamp_min(0.0) / h.shape[1]  # [B, B]
        return torch.logsumexp(-distance.flatten() / temperature, 0) - 2.0 * math.log(len(h))
