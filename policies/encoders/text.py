"""Task descriptions: a small text encoder that is trained with the policy.

A precomputed embedding needs none of this: stored as an array ``[D]`` it is a vector observation like any other (in
``obs.keys``), or a goal that can be hidden (in ``obs.goal.keys``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.normalize import Normalizer
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.part import EncoderPart, PartOutput, array_of

__all__ = ["TEXT_ENCODERS", "NgramEncoder", "TextConfig", "TextEncoder", "TransformerEncoder"]

TEXT_ENCODERS = ("ngrams", "transformer")
_NGRAMS = (3, 4, 5)
_BLANK = 32  # a text begins and ends with a space, so that short words have n-grams


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """Which observations are texts, and how they are encoded.

    Attributes:
        keys: columns of the store with one text an episode (``meta/<key>``).
        length: longest text [bytes of UTF-8].
        encoder: ``ngrams``: the sum of learned vectors of all runs of 3 to 5 bytes; ``transformer``: attention over
            the bytes.
        buckets: vectors of the n-grams; several n-grams may share one.
        dim: size of the feature, or of a token.
        tokens: tokens that the transformer makes of a text; 0: one feature vector.
        depth: layers of the transformer.
        heads: attention heads of the transformer.
    """

    keys: list[str] = field(default_factory=list)
    length: int = 64
    encoder: str = "ngrams"
    buckets: int = 4096
    dim: int = 64
    tokens: int = 0
    depth: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        if self.encoder not in TEXT_ENCODERS:
            raise ConfigError(f"unknown text encoder {self.encoder!r}. {nearest(self.encoder, TEXT_ENCODERS)}")
        for name, least in (("length", 1), ("buckets", 1), ("dim", 1), ("tokens", 0), ("depth", 1), ("heads", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"obs.text.{name}={getattr(self, name)}: expected at least {least}")
        if self.encoder == "ngrams" and self.tokens:
            raise ConfigError("obs.text.tokens: a bag of n-grams has no tokens: choose obs.text.encoder=transformer")
        if self.encoder == "transformer" and self.dim % self.heads:
            raise ConfigError(f"obs.text.dim={self.dim}: expected a multiple of obs.text.heads={self.heads}")


class NgramEncoder(nn.Module):
    """Sum of the vectors of all n-grams over the root of their number, then a linear layer (as fastText, on bytes)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self._buckets = config.buckets
        self.vectors = nn.Embedding(config.buckets + 1, config.dim, padding_idx=0)
        self.out = nn.Sequential(nn.Linear(config.dim, config.dim), nn.LayerNorm(config.dim))

    def forward(self, codes: Tensor) -> Tensor:
        """Bytes ``[B, L]`` (0 ends a text) to ``[B, dim]``."""
        places = self.places(codes)
        count = (places > 0).sum(-1, keepdim=True).clamp_min(1)
        out: Tensor = self.out(self.vectors(places).sum(1) / count.sqrt())
        return out

    def places(self, codes: Tensor) -> Tensor:
        """Place of every n-gram among the vectors, ``[B, G]``; 0: none."""
        codes = functional.pad(codes.long(), (1, 1))
        end = (codes[:, 1:] > 0).sum(-1, keepdim=True) + 1
        column = torch.arange(codes.shape[1], device=codes.device)
        codes = torch.where((column == 0) | (column == end), _BLANK, codes)
        out = []
        for n in _NGRAMS:
            if codes.shape[1] < n:
                continue
            grams = codes.unfold(1, n, 1)  # [B, L + 3 - n, n]
            h = torch.full_like(grams[..., 0], n)
            for i in range(n):  # FNV-1a (Fowler, Noll and Vo), 32 bit
                h = ((h ^ grams[..., i]) * 16777619) % (1 << 32)
            out.append(torch.where((grams > 0).all(-1), 1 + (h ^ (h >> 16)) % self._buckets, 0))
        return torch.cat(out, dim=1)


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.merge = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """``x [B, L, dim]``, ``seen [B, 1, 1, L]``: which places may be attended to."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.merge(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class TransformerEncoder(nn.Module):
    """Pre-norm transformer over the bytes of a text, read out by learned queries: ``max(tokens, 1)`` vectors."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        dim = config.dim
        self.bytes = nn.Embedding(256, dim)
        self.start = nn.Parameter(torch.randn(1, 1, dim))  # there is something to attend to in an empty text
        self.places = nn.Parameter(torch.randn(1, config.length, dim) / math.sqrt(dim))
        self.layers = nn.ModuleList(_Layer(dim, config.heads) for _ in range(config.depth))
        self.queries = nn.Parameter(torch.randn(max(config.tokens, 1), dim) / math.sqrt(dim))
        self.norm, self.key_value = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim)
        self.out = nn.LayerNorm(dim)

    def forward(self, codes: Tensor) -> Tensor:
        """Bytes ``[B, L]`` (0 ends a text) to ``[B, n, dim]``."""
        x = self.bytes(codes.long()) + self.places[:, : codes.shape[1]]
        x = torch.cat([self.start.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        seen = functional.pad(codes > 0, (1, 0), value=True)  # [B, 1 + L]
        for layer in self.layers:
            x = layer(x, seen[:, None, None])
        k, v = self.key_value(self.norm(x)).chunk(2, dim=-1)
        queries = self.queries.to(k.dtype).expand(len(x), -1, -1)
        out: Tensor = self.out(functional.scaled_dot_product_attention(queries, k, v, attn_mask=seen[:, None]))
        return out


class TextEncoder(EncoderPart):
    """Texts ``[B, 1, L]`` (bytes) to one feature vector a key, or to tokens. All keys share the weights."""

    def __init__(self, keys: list[str], config: TextConfig) -> None:
        super().__init__()
        self.keys = list(keys)
        self._tokens = config.tokens
        self.encoder = NgramEncoder(config) if config.encoder == "ngrams" else TransformerEncoder(config)
        self.feature_dim, self.token_dim = (0, config.dim) if config.tokens else (config.dim * len(keys), 0)

    def forward(self, obs: Mapping[str, Tensor], normalizer: Normalizer, draws: Draws | None = None) -> PartOutput:
        """Features ``[B, 1, keys * dim]`` or tokens ``[B, keys * tokens, dim]``: a text is the same at every step."""
        encoded = [self.encoder(array_of(obs, key)[:, 0]) for key in self.keys]
        if self._tokens:
            return PartOutput(None, torch.cat(encoded, dim=1))
        return PartOutput(torch.cat([e.flatten(1) for e in encoded], dim=-1)[:, None])
