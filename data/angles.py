"""Angles [rad] without a seam, for numpy and torch alike. Imports without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace

from visuomotor.data.errors import ConfigError

__all__ = ["from_sin_cos", "sin_cos", "wrap"]

Array = Any  # numpy.ndarray or torch.Tensor, floating; the result is of the same kind, dtype and device


def wrap(x: Array) -> Array:
    """Angle [rad] of any shape to the equal angle in ``[-pi, pi)``."""
    xp = array_namespace(x)
    y = x - 2 * math.pi * xp.floor((x + math.pi) / (2 * math.pi))
    # Just below -pi the sum above rounds to +pi itself.
    return xp.where(y >= math.pi, y - 2 * math.pi, y)


def sin_cos(x: Array, dims: Sequence[int]) -> Array:
    """Replace each component in ``dims`` of ``x [..., D]`` by its sine and cosine, in place: ``[..., D + len(dims)]``.

    ``(a, theta, b)`` with ``dims=[1]`` becomes ``(a, sin theta, cos theta, b)``. Inverse: :func:`from_sin_cos`.

    Raises:
        ConfigError: a component that does not exist.
    """
    xp = array_namespace(x)
    chosen = _checked(dims, x.shape[-1])
    columns = []
    for i in range(x.shape[-1]):
        columns += [xp.sin(x[..., i]), xp.cos(x[..., i])] if i in chosen else [x[..., i]]
    return xp.stack(columns, axis=-1)


def from_sin_cos(y: Array, dims: Sequence[int]) -> Array:
    """Inverse of :func:`sin_cos` for the same ``dims`` (which count the decoded components); angles in ``[-pi, pi)``.

    The pair needs no unit length, so the output of a network may be given.
    """
    xp = array_namespace(y)
    size = y.shape[-1] - len(set(dims))
    chosen = _checked(dims, size)
    columns, at = [], 0
    for i in range(size):
        columns.append(wrap(xp.atan2(y[..., at], y[..., at + 1])) if i in chosen else y[..., at])
        at += 2 if i in chosen else 1
    return xp.stack(columns, axis=-1)


def _checked(dims: Sequence[int], size: int) -> set[int]:
    outside = [i for i in dims if not 0 <= i < size]
    if outside:
        raise ConfigError(f"angle component {outside[0]} does not exist: there are components 0..{size - 1}")
    return set(dims)
