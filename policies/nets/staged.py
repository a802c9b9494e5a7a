"""A backbone for the noisy times and another one for the rest, as one: what fine-tuning the last steps alone leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from visuomotor.policies.base import Backbone, BackboneConfig, Condition, Known, Observed

__all__ = ["StagedBackbone", "StagedConfig"]


@dataclass(kw_only=True, slots=True)
class StagedConfig(BackboneConfig):
    """The backbone that both stages are copies of.

    Attributes:
        backbone: its name.
        settings: its settings.
        boundary: time above which the first stage is asked, in the head's own units.
    """

    backbone: str = "mlp"
    settings: dict[str, Any] = field(default_factory=dict)
    boundary: float = 0.0


class StagedBackbone(Backbone):
    """Asks ``first`` at times above ``boundary`` and ``last`` at the others.

    A modulation carries which of the two it is for, so a sampler that visits one time after another runs one network
    a step. Rows of different stages in one batch, and an export, run both.

    Args:
        first: for the noisy times; its weights are not trained.
        last: for the others, of the same kind and size.
        boundary: see above.
    """

    per_step_time = False  # known steps are clean, which is the other stage's time

    def __init__(self, first: Backbone, last: Backbone, boundary: float) -> None:
        super().__init__()
        self.first, self.last, self.boundary = first.requires_grad_(False), last, boundary
        self.takes_tokens = last.takes_tokens

    @property
    def middle(self) -> nn.Module:
        return self.last.middle

    def condition(self, seen: Observed) -> Condition:
        """Both conditions side by side, ``[B, 2 C]`` and ``[B, L', 2 E']``."""
        first, last = self.first.condition(seen), self.last.condition(seen)
        vector = torch.cat([first.vector, last.vector], -1)
        if first.memory is None or last.memory is None:
            return Condition(vector)
        return Condition(vector, torch.cat([first.memory, last.memory], -1))

    def modulation(self, t: Tensor, vector: Tensor) -> Tensor:
        """The modulation of the stage that ``t`` belongs to, after a column that is 1 for the first stage."""
        first, last = vector.chunk(2, -1)
        early = ((t if t.ndim == 1 else t[:, 0]) > self.boundary)[:, None]
        chosen = torch.where(early, self.first.modulation(t, first), self.last.modulation(t, last))
        return torch.cat([early.to(chosen.dtype), chosen], -1)

    def denoise(
        self, x: Tensor, modulation: Tensor, memory: Tensor | None = None, known: Known | None = None
    ) -> Tensor:
        early, modulation = modulation[:, :1] > 0.5, modulation[:, 1:]
        first, last = (None, None) if memory is None else memory.chunk(2, -1)
        if not torch.compiler.is_compiling():  # where no value may choose a branch
            if not bool(early.any()):
                return self.last.denoise(x, modulation, last)
            if bool(early.all()):
                return self.first.denoise(x, modulation, first)
        return torch.where(
            early[..., None], self.first.denoise(x, modulation, first), self.last.denoise(x, modulation, last)
        )
