"""A network that says how much noise to explore with: learnt beside the policy and dropped when it is deployed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.nets.embedding import SinusoidalEmbedding

__all__ = ["NoiseNet", "check_noise"]

_WIDTH = 64
_TIME_DIM = 16
_HOLD = 0.35  # share of the training after which the bound begins to fall
_FINAL = 0.7  # share of the range between the bounds that is left at the end


def check_noise(low: float, init: float, high: float) -> None:
    """Refuse bounds that are no bounds.

    Raises:
        ConfigError: not ``0 < low < init < high``.
    """
    if not 0.0 < low < init < high:
        raise ConfigError(
            f"likelihood: std_min={low}, std_init={init}, std_max={high}: expected 0 < std_min < std_init < std_max"
        )


class NoiseNet(nn.Module):
    """Standard deviations ``[B, H, Da]`` between two bounds from a time and what was observed (ReinFlow).

    Features and time come without gradients: exploration does not shape the encoder. The upper bound is held for 35 %
    of the training and then falls by 30 % of the range along a cosine, as in ReinFlow (Zhang et al. 2025,
    arXiv:2505.22094, and its code).

    Args:
        features: values of one encoded observation, ``To * F``.
        horizon: ``H``.
        action_dim: ``Da``.
        low, init, high: least, first and largest standard deviation [normalised units].
        time_scale: of the sinusoids of the time.
    """

    high: Tensor  # the upper bound of now

    def __init__(
        self, features: int, horizon: int, action_dim: int, *, low: float, init: float, high: float, time_scale: float
    ) -> None:
        super().__init__()
        self._shape, self._low, self._first_high = (horizon, action_dim), low, high
        share = math.log(init / low) / math.log(high / low)
        self._offset = math.log(share / (1.0 - share))
        self.time = SinusoidalEmbedding(_TIME_DIM, scale=time_scale)
        last = nn.Linear(_WIDTH, horizon * action_dim)
        nn.init.zeros_(last.weight)  # begins at ``init`` everywhere
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Linear(features + _TIME_DIM, _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, _WIDTH), nn.Tanh(), last
        )
        self.register_buffer("high", torch.tensor(high))

    def forward(self, features: Tensor, t: Tensor) -> Tensor:
        """``features [B, To, F]`` and ``t [B]`` to ``[B, H, Da]``."""
        seen = torch.cat([features.detach().float().flatten(1), self.time(t)], -1)
        raw = self.layers(seen).view(-1, *self._shape)
        return self._low * torch.exp((self.high / self._low).log() * torch.sigmoid(raw + self._offset))

    def set_progress(self, share: float) -> None:
        """``share`` (0..1) of the training is done."""
        fallen = 0.5 * (1.0 - math.cos(math.pi * max(0.0, share - _HOLD) / (1.0 - _HOLD)))
        self.high.fill_(self._first_high - fallen * (1.0 - _FINAL) * (self._first_high - self._low))
