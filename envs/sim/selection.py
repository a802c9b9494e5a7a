"""Which worlds a reset or an event concerns, written so that a GPU never waits for the host.

On the CPU a few worlds end at a time, and only their rows are computed (*sparse*). On a GPU asking how many there are
would stall it, so all ``N`` rows are computed and written where the mask holds (*dense*). Code that uses
:class:`Selection` does both: it computes ``n`` rows and puts them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from visuomotor.envs.sim.arrays import tensor, words

__all__ = ["Columns", "Selection", "constant"]

Columns = slice | Tensor | None


@cache
def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Float32 tensor of numbers (or tuples of them), copied to the device once: never write to it.

    ``torch.tensor([...], device=...)`` in code that runs at every step would make the host wait for a GPU each time.
    """
    with torch.inference_mode(False):  # it outlives the mode in which it is first asked for
        return torch.tensor(values, dtype=torch.float32, device=device)


def _chosen(mask: Tensor) -> Tensor:
    return torch.from_numpy(mask.numpy().nonzero()[0]) if mask.device.type == "cpu" else mask.nonzero()[:, 0]


class Selection:
    """Worlds chosen by a mask.

    Args:
        mask: bool ``[N]``.
        dense: compute all rows; None: on every device but the CPU.

    Attributes:
        mask: bool ``[N]``.
        ids: int64 ``[n]``, the chosen worlds; None if dense.
        n: number of rows to compute: of chosen worlds, or ``N`` if dense.
    """

    def __init__(self, mask: Tensor, dense: bool | None = None) -> None:
        self.mask = mask
        dense = mask.device.type != "cpu" if dense is None else dense
        self.ids = None if dense else _chosen(mask)
        self.n = mask.shape[0] if self.ids is None else self.ids.shape[0]

    @classmethod
    def all(cls, num_envs: int, device: torch.device) -> Selection:
        """Every world."""
        return cls(torch.ones(num_envs, dtype=torch.bool, device=device))

    @property
    def is_empty(self) -> bool:
        """True if it is known, without asking the device, that nothing is chosen."""
        return self.n == 0

    def take(self, x: Tensor) -> Tensor:
        """Rows ``[n, ...]`` of ``x [N, ...]``."""
        return x if self.ids is None else tensor(words(x)[words(self.ids)])

    def put(self, field: Tensor, value: Tensor | float | bool, columns: Columns = None) -> None:
        """Write rows ``value [n, ...]`` (or one number) into ``field [N, ...]`` in place.

        Args:
            columns: of the second axis: a slice, or an index ``[c]``; None writes all.
        """
        if isinstance(columns, slice):
            field, columns = field[:, columns], None
        if self.ids is not None:
            rows = words(self.ids)
            index = rows if columns is None else (rows[:, None], words(columns))
            words(field)[index] = words(value.to(field.dtype)) if isinstance(value, Tensor) else value
            return
        if not isinstance(value, Tensor):
            value = torch.full((), value, dtype=field.dtype, device=field.device)
        value = value.to(field.dtype)
        mask = self.mask.view(-1, *[1] * (field.ndim - 1))
        if columns is None:
            field.copy_(torch.where(mask, value, field))
        else:
            field[:, columns] = torch.where(mask, value, field[:, columns])
