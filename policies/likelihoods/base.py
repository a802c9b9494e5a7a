"""What PPO asks of a policy: draw a chunk and remember how, and say later how much likelier it has become.

Shapes: ``B`` decisions (a chunk each), ``M`` trained stochastic steps that make one chunk (1 for a Gaussian policy,
denoising steps for diffusion), ``H`` steps of the chunk, ``Da`` action size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gaussian import gaussian_log_prob
from visuomotor.policies.policy import Policy

__all__ = [
    "MASKS",
    "ChainLikelihood",
    "Evaluation",
    "Likelihood",
    "LikelihoodConfig",
    "Record",
    "Transition",
    "bounded_normal",
    "gaussian_entropy",
]

MASKS = ("exact", "executed")
Transition = Callable[[Tensor], tuple[Tensor, Tensor]]  # x [B, H, Da] -> mean and std of the next x, [B, H, Da]
_NOISE_BOUND = 3.0


@dataclass(kw_only=True, slots=True)
class LikelihoodConfig:
    """Settings of a likelihood; each one's own class derives from it.

    Attributes:
        mask: which positions of a chunk count. ``exact``: of the last stochastic step those that were executed, of the
            steps before it all (every position of a noisy chunk influences every action). ``executed``: the executed
            ones at every step, as in DPPO: an approximation with less variance.
    """

    mask: str = "exact"

    def __post_init__(self) -> None:
        if self.mask not in MASKS:
            raise ConfigError(f"likelihood.mask={self.mask!r} is unknown. {nearest(self.mask, MASKS)}")


class Record(NamedTuple):
    """What was drawn in ``B`` decisions, and everything that :meth:`Likelihood.evaluate` needs of it."""

    chunk: Tensor  # [B, H, Da], normalised and not clipped: clip when it is executed, never before
    aux: dict[str, Tensor]  # {name: [B, ...]}

    def rows(self, index: Tensor) -> Record:
        """The decisions ``index [n]``."""
        return Record(self.chunk[index], {k: v[index] for k, v in self.aux.items()})


class Evaluation(NamedTuple):
    """What the policy of now says about a record. Differentiable.

    ``mean`` and ``std`` are those of the Gaussian steps where there are such (for a divergence from a base policy).
    """

    log_ratio: Tensor  # [B, M, H]: log p_now - log p_then, summed over the components of the action
    entropy: Tensor | None = None  # [B, M, H] nats, summed over the components; None where there is none in closed form
    mean: Tensor | None = None  # [B, M, H, Da]
    std: Tensor | None = None  # [B, M, H, Da]
    penalty: Tensor | None = None  # [B]: what the method itself adds to the loss, already weighted


class Likelihood(nn.Module, ABC):
    """Wraps a policy in ``eval`` mode (dropout would make the ratio differ from 1 before the first update).

    Its parameters are those of the policy and what exploration learns besides (a standard deviation, a noise network),
    which is not needed for acting later: :meth:`own_state` holds it.

    Attributes:
        policy: whose likelihood it is. Its normaliser is not trained.
        n_terms: ``M``.
    """

    n_terms: int

    def __init__(self, policy: Policy, config: LikelihoodConfig) -> None:
        super().__init__()
        self.policy, self.config = policy, config
        self.policy.eval()

    def train(self, mode: bool = True) -> Likelihood:
        """Stays in ``eval`` mode: one arithmetic for acting and for learning."""
        return super().train(False)

    @abstractmethod
    def rollout(self, obs: Mapping[str, Tensor], draws: Draws) -> Record:
        """Draw chunks for ``{key: [B, To, ...]}`` (raw units), with noise from ``draws``; no gradients."""

    @abstractmethod
    def evaluate(self, obs: Mapping[str, Tensor], record: Record) -> Evaluation:
        """The record under the weights of now; ``log_ratio`` is 0 with the weights that made it."""

    def mask(self, executed: Tensor, record: Record) -> Tensor:
        """Which of ``[B, M, H]`` of ``record`` count, given the positions that were ``executed [B, H]`` (bool)."""
        whole = executed[:, None].expand(-1, self.n_terms, -1)
        if self.config.mask == "executed":
            return whole
        before_last = torch.arange(self.n_terms, device=executed.device) < self.n_terms - 1
        return whole | before_last[:, None]

    def action(self, record: Record, obs: Mapping[str, Tensor], bound: float | None) -> Tensor:
        """What to execute, ``[B, H, Da]`` in raw units: the chunk, clipped to ``bound`` in normalised units."""
        chunk = record.chunk if bound is None else record.chunk.clamp(-bound, bound)
        return self.policy.unnormalize_action(chunk, obs)

    def set_progress(self, share: float) -> None:
        """``share`` (0..1) of the training is done: for noise that is reduced over it."""

    def own_state(self) -> dict[str, Tensor]:
        """Parameters and buffers that are not the policy's."""
        named = [*self.named_parameters(), *self.named_buffers()]  # a part of the policy under a second name comes once
        own = {n for n, _ in named if not n.startswith("policy.")}
        return {k: v for k, v in self.state_dict().items() if k in own}


class ChainLikelihood(Likelihood):
    """A chunk made by ``M`` Gaussian steps one after another: ``x_0 -> x_1 -> ... -> x_M``, which is the chunk.

    The record holds the whole chain ``[B, M + 1, H, Da]`` and the log-density of every step ``[B, M, H]``. Subclasses
    say how it begins and what each step's mean and standard deviation are; one code path serves drawing and rating.
    """

    @abstractmethod
    def begin(self, net: NetFn, draws: Draws) -> Tensor:
        """``x_0 [B, H, Da]`` for the observations that ``net`` has seen, without gradients."""

    @abstractmethod
    def transitions(self, net: NetFn) -> Sequence[Transition]:
        """The ``M`` steps for the observations that ``net`` has seen."""

    @torch.no_grad()
    def rollout(self, obs: Mapping[str, Tensor], draws: Draws) -> Record:
        net = self.policy.net(obs)
        chain, densities = [self.begin(net, draws)], []
        for step in self.transitions(net):
            mean, std = step(chain[-1])
            x = mean + std * bounded_normal(draws, tuple(mean.shape))
            densities.append(gaussian_log_prob(x, mean, std).sum(-1))
            chain.append(x)
        return Record(chain[-1], {"chain": torch.stack(chain, 1), "log_prob": torch.stack(densities, 1)})

    def evaluate(self, obs: Mapping[str, Tensor], record: Record) -> Evaluation:
        chain, means, stds = record.aux["chain"].unbind(1), [], []
        for x, step in zip(chain[:-1], self.transitions(self.policy.net(obs)), strict=True):
            mean, std = step(x)
            means.append(mean)
            stds.append(std.expand_as(mean))
        mean, std = torch.stack(means, 1), torch.stack(stds, 1)
        log_prob = gaussian_log_prob(torch.stack(chain[1:], 1), mean, std).sum(-1)
        return Evaluation(log_prob - record.aux["log_prob"], gaussian_entropy(std), mean, std)


def gaussian_entropy(std: Tensor) -> Tensor:
    """Entropy [nats] of Gaussians with ``std [..., Da]``, summed over the components: ``[...]``."""
    return std.log().sum(-1) + 0.5 * std.shape[-1] * _LOG_2_PI_E


def bounded_normal(draws: Draws, shape: tuple[int, ...]) -> Tensor:
    """Standard normal of ``shape``, cut off at three standard deviations as in DPPO and ReinFlow."""
    return draws.normal(shape).clamp(-_NOISE_BOUND, _NOISE_BOUND)


_LOG_2_PI_E = 2.8378770664093453  # log(2 pi e): twice the entropy of a standard normal
