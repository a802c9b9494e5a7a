"""DORAEMON: the distribution of the worlds is as wide as the policy can bear."""

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
from visuomotor.sim2real.randomization.curriculum.config import DoraemonConfig
from visuomotor.sim2real.randomization.curriculum.family import Family
from visuomotor.sim2real.randomization.curriculum.maximum_entropy import Episodes, Limits, estimate, next_distribution
from visuomotor.sim2real.randomization.curriculum.parameters import Parameter

__all__ = ["Doraemon"]


class Doraemon(Curriculum):
    """Independent Beta distributions (and categorical ones for choices) whose entropy grows under a bound on success.

    Tiboni et al. 2024, arXiv:2311.01885. Between updates of the policy, once enough episodes have ended, a step of
    :func:`~visuomotor.sim2real.randomization.curriculum.maximum_entropy.next_distribution` is made with the episodes of
    all processes. Every episode remembers the density that it was drawn with, so those that began before the last step
    count rightly; they count once: the next step has new ones.

    Args:
        parameters: what is drawn.
        config: when the distribution moves, and how far.
    """

    def __init__(self, parameters: Sequence[Parameter], config: DoraemonConfig) -> None:
        super().__init__(parameters)
        self._config = config
        self._limits = Limits(config.success, config.divergence, config.effective, config.caution)

    def bind(self, world: World) -> None:
        super().bind(world)
        n, device, c = world.sim.num_envs, world.sim.device, self._config
        self._family = Family(self.space.nominal.cpu(), self.space.sizes, c.concentration)
        self._phi = self._family.start.to(device)
        self._table = self._family.table(self._phi)
        self._log_q = torch.zeros(n, dtype=torch.float64, device=device)
        self._size = max(2 * c.episodes, n)
        # the last row takes what is not to be kept: on a GPU asking which those are would make the host wait
        self._ring = torch.zeros(self._size + 1, len(self.space) + 2, dtype=torch.float64, device=device)
        counts = torch.tensor([0, c.episodes, 0 if c.wait else 1], device=device)
        self._written, self._due, self._begun = counts.unbind(0)
        self._rate, self._effective = torch.full((2,), torch.nan, dtype=torch.float64, device=device).unbind(0)

    def adapt(self, env_steps: int, gather: Gather) -> None:
        counts = gather(self._written[None])
        if int(counts.sum()) < int(self._due):
            return
        rows = gather(self._ring[: self._size]).cpu().view(len(counts), self._size, -1)
        rows = torch.cat([r[: min(int(n), self._size)] for r, n in zip(rows, counts, strict=True)])
        episodes = Episodes(self._family.features(rows[:, :-2]), rows[:, -2], rows[:, -1])
        phi = self._phi.cpu()
        success, effective = (float(x) for x in estimate(self._family, phi, episodes))
        self._rate.fill_(success)
        self._effective.fill_(effective)
        self._begun.fill_(int(self._begun) or success >= self._config.success)
        following = next_distribution(self._family, phi, episodes, self._limits) if int(self._begun) else phi
        too_few = following is None
        mine = torch.cat([phi if following is None else following, torch.tensor([float(too_few)])])
        agreed = gather(mine.to(self._phi.device)[None])[0]  # rounding may differ on other machines
        if bool(agreed[-1]):
            self._due.add_(max(1, self._config.episodes // 2))
            return
        self._phi.copy_(agreed[:-1])
        self._table.copy_(self._family.table(self._phi))
        self._written.zero_()
        self._due.fill_(self._config.episodes)

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | {
            "phi": self._phi, "table": self._table, "log_q": self._log_q, "ring": self._ring, "written": self._written,
            "due": self._due, "begun": self._begun, "rate": self._rate, "effective": self._effective,
        }  # fmt: skip

    def report(self) -> dict[str, float]:
        """Also the entropy per parameter [nat] (0: uniform); success and effective samples when it was judged last."""
        out = super().report() | {"dr_entropy": float(self._family.entropy(self._phi)) / len(self.space)}
        rate = float(self._rate)
        return out if math.isnan(rate) else out | {"dr_success": rate, "dr_effective": float(self._effective)}

    def _sample(self, worlds: Selection, draws: Draws) -> Tensor:
        z = Family.quantile(self._table, draws.uniform((len(self.space),)).double().T).T
        worlds.put(self._log_q, self._family.log_prob(self._phi, self._family.features(z)))
        return z

    def _quantiles(self) -> tuple[Tensor, Tensor]:
        ends = self._phi.new_tensor([[0.05, 0.95]]).expand(len(self.space), 2)
        low, high = Family.quantile(self._table, ends).unbind(1)
        return low, high

    def _count(self, ended: Tensor, reached: Tensor) -> None:
        row = (self._written + ended.cumsum(0) - 1) % self._size
        row = torch.where(ended, row, self._size)
        self._ring[row] = torch.cat([self._z, self._log_q[:, None], reached[:, None].double()], 1)
        self._written += ended.sum()
