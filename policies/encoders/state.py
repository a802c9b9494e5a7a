"""Low-dimensional observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from visuomotor.data.angles import sin_cos
from visuomotor.data.errors import ConfigError
from visuomotor.data.normalize import Normalizer
from visuomotor.data.spec import ArraySpec
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.part import EncoderPart, PartOutput, array_of

__all__ = ["StateEncoder"]


class StateEncoder(EncoderPart):
    """Vectors: angles unrolled, normalised, flattened and concatenated.

    Args:
        keys: the arrays, in the order of the features.
        angles: components of a key that are angles [rad].
        specs: shape of one step of each key.

    Raises:
        ConfigError: an angle component that does not exist.
    """

    def __init__(self, keys: Sequence[str], specs: Mapping[str, ArraySpec], *, angles: Mapping[str, list[int]]) -> None:
        super().__init__()
        self.keys = list(keys)
        self._angles = {k: list(v) for k, v in angles.items() if k in self.keys}
        self._scalars = {k for k in keys if specs[k].shape == ()}
        for key, dims in self._angles.items():
            shape = specs[key].shape or (1,)
            if len(shape) != 1 or not all(0 <= i < shape[0] for i in dims):
                raise ConfigError(f"obs.angles names components {dims} of {key!r}, which has shape {specs[key].shape}")
        self.feature_dim = sum(specs[k].size + len(self._angles.get(k, [])) for k in keys)

    def unroll(self, key: str, x: Tensor) -> Tensor:
        """``x [..., *step shape]`` with every angle replaced by its sine and cosine; a scalar becomes one component."""
        x = x[..., None] if key in self._scalars else x
        dims = self._angles.get(key)
        return sin_cos(x, dims) if dims else x

    def forward(self, obs: Mapping[str, Tensor], normalizer: Normalizer, draws: Draws | None = None) -> PartOutput:
        parts = []
        for key in self.keys:
            x = normalizer.normalize(f"obs/{key}", self.unroll(key, array_of(obs, key).float()))
            parts.append(x.flatten(2))  # [B, To, ...] -> [B, To, D]
        return PartOutput(torch.cat(parts, dim=-1))
