"""Diffusion with the preconditioning, noise levels and sampler of EDM (Karras et al. 2022, arXiv:2206.00364).

``x = clean + sigma * noise``, and the clean estimate is ``c_skip x + c_out F(c_in x, c_noise)`` with ``F`` the network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import ChunkSizes, HeadConfig, NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.matching import MatchingHead
from visuomotor.policies.heads.ode import OdeHead, SolverStep, check_solver, solver_step
from visuomotor.policies.heads.times import stratified_uniform
from visuomotor.policies.iterative import Level

__all__ = ["EDMConfig", "EDMHead"]

_DISTRIBUTIONS = ("log_normal", "log_logistic")


@dataclass(kw_only=True, slots=True)
class EDMConfig(HeadConfig):
    """Noise levels of training and sampling, in units of normalised actions.

    Attributes:
        sigma_min: smallest noise level; the last step goes from it to 0.
        sigma_max: largest one, where sampling starts. Training has to have seen it: EDM's 80 is for images.
        sigma_data: root mean square of the normalised actions; null measures it on the training data.
        distribution: of the training levels between these: ``log_logistic`` (Reuss et al. 2023, BESO, whose
            parameters are the defaults) or ``log_normal`` (EDM, with p_mean -1.2 and p_std 1.2).
        p_mean: location of ln(sigma) in training.
        p_std: scale of ln(sigma): standard deviation of the normal, scale parameter of the logistic.
        stratified: one level from each of B equal slices of probability instead of B independent ones.
        solver: ``euler`` (here the same as DDIM), ``heun`` (EDM's), ``midpoint`` or ``rk4``.
        sample_steps: steps of the solver, 1 to 100. The network is evaluated once a step with ``euler``, twice with
            ``midpoint`` and ``heun``, 4 times with ``rk4``, but once in the last step, which is Euler's.
        rho: how the levels of sampling are spaced: 1 is even, large is geometric, EDM takes 7.
        churn: ``S_churn``: noise that is added anew on the way, as a share of the level spread over the steps; 0 is
            deterministic.
        churn_min: only between the level ``churn_min``
        churn_max: and ``churn_max``.
        churn_noise: ``S_noise``: standard deviation of that noise, slightly above 1 against loss of detail.
        clip: bound of the clean estimate at every evaluation, in normalised units. Only right for actions normalised
            to [-1, 1]; None with z-scored actions.
    """

    sigma_min: float = 0.005
    sigma_max: float = 10.0
    sigma_data: float | None = None
    distribution: str = "log_logistic"
    p_mean: float = -0.7
    p_std: float = 0.5
    stratified: bool = False
    solver: str = "euler"
    sample_steps: int = 10
    rho: float = 7.0
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = 1e6
    churn_noise: float = 1.0
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.distribution not in _DISTRIBUTIONS:
            raise ConfigError(
                f"head edm: unknown distribution {self.distribution!r}. {nearest(self.distribution, _DISTRIBUTIONS)}"
            )
        check_solver("edm", self.solver, self.sample_steps)
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ConfigError(
                f"head edm: sigma_min={self.sigma_min} and sigma_max={self.sigma_max}: expected 0 < min < max"
            )
        positive = ("sigma_data", "p_std", "rho", "clip")
        for name in (*positive, "churn", "churn_min", "churn_noise"):
            value = getattr(self, name)
            if value is not None and (value < 0.0 or (value == 0.0 and name in positive)):
                raise ConfigError(
                    f"head edm: {name}={value}: expected {'above 0' if name in positive else '0 or more'}"
                )


class EDMHead(MatchingHead, OdeHead):
    """Trains at a random noise level; samples by Runge-Kutta steps in sigma on the grid of EDM's eq. 5."""

    time_scale = 40.0  # c_noise = ln(sigma) / 4 spans 2 to 3
    starts_at_sigma = True

    sigma_data: Tensor  # scalar

    def __init__(self, config: EDMConfig, sizes: ChunkSizes) -> None:
        super().__init__(sizes)
        self.config = config
        self.clean_time = _c_noise(config.sigma_min)
        self.register_buffer("sigma_data", torch.tensor(0.5 if config.sigma_data is None else config.sigma_data))
        self.set_solver()

    def fit(self, chunks: Tensor) -> None:
        if self.config.sigma_data is None:
            self.sigma_data.copy_(chunks.square().mean().sqrt().clamp_min(1e-3))

    def set_solver(self, solver: str | None = None, steps: int | None = None) -> None:
        c = self.config
        self.config = c = replace(
            c, solver=c.solver if solver is None else solver, sample_steps=c.sample_steps if steps is None else steps
        )
        grid = [*_karras(c.sigma_min, c.sigma_max, c.rho, c.sample_steps), 0.0]
        self._plan([self._churned(a, b) for a, b in pairwise(grid)])

    def draw_times(self, n: int, draws: Draws) -> Tensor:
        return self._training_levels(n, draws) / 4.0

    def loss_at(self, net: NetFn, action: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        sigma = (4.0 * time).exp().view(-1, 1, 1)
        noisy = action + sigma * noise
        c_skip, c_out, c_in = self._preconditioning(sigma)
        # The squared error of F is that of the clean estimate with EDM's weight 1 / c_out^2 (its table 1).
        target = (action - c_skip * noisy) / c_out
        return (net(c_in * noisy, time) - target).square().mean(-1)

    def clean_estimate(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        c_skip, c_out, _ = self._preconditioning(level.sigma)
        clean = c_skip * x + c_out * output
        return clean if self.config.clip is None else clean.clamp(-self.config.clip, self.config.clip)

    def _net_input(self, x: Tensor, level: Level) -> Tensor:
        return self._preconditioning(level.sigma)[2] * x

    def _level(self, s: float) -> Level:
        return Level(_c_noise(s), 1.0, s)

    def _preconditioning(self, sigma: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """``c_skip, c_out, c_in``, with which F's input and target have unit variance (EDM, appendix B.6)."""
        data = self.sigma_data
        total = data**2 + sigma**2
        c_in = total.rsqrt()
        return data**2 / total, sigma * data * c_in, c_in

    def _training_levels(self, n: int, draws: Draws) -> Tensor:
        """``ln(sigma) [n]``, truncated to the range of levels, by the inverse of the distribution function."""
        c = self.config
        u = stratified_uniform(n, draws) if c.stratified else draws.uniform((n,))
        ends = [(math.log(s) - c.p_mean) / c.p_std for s in (c.sigma_min, c.sigma_max)]
        if c.distribution == "log_normal":
            low, high = (0.5 * math.erfc(-z / math.sqrt(2.0)) for z in ends)
            z = torch.special.ndtri(low + (high - low) * u)
        else:
            low, high = (1.0 / (1.0 + math.exp(-z)) for z in ends)
            z = torch.logit(low + (high - low) * u)
        # Float32 rounds in the tails.
        return c.p_mean + c.p_std * z.clamp(*ends)

    def _churned(self, start: float, end: float) -> SolverStep:
        """The step from ``start`` to ``end``, begun above ``start`` where there is churn (EDM, algorithm 2)."""
        c = self.config
        solver = c.solver if end else "euler"  # training stops at sigma_min, so there is nothing to evaluate below it
        gamma = min(c.churn / c.sample_steps, math.sqrt(2.0) - 1.0) if c.churn_min <= start <= c.churn_max else 0.0
        above = start * (1.0 + gamma)
        return solver_step(solver, above, end, c.churn_noise * math.sqrt(above**2 - start**2))


def _c_noise(sigma: float) -> float:
    return math.log(sigma) / 4.0


def _karras(low: float, high: float, rho: float, n: int) -> list[float]:
    """``n`` noise levels from ``high`` to ``low``, even in ``sigma^(1/rho)`` (EDM, eq. 5)."""
    a, b = high ** (1.0 / rho), low ** (1.0 / rho)
    return [high, *((a + i / (n - 1) * (b - a)) ** rho for i in range(1, n))]
