"""The policy contract: what a policy is asked, and how its parts (encoder, backbone, head) meet.

Shapes: ``B`` batch, ``To`` observed steps, ``H`` predicted steps (horizon), ``Da`` action size, ``F`` features an
observed step, ``M`` noise tensors that one sample needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from visuomotor.policies.draws import Draws

__all__ = ["Backbone", "BackboneConfig", "Head", "HeadConfig", "LossOutput", "NetFn", "masked_mean"]


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    """Settings of a head; each head's own class derives from it."""


@dataclass(kw_only=True, slots=True)
class BackboneConfig:
    """Settings of a backbone; each backbone's own class derives from it."""


@dataclass(frozen=True)
class LossOutput:
    """Loss of one batch.

    ``loss`` is the scalar to minimise; ``per_step [B, H]`` is the same before masking and averaging (detached);
    ``metrics`` are scalars worth a curve, kept as tensors so that reading them does not stall a GPU.
    """

    loss: Tensor
    per_step: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class NetFn(Protocol):
    """A backbone with its condition bound: ``(x [B, H, Da], t [B]) -> [B, H, Da]``."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor: ...


class Backbone(nn.Module, ABC):
    """Predicts a chunk-shaped tensor from a chunk-shaped one, a time and a condition. Knows no head."""

    @abstractmethod
    def condition(self, features: Tensor) -> Tensor:
        """Whatever of ``features [B, To, F]`` can be computed once and used at every denoising step."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """``x [B, H, Da], t [B] in the head's own units, cond`` from :meth:`condition` -> ``[B, H, Da]``."""


class Head(nn.Module, ABC):
    """Decides what the backbone regresses and how its output is integrated. Works on normalised actions only."""

    time_scale: float  # multiply t by this before a sinusoidal embedding made for 0..100

    @abstractmethod
    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        """Unreduced loss ``[B, H]`` of ``action [B, H, Da]``."""

    @abstractmethod
    def noise_count(self) -> int:
        """``M``: how many standard-normal chunks one sample consumes."""

    @abstractmethod
    def sample(self, net: NetFn, noise: Tensor) -> Tensor:
        """Integrate from ``noise [B, M, H, Da]`` to a normalised chunk ``[B, H, Da]``. Deterministic."""


def masked_mean(per_step: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``per_step [B, H]`` over the steps where ``mask`` is true (all of them without a mask)."""
    if mask is None:
        return per_step.mean()
    weight = mask.to(per_step.dtype)
    return (per_step * weight).sum() / weight.sum().clamp_min(1.0)
