"""Residual perceptron whose blocks are modulated (FiLM) by time and observation. Fast, for state observations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Backbone, BackboneConfig, Condition, Known, NetSizes, Observed
from visuomotor.policies.nets.embedding import TimeEmbedding

__all__ = ["MLPConfig", "ResidualMLP"]


@dataclass(kw_only=True, slots=True)
class MLPConfig(BackboneConfig):
    """Sizes of :class:`ResidualMLP`.

    Attributes:
        width: size of the hidden layers.
        depth: residual blocks.
        time_dim: size of the embedding of the denoising time.
        dropout: share of each block's inner values that is dropped in training; a few hundred demonstrations are soon
            learnt by heart without it.
    """

    width: int = 256
    depth: int = 4
    time_dim: int = 64
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.width < 8 or self.depth < 1:
            raise ConfigError(f"backbone mlp: width {self.width} and depth {self.depth}: expected at least 8 and 1")
        if self.time_dim < 4 or self.time_dim % 2:
            raise ConfigError(f"backbone mlp: time_dim {self.time_dim}: expected an even number from 4")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"backbone mlp: dropout {self.dropout} is outside [0, 1)")


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # FiLM brings the affine part
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.act = nn.SiLU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        nn.init.zeros_(self.outer.weight)  # every block starts as the identity
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        h = torch.addcmul(shift, self.norm(x), scale)
        return x + self.outer(self.dropout(self.act(self.inner(h))))


class ResidualMLP(Backbone):
    """``[B, H, Di]`` flattened, ``depth`` residual blocks with FiLM (Perez et al. 2018), one linear layer out."""

    def __init__(self, config: MLPConfig, sizes: NetSizes) -> None:
        super().__init__()
        w, s = config.width, sizes
        self.depth, self._out_shape = config.depth, (s.horizon, s.output_dim)
        self.time = TimeEmbedding(config.time_dim, scale=s.time_scale, n_times=s.n_times)
        self.observe = nn.Sequential(nn.Linear(s.n_obs * s.feature_dim, w), nn.SiLU(), nn.Linear(w, w))
        self.time_to_cond = nn.Linear(config.time_dim, w)
        self.film = nn.Sequential(nn.SiLU(), nn.Linear(w, 2 * w * config.depth))
        self.inp = nn.Linear(s.horizon * s.input_dim, w)
        self.blocks = nn.ModuleList(_Block(w, config.dropout) for _ in range(config.depth))
        self.out = nn.Sequential(nn.LayerNorm(w), nn.Linear(w, s.horizon * s.output_dim))

    @property
    def middle(self) -> nn.Module:
        return self.blocks[self.depth // 2]

    def condition(self, seen: Observed) -> Condition:
        return Condition(self.observe(seen.features.flatten(1)))  # [B, To, F] -> [B, width]

    def modulation(self, t: Tensor, vector: Tensor) -> Tensor:
        film = self.film(vector + self.time_to_cond(self.time(t)))  # [n, 2 * width * depth]
        return torch.cat([vector.to(film.dtype), film], dim=-1)

    def denoise(
        self, x: Tensor, modulation: Tensor, memory: Tensor | None = None, known: Known | None = None
    ) -> Tensor:
        bias, *film = modulation.chunk(1 + 2 * self.depth, dim=-1)  # each [B, width]
        h = self.inp(x.flatten(1)) + bias
        for i, block in enumerate(self.blocks):
            h = block(h, 1 + film[2 * i], film[2 * i + 1])
        return self.out(h).view(len(x), *self._out_shape)
