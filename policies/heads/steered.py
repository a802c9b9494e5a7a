"""A frozen policy that is steered by the noise it starts from.

Instead of standard normal noise the frozen head gets noise that a small network chooses by what is observed: DSRL
("Steering Your Diffusion Policy with Latent Space Reinforcement Learning", Wagenmaker et al. 2025, arXiv:2506.15799).
Everything that the frozen policy can do stays as it was; what changes is which of it is done.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, Head, HeadConfig, NetFn, Observed
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gaussian import ChunkGaussian, bounded_std, check_std

__all__ = ["SteeredConfig", "SteeredHead"]


@dataclass(kw_only=True, slots=True)
class SteeredConfig(HeadConfig):
    """The frozen head, and the network that chooses its noise.

    Attributes:
        frozen: name of the settings class of the frozen head.
        settings: those settings.
        shared: one noise for all steps of the chunk instead of one each.
        width: of the hidden layers.
        depth: hidden layers.
        bound: on the mean and on the noise: beyond, the frozen policy has hardly ever been.
        std_min: least standard deviation of the noise.
        temperature: factor of the standard deviation when acting; 0 takes the mean.
    """

    frozen: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    shared: bool = False
    width: int = 128
    depth: int = 2
    bound: float = 3.0
    std_min: float = 0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_std("steered", self.std_min, 1.0, _STD_MAX, self.temperature)
        if self.width < 8 or self.depth < 1 or not self.bound > 0:
            raise ConfigError(
                f"head steered: width={self.width}, depth={self.depth}, bound={self.bound}: expected at least 8, at "
                "least 1 and more than 0"
            )


_STD_MAX = 1.2  # wider than 1, which the frozen policy was trained for, by no more than its samples scatter


class SteeredHead(Head):
    """Chooses noise ``[P, Da]`` and lets the frozen head make the chunk; ``P`` is ``H``, or 1 where it is shared.

    Before training the noise is standard normal, so the policy is the frozen one (nearly, with ``shared``). A frozen
    head that consumes several noise tensors (a stochastic sampler) gets the first one chosen, the others as they come.

    Args:
        config: its settings.
        sizes: of the chunk.
        frozen: the head whose settings ``config`` names; its weights are not trained.

    Raises:
        ConfigError: a frozen head that uses no noise.
    """

    def __init__(self, config: SteeredConfig, sizes: ChunkSizes, frozen: Head) -> None:
        super().__init__(sizes)
        if frozen.noise_count() < 1 or getattr(getattr(frozen, "config", None), "start", None) == "zeros":
            raise ConfigError(
                f"{type(frozen).__name__} makes its chunk from no noise, so there is nothing to steer it by: choose "
                "another likelihood"
            )
        self.config, self.frozen = config, frozen.requires_grad_(False)
        self.input_dim, self.output_dim = frozen.input_dim, frozen.output_dim
        self.time_scale, self.n_times, self.clean_time = frozen.time_scale, frozen.n_times, frozen.clean_time
        self.denoises, self.is_field = frozen.denoises, frozen.is_field
        self.needs_gradient, self.compiles = frozen.needs_gradient, frozen.compiles
        size, layers = sizes.n_obs * sizes.feature_dim, list[nn.Module]()
        for _ in range(config.depth):
            layers += [nn.Linear(size, config.width), nn.SiLU()]
            size = config.width
        self.shape = (1 if config.shared else sizes.horizon, sizes.action_dim)  # P, Da
        last = nn.Linear(size, self.shape[0] * self.shape[1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.actor = nn.Sequential(*layers, last)
        self.raw_std = nn.Parameter(torch.zeros(self.shape))

    def noise_distribution(self, seen: Observed) -> ChunkGaussian:
        """Where the noise of the chunk comes from after the encoded observations: mean and std ``[B, P, Da]``."""
        c = self.config
        raw = self.actor(seen.features.detach().float().flatten(1)).unflatten(1, self.shape)
        std = bounded_std(self.raw_std, low=c.std_min, init=1.0, high=_STD_MAX)
        return ChunkGaussian(c.bound * torch.tanh(raw / c.bound), std.expand_as(raw))

    def execute(self, net: NetFn, chosen: Tensor, noise: Tensor) -> Tensor:
        """The frozen head's chunk ``[B, H, Da]`` from ``chosen [B, P, Da]`` in place of the first of its ``noise``."""
        bounded = chosen.clamp(-self.config.bound, self.config.bound).expand(-1, *noise.shape[2:])
        return self.frozen.sample(net, torch.cat([bounded[:, None], noise[:, 1:]], 1))

    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        return self.frozen.loss(net, action, draws)

    def noise_count(self) -> int:
        return self.frozen.noise_count()

    def sample(self, net: NetFn, noise: Tensor) -> Tensor:
        found = self.noise_distribution(net.seen)
        return self.execute(net, found.sample(self.own(noise), self.config.temperature), noise)

    def own(self, noise: Tensor) -> Tensor:
        """Standard normal ``[B, P, Da]`` for the choice, of the ``[B, M, H, Da]`` that a sample consumes."""
        return noise[:, 0, : self.shape[0]]

    def set_solver(self, solver: str | None = None, steps: int | None = None) -> None:
        self.frozen.set_solver(solver, steps)
        settings: Any = self.frozen.config
        self.config = replace(self.config, settings=asdict(settings))

    def uncertainty(self, net: NetFn, action: Tensor) -> Tensor:
        return self.frozen.uncertainty(net, action)
