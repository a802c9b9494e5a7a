"""A plain perceptron from observations to the chunk, for policies that make it in one pass. Small and fast: PPO."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import Backbone, BackboneConfig, Condition, Known, NetSizes, Observed

__all__ = ["Perceptron", "PerceptronConfig"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU, "relu": nn.ReLU}


@dataclass(kw_only=True, slots=True)
class PerceptronConfig(BackboneConfig):
    """Sizes of :class:`Perceptron`.

    Attributes:
        width: size of the hidden layers.
        depth: hidden layers.
        activation: ``tanh``, ``elu``, ``silu`` or ``relu``.
        out_gain: gain of the last layer's weights; small, so that all observations begin with nearly the same action.
    """

    width: int = 64
    depth: int = 2
    activation: str = "tanh"
    out_gain: float = 0.01

    def __post_init__(self) -> None:
        if self.width < 8 or self.depth < 1:
            raise ConfigError(
                f"backbone perceptron: width {self.width} and depth {self.depth}: expected 8 and 1 or more"
            )
        if self.activation not in _ACTIVATIONS:
            raise ConfigError(
                f"backbone perceptron: unknown activation {self.activation!r}. {nearest(self.activation, _ACTIVATIONS)}"
            )
        if not self.out_gain > 0:
            raise ConfigError(f"backbone perceptron: out_gain={self.out_gain}: expected more than 0")


class Perceptron(Backbone):
    """``depth`` hidden layers with orthogonal weights (Huang et al., 37 details of PPO, 2022). No chunk, no time."""

    takes_chunk = False

    def __init__(self, config: PerceptronConfig, sizes: NetSizes) -> None:
        super().__init__()
        self._out_shape = (sizes.horizon, sizes.output_dim)
        size, layers = sizes.n_obs * sizes.feature_dim, list[nn.Module]()
        for _ in range(config.depth):
            layers += [_orthogonal(nn.Linear(size, config.width), math.sqrt(2.0)), _ACTIVATIONS[config.activation]()]
            size = config.width
        self.hidden = nn.Sequential(*layers)
        self.out = _orthogonal(nn.Linear(size, math.prod(self._out_shape)), config.out_gain)

    @property
    def middle(self) -> nn.Module:
        return self.hidden

    def condition(self, seen: Observed) -> Condition:
        return Condition(seen.features.flatten(1))  # [B, To * F]

    def modulation(self, t: Tensor, vector: Tensor) -> Tensor:
        return vector

    def denoise(
        self, x: Tensor, modulation: Tensor, memory: Tensor | None = None, known: Known | None = None
    ) -> Tensor:
        out: Tensor = self.out(self.hidden(modulation))
        return out.view(len(out), *self._out_shape)


def _orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    torch.nn.init.orthogonal_(layer.weight, gain)
    torch.nn.init.zeros_(layer.bias)
    return layer
