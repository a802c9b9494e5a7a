"""The policy contract: what a policy is asked, and how its parts (encoder, backbone, head) meet.

Shapes: ``B`` batch, ``To`` observed steps, ``H`` predicted steps (horizon), ``Da`` action size, ``F`` features an
observed step, ``M`` noise tensors that one sample needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from visuomotor.policies.draws import Draws

__all__ = ["Backbone", "BackboneConfig", "ConditionedNet", "Head", "HeadConfig", "LossOutput", "NetFn", "masked_mean"]


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
    """A backbone that has seen the observations: ``net(x [B, H, Da], t [B]) -> [B, H, Da]``."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor: ...

    def at(self, times: Tensor) -> Sequence[Callable[[Tensor], Tensor]]:
        """One function ``x -> net(x, t)`` for each ``t`` of ``times [S]``, the same time for the whole batch."""


class Backbone(nn.Module, ABC):
    """Predicts a chunk-shaped tensor from a chunk-shaped one, a time and a condition. Knows no head.

    In three parts, by what each depends on: :meth:`condition` on the observations, :meth:`modulation` on these and the
    time, :meth:`denoise` on these and the noisy chunk. Sampling visits known times, so only the last one is repeated.
    """

    @abstractmethod
    def condition(self, features: Tensor) -> Tensor:
        """``features [B, To, F] -> [B, C]``."""

    @abstractmethod
    def modulation(self, t: Tensor, cond: Tensor) -> Tensor:
        """``t [n]`` in the head's own units, ``cond [n, C] -> [n, M]``."""

    @abstractmethod
    def denoise(self, x: Tensor, modulation: Tensor) -> Tensor:
        """``x [B, H, Da], modulation [B, M] -> [B, H, Da]``."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """``x [B, H, Da], t [B], cond [B, C] -> [B, H, Da]``."""
        return self.denoise(x, self.modulation(t, cond))


class ConditionedNet:
    """A backbone with its condition ``[B, C]`` bound (see :class:`NetFn`)."""

    def __init__(self, backbone: Backbone, cond: Tensor) -> None:
        self._backbone, self._cond = backbone, cond

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """``x [B, H, Da], t [B] -> [B, H, Da]``; through ``forward``, so that hooks and wrappers see the call."""
        out: Tensor = self._backbone(x, t, self._cond)
        return out

    def at(self, times: Tensor) -> Sequence[Callable[[Tensor], Tensor]]:
        """All modulations ``[S, B, M]`` in one go: sampling at batch 1 is mostly overhead."""
        steps, batch = len(times), len(self._cond)
        t = times.to(self._cond.device).repeat_interleave(batch)
        modulation = self._backbone.modulation(t, self._cond.repeat(steps, 1)).view(steps, batch, -1)
        return [partial(self._backbone.denoise, modulation=m) for m in modulation]


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
