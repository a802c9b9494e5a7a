"""How randomised numbers vary: ranges and distributions, and where a term gets its numbers from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.sim.arrays import Words, namespace
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection, constant

__all__ = ["Source", "Spread"]

_OPERATIONS = ("*", "+", "=")
_DISTRIBUTIONS = ("uniform", "loguniform", "normal", "choice")


class Source(Protocol):
    """Where a term gets its numbers: a :class:`Spread`, or a curriculum that has its own for every world."""

    def draw(self, draws: Draws, shape: Sequence[int], worlds: Selection) -> Tensor:
        """Numbers ``[n, *shape]`` for the ``n`` rows of ``worlds``, within the range of the term's spread."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a number varies, and how it acts on a nominal value.

    Attributes:
        operation: ``*`` (times the nominal value), ``+`` (added to it) or ``=`` (instead of it).
        distribution: ``uniform`` or ``loguniform`` in ``low`` .. ``high``; ``normal`` about their middle, cut
            off at both, a quarter of their distance its standard deviation; or ``choice`` of ``values``.
        low, high: the range.
        values: for ``choice``.
    """

    operation: str = "*"
    distribution: str = "uniform"
    low: float = 1.0
    high: float = 1.0
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.operation not in _OPERATIONS:
            raise ConfigError(f"unknown operation {self.operation!r}; expected one of {', '.join(_OPERATIONS)}")
        if self.distribution not in _DISTRIBUTIONS:
            raise ConfigError(
                f"unknown distribution {self.distribution!r}. {nearest(self.distribution, _DISTRIBUTIONS)}"
            )
        if self.distribution == "choice":
            if not self.values:
                raise ConfigError("a choice of no values; expected at least one")
            return
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ConfigError(
                f"the range {self.low:g} .. {self.high:g}; expected two finite numbers, the smaller first"
            )
        if self.distribution == "loguniform" and self.low <= 0:
            raise ConfigError(f"a log-uniform range from {self.low:g}; expected more than 0")

    @property
    def smallest(self) -> float:
        """The smallest number that can be drawn."""
        return min(self.values) if self.distribution == "choice" else self.low

    @property
    def largest(self) -> float:
        """The largest number that can be drawn."""
        return max(self.values) if self.distribution == "choice" else self.high

    def draw(self, draws: Draws, shape: Sequence[int], worlds: Selection | None = None) -> Tensor:
        """Numbers ``[n, *shape]``; the same distribution in all ``worlds``."""
        if self.distribution == "choice":
            table = constant(self.values, draws.device)
            return table[draws.integers(len(self.values), shape)]
        if self.distribution == "loguniform":
            return draws.uniform(shape, math.log(self.low), math.log(self.high)).exp().clamp(self.low, self.high)
        if self.distribution == "normal":
            middle, sigma = (self.low + self.high) / 2, (self.high - self.low) / 4
            return (middle + sigma * draws.normal(shape)).clamp(self.low, self.high)
        return draws.uniform(shape, self.low, self.high)

    def act(self, nominal: Words, number: Words) -> Words:
        """The value that ``number`` makes of ``nominal``; tensors or arrays of numpy."""
        if self.operation == "*":
            return nominal * number
        return nominal + number if self.operation == "+" else number + namespace(nominal).zeros_like(nominal)
