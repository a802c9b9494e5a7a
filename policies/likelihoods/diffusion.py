"""Diffusion as a chain of Gaussian steps (Ren et al. 2024, Diffusion Policy Policy Optimization, arXiv:2409.00588).

Every denoising step draws its result from a Gaussian whose mean is the solver's step and whose standard deviation is
that of the solver, but at least a floor: the last step, and all steps of DDIM with eta 0, would have none. One floor
serves drawing and rating.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.diffusion import DenoisingStep, DiffusionHead
from visuomotor.policies.iterative import Estimate
from visuomotor.policies.likelihoods.base import (
    ChainLikelihood,
    LikelihoodConfig,
    Transition,
    bounded_normal,
)
from visuomotor.policies.nets.staged import StagedBackbone
from visuomotor.policies.policy import Policy

__all__ = ["DiffusionChain", "DiffusionChainConfig"]

_SOLVERS = ("ddim", "ddpm")


@dataclass(kw_only=True, slots=True)
class DiffusionChainConfig(LikelihoodConfig):
    """How the chunk is denoised, and what of it is learnt.

    Attributes:
        solver: ``ddim``, deployed without noise, or ``ddpm``, deployed with its own.
        steps: denoising steps, in training and when deployed.
        eta: of DDIM in training: 1 is as noisy as DDPM; with 0 there is the floor alone.
        std_min: floor of the standard deviation of a step [normalised units]. DPPO takes 0.1, and several
            million control steps; more noise shows sooner what it is good for.
        train_last: only this many last steps are trained; null for all. Those before them stay what they were, in
            training and when deployed: the backbone is split into a frozen copy for their times and one that is
            trained (:class:`~visuomotor.policies.nets.staged.StagedBackbone`). The encoder is frozen too, since both
            read it.
        mask: as everywhere, but DPPO's ``executed`` unless it is said otherwise.
    """

    mask: str = "executed"
    solver: str = "ddim"
    steps: int = 5
    eta: float = 1.0
    std_min: float = 0.2
    train_last: int | None = None

    def __post_init__(self) -> None:
        LikelihoodConfig.__post_init__(self)
        if self.solver not in _SOLVERS:
            raise ConfigError(f"likelihood.solver={self.solver!r} is unknown. {nearest(self.solver, _SOLVERS)}")
        if self.steps < 1 or (self.train_last is not None and not 1 <= self.train_last <= self.steps):
            raise ConfigError(
                f"likelihood: steps={self.steps} and train_last={self.train_last}: expected at least 1, and 1 to steps"
            )
        if self.eta < 0.0 or self.std_min <= 0.0:
            raise ConfigError(f"likelihood: eta={self.eta} must be 0 or more and std_min={self.std_min} positive")


class DiffusionChain(ChainLikelihood):
    """``M`` is the number of rated steps. The head is set to the solver that is trained, and deployed with it.

    Args:
        policy: with a diffusion head.
        config: settings.

    Raises:
        ConfigError: more steps than the head was trained with, or ``train_last`` for a policy that goes on from known
            actions, or other steps than those that were trained before.
    """

    def __init__(self, policy: Policy, config: DiffusionChainConfig) -> None:
        super().__init__(policy, config)
        assert isinstance(policy.head, DiffusionHead)
        self._head, self._floor = policy.head, config.std_min
        self._head.set_solver(config.solver, config.steps, eta=0.0)
        self._steps = self._head.steps(eta=config.eta if config.solver == "ddim" else None)
        self.n_terms = config.train_last or config.steps
        _split(policy, self._steps[-self.n_terms].level.t, whole=self.n_terms == config.steps)

    def begin(self, net: NetFn, draws: Draws) -> Tensor:
        shape = (len(net.seen.features), *self.policy.noise_shape[1:])
        _, x = self._head.begin(draws.normal(shape))
        for step in self._transitions(net, 0, len(self._steps) - self.n_terms):
            mean, std = step(x)
            x = mean + std * bounded_normal(draws, shape)
        return x

    def transitions(self, net: NetFn) -> Sequence[Transition]:
        return self._transitions(net, len(self._steps) - self.n_terms, len(self._steps))

    def _transitions(self, net: NetFn, first: int, end: int) -> list[Transition]:
        evaluations = net.at(self._head.times[first:end]) if end > first else []
        return [
            partial(self._step, step, partial(self._head.estimate, at, step.level))
            for at, step in zip(evaluations, self._steps[first:end], strict=True)
        ]

    def _step(self, step: DenoisingStep, estimate: Estimate, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = step.a * x + step.b * estimate(x).float()
        return mean, torch.full_like(mean, max(step.s, self._floor))


def _split(policy: Policy, last: float, *, whole: bool) -> None:
    """Leave the times above ``last`` to a frozen copy of the backbone, unless the ``whole`` chain is trained."""
    backbone = policy.backbone
    if isinstance(backbone, StagedBackbone):
        if whole or backbone.boundary != last:
            raise ConfigError(
                f"the policy was fine-tuned at times up to {backbone.boundary:g} alone, and likelihood.steps and "
                "likelihood.train_last now say otherwise: give those that it was fine-tuned with"
            )
    elif whole:
        return
    elif policy.loss_config.max_delay:
        raise ConfigError("likelihood.train_last is not for policies that go on from known actions (loss.max_delay)")
    else:
        policy.backbone = StagedBackbone(copy.deepcopy(backbone), backbone, last)
    policy.encoder.requires_grad_(False)
