"""Action chunking as a conditional variational autoencoder (ACT, Zhao et al. 2023, arXiv:2304.13705)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, Head, HeadConfig, NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.nets.attention import (
    CrossAttention,
    EncoderLayer,
    feed_forward,
    keys_and_values,
    linear,
    positions,
    written_out,
)

__all__ = ["ActConfig", "ActHead"]


@dataclass(kw_only=True, slots=True)
class ActConfig(HeadConfig):
    """The latent, and the encoder that only training needs. ACT's own sizes: width 512, 4 layers, 8 heads.

    Attributes:
        latent_dim: size of the latent ``z``.
        kl_weight: weight of the Kullback-Leibler divergence of the latent from a standard normal; the smaller, the
            more of the demonstrators' choices is left to the latent.
        sample_latent: draw the latent when acting; ACT, and the default, acts with its mean, 0.
        width: width of the posterior's transformer encoder.
        layers: its layers.
        attention_heads: its attention heads.
        dropout: its dropout.
    """

    latent_dim: int = 32
    kl_weight: float = 10.0
    sample_latent: bool = False
    width: int = 64
    layers: int = 1
    attention_heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("latent_dim", "layers", "attention_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"head act: {name}={getattr(self, name)}: expected at least 1")
        if self.width < 4 or self.width % 2 or self.width % self.attention_heads:
            raise ConfigError(
                f"head act: width={self.width}: expected an even number of at least 4 that attention_heads="
                f"{self.attention_heads} divides"
            )
        if self.kl_weight < 0.0 or not 0.0 <= self.dropout < 1.0:
            raise ConfigError(
                f"head act: kl_weight={self.kl_weight:g} must be 0 or more, and dropout={self.dropout:g} in [0, 1)"
            )


class ActHead(Head):
    """L1 regression of the chunk from the observation and a latent that stands for how it was done this time.

    The backbone is ACT's decoder: its input is the latent, the same at every step of the chunk, at time 0. (ACT puts
    the latent among the tokens that the decoder attends to; as an input it suits every backbone.) In training the
    latent is drawn from a posterior that sees the present observation and the actions to be predicted.

    The loss is the same function of its arguments in training and in evaluation (but for dropout): a validation loss
    is the evidence lower bound too, not the error of the policy when it acts with ``z = 0``.

    The posterior sees padded steps of a chunk as they are, copies of the last one: heads know nothing of padding.
    ``window.mask_padding`` leaves them out of the L1 term (the mean is then over the other steps; ACT's own code
    divides by all of them).
    """

    denoises = False

    def __init__(self, config: ActConfig, sizes: ChunkSizes) -> None:
        super().__init__(sizes)
        self.config = config
        self.input_dim = config.latent_dim
        self._chunk_values = sizes.horizon * sizes.action_dim
        self.posterior = _Posterior(config, sizes)

    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        """``[B, H]``: L1 of each step, plus the weighted divergence of the chunk's latent at every step of it."""
        mean, log_variance = self.posterior(net.seen.features[:, -1], action)  # [B, Z]
        latent = mean + (0.5 * log_variance).exp() * draws.normal(tuple(mean.shape))
        error = (self._decode(net, latent, action.shape[1]).float() - action).abs().mean(-1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(-1)
        return error + self.config.kl_weight * divergence[:, None]

    def noise_count(self) -> int:
        return -(-self.config.latent_dim // self._chunk_values) if self.config.sample_latent else 1

    def sample(self, net: NetFn, noise: Tensor) -> Tensor:
        """The latent is zero, or the first ``latent_dim`` values of ``noise``."""
        latent = noise.new_zeros(len(noise), self.config.latent_dim)
        if self.config.sample_latent:
            latent = noise.flatten(1)[:, : self.config.latent_dim]
        return self._decode(net, latent, noise.shape[2])

    def _decode(self, net: NetFn, latent: Tensor, horizon: int) -> Tensor:
        x = latent[:, None].expand(-1, horizon, -1)  # [B, H, Z]
        return net(x, latent.new_zeros(len(latent)))


class _Posterior(nn.Module):
    """``features [B, F]`` and ``action [B, H, Da]`` to mean and log-variance of the latent, ``[B, Z]`` in float32.

    A transformer encoder over a summary token, the observation and the actions. Only the summary is read at the end,
    so in the last layer nothing else is computed.
    """

    def __init__(self, config: ActConfig, sizes: ChunkSizes) -> None:
        super().__init__()
        w, heads, p = config.width, config.attention_heads, config.dropout
        self.observe, self.act = nn.Linear(sizes.feature_dim, w), nn.Linear(sizes.action_dim, w)
        self.tokens = positions(sizes.horizon + 2, w)  # the first is the summary's
        self.layers = nn.ModuleList(EncoderLayer(w, heads, hidden=4 * w, dropout=p) for _ in range(config.layers - 1))
        self.norm, self.key_value, self.look = nn.LayerNorm(w), linear(w, 2 * w), CrossAttention(w, heads)
        self.feed = nn.Sequential(nn.LayerNorm(w), feed_forward(w, 4 * w, p))
        self.out_norm, self.out = nn.LayerNorm(w), nn.Linear(w, 2 * config.latent_dim)
        nn.init.zeros_(self.out.weight)  # begins as the standard normal: no divergence to unlearn first
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.cat([self.observe(features)[:, None], self.act(action)], dim=1).float()  # [B, 1 + H, width]
        h = torch.cat([tokens.new_zeros(len(action), 1, tokens.shape[2]), tokens], dim=1) + self.tokens.weight
        for layer in self.layers:
            h = layer(h)
        seen = self.norm(h)
        (memory,) = keys_and_values(self.key_value(seen), 1, self.look.heads)
        summary = h[:, :1] + self.look(seen[:, :1], memory, written_out(h))
        summary = summary + self.feed(summary)
        mean, log_variance = self.out(self.out_norm(summary[:, 0])).float().chunk(2, dim=-1)
        return mean, log_variance
