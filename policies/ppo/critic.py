"""The critic: what a state is worth. It may see more than the policy (asymmetric actor-critic, Pinto et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.normalize import ArrayStats, KeyNorm, Normalizer
from visuomotor.data.spec import ArraySpec
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.images import ImageConfig
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.ppo.scaling import RunningStats

__all__ = ["Critic", "CriticConfig", "running_normalizer"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "elu": nn.ELU, "tanh": nn.Tanh, "mish": nn.Mish}


@dataclass(kw_only=True, slots=True)
class CriticConfig:
    """What the critic sees, and its perceptron.

    Attributes:
        keys: observations that it reads; empty takes those of the policy, and ``privileged`` where the task gives it.
        width: size of the hidden layers.
        depth: hidden layers.
        activation: ``silu``, ``elu``, ``tanh`` or ``mish``.
        image: how cameras are encoded, with an encoder of its own.
    """

    keys: list[str] = field(default_factory=list)
    width: int = 256
    depth: int = 2
    activation: str = "silu"
    image: ImageConfig = field(default_factory=ImageConfig)

    def __post_init__(self) -> None:
        if self.width < 8 or self.depth < 1:
            raise ConfigError(f"critic: width {self.width} and depth {self.depth}: expected at least 8 and 1")
        if self.activation not in _ACTIVATIONS:
            raise ConfigError(
                f"critic: unknown activation {self.activation!r}. {nearest(self.activation, _ACTIVATIONS)}"
            )


def running_normalizer(encoder: ObservationEncoder, specs: Mapping[str, ArraySpec]) -> Normalizer:
    """A z-score normaliser of the encoder's vectors that maps everything to itself until it is updated."""
    return Normalizer(
        {f"obs/{k}": _unit_stats(specs[k].shape) for k in encoder.vector_keys},
        {f"obs/{k}": KeyNorm(mode="zscore") for k in encoder.vector_keys},
    )


def _unit_stats(shape: tuple[int, ...]) -> ArrayStats:
    running = RunningStats(math.prod(shape))
    running.update(torch.tensor([[-1.0], [1.0]]).expand(2, math.prod(shape)))
    return running.to_stats(shape)


class Critic(nn.Module):
    """``V(obs)``: encoder, perceptron with orthogonal weights, one value; observations normalised as they are seen.

    Args:
        config: its settings.
        keys: observations to read.
        specs: shape of one step of each.
        n_obs: observed steps ``To``.
    """

    def __init__(self, config: CriticConfig, keys: list[str], specs: Mapping[str, ArraySpec], n_obs: int) -> None:
        super().__init__()
        self.keys, self._specs = keys, dict(specs)
        self.encoder = ObservationEncoder(ObservationConfig(keys=keys, image=config.image), self._specs)
        self.normalizer = running_normalizer(self.encoder, self._specs)
        self.stats = nn.ModuleList(RunningStats(specs[k].size) for k in self.encoder.vector_keys)
        size, layers = n_obs * self.encoder.feature_dim, list[nn.Module]()
        for _ in range(config.depth):
            layers += [_orthogonal(nn.Linear(size, config.width), math.sqrt(2.0)), _ACTIVATIONS[config.activation]()]
            size = config.width
        self.value = nn.Sequential(*layers, _orthogonal(nn.Linear(size, 1), 1.0))

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """``{key: [B, To, ...]}`` in raw units to ``[B]``."""
        features = self.encoder(obs, self.normalizer).features
        values: Tensor = self.value(features.flatten(1))[:, 0]
        return values

    def observe(self, obs: Mapping[str, Tensor]) -> None:
        """Take the last observed step of ``{key: [n, To, ...]}`` into the normaliser. Between updates only."""
        for running, key in zip(self.stats, self.encoder.vector_keys, strict=True):
            assert isinstance(running, RunningStats)
            running.update(obs[key][:, -1].flatten(1).float())
            if running.count > 0:
                self.normalizer.set_stats(f"obs/{key}", running.to_stats(self._specs[key].shape))


def _orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
