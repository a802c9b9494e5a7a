"""A mixture of Gaussians over whole chunks (Mandlekar et al. 2021, robomimic's BC-GMM, for chunks)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, Head, HeadConfig, NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gaussian import bounded_std, check_std, gaussian_log_prob

__all__ = ["ChunkMixture", "GMMConfig", "GMMHead"]


@dataclass(kw_only=True, slots=True)
class GMMConfig(HeadConfig):
    """Number of modes, spread, and how much of the spread is used when acting. In normalised units.

    Attributes:
        modes: Gaussians in the mixture.
        std_min: least standard deviation.
        std_max: largest standard deviation.
        std_init: standard deviation before training.
        temperature: factor of the standard deviation when acting; 0 executes the mean of the mode that was drawn
            (robomimic's evaluation with low noise).
    """

    modes: int = 5
    std_min: float = 0.02
    std_max: float = 1.5
    std_init: float = 0.5
    temperature: float = 0.0

    def __post_init__(self) -> None:
        check_std("gmm", self.std_min, self.std_init, self.std_max, self.temperature)
        if self.modes < 1:
            raise ConfigError(f"head gmm: modes={self.modes}: expected at least 1")


@dataclass(frozen=True)
class ChunkMixture:
    """What a mixture policy says about the next chunk, in normalised units.

    ``log_weight [B, K]`` (normalised), ``mean`` and ``std [B, K, H, Da]``.
    """

    log_weight: Tensor
    mean: Tensor
    std: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density [nats] of each step of ``action [B, H, Da]`` given the steps before it, ``[B, H]``.

        Summed over the chunk this is the log-density of the chunk; summed over its first steps, that of these steps
        alone; over the others, theirs given the first ones. So padded or known steps can be left out exactly.
        """
        each = gaussian_log_prob(action[:, None], self.mean, self.std).sum(-1)  # [B, K, H]
        until = torch.logsumexp(self.log_weight[..., None] + each.cumsum(-1), dim=1)  # [B, H]
        return torch.cat([until[:, :1], until.diff(dim=1)], dim=1)

    def pick(self, uniform: Tensor) -> Tensor:
        """Index of a mode ``[B]`` from ``uniform [B]`` in [0, 1], by the inverse of the cumulative weights."""
        cumulative = self.log_weight.exp().cumsum(-1)
        return (uniform[:, None] > cumulative[:, :-1]).sum(-1)

    def sample(self, uniform: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Chunk ``[B, H, Da]`` from ``uniform [B]``, which picks the mode, and standard normal ``noise [B, H, Da]``."""
        at = self.pick(uniform)[:, None, None, None].expand(-1, 1, *self.mean.shape[2:])
        return self.mean.gather(1, at)[:, 0] + temperature * self.std.gather(1, at)[:, 0] * noise


class GMMHead(Head):
    """One pass from a zero input gives ``K`` Gaussians over the chunk and their weights.

    The mixture is over whole chunks, with weights pooled over the steps, where robomimic has one per step: a chunk
    then stays with one mode, while steps that each draw their own would jump between modes.
    """

    denoises = False
    needs_chunk = False

    def __init__(self, config: GMMConfig, sizes: ChunkSizes) -> None:
        super().__init__(sizes)
        self.config, self._sizes = config, sizes
        self.output_dim = config.modes * (2 * sizes.action_dim + 1)

    def distribution(self, net: NetFn) -> ChunkMixture:
        """The distribution over chunks after the observations that ``net`` has seen: for PPO and for ratings."""
        features = net.seen.features
        size = (len(features), self._sizes.horizon, self.input_dim)
        (predict,) = net.at(torch.zeros(1))
        return self._split(predict(features.new_zeros(size, dtype=torch.float32)))

    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        t = torch.zeros(len(action), device=action.device)
        return -self._split(net(torch.zeros_like(action), t)).log_prob(action) / action.shape[-1]

    def noise_count(self) -> int:
        """The first noise chunk draws the mode (by its first value alone), the second what is added to its mean."""
        return 1 + int(self.config.temperature > 0.0)

    def sample(self, net: NetFn, noise: Tensor) -> Tensor:
        (predict,) = net.at(torch.zeros(1))
        zero = torch.zeros_like(noise[:, 0])
        uniform = torch.special.ndtr(noise[:, 0, 0, 0])  # the CDF of a normal value is uniform
        spread = noise[:, 1] if self.config.temperature else zero
        return self._split(predict(zero)).sample(uniform, spread, self.config.temperature)

    def uncertainty(self, net: NetFn, action: Tensor) -> Tensor:
        return -self.distribution(net).log_prob(action).sum(1)

    def _split(self, out: Tensor) -> ChunkMixture:
        c, k, da = self.config, self.config.modes, self._sizes.action_dim
        logits, mean, raw = out.float().split([k, k * da, k * da], dim=-1)  # [B, H, ...]
        shape = (len(out), -1, k, da)
        mean, raw = (v.reshape(shape).transpose(1, 2) for v in (mean, raw))  # [B, K, H, Da]
        std = bounded_std(raw, low=c.std_min, init=c.std_init, high=c.std_max)
        return ChunkMixture(torch.log_softmax(logits.mean(1), dim=-1), mean, std)
