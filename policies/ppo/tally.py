"""Running means and sums of what the steps of an update report; they stay on the device until its end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from visuomotor.policies.ppo.processes import Processes

__all__ = ["Tally"]


class Tally:
    """Means over optimiser steps, and means over all terms of all steps."""

    def __init__(self) -> None:
        self._means: dict[str, tuple[Tensor, int]] = {}
        self._sums: dict[str, Tensor] = {}

    def mean(self, name: str, value: Tensor) -> None:
        """One optimiser step's ``value``, which is the same in all processes."""
        total, n = self._means.get(name, (0.0, 0))
        self._means[name] = total + value, n + 1

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add to sums over the samples of this process."""
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def sums(self, processes: Processes) -> dict[str, float]:
        """All sums, over all processes."""
        if not self._sums:
            return {}
        values = processes.sum(torch.stack([v.double() for v in self._sums.values()]))
        return dict(zip(self._sums, values.tolist(), strict=True))

    def means(self) -> dict[str, float]:
        """All means over optimiser steps."""
        return {n: float(total) / count for n, (total, count) in self._means.items()}
