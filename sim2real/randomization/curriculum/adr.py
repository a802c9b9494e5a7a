"""Automatic domain randomisation: each end of each range moves by the successes at that end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from visuomotor.envs.sim.events import Gather
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world import World
from visuomotor.sim2real.randomization.curriculum.base import Curriculum
from visuomotor.sim2real.randomization.curriculum.config import ADRConfig
from visuomotor.sim2real.randomization.curriculum.parameters import Parameter

__all__ = ["ADR"]


class ADR(Curriculum):
    """Uniform ranges that begin as points (OpenAI et al. 2019, arXiv:1910.07113, algorithm 1).

    A share of the episodes has one parameter at one end of its range, chosen at random, and the others anywhere within
    theirs. When enough of them have begun at an end, no more are begun, and when the last of them has ended, it moves:
    outwards where the policy succeeds, back where it fails, by a fixed step, never beyond the widest range nor across
    the nominal value. (Judging by those that end first would flatter it: successes are often shorter than failures.)
    Unlike in the paper the ends move between the updates of the policy, and the counts of all processes are added up:
    every process has the same ranges.

    A range of values to choose moves by one value at least.

    Args:
        parameters: what is drawn.
        config: when ends move, and how far.
    """

    def __init__(self, parameters: Sequence[Parameter], config: ADRConfig) -> None:
        super().__init__(parameters)
        self._config = config

    def bind(self, world: World) -> None:
        super().bind(world)
        space, n, device = self.space, world.sim.num_envs, world.sim.device
        k = len(space)
        self._ends = space.nominal.repeat(2, 1)  # [2, K]: low, high
        self._sizes = torch.tensor(space.sizes, dtype=torch.float64, device=device)
        self._step = torch.where(self._sizes > 0, 1.0 / self._sizes.clamp_min(1), 0.0).clamp_min(self._config.step)
        cell = torch.where(self._sizes > 0, 0.5 / self._sizes.clamp_min(1), 0.0)
        room = torch.stack([space.nominal - cell > 1e-9, space.nominal + cell < 1.0 - 1e-9])
        self._movable = room.flatten().nonzero()[:, 0]  # of the 2 K ends, those that have where to go
        self._outwards = torch.tensor([[-1.0], [1.0]], dtype=torch.float64, device=device)
        self._worker = torch.full((n,), -1, dtype=torch.int64, device=device)  # which end a world is at; -1: none
        self._tally = torch.zeros(2 * k, 2, dtype=torch.int64, device=device)  # episodes, and successes
        self._open = torch.ones(2 * k, dtype=torch.bool, device=device)  # ends at which episodes are still begun
        self._elsewhere = torch.zeros(2, dtype=torch.int64, device=device)
        self._rate = torch.full((), torch.nan, dtype=torch.float64, device=device)

    def adapt(self, env_steps: int, gather: Gather) -> None:
        c = self._config
        total = gather(self._tally[None]).sum(0)
        at = self._worker[self._worker >= 0]
        running = gather(torch.bincount(at, minlength=len(total))[None]).sum(0)
        done = (total[:, 0] >= c.episodes) & (running == 0)
        judged = done.view(2, -1)
        rate = (total[:, 1] / total[:, 0].clamp_min(1)).view(2, -1)
        move = judged.double() * ((rate >= c.widen).double() - (rate <= c.narrow).double()) * self._step
        nominal = self.space.nominal
        self._ends[0] = (self._ends[0] - move[0]).clamp_min(0.0).minimum(nominal)
        self._ends[1] = (self._ends[1] + move[1]).clamp_max(1.0).maximum(nominal)
        self._tally.masked_fill_(done[:, None], 0)
        self._open.copy_(done | (total[:, 0] + running < c.episodes))
        elsewhere = gather(self._elsewhere[None]).sum(0)
        if int(elsewhere[0]) >= c.episodes:
            self._rate.copy_(elsewhere[1] / elsewhere[0])
            self._elsewhere.zero_()

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | {
            "ends": self._ends, "worker": self._worker, "tally": self._tally, "open": self._open,
            "elsewhere": self._elsewhere, "rate": self._rate,
        }  # fmt: skip

    def report(self) -> dict[str, float]:
        """Also the entropy per parameter (the paper's measure), and successes away from the ends."""
        low, high = self._edges()
        entropy, rate = float((high - low).log().mean()), float(self._rate)
        out = super().report() | ({} if math.isinf(entropy) else {"dr_entropy": entropy})
        return out | ({} if math.isnan(rate) else {"dr_success": rate})

    def _edges(self) -> tuple[Tensor, Tensor]:
        """Where the ranges end, with the whole interval of a value to choose."""
        n = self._sizes.clamp_min(1)
        low, high = self._ends
        floor, ceil = (low * n).floor().minimum(n - 1) / n, ((high * n).floor().minimum(n - 1) + 1) / n
        return torch.where(self._sizes > 0, floor, low), torch.where(self._sizes > 0, ceil, high)

    def _sample(self, worlds: Selection, draws: Draws) -> Tensor:
        low, high = self._edges()
        z = low + (high - low) * draws.uniform((len(low),)).double()
        end = self._movable[draws.integers(len(self._movable))]
        worker = torch.where((draws.uniform() < self._config.share) & self._open[end], end, -1)
        worlds.put(self._worker, worker)
        column = torch.arange(len(low), device=z.device)
        at_end = (worker >= 0)[:, None] & ((end % len(low))[:, None] == column)
        return torch.where(at_end, self._ends.flatten()[end][:, None], z)

    def _quantiles(self) -> tuple[Tensor, Tensor]:
        low, high = self._edges()
        return low + 0.05 * (high - low), high - 0.05 * (high - low)

    def _count(self, ended: Tensor, reached: Tensor) -> None:
        at_end = self._worker >= 0
        outcome = torch.stack([ended, ended & reached], 1).long()  # [N, 2]
        self._tally.index_add_(0, self._worker.clamp_min(0), outcome * at_end[:, None])
        self._elsewhere += (outcome * ~at_end[:, None]).sum(0)
        self._worker.masked_fill_(ended, -1)
