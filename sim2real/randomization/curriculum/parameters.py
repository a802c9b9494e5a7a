"""The numbers that a curriculum governs, in coordinates in which all of them range from 0 to 1.

A range becomes the unit interval, a log-uniform one by its logarithm; of ``n`` values to choose from, in order of size,
value ``i`` is the interval from ``i / n`` to ``(i + 1) / n``. What a curriculum learns is written in these coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.envs.sim.spread import Spread

__all__ = ["Parameter", "Space"]

_UNCHANGED = {"*": 1.0, "+": 0.0}  # the number that leaves the nominal value as it is


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One number of a world.

    Attributes:
        name: of the term that it belongs to.
        low, high: its widest range.
        nominal: where a curriculum begins, within the range.
        log: the range counts by its logarithm.
        normal: the term draws about the middle of its range, cut off at two standard deviations.
        values: what it is chosen from, in order of size; empty for a range.
    """

    name: str
    low: float
    high: float
    nominal: float
    log: bool = False
    normal: bool = False
    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, name: str, spread: Spread) -> Parameter:
        """The parameter of a term that varies by ``spread``.

        It begins at the number that changes nothing, or at the end of the range that is nearest to that; at the middle
        of the range where the number takes the place of the nominal value.
        """
        low, high, log = spread.smallest, spread.largest, spread.distribution == "loguniform"
        middle = math.sqrt(low * high) if log else (low + high) / 2
        nominal = min(max(_UNCHANGED.get(spread.operation, middle), low), high)
        values = tuple(sorted(spread.values)) if spread.distribution == "choice" else ()
        if values:
            nominal = min(values, key=lambda v: abs(v - nominal))
        normal = spread.distribution == "normal"
        return cls(name=name, low=low, high=high, nominal=nominal, log=log, normal=normal, values=values)

    @property
    def is_point(self) -> bool:
        """Whether there is nothing to vary."""
        return self.low == self.high

    def to_unit(self, value: float) -> float:
        """Where a value lies, 0 to 1; the middle of its interval for a value to choose."""
        if self.values:
            return (self.values.index(value) + 0.5) / len(self.values)
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (value - low) / (high - low)


class Space:
    """``K`` parameters as columns of tensors.

    Args:
        parameters: what varies; at least one, each with a range that is not a point.
        device: of the tensors.

    Attributes:
        nominal: where they begin, unit coordinates, float64 ``[K]``.
        sizes: number of values of each that is a choice, else 0.
    """

    def __init__(self, parameters: Sequence[Parameter], device: torch.device) -> None:
        if points := [p.name for p in parameters if p.is_point]:
            raise ConfigError(f"the range of {points[0]!r} is a point: there is nothing for a curriculum to widen")
        self.parameters, self.device = tuple(parameters), device
        self.sizes = [len(p.values) for p in parameters]

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.float64, device=device)

        self.nominal = column([p.to_unit(p.nominal) for p in parameters])
        ends = [(math.log(p.low), math.log(p.high)) if p.log else (p.low, p.high) for p in parameters]
        self._low, self._high = column([e[0] for e in ends]), column([e[1] for e in ends])
        self._least, self._most = column([p.low for p in parameters]), column([p.high for p in parameters])
        self._log = torch.tensor([p.log for p in parameters], device=device)
        self._choices = [(k, column(p.values)) for k, p in enumerate(parameters) if p.values]

    def __len__(self) -> int:
        return len(self.parameters)

    def values(self, z: Tensor) -> Tensor:
        """Values ``[..., K]`` of unit coordinates ``z [..., K]``, float64."""
        linear = self._low + z * (self._high - self._low)
        # rounding must not lead out of the range
        out = torch.where(self._log, linear.exp(), linear).clamp(self._least, self._most)
        for k, table in self._choices:
            out[..., k] = table[(z[..., k] * len(table)).long().clamp(0, len(table) - 1)]
        return out

    def within(self, z: Tensor, column: int, share: Tensor) -> Tensor:
        """Values on both sides of the nominal one, no further from it than ``z`` is, as shares of each side.

        Args:
            z: unit coordinates of a column, broadcasts against ``share``.
            column: which.
            share: -1 to 1: how far, and to which side. Where the range begins at the nominal value the sign is void.

        Returns:
            Float64, shaped as ``share``.
        """
        nominal = self.nominal[column]
        below, above = nominal, 1.0 - nominal
        reach = torch.where(z > nominal, (z - nominal) / above.clamp_min(1e-12), (nominal - z) / below.clamp_min(1e-12))
        signed = torch.where((below <= 0) | (above <= 0), share.abs() * torch.where(above > 0, 1.0, -1.0), share)
        signed = signed.double() * reach
        unit = nominal + torch.where(signed > 0, signed * above, signed * below)
        low, high = self._low[column], self._high[column]
        linear = low + unit * (high - low)
        out = linear.exp() if self.parameters[column].log else linear
        return out.clamp(self._least[column], self._most[column])
