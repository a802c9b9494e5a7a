"""Encoder-decoder transformer over the steps of a chunk (Chi et al. 2023, DP-T; Zhao et al. 2023, ACT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Backbone, BackboneConfig, Condition, Known, NetSizes, Observed
from visuomotor.policies.nets.attention import (
    CrossAttention,
    EncoderLayer,
    KeyValue,
    SelfAttention,
    check_sizes,
    feed_forward,
    keys_and_values,
    positions,
    written_out,
)
from visuomotor.policies.nets.embedding import TimeEmbedding

__all__ = ["Transformer", "TransformerConfig"]


@dataclass(kw_only=True, slots=True)
class TransformerConfig(BackboneConfig):
    """Sizes of :class:`Transformer`. ACT has width 512, 4 + 1 layers and 8 heads; DP-T 256, 8 decoder layers, 4 heads.

    Attributes:
        width: values a token.
        encoder_layers: over the observations; 0 only projects them.
        decoder_layers: over the chunk.
        heads: attention heads; they share the width.
        feed_factor: inner size of the perceptrons, in widths.
        time_dim: size of the embedding of the denoising time.
        dropout: share of the output of each attention and perceptron that is dropped in training; a few hundred
            demonstrations are soon learnt by heart without it.
        causal: a step of the chunk sees no later one (DP-T).
    """

    width: int = 128
    encoder_layers: int = 2
    decoder_layers: int = 4
    heads: int = 4
    feed_factor: int = 4
    time_dim: int = 64
    dropout: float = 0.1
    causal: bool = False

    def __post_init__(self) -> None:
        check_sizes(
            "transformer", width=self.width, heads=self.heads, feed_factor=self.feed_factor, time_dim=self.time_dim,
            dropout=self.dropout, decoder_layers=self.decoder_layers,
        )  # fmt: skip
        if self.encoder_layers < 0:
            raise ConfigError(f"backbone transformer: encoder_layers {self.encoder_layers}: expected at least 0")


class _DecoderLayer(nn.Module):
    """Self-attention, cross-attention and perceptron, each after a norm and beside a skip."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        w = c.width
        self.attention_norm, self.attention = nn.LayerNorm(w), SelfAttention(w, c.heads, causal=c.causal)
        self.cross_norm, self.cross = nn.LayerNorm(w), CrossAttention(w, c.heads)
        self.feed_norm, self.feed = nn.LayerNorm(w), feed_forward(w, c.feed_factor * w, c.dropout)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, h: Tensor, memory: KeyValue, mask: Tensor | None, explicit: bool) -> Tensor:
        h = h + self.dropout(self.attention(self.attention_norm(h), explicit))
        h = h + self.dropout(self.cross(self.cross_norm(h), memory, explicit, mask))
        out: Tensor = h + self.feed(self.feed_norm(h))
        return out


class Transformer(Backbone):
    """Encoder over the observations, decoder over the chunk; the time is one more token of the decoder's memory.

    A token an observed step, and the observed tokens. Unlike in DP-T the time does not pass through the encoder: the
    memory is then the same for every denoising step, and its keys and values are computed once for a chunk.

    Known steps of a chunk see the token of a clean chunk's time where the others see that of the present one.
    """

    takes_tokens = True
    per_step_time = True

    def __init__(self, config: TransformerConfig, sizes: NetSizes) -> None:
        super().__init__()
        c, s, w = config, sizes, config.width
        self.layers, self.heads = c.decoder_layers, c.heads
        self.time = nn.Sequential(
            TimeEmbedding(c.time_dim, scale=s.time_scale, n_times=s.n_times), nn.Linear(c.time_dim, w), nn.LayerNorm(w)
        )
        self.features, self.steps = nn.Linear(s.feature_dim, w), positions(s.n_obs, w)
        self.tokens = nn.Sequential(nn.LayerNorm(s.token_dim), nn.Linear(s.token_dim, w)) if s.token_dim else None
        self.encoder = nn.Sequential(
            *(EncoderLayer(w, c.heads, hidden=c.feed_factor * w, dropout=c.dropout) for _ in range(c.encoder_layers)),
            nn.LayerNorm(w),
        )
        self.memory = nn.Linear(w, c.decoder_layers * 2 * w)  # keys and values of all decoder layers
        self.inp, self.positions = nn.Linear(s.input_dim, w), positions(s.horizon, w)
        self.decoder = nn.ModuleList(_DecoderLayer(c) for _ in range(c.decoder_layers))
        self.out = nn.Sequential(nn.LayerNorm(w), nn.Linear(w, s.output_dim))

    @property
    def middle(self) -> nn.Module:
        return self.decoder[self.layers // 2]

    def condition(self, seen: Observed) -> Condition:
        tokens = self.features(seen.features) + self.steps.weight  # [B, To, W]
        if self.tokens is not None and seen.tokens is not None:
            tokens = torch.cat([tokens, self.tokens(seen.tokens)], dim=1)  # [B, To + L, W]
        # The vector is not used: all that is observed is in the memory.
        return Condition(seen.features.flatten(1), self.memory(self.encoder(tokens)))

    def modulation(self, t: Tensor, vector: Tensor) -> Tensor:
        out: Tensor = self.memory(self.time(t))  # keys and values of the time token [n, layers * 2 * W]
        return out

    def denoise(
        self, x: Tensor, modulation: Tensor, memory: Tensor | None = None, known: Known | None = None
    ) -> Tensor:
        assert memory is not None  # condition() always gives one
        explicit = written_out(x, twice=x.requires_grad)
        times = [modulation] if known is None else [modulation, known.modulation]
        memory = torch.cat([*(m[:, None] for m in times), memory], dim=1)
        mask = None if known is None else _sees(known.mask, memory.shape[1])
        h = self.inp(x) + self.positions.weight  # [B, H, W]
        for layer, kv in zip(self.decoder, keys_and_values(memory, self.layers, self.heads), strict=True):
            h = layer(h, kv, mask, explicit)
        out: Tensor = self.out(h)
        return out


def _sees(known: Tensor, count: int) -> Tensor:
    """``[B, H]`` to ``[B, 1, H, count]``: known steps see not the first token of the memory but the second."""
    rest = known.new_ones(()).expand(*known.shape, count - 2)
    return torch.cat([~known[..., None], known[..., None], rest], dim=-1)[:, None]
