"""From raw observations to features per observed step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from visuomotor.data.angles import sin_cos
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.normalize import KeyNorm, Normalizer
from visuomotor.data.spec import ArraySpec

__all__ = ["ObservationConfig", "StateEncoder"]


@dataclass(kw_only=True, slots=True)
class ObservationConfig:
    """Which observations a policy reads, and how.

    Attributes:
        keys: arrays of the store, in the order of the features.
        angles: components of a key that are angles [rad]; each becomes its sine and cosine, so that there is no seam.
        norm: how components are normalised, for keys without an entry in ``norm_by_key``.
        norm_by_key: how the components of one key are normalised; component numbers count after the angles.
    """

    keys: list[str] = field(default_factory=lambda: ["state"])
    angles: dict[str, list[int]] = field(default_factory=dict)
    norm: KeyNorm = field(default_factory=KeyNorm)
    norm_by_key: dict[str, KeyNorm] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.keys:
            raise ConfigError("obs.keys is empty: name at least one observation array")
        twice = sorted({k for k in self.keys if self.keys.count(k) > 1})
        if twice:
            raise ConfigError(f"obs.keys names {twice} more than once")
        for setting in ("angles", "norm_by_key"):
            for key in getattr(self, setting):
                if key not in self.keys:
                    raise ConfigError(f"obs.{setting} names {key!r}, which is not observed. {nearest(key, self.keys)}")

    def norm_of(self, key: str) -> KeyNorm:
        """Normalisation of ``key``, with sine and cosine left as they are unless the key has settings of its own."""
        if key in self.norm_by_key or key not in self.angles:
            return self.norm_by_key.get(key, self.norm)
        n = self.norm
        identity = sorted({*n.dims.get("identity", []), *sin_cos_components(self.angles[key])})
        return KeyNorm(mode=n.mode, dims={**n.dims, "identity": identity}, range_eps=n.range_eps, clip=n.clip)


def sin_cos_components(dims: list[int]) -> list[int]:
    """Where sine and cosine of the angles ``dims`` stand after :func:`visuomotor.data.angles.sin_cos`."""
    out: list[int] = []
    for earlier, i in enumerate(sorted(dims)):
        out += [i + earlier, i + earlier + 1]
    return out


class StateEncoder(nn.Module):
    """Low-dimensional observations: angles unrolled, normalised, flattened and concatenated.

    Args:
        config: the keys and their treatment.
        specs: shape of one step of each key.

    Raises:
        ConfigError: an image among the keys (this encoder is for vectors), or a component that does not exist.
    """

    def __init__(self, config: ObservationConfig, specs: Mapping[str, ArraySpec]) -> None:
        super().__init__()
        self.config = config
        images = [k for k in config.keys if specs[k].is_image]
        if images:
            raise ConfigError(
                f"observation {images[0]!r} has shape {specs[images[0]].shape}, an image: image encoders are not in "
                f"this version. Vectors that can be observed: {sorted(k for k in specs if not specs[k].is_image)}"
            )
        self._scalars = {k for k in config.keys if specs[k].shape == ()}
        for key, dims in config.angles.items():
            shape = specs[key].shape or (1,)
            if len(shape) != 1 or not all(0 <= i < shape[0] for i in dims):
                raise ConfigError(f"obs.angles names components {dims} of {key!r}, which has shape {specs[key].shape}")
        self.feature_dim = sum(specs[k].size + len(config.angles.get(k, [])) for k in config.keys)

    def unroll(self, key: str, x: Tensor) -> Tensor:
        """``x [..., *step shape]`` with every angle replaced by its sine and cosine; a scalar becomes one component."""
        x = x[..., None] if key in self._scalars else x
        dims = self.config.angles.get(key)
        return sin_cos(x, dims) if dims else x

    def forward(self, obs: Mapping[str, Tensor], normalizer: Normalizer) -> Tensor:
        """``{key: [B, To, ...]}`` in raw units -> ``[B, To, F]``."""
        parts = []
        for key in self.config.keys:
            if key not in obs:
                raise ConfigError(f"observation {key!r} is missing. {nearest(key, obs)}")
            x = normalizer.normalize(f"obs/{key}", self.unroll(key, obs[key].float()))
            parts.append(x.flatten(2))  # [B, To, ...] -> [B, To, D]
        return torch.cat(parts, dim=-1)
