"""A Gaussian over the chunk: mean and standard deviation for every step and dimension, by maximum likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, Head, HeadConfig, NetFn
from visuomotor.policies.draws import Draws

__all__ = ["ChunkGaussian", "GaussianConfig", "GaussianHead", "bounded_std", "check_std", "gaussian_log_prob"]

_EDGE = 1.0 - 1e-3  # squashed actions are taken to lie inside this: at 1 the density of a squashed Gaussian diverges


@dataclass(kw_only=True, slots=True)
class GaussianConfig(HeadConfig):
    """Spread, squashing, and how much of the spread is used when acting. All in normalised units.

    Attributes:
        std_from_obs: whether the standard deviation is an output of the network; otherwise it is learned once for
            every step and dimension (the usual start for PPO).
        std_min: least standard deviation.
        std_max: largest standard deviation.
        std_init: standard deviation before training.
        squash: pass the Gaussian through tanh, so that actions stay within (-1, 1).
        beta: weight each term of the loss by its own variance to this power, without a gradient (beta-NLL, Seitzer et
            al. 2022): the optimum is the same, but steps that are predicted badly are not given up. 0 is the plain
            likelihood, 1 regresses the mean as L2 does.
        temperature: factor of the standard deviation when acting; 0 executes the mean.
    """

    std_from_obs: bool = True
    std_min: float = 0.02
    std_max: float = 1.5
    std_init: float = 0.3
    squash: bool = False
    beta: float = 0.5
    temperature: float = 0.0

    def __post_init__(self) -> None:
        check_std("gaussian", self.std_min, self.std_init, self.std_max, self.temperature)
        if not 0.0 <= self.beta <= 1.0:
            raise ConfigError(f"head gaussian: beta={self.beta} is outside [0, 1]")


def check_std(head: str, low: float, init: float, high: float, temperature: float) -> None:
    """Refuse bounds that are no bounds.

    Raises:
        ConfigError: not ``0 < low < init < high``, or a negative temperature.
    """
    if not 0.0 < low < init < high:
        raise ConfigError(
            f"head {head}: std_min={low}, std_init={init}, std_max={high}: expected 0 < std_min < std_init < std_max"
        )
    if temperature < 0.0:
        raise ConfigError(f"head {head}: temperature={temperature}: expected 0 (the mean) or more")


def bounded_std(raw: Tensor, *, low: float, init: float, high: float) -> Tensor:
    """Standard deviation between ``low`` and ``high``, logarithmic in between and ``init`` where ``raw`` is 0.

    A sigmoid, not a clamp: beyond a clamp nothing would be learned any more.
    """
    span = math.log(high / low)
    share = math.log(init / low) / span
    return low * torch.exp(span * torch.sigmoid(raw + math.log(share / (1.0 - share))))


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density [nats] of independent Gaussians, elementwise."""
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class ChunkGaussian:
    """What a Gaussian policy says about the next chunk, in normalised units.

    ``mean`` and ``std`` are ``[B, H, Da]``; with ``squash`` they are those of the Gaussian before tanh.
    """

    mean: Tensor
    std: Tensor
    squash: bool = False

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Chunk ``[B, H, Da]`` from standard normal ``noise [B, H, Da]``, differentiable in mean and std."""
        x = self.mean + temperature * self.std * noise
        return x.tanh() if self.squash else x

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density [nats] of ``action [B, H, Da]``, elementwise: sum it over what is one decision.

        A squashed density is that of the actions themselves, the logarithm of tanh's slope included; actions closer
        to the edge than 0.001 are taken to lie there.
        """
        if not self.squash:
            return gaussian_log_prob(action, self.mean, self.std)
        x = torch.atanh(action.clamp(-_EDGE, _EDGE))
        # log(1 - tanh(x)^2) without cancellation.
        slope = 2.0 * (math.log(2.0) - x - F.softplus(-2.0 * x))
        return gaussian_log_prob(x, self.mean, self.std) - slope

    def unsquashed_log_prob(self, x: Tensor) -> Tensor:
        """Log-density [nats] of ``x [B, H, Da]`` before tanh, elementwise: without ``squash`` that of the action."""
        return gaussian_log_prob(x, self.mean, self.std)

    def entropy(self) -> Tensor:
        """Entropy [nats] ``[B, H, Da]``, elementwise; with ``squash`` that of the Gaussian before tanh."""
        return self.std.log() + 0.5 * math.log(2.0 * math.pi * math.e)


class GaussianHead(Head):
    """One pass from a zero input gives the mean, and the standard deviation unless that is a parameter of its own."""

    denoises = False
    needs_chunk = False

    def __init__(self, config: GaussianConfig, sizes: ChunkSizes) -> None:
        super().__init__(sizes)
        self.config, self._horizon = config, sizes.horizon
        if config.std_from_obs:
            self.raw_std = None
            self.output_dim = 2 * sizes.action_dim
        else:
            self.raw_std = nn.Parameter(torch.zeros(sizes.horizon, sizes.action_dim))

    def distribution(self, net: NetFn) -> ChunkGaussian:
        """The distribution over chunks after the observations that ``net`` has seen: for PPO and for ratings."""
        features = net.seen.features
        size = (len(features), self._horizon, self.input_dim)
        (predict,) = net.at(torch.zeros(1))
        return self._split(predict(features.new_zeros(size, dtype=torch.float32)))

    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        t = torch.zeros(len(action), device=action.device)
        found = self._split(net(torch.zeros_like(action), t))
        nll = -found.log_prob(action)
        if self.config.beta:
            nll = nll * found.std.detach().pow(2.0 * self.config.beta)
        return nll.mean(-1)

    def noise_count(self) -> int:
        return int(self.config.temperature > 0.0)

    def sample(self, net: NetFn, noise: Tensor) -> Tensor:
        (predict,) = net.at(torch.zeros(1))
        zero = noise.new_zeros(len(noise), *noise.shape[2:])
        found = self._split(predict(zero))
        return found.sample(noise[:, 0] if self.config.temperature else zero, self.config.temperature)

    def uncertainty(self, net: NetFn, action: Tensor) -> Tensor:
        return -self.distribution(net).log_prob(action).sum((1, 2))

    def _split(self, out: Tensor) -> ChunkGaussian:
        c, out = self.config, out.float()  # bf16 is too coarse for a likelihood
        if self.raw_std is None:
            mean, raw = out.chunk(2, dim=-1)
        else:
            mean, raw = out, self.raw_std.expand_as(out)
        return ChunkGaussian(mean, bounded_std(raw, low=c.std_min, init=c.std_init, high=c.std_max), c.squash)
