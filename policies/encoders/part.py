"""The contract of an encoder of one kind of observation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.normalize import Normalizer
from visuomotor.policies.draws import Draws

__all__ = ["EncoderPart", "PartOutput", "array_of"]


class PartOutput(NamedTuple):
    """Features of every observed step, or tokens, or both; as wide as the part says."""

    features: Tensor | None  # [B, To, feature_dim]
    tokens: Tensor | None = None  # [B, L, token_dim]


class EncoderPart(nn.Module, ABC):
    """Encodes the observations ``keys``, all of one kind.

    Attributes:
        keys: the arrays that it reads.
        feature_dim: features an observed step; 0: none.
        token_dim: size of its tokens; 0: none.
    """

    keys: list[str]
    feature_dim: int = 0
    token_dim: int = 0

    @abstractmethod
    def forward(self, obs: Mapping[str, Tensor], normalizer: Normalizer, draws: Draws | None = None) -> PartOutput:
        """``{key: [B, To, ...]}`` in raw units. ``draws``: augment with this randomness (training); None: do not."""


def array_of(obs: Mapping[str, Tensor], key: str) -> Tensor:
    """``obs[key]``.

    Raises:
        ConfigError: it is missing.
    """
    if key not in obs:
        raise ConfigError(f"observation {key!r} is missing. {nearest(key, obs)}")
    return obs[key]
