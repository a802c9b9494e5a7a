"""Curricula that scale all ranges alike about the nominal values: the whole ranges at once, or little by little."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visuomotor.envs.sim.events import Gather
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world import World
from visuomotor.sim2real.randomization.curriculum.base import Curriculum
from visuomotor.sim2real.randomization.curriculum.config import LinearConfig
from visuomotor.sim2real.randomization.curriculum.parameters import Parameter

__all__ = ["Fixed", "Linear"]


class Fixed(Curriculum):
    """The terms' own distributions, drawn towards the nominal values to a share ``width`` of their distance.

    A value to choose is drawn with the probability ``width`` and is else the nominal one. The width is 1 and stays so.
    """

    def bind(self, world: World) -> None:
        super().bind(world)
        device = world.sim.device
        self._width = torch.ones((), dtype=torch.float64, device=device)
        self._normal = torch.tensor([p.normal for p in self.known], device=device)
        self._choice = torch.tensor([bool(p.values) for p in self.known], device=device)
        self._tally = torch.zeros(2, dtype=torch.int64, device=device)  # episodes, and those that reached the goal
        self._rate = torch.full((), torch.nan, dtype=torch.float64, device=device)  # of the last that were judged
        sizes = self.space.nominal.new_tensor([max(n, 1) for n in self.space.sizes])
        half = torch.where(self._choice, 0.5 / sizes, 0.0)
        self._below, self._above = self.space.nominal - half, 1.0 - self.space.nominal - half

    def adapt(self, env_steps: int, gather: Gather) -> None:
        total = gather(self._tally[None]).sum(0)
        self._rate.copy_(torch.where(total[0] > 0, total[1] / total[0].clamp_min(1), self._rate))
        self._tally.zero_()

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | {"width": self._width, "tally": self._tally, "rate": self._rate}

    def report(self) -> dict[str, float]:
        """Also the share of successes of the episodes that were judged last."""
        rate = float(self._rate)
        return super().report() | ({} if rate != rate else {"dr_success": rate})

    def _sample(self, worlds: Selection, draws: Draws) -> Tensor:
        k = len(self.known)
        u, other = draws.uniform((k,)).double(), draws.uniform((k,))
        z = torch.where(self._normal, (0.5 + 0.25 * draws.normal((k,))).double().clamp(0.0, 1.0), u)
        nominal = self.space.nominal
        return torch.where(
            self._choice, torch.where(other < self._width, z, nominal), nominal + self._width * (z - nominal)
        )

    def _quantiles(self) -> tuple[Tensor, Tensor]:
        nominal, w = self.space.nominal, self._width
        spread = torch.where(self._normal, 0.25 * 1.645, 0.45)
        low, high = nominal + w * (0.5 - spread - nominal), nominal + w * (0.5 + spread - nominal)
        least = torch.where(w * self._below > 0.05, 0.05 / w.clamp_min(0.05), nominal)
        most = torch.where(w * self._above > 0.05, 1.0 - 0.05 / w.clamp_min(0.05), nominal)
        return torch.where(self._choice, least, low), torch.where(self._choice, most, high)

    def _count(self, ended: Tensor, reached: Tensor) -> None:
        self._tally += torch.stack([ended.sum(), (ended & reached).sum()])


class Linear(Fixed):
    """Ranges that grow from nothing to their full width.

    Args:
        parameters: what is drawn.
        config: how fast.
    """

    def __init__(self, parameters: Sequence[Parameter], config: LinearConfig) -> None:
        super().__init__(parameters)
        self._config = config

    def bind(self, world: World) -> None:
        super().bind(world)
        self._width.zero_()

    def adapt(self, env_steps: int, gather: Gather) -> None:
        c = self._config
        if c.by == "steps":
            super().adapt(env_steps, gather)
            self._width.fill_(min(1.0, env_steps / c.steps))
            return
        if int(gather(self._tally[:1]).sum()) < c.episodes:
            return
        super().adapt(env_steps, gather)
        if float(self._rate) >= c.threshold:
            self._width.add_(c.stride).clamp_(max=1.0)
