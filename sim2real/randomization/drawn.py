"""What terms of actuation and sensing have in common: numbers drawn once an episode and kept for its steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.naming import listed
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.spread import Source, Spread
from visuomotor.envs.sim.world import World

__all__ = ["Drawing", "Drawn", "columns_of", "keys_of", "slots"]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How numbers are drawn.

    Attributes:
        spread: their range and distribution.
        shared: one number for all that a term acts on.
        optional: names may match nothing.
        when: ``startup`` or ``reset``.
    """

    spread: Spread
    shared: bool = False
    optional: bool = False
    when: str = "reset"


class Drawn(Event):
    """Draws numbers for each world when its episode begins, and holds them.

    Args:
        term: its name, for messages.
        names: patterns of what it acts on.
        how: its numbers are drawn.
        operation: the one that the spread must have.
        least: no number may be less.

    Raises:
        ConfigError: another operation, or a range that begins too low.
    """

    def __init__(
        self, term: str, names: Sequence[str], how: Drawing, *, operation: str = "+", least: float | None = None
    ) -> None:
        spread = how.spread
        if spread.operation != operation:
            raise ConfigError(f"{term}: operation {spread.operation!r}; expected {operation!r}")
        if how.when not in ("startup", "reset"):
            raise ConfigError(f"{term}: when={how.when}; expected startup or reset: numbers are of an episode")
        if least is not None and spread.smallest < least:
            raise ConfigError(f"{term}: a range from {spread.smallest:g}; expected {least:g} or more")
        self.term, self.names, self.spread = term, listed(names, term), spread
        self.shared, self.optional, self.when = how.shared, how.optional, how.when
        self.source: Source = spread

    def bind(self, world: World) -> None:
        self._world = world
        things = self._find(world)
        self._none = things == 0
        n, device = world.sim.num_envs, world.sim.device
        start = 1.0 if self.spread.operation == "*" else 0.0
        self._number = torch.full((n, 1 if self.shared else max(things, 1)), start, device=device)

    def apply(self, worlds: Selection, draws: Draws) -> None:
        if not self._none:
            worlds.put(self._number, self.source.draw(draws, (self._number.shape[1],), worlds))

    def buffers(self) -> dict[str, Tensor]:
        return {"number": self._number}

    @property
    def elapsed(self) -> Tensor:
        """Control steps since each episode began, int64 ``[N]``."""
        assert self._world.elapsed is not None
        return self._world.elapsed

    @abstractmethod
    def _find(self, world: World) -> int:
        """Look names up; how many numbers there are unless they are shared."""


def slots(spread: Spread, dt: float) -> int:
    """How many control steps have to be remembered for delays [s] of ``spread``, the present one included.

    Numbers are drawn in float32: half a step may round up there where it does not in float64.
    """
    return math.floor(spread.largest / dt + 0.5 + 1e-4) + 1


def keys_of(term: str, names: Sequence[str], specs: Mapping[str, ArraySpec], *, optional: bool) -> list[str]:
    """Observations that patterns name, in the order in which they are shown.

    Raises:
        ConfigError: a pattern that matches nothing, or no pattern at all.
    """
    if not names:
        raise ConfigError(f"{term}: no names; expected observations: {', '.join(specs)}")
    for p in names:
        if not optional and not any(fnmatchcase(k, p) for k in specs):
            raise ConfigError(f"{term}: nothing observed is {p!r}. {nearest(p, specs)}")
    return [k for k in specs if any(fnmatchcase(k, p) for p in names)]


def columns_of(term: str, names: Sequence[str], spec: ArraySpec, *, optional: bool) -> list[int]:
    """Components of an action that patterns name.

    Raises:
        ConfigError: a pattern that matches nothing, or no pattern at all.
    """
    known = list(spec.names or [f"{i}" for i in range(spec.size)])
    if not names:
        raise ConfigError(f"{term}: no names; expected components of the action: {', '.join(known)}")
    for p in names:
        if not optional and not any(fnmatchcase(n, p) for n in known):
            raise ConfigError(f"{term}: no component of the action is {p!r}. {nearest(p, known)}")
    return [i for i, n in enumerate(known) if any(fnmatchcase(n, p) for p in names)]
