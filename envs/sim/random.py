"""Random numbers of worlds: each draw is a function of the world's seed and of what it is for, on any device.

A world's key is hashed with a *domain* (reset, noise, an interval event) and a *counter* (which step), so a world draws
the same numbers whatever the others do, in how many worlds it sits, and on which device. Uniform numbers have 24 random
bits. The 32-bit mixing function is C. Wellons' ``lowbias32`` ("Prospecting for Hash Functions", 2018, nullprogram.com).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from visuomotor.envs.sim.arrays import Words, tensor, words
from visuomotor.envs.sim.selection import Selection

__all__ = ["RESET", "Draws", "WorldRandom"]

RESET = 0  # domain of everything drawn at a reset; events that draw while an episode runs use 1 and up
_M32 = 0xFFFFFFFF
_BLOCK = 64
_FEW = 16  # numbers, for which those of Python are faster than arrays


def _mix(x: Words) -> Words:
    """Bijection of 32-bit numbers, held in int64 or numbers of Python."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _M32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _M32
    return x ^ (x >> 16)


def _fold(key: Tensor, value: Tensor | int) -> Tensor:
    """Hash a number into a 64-bit key (two 32-bit halves)."""
    keys = words(key)
    values = words(value) if isinstance(value, Tensor) else value
    if isinstance(keys, np.ndarray) and key.shape[0] <= _FEW:
        each = np.broadcast_to(values, key.shape).tolist()
        return torch.tensor([_signed(_folded(k, v)) for k, v in zip(keys.tolist(), each, strict=True)])
    return tensor(_folded(keys, values))


def _folded(key: Words, value: Words) -> Words:
    low, high = _halves(key)
    low = _mix((low ^ _mix((high + 0x9E3779B9) & _M32)) + (value & _M32) & _M32)
    high = _mix((high ^ low) + (value >> 32 & _M32) + 0x85EBCA6B & _M32)
    return (high << 32) | low


def _signed(x: int) -> int:
    return x - 2**64 if x >> 63 else x


def _halves(key: Words) -> tuple[Words, Words]:
    return key & _M32, (key >> 32) & _M32


def _bits(count: Words, low: Words, high: Words) -> Words:
    return _mix(_mix((count * 0x9E3779B9 & _M32) ^ low) ^ high)


class Draws:
    """A stream of numbers for ``n`` worlds; each call goes on where the last one stopped.

    Args:
        key: int64 ``[n]``.
    """

    def __init__(self, key: Tensor) -> None:
        self._low, self._high = _halves(words(key)[:, None])
        self._next = 0
        self._block = torch.empty(key.shape[0], 0, device=key.device)
        self._block_start = 0
        self.n, self.device = key.shape[0], key.device

    def uniform(self, shape: Sequence[int] = (), low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> Tensor:
        """Float32 ``[n, *shape]`` in [low, high); the bounds broadcast against ``shape`` or ``[n, *shape]``."""
        u = self._take(math.prod(shape)).view(self.n, *shape)
        return low + (high - low) * u

    def normal(self, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal float32 ``[n, *shape]`` (Box and Muller 1958)."""
        m = math.prod(shape)
        u = self._take(2 * m)
        radius = (-2.0 * torch.log1p(-u[:, :m])).sqrt()
        return (radius * torch.cos(2 * math.pi * u[:, m:])).view(self.n, *shape)

    def integers(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Int64 ``[n, *shape]`` in 0..high-1, for small ``high``."""
        return (self.uniform(shape) * high).long().clamp_(max=high - 1)

    def _take(self, m: int) -> Tensor:
        if isinstance(self._low, np.ndarray) and self.n * m <= _FEW:
            counts, keys = range(self._next, self._next + m), zip(self._low.flat, self._high.flat, strict=True)
            rows = [[(_bits(c, int(low), int(high)) >> 8) * 2.0**-24 for c in counts] for low, high in keys]
            self._next += m
            return torch.tensor(rows, dtype=torch.float32).view(self.n, m)
        start = self._next - self._block_start
        if start + m > self._block.shape[1]:
            size = max(m, _BLOCK)
            count = words(torch.arange(self._next, self._next + size, device=self.device))
            bits = tensor(_bits(count, self._low, self._high) >> 8)
            self._block, self._block_start, start = bits.float() * 2.0**-24, self._next, 0
        self._next += m
        return self._block[:, start : start + m]


class WorldRandom:
    """Keys of ``num_envs`` worlds.

    Args:
        num_envs: number of worlds.
        device: where the keys live.
        seed: what unseeded worlds start from.
    """

    def __init__(self, num_envs: int, device: torch.device, seed: int = 0) -> None:
        start = torch.arange(num_envs, dtype=torch.int64, device=device)
        self.key = _fold(_fold(torch.zeros_like(start), seed), start)

    def begin_episode(self, worlds: Selection, seeds: Tensor | None = None) -> Draws:
        """New keys for the worlds, from ``seeds`` int64 ``[N]`` or from the old keys; gives the reset's draws."""
        old = worlds.take(self.key)
        key = _fold(old, 0x5EED) if seeds is None else _fold(torch.zeros_like(old), worlds.take(seeds))
        worlds.put(self.key, key)
        return Draws(_fold(key, RESET))

    def draws(self, worlds: Selection, domain: int, counter: Tensor) -> Draws:
        """Numbers for ``domain`` at ``counter`` int64 ``[N]`` (steps since the episode began)."""
        return Draws(_fold(_fold(worlds.take(self.key), domain), worlds.take(counter)))
