"""Goals: what the world should look like in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from visuomotor.data.batches import GOAL_STRATEGIES, goal_key
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.normalize import Normalizer
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.part import EncoderPart, array_of

__all__ = ["GoalConfig", "GoalEncoder"]


@dataclass(kw_only=True, slots=True)
class GoalConfig:
    """What is given as a goal, and how often goal and texts are hidden.

    Attributes:
        keys: arrays of the store whose value at a later step of the episode is the goal; observed ones or others.
        strategy: ``final``: the last step of the episode; ``future``: any later step, drawn anew for each batch
            (hindsight relabelling).
        dropout: share of the training windows whose goal and texts are hidden, so that the policy also knows what it
            would do without them (classifier-free guidance, Ho and Salimans 2022); 0.1 is usual.
        dim: size of the goal's feature vector.
    """

    keys: list[str] = field(default_factory=list)
    strategy: str = "final"
    dropout: float = 0.0
    dim: int = 64

    def __post_init__(self) -> None:
        if self.strategy not in GOAL_STRATEGIES:
            raise ConfigError(f"unknown obs.goal.strategy {self.strategy!r}. {nearest(self.strategy, GOAL_STRATEGIES)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"obs.goal.dropout={self.dropout}: expected 0 <= dropout < 1")
        if self.dim < 1:
            raise ConfigError(f"obs.goal.dim={self.dim}: expected at least 1")
        twice = sorted({k for k in self.keys if self.keys.count(k) > 1})
        if twice:
            raise ConfigError(f"obs.goal.keys names {twice} more than once")


class GoalEncoder(nn.Module):
    """The goal's observations, encoded as the present ones are, projected to one vector ``[B, 1, dim]``.

    Args:
        own: parts that only the goal uses.
        shared: parts of the observation encoder that encode the goal as well, with the same weights.
        dim: size of the result.
    """

    def __init__(self, own: Sequence[EncoderPart], shared: Sequence[EncoderPart], dim: int) -> None:
        super().__init__()
        self.own = nn.ModuleList(own)
        self._shared = tuple(shared)  # a tuple: registered a second time they would be saved twice
        width = sum(p.feature_dim or p.token_dim for p in (*own, *shared))
        self.project = nn.Sequential(nn.Linear(width, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.dim = dim

    def forward(self, obs: Mapping[str, Tensor], normalizer: Normalizer, draws: Draws | None = None) -> Tensor:
        """``{"goal/<key>": [B, 1, ...]}`` in raw units to ``[B, 1, dim]``."""
        parts = []
        for part in (*self.own, *self._shared):
            goal = {key: array_of(obs, goal_key(key)) for key in part.keys}
            out = part(goal, normalizer, draws)
            parts.append(out.tokens.mean(1, keepdim=True) if out.features is None else out.features)
        result: Tensor = self.project(torch.cat(parts, dim=-1))
        return result
