"""From a feature map to what a policy reads of it: pooled features, or one token a place, marked with its time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visuomotor.policies.encoders.resnet import SpatialSoftmax
from visuomotor.policies.encoders.vit import AttentionPool

__all__ = ["PooledReadout", "TokenReadout", "with_time"]


class PooledReadout(nn.Module):
    """``[n, C, h, w] -> [n, feature_dim]``.

    Args:
        pool: ``spatial_softmax``, ``attention`` or ``mean``.
        channels: ``C``.
        feature_dim: size of the result.
        keypoints: of the spatial softmax.
    """

    def __init__(self, pool: str, channels: int, feature_dim: int, *, keypoints: int) -> None:
        super().__init__()
        self.pool: nn.Module
        if pool == "spatial_softmax":
            self.pool, inp = SpatialSoftmax(channels, keypoints), 2 * keypoints
        else:
            self.pool = AttentionPool(channels) if pool == "attention" else nn.AdaptiveAvgPool2d(1)
            inp = channels
        self.project = nn.Linear(inp, feature_dim)

    def forward(self, feature_map: Tensor) -> Tensor:
        out: Tensor = self.project(self.pool(feature_map).flatten(1))
        return out


class TokenReadout(nn.Module):
    """``[n, C, h, w] -> [n, h * w, token_dim]``: every place with its position, so that attention can point at it."""

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.project, self.position = nn.Linear(channels, token_dim), nn.Linear(token_dim, token_dim)
        self._dim = token_dim

    def forward(self, feature_map: Tensor) -> Tensor:
        h, w = feature_map.shape[-2:]
        code = _position_code(h, w, self._dim, feature_map.device)
        out: Tensor = self.project(feature_map.flatten(2).transpose(1, 2)) + self.position(code)
        return out


def with_time(tokens: Tensor) -> Tensor:
    """Tell the observed steps of ``tokens [B, To, L, E]`` apart: a fixed code of how long ago each was, now = 0."""
    steps, dim = tokens.shape[1], tokens.shape[-1]
    ago = torch.arange(steps - 1, -1, -1, device=tokens.device, dtype=torch.float32)
    rate = torch.logspace(0, -2, (dim + 1) // 2, device=tokens.device)
    angle = ago[:, None] * rate
    return tokens + torch.cat([angle.sin(), angle.cos() - 1.0], dim=-1)[:, None, :dim]


def _position_code(h: int, w: int, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of row and column (from -1 to 1) at ``dim / 4`` rates: ``[h * w, dim]``."""
    rate = torch.pi * torch.logspace(-1, 1, dim // 4, base=4.0, device=device)
    y = torch.linspace(-1.0, 1.0, h, device=device)[:, None] * rate  # [h, dim / 4]
    x = torch.linspace(-1.0, 1.0, w, device=device)[:, None] * rate
    rows = torch.cat([y.sin(), y.cos()], dim=-1)[:, None].expand(h, w, -1)
    columns = torch.cat([x.sin(), x.cos()], dim=-1)[None].expand(h, w, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
