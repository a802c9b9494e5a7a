"""Random numbers that are a function of (seed, step), and of nothing that happened before.

A run that is killed and resumed, or spread over several ranks, therefore draws the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Draws", "mix_seed"]

_MASK = (1 << 64) - 1
_HELD = 0x68656C64  # part of the key of streams that are held


def mix_seed(*parts: int) -> int:
    """Hash integers into one 63-bit seed (SplitMix64 finaliser over a running sum; Steele et al. 2014)."""
    h = 0
    for part in parts:
        h = (h + 0x9E3779B97F4A7C15 + (part & _MASK)) & _MASK
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & _MASK
        h ^= h >> 31
    return h >> 1


class Draws:
    """Noise for one training step. Every rank draws for the whole global batch and keeps its own slice.

    So ``world_size`` ranks with ``B / world_size`` windows each see the same numbers as one process with ``B``.
    """

    def __init__(self, *key: int, device: torch.device | str = "cpu", rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device)
        self.key = key
        self.reseed(*key)

    def reseed(self, *key: int) -> None:
        """Start the stream named by ``key`` (seed, step, …)."""
        self.key = key
        self.generator.manual_seed(mix_seed(*key))

    def held(self, n: int) -> Draws:
        """A stream that is the same for ``n`` successive values of the last part of the key, and apart from this one.

        With a key that ends in the number of a decision: what is drawn once and held for ``n`` decisions.
        """
        *first, last = self.key
        return Draws(*first, last // n, _HELD, device=self.device, rank=self.rank, world_size=self.world_size)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal of ``shape``; the first axis is the rank's share of the batch."""
        return self._mine(torch.randn(self._all(shape), generator=self.generator, device=self.device))

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform in [0, 1) of ``shape``."""
        return self._mine(torch.rand(self._all(shape), generator=self.generator, device=self.device))

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        """Integers in ``low..high-1`` of ``shape``."""
        return self._mine(torch.randint(low, high, self._all(shape), generator=self.generator, device=self.device))

    def _all(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] * self.world_size, *shape[1:])

    def _mine(self, x: Tensor) -> Tensor:
        n = x.shape[0] // self.world_size
        return x[self.rank * n : (self.rank + 1) * n]
