"""Minimal Iterative Policy: regression in two passes (Pan et al. 2025, Much Ado About Noising, arXiv:2512.01809).

The paper finds that generative policies owe their success to supervised iterative computation with some noise in
training rather than to modelling several modes, and keeps just that: a first pass from nothing, and a second one that
corrects a slightly noisy action. With ``t = 0.9`` and standard normal ``z``,

    loss = |f(0, 0) - a|^2 / t^2 + |f(a + (1 - t) z, t) - a|^2 / (1 - t)^2,
    sample: a_0 = f(0, 0), a_1 = f(a_0, t).

Like the authors' code and unlike the paper's first form, the second pass sees ``a``, not ``t * a``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, Head, HeadConfig, NetFn
from visuomotor.policies.draws import Draws

__all__ = ["MIPConfig", "MIPHead"]


@dataclass(kw_only=True, slots=True)
class MIPConfig(HeadConfig):
    """The second pass.

    Attributes:
        second_time: ``t`` of the second pass; it is trained to remove noise of standard deviation ``1 - t``
            [normalised units] from the action.
        first_share: weight of the first pass's error in the loss, the second has the rest; null takes the paper's
            ``(1 - t)^2 / (t^2 + (1 - t)^2)``, 0.012.
    """

    second_time: float = 0.9
    first_share: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("second_time", self.second_time), ("first_share", self.first_share)):
            if value is not None and not 0.0 < value < 1.0:
                raise ConfigError(f"head mip: {name}={value} is outside (0, 1)")


class MIPHead(Head):
    """Two passes, no noise at sampling: ``M`` is 0, and the empty noise only tells the batch size.

    The paper's weights ``1 / t^2`` and ``1 / (1 - t)^2`` measure both errors in units of what their pass can be
    expected to remove. They are divided by their sum: the loss is a weighted mean of squared errors, of the size of
    other heads' losses, so that learning rate and gradient clipping carry over.
    """

    time_scale = 100.0
    clean_time = 1.0  # the paper's t: how much of the action is known

    def __init__(self, config: MIPConfig, sizes: ChunkSizes) -> None:
        super().__init__(sizes)
        t, share = config.second_time, config.first_share
        self.config = config
        self._first_share = (1.0 - t) ** 2 / (t**2 + (1.0 - t) ** 2) if share is None else share

    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        t = self.config.second_time
        zero = torch.zeros(len(action), device=action.device)
        first = net(torch.zeros_like(action), zero)
        second = net(action + (1.0 - t) * draws.normal(tuple(action.shape)), zero + t)
        errors = [(out - action).square().mean(-1) for out in (first, second)]
        return self._first_share * errors[0] + (1.0 - self._first_share) * errors[1]

    def noise_count(self) -> int:
        return 0

    def sample(self, net: NetFn, noise: Tensor) -> Tensor:
        first, second = net.at(torch.tensor([0.0, self.config.second_time]))
        return second(first(noise.new_zeros(len(noise), *noise.shape[2:])))
