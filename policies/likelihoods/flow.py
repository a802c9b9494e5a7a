"""Flow matching with noise at every step of its solver (Zhang et al. 2025, ReinFlow, arXiv:2505.22094).

``x_{k+1} = Euler step of x_k + sigma(obs, t_k) z``: a chain of Gaussians around what the flow does without noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.flow import FlowHead
from visuomotor.policies.heads.ode import SolverStep, advance
from visuomotor.policies.iterative import Estimate
from visuomotor.policies.likelihoods.base import ChainLikelihood, LikelihoodConfig, Transition
from visuomotor.policies.likelihoods.noise_net import NoiseNet, check_noise
from visuomotor.policies.policy import Policy

__all__ = ["FlowChain", "FlowChainConfig"]


@dataclass(kw_only=True, slots=True)
class FlowChainConfig(LikelihoodConfig):
    """How the flow is integrated, and the noise of its steps. All in normalised units.

    Attributes:
        mask: as everywhere; by default what was not executed counts at no step, which has less variance.
        steps: Euler steps, in training and when deployed.
        learn_std: whether a network says how large the noise is; otherwise it is ``std_init`` always.
        std_min: least standard deviation of a step.
        std_init: standard deviation at the beginning.
        std_max: largest one; it falls in the course of the training (see ``NoiseNet``).
    """

    mask: str = "executed"
    steps: int = 4
    learn_std: bool = True
    std_min: float = 0.05
    std_init: float = 0.2
    std_max: float = 0.3

    def __post_init__(self) -> None:
        LikelihoodConfig.__post_init__(self)
        if self.steps < 1:
            raise ConfigError(f"likelihood.steps={self.steps}: expected at least 1")
        check_noise(self.std_min, self.std_init, self.std_max)


class FlowChain(ChainLikelihood):
    """``M`` is the number of steps. The head is set to Euler with as many, and deployed so, without the noise.

    Args:
        policy: with a flow head.
        config: settings.
    """

    def __init__(self, policy: Policy, config: FlowChainConfig) -> None:
        super().__init__(policy, config)
        assert isinstance(policy.head, FlowHead)
        self._head, self._std, self.n_terms = policy.head, config.std_init, config.steps
        self._head.set_solver("euler", config.steps)
        spec = policy.spec
        self.noise_net = (
            NoiseNet(
                spec.window.n_obs * policy.encoder.feature_dim, spec.window.horizon, spec.action.size,
                low=config.std_min, init=config.std_init, high=config.std_max, time_scale=self._head.time_scale,
            )
            if config.learn_std
            else None
        )  # fmt: skip
        self.to(policy.device)

    def set_progress(self, share: float) -> None:
        if self.noise_net is not None:
            self.noise_net.set_progress(share)

    def begin(self, net: NetFn, draws: Draws) -> Tensor:
        _, x = self._head.begin(draws.normal((len(net.seen.features), *self.policy.noise_shape[1:])))
        return x

    def transitions(self, net: NetFn) -> Sequence[Transition]:
        evaluations = zip(net.at(self._head.times), self._head.levels, self._head.steps, strict=True)
        return [
            partial(self._step, step, partial(self._head.estimate, at, level), self._noise(net, level.t))
            for at, level, step in evaluations
        ]

    def _noise(self, net: NetFn, t: float) -> Tensor:
        features = net.seen.features
        if self.noise_net is None:
            return features.new_tensor(self._std, dtype=torch.float32)
        return self.noise_net(features, torch.full((len(features),), t, device=features.device))

    def _step(self, step: SolverStep, estimate: Estimate, std: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = advance(step, x, [estimate]).float()
        return mean, std.expand_as(mean)
