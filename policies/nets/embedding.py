"""Time embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["SinusoidalEmbedding", "TimeEmbedding"]


class SinusoidalEmbedding(nn.Module):
    """Sine and cosine of ``scale * t`` at ``dim / 2`` geometric frequencies from 1 down to ``1 / max_period``.

    Made for t in 0..100 (diffusion steps). A head whose t lives in [0, 1] gives a ``scale``, otherwise only a few
    channels would move.
    """

    frequencies: Tensor

    def __init__(self, dim: int, *, scale: float = 1.0, max_period: float = 10_000.0) -> None:
        super().__init__()
        if dim % 2 or dim < 4:
            raise ValueError(f"a sinusoidal embedding needs an even dim of at least 4, not {dim}")
        exponent = torch.arange(dim // 2, dtype=torch.float32) / (dim // 2 - 1)
        self.register_buffer("frequencies", scale * torch.exp(-math.log(max_period) * exponent), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """``t [B] -> [B, dim]``, in float32."""
        angle = t.float()[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids followed by a two-layer perceptron; of two times (from when, to when) the second has its own, summed.

    ``t [B]`` or ``[B, n_times]`` to ``[B, dim]``.
    """

    def __init__(self, dim: int, *, scale: float = 1.0, n_times: int = 1) -> None:
        super().__init__()
        self.n_times = n_times
        self.embeddings = nn.ModuleList(
            nn.Sequential(
                SinusoidalEmbedding(dim, scale=scale), nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim)
            )
            for _ in range(n_times)
        )

    def forward(self, t: Tensor) -> Tensor:
        out: Tensor = self.embeddings[0](t if self.n_times == 1 else t[:, 0])
        for i in range(1, self.n_times):
            out = out + self.embeddings[i](t[:, i])
        return out
