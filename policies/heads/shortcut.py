"""Shortcut models (Frans et al. 2024, One Step Diffusion via Shortcut Models, arXiv:2410.12557).

The average velocity is learnt without derivatives: a jump has to lead where two jumps of half its length lead. Lengths
are powers of two, and the shortest is learnt as the velocity of ordinary flow matching.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.average_velocity import AverageVelocityConfig, AverageVelocityHead, spread_rows
from visuomotor.policies.heads.times import TimeConfig, sample_times

__all__ = ["ShortcutConfig", "ShortcutHead"]


@dataclass(kw_only=True, slots=True)
class ShortcutConfig(AverageVelocityConfig):
    """Which jumps there are, and how the batch is divided.

    Attributes:
        max_steps: jumps have lengths of 1, 1/2, ... 1/max_steps; a power of two (128 in the paper). More lengths are
            more jumps to learn, each from the next shorter one.
        flow_ratio: share of the batch that learns the velocity from data; the others learn jumps from shorter ones.
        time: the distribution of training times of the flow share.
    """

    max_steps: int = 16
    flow_ratio: float = 0.75
    time: TimeConfig = field(default_factory=TimeConfig)

    def __post_init__(self) -> None:
        AverageVelocityConfig.__post_init__(self)
        if self.max_steps < 2 or self.max_steps & (self.max_steps - 1):
            raise ConfigError(f"head shortcut: max_steps={self.max_steps}: expected a power of two of at least 2")
        if self.sample_steps > self.max_steps or self.sample_steps & (self.sample_steps - 1):
            raise ConfigError(
                f"head shortcut: sample_steps={self.sample_steps}: only jumps of 1, 1/2, ... 1/{self.max_steps} are "
                f"trained, so expected a power of two of at most max_steps = {self.max_steps}"
            )
        if not 0.0 < self.flow_ratio < 1.0:
            raise ConfigError(
                f"head shortcut: flow_ratio={self.flow_ratio:g}: expected a share in (0, 1); without flow rows nothing "
                "is learnt from the data, and without the others no jumps are"
            )


class ShortcutHead(AverageVelocityHead):
    """Flow matching on most of the batch, self-consistency of jumps on the rest.

    The two half jumps are made by the weights of the moment without gradients; the paper takes their moving average.
    """

    config: ShortcutConfig

    def __init__(self, config: ShortcutConfig, sizes: ChunkSizes) -> None:
        super().__init__(config, sizes)

    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        c, b = self.config, len(action)
        flow_t = sample_times(c.time, b, draws)
        count = 2.0 ** draws.integers(0, c.max_steps.bit_length() - 1, (b,))  # jumps of this length from 1 to 0
        place = ((draws.uniform((b,)) * count).floor() + 1.0) / count  # t on the grid of these jumps
        noise = draws.normal(tuple(action.shape))
        rows = spread_rows(b, 1.0 - c.flow_ratio, draws.rank * b, action.device)
        t = flow_t.index_copy(0, rows, place[rows])
        step = torch.zeros_like(t).index_copy(0, rows, 1.0 / count[rows])
        x = torch.lerp(action, noise, t.view(b, 1, 1))
        out = net(x, torch.stack([t, step], 1)).float()
        target = action if c.prediction == "sample" else noise - action
        if len(rows):
            target = target.index_copy(0, rows, self._two_jumps(net.rows(rows), x[rows], t[rows], step[rows]))
        return (out - target).square().mean(-1)

    @torch.no_grad()
    def _two_jumps(self, net: NetFn, x: Tensor, t: Tensor, step: Tensor) -> Tensor:
        """What the network should say for the jump from ``t [n]`` by ``step [n]``: where two halves of it lead."""
        half = step / 2
        told = torch.where(half * self.config.max_steps > 1.5, half, 0.0)
        middle = self.jump(net(x, torch.stack([t, told], 1)).float(), x, t, half)
        end = self.jump(net(middle, torch.stack([t - half, told], 1)).float(), middle, t - half, half)
        if self.config.clip is not None:  # at t = 0 the path is at the clean chunk
            end = torch.where((t - step < 1e-6).view(-1, 1, 1), end.clamp(-self.config.clip, self.config.clip), end)
        velocity = (x - end) / step.view(-1, 1, 1)
        return x - t.view(-1, 1, 1) * velocity if self.config.prediction == "sample" else velocity

    def told(self, jump: float) -> float:
        return 0.0 if jump * self.config.max_steps < 1.5 else jump
