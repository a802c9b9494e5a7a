"""Which times a flow is trained at: densities over [0, 1], noise at t = 1.

All are drawn by the inverse of their distribution function from uniform numbers, so that a batch can be stratified and
every time is a function of one number of the stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.draws import Draws

__all__ = ["TIME_DISTRIBUTIONS", "TimeConfig", "sample_times", "stratified_uniform"]

TIME_DISTRIBUTIONS = ("uniform", "logit_normal", "beta")
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(kw_only=True, slots=True)
class TimeConfig:
    """The distribution of training times: ``t = min_time + (1 - min_time) * s`` with ``s`` in [0, 1].

    Attributes:
        distribution: of ``s``: ``uniform``, ``logit_normal`` (Esser et al. 2024) or ``beta`` (pi0's, arXiv:2410.24164).
        logit_mean: mean of logit(s), for ``logit_normal``; above 0 leans to the noisy end.
        logit_std: standard deviation of logit(s), for ``logit_normal``.
        beta_power: ``a`` of Beta(a, 1), for ``beta``; pi0 takes 1.5, which leans to the noisy end.
        min_time: smallest time; pi0 takes 0.001.
        stratified: one time from each of B equal slices of probability instead of B independent ones: the same
            density with less variance of the gradient (Kingma et al. 2021).
    """

    distribution: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    beta_power: float = 1.5
    min_time: float = 0.001
    stratified: bool = False

    def __post_init__(self) -> None:
        if self.distribution not in TIME_DISTRIBUTIONS:
            raise ConfigError(
                f"unknown time distribution {self.distribution!r}. {nearest(self.distribution, TIME_DISTRIBUTIONS)}"
            )
        if self.logit_std <= 0.0 or self.beta_power <= 0.0:
            raise ConfigError(
                f"time: logit_std={self.logit_std} and beta_power={self.beta_power}: expected both above 0"
            )
        if not 0.0 <= self.min_time < 1.0:
            raise ConfigError(f"time: min_time={self.min_time} is outside [0, 1)")


def sample_times(config: TimeConfig, n: int, draws: Draws) -> Tensor:
    """Training times ``[n]``, float32 in ``[min_time, 1]``.

    Two stratified calls give a row times from the same slice: for two independent times leave ``stratified`` off.
    """
    u = stratified_uniform(n, draws) if config.stratified else draws.uniform((n,))
    if config.distribution == "logit_normal":
        s = torch.sigmoid(config.logit_mean + config.logit_std * torch.special.ndtri(u))
    elif config.distribution == "beta":
        s = u ** (1.0 / config.beta_power)  # the distribution function of Beta(a, 1) is s^a
    else:
        s = u
    return config.min_time + (1.0 - config.min_time) * s


def stratified_uniform(n: int, draws: Draws) -> Tensor:
    """``[n]`` numbers in [0, 1), one in each of as many equal slices as the batch of all ranks has rows.

    Neighbouring rows are far apart: with several draws an observation (``loss.noise_draws``) they are the same window.
    """
    total = n * draws.world_size
    stride = max(1, round(_GOLDEN * total))
    while math.gcd(stride, total) != 1:
        stride += 1
    row = draws.rank * n + torch.arange(n, device=draws.device)
    return (row * stride % total + draws.uniform((n,))) / total
