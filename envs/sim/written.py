"""Per-world model fields that events set: from nominal values, or from what an earlier event of the same reset made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.envs.sim.arrays import Words, tensor, words
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.simulator import Simulator

if TYPE_CHECKING:
    from visuomotor.envs.sim.events import Event

__all__ = ["Written", "chain"]

Part = slice | int | None


class Written:
    """Rows and columns of a model field that one event sets in the worlds it is applied to.

    Several events may set the same numbers: the first of a reset begins from the nominal values, the others from what
    came before (see :func:`chain`). So factors of two terms multiply, and nothing compounds over resets.

    Args:
        sim: the worlds.
        field: its name.
        part: columns of the field's last axis; None if it has none, or for all.
        index: rows of the named things, int64 ``[things]``; None for fields of the whole world.

    Attributes:
        nominal: ``[things, columns...]``.
    """

    def __init__(self, sim: Simulator, field: str, part: Part, index: Tensor | None) -> None:
        self.field, self.part, self.index = field, part, index
        live = sim.model_field(field)
        self._live = live if part is None else live[..., part]
        self.nominal = self._of(sim.nominal(field)[None])[0]
        self._covered: Tensor | None = None
        self._columns = None if index is None else words(index)

    def base(self, worlds: Selection) -> Tensor:
        """What a term acts on: ``[things, columns...]`` for all worlds, or ``[n, things, columns...]``."""
        if self._covered is None:
            return self.nominal
        live = worlds.take(self._live)
        return torch.where(self._covered, live if self.index is None else live[:, self.index], self.nominal)

    def put(self, worlds: Selection, value: Words) -> None:
        """Write ``[n, things, columns...]``, a tensor or an array of numpy."""
        if isinstance(value, np.ndarray) and worlds.ids is not None and self._columns is not None:
            words(self._live)[words(worlds.ids)[:, None], self._columns] = value  # many calls less, for a few worlds
        else:
            worlds.put(self._live, tensor(value), self.index)

    def cells(self, sim: Simulator) -> Tensor:
        """Which numbers of the field are set: bool of the field's shape."""
        mask = torch.zeros_like(sim.nominal(self.field), dtype=torch.bool)
        columns = mask if self.part is None else mask[..., self.part]
        if self.index is None:
            columns.fill_(True)
        else:
            columns[self.index] = True
        return mask

    def follow(self, earlier: Tensor) -> None:
        """Act on what is there in the ``earlier`` cells, which other events of the same reset have set before."""
        covered = self._of(earlier[None])[0]
        self._covered = covered if bool(covered.any()) else None

    def _of(self, field: Tensor) -> Tensor:
        field = field if self.part is None else field[..., self.part]
        return field if self.index is None else field[:, self.index]


def chain(events: Sequence[Event], sim: Simulator) -> None:
    """Let bound events that set the same numbers act on each other's results, in their order.

    Raises:
        ConfigError: events that set the same numbers at different times: which of them holds would depend on chance.
    """
    claimed: dict[str, list[tuple[Event, Tensor]]] = {}
    for event in events:
        for written in event.written():
            cells = written.cells(sim)
            others = [(e, c) for e, c in claimed.get(written.field, []) if bool((c & cells).any())]
            for other, _ in others:
                if other.when != event.when or event.when == "interval":
                    raise ConfigError(
                        f"two events set {written.field} of the same things, at {other.when} and at {event.when}: "
                        "expected both at startup or both at reset"
                    )
            if others:
                written.follow(torch.stack([c for _, c in others]).any(0))
            claimed.setdefault(written.field, []).append((event, cells))
