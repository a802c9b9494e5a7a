"""What all curricula have in common: they draw the numbers of a world once an episode, and terms read them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from visuomotor.data.errors import UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world import World
from visuomotor.sim2real.randomization.curriculum.parameters import Parameter, Space

__all__ = ["Curriculum", "Governed"]


class Curriculum(Event):
    """Draws ``K`` numbers for each world when its episode begins. It stands before the terms that it governs.

    A term that asks for one number of a world gets the world's. One that asks for several (a term with ``shared:
    false``, or of several components) gets independent numbers on both sides of the nominal value, uniform up to as far
    as the world's number lies from it: the world's number is how much its things differ. Of a term that chooses from
    values all things get the same.

    Args:
        parameters: what is drawn.

    Attributes:
        observed: the numbers are observed, as the privileged key ``randomization``.
    """

    when, watches = "reset", True

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        if not parameters:
            raise UserError("a curriculum without parameters; expected at least one")
        self.known = tuple(parameters)
        self.observed = False

    @property
    def space(self) -> Space:
        """The parameters as columns."""
        return self._space

    def bind(self, world: World) -> None:
        n, device = world.sim.num_envs, world.sim.device
        self._space = Space(self.known, device)
        self._z = self._space.nominal.expand(n, -1).clone()  # [N, K] of the running episodes
        self._values = self._space.values(self._z)
        self._reached = torch.zeros(n, dtype=torch.bool, device=device)

    def apply(self, worlds: Selection, draws: Draws) -> None:
        z = self._sample(worlds, draws)
        worlds.put(self._z, z)
        worlds.put(self._values, self._space.values(z))
        worlds.put(self._reached, False)

    def watch(self, success: Tensor, ended: Tensor) -> None:
        self._reached |= success
        self._count(ended, self._reached)

    def adds(self) -> dict[str, ArraySpec]:
        """Each number as a share of its range, -1 to 1."""
        names = tuple(p.name for p in self.known)
        spec = ArraySpec(shape=(len(names),), role="privileged", names=names)
        return {"randomization": spec} if self.observed else {}

    def observe(self) -> dict[str, Tensor]:
        return {"randomization": (2.0 * self._z - 1.0).float()}

    def parameters(self) -> Tensor:
        """The numbers of the running episodes, in the terms' units: float64 ``[N, K]``; live."""
        return self._values

    def source(self, name: str) -> Governed:
        """What the term of that name draws from instead of its spread."""
        return Governed(self, [p.name for p in self.known].index(name))

    def buffers(self) -> dict[str, Tensor]:
        return {"z": self._z, "values": self._values, "reached": self._reached}

    def report(self) -> dict[str, float]:
        """Between which values nine of ten numbers are drawn, and the mean share of the ranges that this is."""
        low, high = self._quantiles()
        out = {"dr_width": float((high - low).mean()) / 0.9}
        for p, a, b in zip(self.known, *(self._space.values(q).tolist() for q in (low, high)), strict=True):
            out |= {f"dr_low/{p.name}": a, f"dr_high/{p.name}": b}
        return out

    def numbers(self, column: int, draws: Draws, shape: Sequence[int], worlds: Selection) -> Tensor:
        """What the term of a column gets: float32 ``[n, *shape]``."""
        rows = (-1, *[1] * len(shape))
        if math.prod(shape) == 1 or self.known[column].values:
            return worlds.take(self._values)[:, column].view(rows).expand(-1, *shape).float()
        share = draws.uniform(shape, -1.0, 1.0)
        return self._space.within(worlds.take(self._z)[:, column].view(rows), column, share).float()

    @abstractmethod
    def _sample(self, worlds: Selection, draws: Draws) -> Tensor:
        """Unit coordinates, float64 ``[n, K]``, for worlds whose episodes begin."""

    @abstractmethod
    def _quantiles(self) -> tuple[Tensor, Tensor]:
        """Unit coordinates below which 5 % and 95 % are drawn, ``[K]`` each."""

    @abstractmethod
    def _count(self, ended: Tensor, reached: Tensor) -> None:
        """Take note of episodes that ended, bool ``[N]``, and of whether each reached its goal, bool ``[N]``."""


class Governed:
    """A column of a curriculum as a :class:`~visuomotor.envs.sim.spread.Source`."""

    def __init__(self, curriculum: Curriculum, column: int) -> None:
        self._curriculum, self._column = curriculum, column

    def draw(self, draws: Draws, shape: Sequence[int], worlds: Selection) -> Tensor:
        """Numbers ``[n, *shape]``; see :class:`Curriculum`."""
        return self._curriculum.numbers(self._column, draws, shape, worlds)
