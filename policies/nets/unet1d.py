"""Conditional 1-D U-Net over the chunk (Chi et al. 2023, Diffusion Policy, after Janner et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Backbone, BackboneConfig, Condition, Known, NetSizes, Observed
from visuomotor.policies.nets.conv1d import Conv1d, Downsample1d, Upsample1d
from visuomotor.policies.nets.embedding import TimeEmbedding

__all__ = ["ConditionalUnet1d", "UnetConfig"]


@dataclass(kw_only=True, slots=True)
class UnetConfig(BackboneConfig):
    """Sizes of :class:`ConditionalUnet1d`; the defaults are Diffusion Policy's for state observations.

    Attributes:
        dims: channels of each level; every level but the last halves the chunk, so ``horizon`` must be divisible by
            ``2 ** (len(dims) - 1)``.
        kernel_size: steps that a convolution sees, odd.
        groups: groups of the group norm.
        time_dim: size of the embedding of the denoising time.
    """

    dims: list[int] = field(default_factory=lambda: [256, 512, 1024])
    kernel_size: int = 5
    groups: int = 8
    time_dim: int = 128

    def __post_init__(self) -> None:
        if not self.dims:
            raise ConfigError("backbone unet: dims is empty: expected the channels of each level, as [256, 512, 1024]")
        if self.groups < 1 or self.time_dim < 4 or self.time_dim % 2:
            raise ConfigError(
                f"backbone unet: groups {self.groups} and time_dim {self.time_dim}: expected at least 1, and an even "
                "number from 4"
            )
        bad = [d for d in self.dims if d < self.groups or d % self.groups]
        if bad:
            raise ConfigError(f"backbone unet: dims {bad} are not multiples of groups = {self.groups}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(
                f"backbone unet: kernel_size {self.kernel_size}: expected odd and positive; even ones change the length"
            )


class _ConvBlock(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, inp: int, out: int, c: UnetConfig) -> None:
        super().__init__()
        self.conv, self.norm = Conv1d(inp, out, c.kernel_size), nn.GroupNorm(c.groups, out)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm  # called as a function: at batch 1 the module's own checks take as long as the arithmetic
        return F.mish(torch.group_norm(self.conv(x), n.num_groups, n.weight, n.bias, n.eps))


class _ResBlock(nn.Module):
    """Two convolution blocks with FiLM between them, and a skip."""

    def __init__(self, inp: int, out: int, c: UnetConfig) -> None:
        super().__init__()
        self.out_channels = out
        self.first, self.second = _ConvBlock(inp, out, c), _ConvBlock(out, out, c)
        self.skip = Conv1d(inp, out, 1) if inp != out else None

    def forward(self, x: Tensor, modulation: Iterator[Tensor]) -> Tensor:
        scale, shift = next(modulation), next(modulation)  # [B, C, 1]
        h = torch.addcmul(shift, self.first(x), scale)  # [B, C, T]
        return self.second(h) + (x if self.skip is None else self.skip(x))


class _Level(nn.Module):
    """Two residual blocks, then a change of length; also returns what it had before that change."""

    def __init__(self, inp: int, out: int, resize: nn.Module, c: UnetConfig) -> None:
        super().__init__()
        self.first, self.second, self.resize = _ResBlock(inp, out, c), _ResBlock(out, out, c), resize

    def forward(self, x: Tensor, modulation: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        h = self.second(self.first(x, modulation), modulation)
        return self.resize(h), h


class ConditionalUnet1d(Backbone):
    """Noisy chunk, time and observation to a chunk. FiLM scales and shifts of all blocks come from one linear layer."""

    ones: Tensor  # [sum of sizes] 1 for a scale, 0 for a shift

    def __init__(self, config: UnetConfig, sizes: NetSizes) -> None:
        super().__init__()
        dims = config.dims
        shrink = 2 ** (len(dims) - 1)
        if sizes.horizon % shrink:
            raise ConfigError(
                f"backbone unet: horizon {sizes.horizon} cannot be halved {len(dims) - 1} times for dims {dims}: "
                f"expected a multiple of {shrink}"
            )
        self.time = TimeEmbedding(config.time_dim, scale=sizes.time_scale, n_times=sizes.n_times)
        self.down = nn.ModuleList()
        for i, (inp, out) in enumerate(zip([sizes.input_dim, *dims[:-1]], dims, strict=True)):
            last = i == len(dims) - 1
            self.down.append(_Level(inp, out, nn.Identity() if last else Downsample1d(out), config))
        self.mid = nn.ModuleList([_ResBlock(dims[-1], dims[-1], config) for _ in range(2)])
        self.up = nn.ModuleList(
            _Level(2 * inp, out, Upsample1d(out), config) for inp, out in zip(dims[:0:-1], dims[-2::-1], strict=True)
        )
        self.out = nn.Sequential(_ConvBlock(dims[0], dims[0], config), Conv1d(dims[0], sizes.output_dim, 1))
        self._sizes = [m.out_channels for m in self.modules() if isinstance(m, _ResBlock) for _ in range(2)]
        # Scales are predicted as a difference from 1.
        ones = torch.cat([torch.full((n,), 1.0 - i % 2) for i, n in enumerate(self._sizes)])
        self.register_buffer("ones", ones, persistent=False)
        self.film = nn.Sequential(
            nn.Mish(), nn.Linear(config.time_dim + sizes.n_obs * sizes.feature_dim, sum(self._sizes))
        )

    @property
    def middle(self) -> nn.Module:
        return self.mid[-1]

    def condition(self, seen: Observed) -> Condition:
        return Condition(seen.features.flatten(1))  # [B, To, F] -> [B, To * F]

    def modulation(self, t: Tensor, vector: Tensor) -> Tensor:
        return self.film(torch.cat([self.time(t), vector.float()], dim=-1)) + self.ones  # [n, sum of sizes]

    def denoise(
        self, x: Tensor, modulation: Tensor, memory: Tensor | None = None, known: Known | None = None
    ) -> Tensor:
        parts = iter(modulation[..., None].split_with_sizes(self._sizes, dim=1))  # each [B, C, 1]
        h = x.transpose(1, 2)  # [B, Di, H]
        skips: list[Tensor] = []
        for level in self.down:
            h, skip = level(h, parts)
            skips.append(skip)
        for block in self.mid:
            h = block(h, parts)
        for level in self.up:
            h, _ = level(torch.cat([h, skips.pop()], dim=1), parts)
        return self.out(h).transpose(1, 2)
