"""Diffusion transformer over the steps of a chunk (Peebles and Xie 2023; for robots Dasari et al. 2024, LBM 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visuomotor.policies.base import Backbone, BackboneConfig, Condition, Known, NetSizes, Observed
from visuomotor.policies.nets.attention import (
    CrossAttention,
    KeyValue,
    SelfAttention,
    check_sizes,
    feed_forward,
    keys_and_values,
    positions,
    written_out,
)
from visuomotor.policies.nets.embedding import TimeEmbedding

__all__ = ["DiT", "DiTConfig"]

_PARTS = 6  # of a layer's modulation: shift, scale and gate, of the attention and of the perceptron


@dataclass(kw_only=True, slots=True)
class DiTConfig(BackboneConfig):
    """Sizes of :class:`DiT`.

    Attributes:
        width: values a token.
        layers: transformer layers.
        heads: attention heads; they share the width.
        feed_factor: inner size of the perceptrons, in widths.
        time_dim: size of the embedding of the denoising time.
        dropout: share of the output of each attention and perceptron that is dropped in training; a few hundred
            demonstrations are soon learnt by heart without it.
        qk_norm: normalise queries and keys (Dehghani et al. 2023); for wide networks in bf16.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    feed_factor: int = 4
    time_dim: int = 64
    dropout: float = 0.1
    qk_norm: bool = False

    def __post_init__(self) -> None:
        check_sizes(
            "dit", width=self.width, heads=self.heads, feed_factor=self.feed_factor, time_dim=self.time_dim,
            dropout=self.dropout, layers=self.layers,
        )  # fmt: skip


class _Block(nn.Module):
    """Self-attention, cross-attention where there is a memory, perceptron."""

    def __init__(self, c: DiTConfig, *, has_memory: bool) -> None:
        super().__init__()
        w = c.width
        self.norm = nn.LayerNorm(w, elementwise_affine=False, eps=1e-6)  # the modulation brings the affine part
        self.attention = SelfAttention(w, c.heads, qk_norm=c.qk_norm)
        self.feed = feed_forward(w, c.feed_factor * w, c.dropout)
        self.dropout = nn.Dropout(c.dropout)
        self.cross_norm = nn.LayerNorm(w) if has_memory else None
        self.cross = CrossAttention(w, c.heads) if has_memory else None
        if self.cross is not None:
            nn.init.zeros_(self.cross.out.weight)  # as the gates: every branch starts closed

    def forward(self, h: Tensor, modulation: Sequence[Tensor], memory: KeyValue | None, explicit: bool) -> Tensor:
        shift, scale, gate, feed_shift, feed_scale, feed_gate = modulation  # each [B, 1, W], or [B, H, W]
        seen = self.attention(torch.addcmul(shift, self.norm(h), scale), explicit)
        h = torch.addcmul(h, gate, self.dropout(seen))
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            h = h + self.dropout(self.cross(self.cross_norm(h), memory, explicit))
        return torch.addcmul(h, feed_gate, self.feed(torch.addcmul(feed_shift, self.norm(h), feed_scale)))


class DiT(Backbone):
    """A token a step, modulated by time and observed features (AdaLN-zero), with cross-attention to observed tokens.

    All layers' shifts, scales and gates come from one linear layer, at first closed gates. DiT's output layer starts at
    zero as well; here it starts small: a head that differentiates the output with respect to the chunk, or tells modes
    apart by it, would otherwise begin at a saddle.

    Known steps of a chunk get the modulation of a clean chunk, so a prefix has a time of its own
    (arXiv:2512.05964).
    """

    takes_tokens = True
    per_step_time = True

    def __init__(self, config: DiTConfig, sizes: NetSizes) -> None:
        super().__init__()
        c, s, w = config, sizes, config.width
        self.layers, self.heads, self.width = c.layers, c.heads, w
        self.time = TimeEmbedding(c.time_dim, scale=s.time_scale, n_times=s.n_times)
        self.time_to_cond = nn.Linear(c.time_dim, w)
        self.observe = nn.Sequential(nn.Linear(s.n_obs * s.feature_dim, w), nn.SiLU(), nn.Linear(w, w))
        self.act, self.film = nn.SiLU(), nn.Linear(w, (_PARTS * c.layers + 2) * w)
        self.memory = (
            nn.Sequential(nn.LayerNorm(s.token_dim), nn.Linear(s.token_dim, c.layers * 2 * w)) if s.token_dim else None
        )
        self.inp, self.positions = nn.Linear(s.input_dim, w), positions(s.horizon, w)
        self.blocks = nn.ModuleList(_Block(c, has_memory=s.token_dim > 0) for _ in range(c.layers))
        self.norm = nn.LayerNorm(w, elementwise_affine=False, eps=1e-6)
        self.out = nn.Linear(w, s.output_dim)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.zeros_(self.film.weight)
        with torch.no_grad():
            bias = self.film.bias.zero_().view(-1, self.width)
            bias[1:-2:3] = 1.0  # scales: the second of every three
            bias[-1] = 1.0  # of the output: shift, scale
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    @property
    def middle(self) -> nn.Module:
        return self.blocks[self.layers // 2]

    def condition(self, seen: Observed) -> Condition:
        vector = self.observe(seen.features.flatten(1))  # [B, To, F] -> [B, W]
        if self.memory is None or seen.tokens is None:
            return Condition(vector)
        return Condition(vector, self.memory(seen.tokens))  # keys and values of all layers [B, L, layers * 2 * W]

    def modulation(self, t: Tensor, vector: Tensor) -> Tensor:
        out: Tensor = self.film(self.act(vector + self.time_to_cond(self.time(t))))  # [n, (6 * layers + 2) * W]
        return out

    def denoise(
        self, x: Tensor, modulation: Tensor, memory: Tensor | None = None, known: Known | None = None
    ) -> Tensor:
        explicit = written_out(x, twice=x.requires_grad)
        *inner, outer = self._per_layer(modulation, known)
        kv = [None] * self.layers if memory is None else keys_and_values(memory, self.layers, self.heads)
        h = self.inp(x) + self.positions.weight  # [B, H, W]
        for block, parts, of_layer in zip(self.blocks, inner, kv, strict=True):
            h = block(h, parts, of_layer, explicit)
        out: Tensor = self.out(torch.addcmul(outer[0], self.norm(h), outer[1]))
        return out

    def _per_layer(self, modulation: Tensor, known: Known | None) -> list[tuple[Tensor, ...]]:
        """The parts of each layer's modulation and of the output's: each ``[B, 1, W]``, with ``known [B, H, W]``."""
        sizes = [_PARTS * self.width] * self.layers + [2 * self.width]
        layers = list(modulation[:, None].split_with_sizes(sizes, dim=-1))
        if known is not None:
            clean = known.modulation[:, None].split_with_sizes(sizes, dim=-1)
            mask = known.mask[..., None]
            layers = [torch.where(mask, c, m) for c, m in zip(clean, layers, strict=True)]
        return [layer.split(self.width, dim=-1) for layer in layers]
