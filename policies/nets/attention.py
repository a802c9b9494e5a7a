"""Attention blocks that the transformer backbones share.

Shapes: ``B`` batch, ``T`` tokens that look, ``S`` tokens that are looked at, ``W`` width, ``d`` values a head.

Attention has two forms here. PyTorch's fused kernels are the fastest on a GPU and for acting, but have neither
forward-mode derivatives (``torch.func.jvp``) nor second ones. Written out as two products and a softmax it has both; on
a CPU that is also the faster form to train with: measured on one core, batch 256 of 16 tokens, forward and backward,
10 ms against 14 ms in float32 and 7 ms against 63 ms in bfloat16. :func:`written_out` chooses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.nets.embedding import SinusoidalEmbedding

__all__ = [
    "CrossAttention",
    "EncoderLayer",
    "SelfAttention",
    "attend",
    "check_sizes",
    "feed_forward",
    "keys_and_values",
    "linear",
    "positions",
    "written_out",
]

KeyValue = tuple[Tensor, Tensor]  # each [B, heads, S, d]


def check_sizes(
    name: str, *, width: int, heads: int, feed_factor: int, time_dim: int, dropout: float, **layers: int
) -> None:
    """Refuse sizes of the backbone ``name`` that make no transformer; ``layers`` are numbers of layers, at least 1.

    Raises:
        ConfigError: what is wrong, and what was expected.
    """
    if heads < 1 or width < 4 or width % heads or width % 2:
        raise ConfigError(
            f"backbone {name}: width {width} and heads {heads}: expected an even width from 4, a multiple of heads"
        )
    if feed_factor < 1 or time_dim < 4 or time_dim % 2:
        raise ConfigError(
            f"backbone {name}: feed_factor {feed_factor} and time_dim {time_dim}: expected at least 1, and an even "
            "number from 4"
        )
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"backbone {name}: dropout {dropout} is outside [0, 1)")
    for what, n in layers.items():
        if n < 1:
            raise ConfigError(f"backbone {name}: {what} {n}: expected at least 1")


def written_out(x: Tensor, *, twice: bool = False) -> bool:
    """Whether attention over ``x`` must, or on a CPU had better, be written out in elementary operations.

    ``twice``: the result may be differentiated with respect to an input, and that gradient once more with respect to
    the weights.
    """
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
        return True  # jvp, vjp, ...: fused attention lacks forward derivatives
    return torch.is_grad_enabled() and (twice or x.device.type == "cpu")


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, explicit: bool, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """``q [B, heads, T, d]``, ``k`` and ``v [B, heads, S, d]`` to ``[B, T, W]``.

    ``mask`` (bool, broadcast to ``[B, heads, T, S]``) is true where looking is allowed; ``causal`` allows what comes no
    later (then no mask).
    """
    if explicit:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        out = scores.softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2).flatten(2)


def keys_and_values(memory: Tensor, layers: int, heads: int) -> list[KeyValue]:
    """``memory [B, S, layers * 2 * W]`` to the keys and values of each layer."""
    parts = memory.unflatten(-1, (layers, 2, heads, -1)).permute(2, 3, 0, 4, 1, 5)  # [layers, 2, B, heads, S, d]
    return [(k, v) for k, v in (layer.unbind(0) for layer in parts.unbind(0))]


def positions(count: int, width: int) -> nn.Embedding:
    """Learned positions ``[count, width]``, sinusoidal at first.

    Small random ones would hardly tell the steps of a chunk of zeros apart, which is what heads without noise put in.
    An embedding, because the optimiser leaves the tables of embeddings out of its weight decay.
    """
    table = nn.Embedding(count, width)
    with torch.no_grad():
        table.weight.copy_(SinusoidalEmbedding(width)(torch.arange(count)))
    return table


def linear(inp: int, out: int) -> nn.Linear:
    """Xavier weights and no bias at first, as in DiT."""
    layer = nn.Linear(inp, out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def feed_forward(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Two layers with GELU between, ``[..., W] -> [..., W]``.

    Dropout comes last only, as in GPT-2: on a CPU the random numbers for the inner values, four times as many, took a
    sixth of the training step.
    """
    return nn.Sequential(linear(width, hidden), nn.GELU("tanh"), linear(hidden, width), nn.Dropout(dropout))


class SelfAttention(nn.Module):
    """Tokens look at each other, ``[B, T, W] -> [B, T, W]``.

    Args:
        width: ``W``.
        heads: that share the width.
        qk_norm: normalise queries and keys, which keeps the scores bounded (Dehghani et al. 2023).
        causal: a token sees no later one.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width // heads, bias=False) for _ in range(2 if qk_norm else 0))

    def forward(self, x: Tensor, explicit: bool) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, T, d]
        if self.norms:
            q, k = self.norms[0](q).to(v.dtype), self.norms[1](k).to(v.dtype)
        out: Tensor = self.out(attend(q, k, v, explicit=explicit, causal=self.causal))
        return out


class CrossAttention(nn.Module):
    """Tokens look at a memory, ``[B, T, W] -> [B, T, W]``.

    The keys and values are given: they do not depend on what looks, so sampling computes them once.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = linear(width, width), linear(width, width)

    def forward(self, x: Tensor, memory: KeyValue, explicit: bool, mask: Tensor | None = None) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, d]
        out: Tensor = self.out(attend(q, *memory, explicit=explicit, mask=mask))
        return out


class EncoderLayer(nn.Module):
    """Self-attention and perceptron, each after a norm and beside a skip: ``[B, T, W] -> [B, T, W]``."""

    def __init__(self, width: int, heads: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), SelfAttention(width, heads)
        self.feed_norm, self.feed = nn.LayerNorm(width), feed_forward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), written_out(x)))
        out: Tensor = x + self.feed(self.feed_norm(x))
        return out
