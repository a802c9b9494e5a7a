"""A small vision transformer, trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.encoders.trunk import Trunk

__all__ = ["AttentionPool", "ViT", "ViTConfig"]


@dataclass(kw_only=True, slots=True)
class ViTConfig:
    """Sizes of :class:`ViT`; the defaults are a little smaller than ViT-Tiny.

    Attributes:
        patch: side of a patch [pixel]; the sides of the (cropped) image must be multiples of it.
        dim: size of a token.
        depth: layers.
        heads: attention heads; must divide ``dim``.
        dropout: share of the values that each layer adds that is dropped in training.
    """

    patch: int = 12
    dim: int = 192
    depth: int = 6
    heads: int = 3
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("patch", "dim", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"obs.image.vit: {name}={getattr(self, name)}: expected at least 1")
        if self.dim % self.heads:
            raise ConfigError(f"obs.image.vit: dim={self.dim} is not a multiple of heads={self.heads}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"obs.image.vit: dropout={self.dropout} is outside [0, 1)")


class _Layer(nn.Module):
    """Pre-norm self-attention and perceptron."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self._heads, -1))  # [B, L, 3, heads, dim / heads]
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.project(seen))
        return x + self.dropout(self.mlp(self.norm2(x)))


class ViT(Trunk):
    """``[B, C, H, W]`` to a map of patches ``[B, dim, H / patch, W / patch]`` (Dosovitskiy et al. 2021, pre-norm).

    Args:
        config: sizes.
        channels: of the image.
        size: rows and columns of the image.

    Raises:
        ConfigError: the image is not made of whole patches.
    """

    def __init__(self, config: ViTConfig, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        if size[0] % config.patch or size[1] % config.patch:
            raise ConfigError(
                f"obs.image.vit: an image of {size[0]}x{size[1]} pixels (after resize and crop) is not made of whole "
                f"patches of {config.patch}: choose obs.image.vit.patch or obs.image.crop to fit"
            )
        self.out_channels = config.dim
        self._grid = (size[0] // config.patch, size[1] // config.patch)
        self.patches = nn.Conv2d(channels, config.dim, config.patch, stride=config.patch)
        self.position = nn.Parameter(torch.randn(1, self._grid[0] * self._grid[1], config.dim) * 0.02)
        self.layers = nn.Sequential(*[_Layer(config.dim, config.heads, config.dropout) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.position  # [B, L, dim]
        out: Tensor = self.norm(self.layers(x))
        return out.transpose(1, 2).unflatten(2, self._grid)


class AttentionPool(nn.Module):
    """One learnt query attends to all places of a map: ``[B, C, h, w] -> [B, C]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(channels) * channels**-0.5)
        self.key, self.value = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, feature_map: Tensor) -> Tensor:
        """The weighted mean ``[B, C]``."""
        x = feature_map.flatten(2).transpose(1, 2)  # [B, L, C]
        query = self.query.to(x.dtype).expand(len(x), 1, -1)
        return F.scaled_dot_product_attention(query, self.key(x), self.value(x))[:, 0]
