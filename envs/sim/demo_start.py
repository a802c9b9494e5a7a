"""Episodes that begin in states of demonstrations: near their end at first, and earlier as the policy learns."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.store import DemoStore
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world import World
from visuomotor.envs.sim.world_state import STATE_KEY, WorldState

__all__ = ["DemoStart", "DemoStartConfig"]

_ORDERS = ("backward", "uniform")


@dataclass(kw_only=True, slots=True)
class DemoStartConfig:
    """Which episodes begin where.

    Attributes:
        store: demonstrations with the states of the simulator (``visuomotor data generate ... states=true``); null:
            every episode begins as the task says.
        share: of the episodes that begin in a state of a demonstration.
        order: ``backward``: a reverse curriculum (Salimans and Chen 2018, arXiv:1812.03381; Florensa et al. 2017,
            arXiv:1707.05300): near the end of demonstrations at first, and earlier as the policy succeeds from there;
            ``uniform``: in any state of theirs, all equally likely.
        step: control steps by which the beginning moves back at once, and half the stretch that it is drawn from.
        threshold: share of successes at which it moves back.
        episodes: that are counted before this is judged.
    """

    store: str | None = None
    share: float = 0.5
    order: str = "backward"
    step: int = 5
    threshold: float = 0.5
    episodes: int = 64

    def __post_init__(self) -> None:
        if self.order not in _ORDERS:
            raise ConfigError(f"demo_start.order={self.order!r} is unknown. {nearest(self.order, _ORDERS)}")
        if not 0.0 < self.share <= 1.0 or not 0.0 < self.threshold <= 1.0:
            raise ConfigError(
                f"demo_start: share={self.share} and threshold={self.threshold}: expected above 0 and up to 1"
            )
        if self.step < 1 or self.episodes < 1:
            raise ConfigError(f"demo_start: step={self.step} and episodes={self.episodes}: expected at least 1")
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if self.store is None and given:
            raise ConfigError(
                f"demo_start.{given[0]} does nothing without demonstrations: give demo_start.store=<zarr>"
            )


class DemoStart(Event):
    """Puts a share of the worlds into states of demonstrations when their episodes begin.

    The curriculum is one number: how many steps before the end of a demonstration an episode may begin. With several
    processes each has its own. The time limit of an episode is the task's, wherever it begins.

    Args:
        config: its settings; names a store.

    Raises:
        DataError: a store without episodes, or without states of the simulator.
    """

    when, watches = "beginning", True

    def __init__(self, config: DemoStartConfig) -> None:
        if config.store is None:
            raise ConfigError("demo_start.store is not given: name a store of demonstrations")
        self._config, self._path = config, Path(config.store).expanduser()
        with DemoStore.open(self._path) as store:
            if STATE_KEY not in store.specs or store.n_episodes == 0:
                raise DataError(
                    f"{self._path} holds no states of the simulator to begin in: make demonstrations with "
                    "visuomotor data generate ... states=true"
                )
            self._names = store.specs[STATE_KEY].names
            self._rows = torch.from_numpy(np.array(store.read(STATE_KEY, 0, store.n_steps)))  # [T, S]
            ends = store.episode_ends.astype(np.int64)
        self._ends, self._lengths = torch.from_numpy(ends), torch.from_numpy(np.diff(ends, prepend=0))

    def bind(self, world: World) -> None:
        self._state = WorldState(world)
        if self._names != self._state.spec.names:
            theirs, ours = self._names or (), self._state.spec.names or ()
            differ = sorted(set(theirs) ^ set(ours)) or ["the order"]
            raise ConfigError(
                f"{self._path} holds states of {len(theirs)} numbers of another task or robot, these worlds have "
                f"{len(ours)}; they differ in {', '.join(differ[:4])}"
            )
        n, device = world.sim.num_envs, world.sim.device
        self._rows, self._ends, self._lengths = (x.to(device) for x in (self._rows, self._ends, self._lengths))
        flags = torch.zeros(2, n, dtype=torch.bool, device=device)
        self._from_demo, self._reached = flags.unbind(0)
        self._depth = torch.full((), self._config.step, dtype=torch.int64, device=device)
        self._tries, self._wins = torch.zeros(2, dtype=torch.int64, device=device).unbind(0)
        self._rate = torch.full((), torch.nan, dtype=torch.float64, device=device)  # not judged yet

    def apply(self, worlds: Selection, draws: Draws) -> None:
        chosen = draws.uniform() < self._config.share
        rows = self._rows[self._row(draws)]
        worlds.put(self._from_demo, chosen)
        worlds.put(self._reached, False)
        everyone = torch.zeros_like(self._from_demo)
        worlds.put(everyone, chosen)
        begun = Selection(everyone, dense=worlds.ids is None)
        if not begun.is_empty:
            self._state.write(begun, rows if begun.ids is None else rows[chosen])

    def watch(self, success: Tensor, ended: Tensor) -> None:
        self._reached |= success
        counted = ended & self._from_demo
        self._tries += counted.sum()
        self._wins += (counted & self._reached).sum()
        judged = self._tries >= self._config.episodes
        rate = self._wins / self._tries.clamp_min(1).double()
        self._rate.copy_(torch.where(judged, rate, self._rate))
        back = self._depth + self._config.step
        moved = torch.where(judged & (rate >= self._config.threshold), back, self._depth)
        self._depth.copy_(torch.minimum(moved, self._lengths.max() + self._config.step))
        self._tries.masked_fill_(judged, 0)
        self._wins.masked_fill_(judged, 0)

    def buffers(self) -> dict[str, Tensor]:
        return {
            "from_demo": self._from_demo, "reached": self._reached, "depth": self._depth, "tries": self._tries,
            "wins": self._wins, "rate": self._rate,
        }  # fmt: skip

    def report(self) -> dict[str, float]:
        """Success of the last judged episodes from demonstrations, and how many steps before the end they begin."""
        depth = {"demo_start_depth": float(self._depth)} if self._config.order == "backward" else {}
        rate = float(self._rate)
        return depth if math.isnan(rate) else {"demo_start_success": rate, **depth}

    def _row(self, draws: Draws) -> Tensor:
        """A row of the store for each world, int64 ``[n]``."""
        episode, where = draws.integers(len(self._ends)), draws.uniform()
        if self._config.order == "uniform":
            return (where.double() * len(self._rows)).long()
        stretch = torch.minimum(self._depth + 1, torch.full_like(self._depth, 2 * self._config.step))
        back = self._depth - (where * stretch).long().minimum(stretch - 1)
        return self._ends[episode] - 1 - torch.minimum(back, self._lengths[episode] - 1)
