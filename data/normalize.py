"""Scaling observations and actions to what a network likes, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError, DataError, nearest

__all__ = ["NORM_MODES", "ArrayStats", "KeyNorm", "Normalizer", "compute_stats"]

NORM_MODES = ("minmax", "zscore", "quantile", "identity")
_MAX_TRAINING_VALUE = 10.0
_MAX_SAMPLED_VALUES = 1 << 24  # values kept for quantiles, 128 MB


@dataclass(kw_only=True, slots=True)
class KeyNorm:
    """How one array is normalised, by an affine map per component.

    ``minmax``: ``[min, max]`` to ``[-1, 1]``. ``quantile``: ``[q01, q99]`` to ``[-1, 1]``. ``zscore``: mean 0, standard
    deviation 1. ``identity``: unchanged. For quantile and zscore the scale is widened where needed so that no training
    value exceeds 10 in magnitude: on a component that is nearly always constant q99 - q01 is almost 0, and one rare
    value would come out in the thousands.

    Attributes:
        mode: for all components that ``dims`` does not name.
        dims: components (of the flattened step) with another mode, for example ``{"identity": [4, 5]}``.
        range_eps: a component whose ``max - min`` is smaller is constant: it is centred, with scale 1. In its own unit.
        clip: bound on normalised values, so that a sensor leaving the training range stays finite; identity components
            are not clipped. At 10 or more no training value is touched. None: no bound.

    Raises:
        ConfigError: unknown mode, a component given two modes, or a number out of range.
    """

    mode: str = "minmax"
    dims: dict[str, list[int]] = field(default_factory=dict)
    range_eps: float = 1e-4
    clip: float | None = 10.0

    def __post_init__(self) -> None:
        for mode in (self.mode, *self.dims):
            if mode not in NORM_MODES:
                raise ConfigError(f"unknown normalisation {mode!r}. {nearest(mode, NORM_MODES)}")
        named = [i for dims in self.dims.values() for i in dims]
        if len(set(named)) < len(named):
            raise ConfigError(f"normalisation dims {self.dims}: a component is named twice")
        if not (math.isfinite(self.range_eps) and self.range_eps > 0):
            raise ConfigError(f"range_eps={self.range_eps}: expected more than 0")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip={self.clip}: expected more than 0, or null for no bound")

    def modes(self, size: int) -> list[str]:
        """Mode of each of ``size`` components."""
        out = [self.mode] * size
        for mode, dims in self.dims.items():
            for i in dims:
                if not 0 <= i < size:
                    raise ConfigError(f"normalisation names component {i}, but there are components 0..{size - 1}")
                out[i] = mode
        return out


@dataclass(frozen=True)
class ArrayStats:
    """Statistics of every component over ``count`` steps; float64 arrays in the shape of one step.

    Raises:
        DataError: no steps, or a statistic that is not finite.
    """

    count: int
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]  # of the population
    q01: NDArray[np.float64]
    q99: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.count < 1:
            raise DataError("no steps to take statistics of")
        for name, values in self._arrays().items():
            if not np.isfinite(values).all():
                bad = int(np.argmin(np.isfinite(values)))
                raise DataError(
                    f"statistic {name!r} of component {bad} is {values.flat[bad]}: the data holds NaN or infinity"
                )

    def _arrays(self) -> dict[str, NDArray[np.float64]]:
        return {n: getattr(self, n) for n in ("min", "max", "mean", "std", "q01", "q99")}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form (inverse: :meth:`from_dict`)."""
        return {"count": self.count, **{n: a.tolist() for n, a in self._arrays().items()}}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> ArrayStats:
        """Inverse of :meth:`to_dict`."""
        return cls(d["count"], *(np.asarray(d[n], np.float64) for n in ("min", "max", "mean", "std", "q01", "q99")))


def compute_stats(blocks: Iterable[NDArray[Any]]) -> ArrayStats:
    """Statistics of an array that comes in blocks ``[n, ...]``, in one pass.

    Mean and variance are merged block by block (Chan, Golub and LeVeque 1979), so large offsets do not cancel. The
    quantiles are exact while all values fit into 128 MB; beyond, they are of every second, fourth, ... step.

    Raises:
        DataError: no steps at all, or NaN or infinity among them.
    """
    count, stride = 0, 1
    low = high = mean = square = np.zeros(0)
    sample: list[NDArray[np.float64]] = []
    for block in blocks:
        x = np.asarray(block, np.float64)
        n = len(x)
        if n == 0:
            continue
        block_mean = x.mean(0)
        block_square = ((x - block_mean) ** 2).sum(0)
        if count == 0:
            low, high, mean, square = x.min(0), x.max(0), block_mean, block_square
        else:
            low, high = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
            step = block_mean - mean
            square = square + block_square + step**2 * (count * n / (count + n))
            mean = mean + step * (n / (count + n))
        sample.append(x[-count % stride :: stride])  # the steps whose number in all is a multiple of stride
        count += n
        while sum(s.size for s in sample) > _MAX_SAMPLED_VALUES and sum(map(len, sample)) > 1:
            kept = np.concatenate(sample)
            sample, stride = [kept[::2]], stride * 2
    if count == 0:
        raise DataError("no steps to take statistics of")
    q01, q99 = np.quantile(np.concatenate(sample), [0.01, 0.99], axis=0)
    return ArrayStats(count, low, high, mean, np.sqrt(square / count), np.asarray(q01), np.asarray(q99))


def _affine(stats: ArrayStats, norm: KeyNorm) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """``offset``, ``gain`` and ``limit`` in the shape of one step: ``y = clip((x - offset) * gain, limit)``."""
    low, high = stats.min.reshape(-1), stats.max.reshape(-1)
    centre = {
        "minmax": (low + high) / 2,
        "zscore": stats.mean.reshape(-1),
        "quantile": ((stats.q01 + stats.q99) / 2).reshape(-1),
        "identity": np.zeros_like(low),
    }
    half_width = {
        "minmax": (high - low) / 2,
        "zscore": stats.std.reshape(-1),
        "quantile": ((stats.q99 - stats.q01) / 2).reshape(-1),
        "identity": np.ones_like(low),
    }
    modes = norm.modes(len(low))
    offset = np.array([centre[m][i] for i, m in enumerate(modes)])
    width = np.array([half_width[m][i] for i, m in enumerate(modes)])
    identity = np.array([m == "identity" for m in modes], bool)
    constant = (high - low < norm.range_eps) & ~identity
    farthest = np.maximum(high - offset, offset - low)
    width = np.where(identity, width, np.maximum(width, farthest / _MAX_TRAINING_VALUE))
    offset = np.where(constant, (low + high) / 2, offset)
    gain = 1 / np.where(constant, 1.0, width)
    limit = np.where(identity | (norm.clip is None), np.inf, norm.clip or np.inf)
    shape = stats.min.shape
    return offset.reshape(shape), gain.reshape(shape), limit.reshape(shape)


class Normalizer(nn.Module):
    """Affine maps per key and component; its numbers are buffers, so they are saved and moved with the policy.

    Args:
        stats: statistics of the training data per key.
        norms: how each of the same keys is normalised.

    Raises:
        ConfigError: keys that do not match, or a component that does not exist.
    """

    def __init__(self, stats: Mapping[str, ArrayStats], norms: Mapping[str, KeyNorm]) -> None:
        super().__init__()
        if set(stats) != set(norms):
            raise ConfigError(f"statistics are of {sorted(stats)}, but normalisation is given for {sorted(norms)}")
        self._stats, self._norms = dict(stats), dict(norms)
        # A buffer's name must not contain a dot, and a key may.
        self._slot = {key: f"{i}_{key.replace('.', '_')}" for i, key in enumerate(sorted(stats))}
        for key in stats:
            for name, value in zip(("offset", "gain", "limit"), _affine(stats[key], norms[key]), strict=True):
                self.register_buffer(f"{name}_{self._slot[key]}", torch.as_tensor(value, dtype=torch.float32))

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that can be normalised."""
        return tuple(self._slot)

    def normalize(self, key: str, x: Tensor) -> Tensor:
        """Raw ``x [..., *step shape]`` to normalised float32, clipped if the key says so."""
        offset, gain, limit = self._buffers_of(key)
        return torch.clamp((x - offset) * gain, min=-limit, max=limit)

    def unnormalize(self, key: str, y: Tensor) -> Tensor:
        """Normalised ``y [..., *step shape]`` to raw: the inverse of :meth:`normalize` where that did not clip."""
        offset, gain, _ = self._buffers_of(key)
        return y / gain + offset

    def set_stats(self, key: str, stats: ArrayStats) -> None:
        """Take other statistics of ``key`` from now on (of observations that come in while a policy learns)."""
        offset_gain_limit = self._buffers_of(key)
        for buffer, value in zip(offset_gain_limit, _affine(stats, self._norms[key]), strict=True):
            buffer.copy_(torch.as_tensor(value, dtype=torch.float32))
        self._stats[key] = stats

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready statistics and settings (inverse: :meth:`from_dict`)."""
        return {k: {"norm": asdict(self._norms[k]), "stats": self._stats[k].to_dict()} for k in self._slot}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Normalizer:
        """Inverse of :meth:`to_dict`."""
        return cls(
            {k: ArrayStats.from_dict(v["stats"]) for k, v in d.items()}, {k: KeyNorm(**v["norm"]) for k, v in d.items()}
        )

    def _buffers_of(self, key: str) -> tuple[Tensor, Tensor, Tensor]:
        if key not in self._slot:
            raise ConfigError(f"no normalisation for {key!r}. {nearest(key, self._slot)}")
        slot = self._slot[key]
        return self.get_buffer(f"offset_{slot}"), self.get_buffer(f"gain_{slot}"), self.get_buffer(f"limit_{slot}")
