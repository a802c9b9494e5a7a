"""The step of DORAEMON: from episodes to the next distribution.

Among the distributions near the present one, the one of largest entropy under which the policy is still expected to
succeed often enough (Tiboni et al. 2024, arXiv:2311.01885, equation 4). Success under another distribution than the one
that the episodes were drawn from is estimated by importance weights, here normalised by their sum, which keeps the
estimate within 0 and 1 and lets the weights be judged by their effective sample size, ``1 / sum(w^2)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.sim2real.randomization.curriculum.family import Family, Features
from visuomotor.sim2real.randomization.curriculum.solver import Problem, minimise, nearest_feasible

__all__ = ["Episodes", "Limits", "estimate", "next_distribution"]


@dataclass(frozen=True)
class Episodes:
    """``M`` episodes: where each lay, how likely that was when it was drawn, and whether it reached its goal."""

    at: Features  # M points
    log_q: Tensor  # [M] log-density in the distribution that each was drawn from
    success: Tensor  # [M] 0 or 1


@dataclass(frozen=True)
class Limits:
    """What a step has to keep.

    Attributes:
        success: least expected share.
        divergence: largest, from the present distribution [nat].
        effective: least share of effective samples.
        caution: by how many of its standard errors the expected success has to be above the least one.
    """

    success: float
    divergence: float
    effective: float
    caution: float


def estimate(family: Family, phi: Tensor, episodes: Episodes, caution: float = 0.0) -> tuple[Tensor, Tensor]:
    """Expected success under ``phi`` less ``caution`` standard errors, and the share of effective samples."""
    w = torch.softmax(family.log_prob(phi, episodes.at) - episodes.log_q, 0)
    mean, squares = (w * episodes.success).sum(), w.square().sum()
    variance = (w.square() * (episodes.success - mean).square()).sum()  # of a ratio estimator (Owen 2013, 9.9)
    return mean - caution * (variance + 1e-12).sqrt(), 1.0 / (len(w) * squares)


def next_distribution(family: Family, phi: Tensor, episodes: Episodes, limits: Limits) -> Tensor | None:
    """The distribution to draw from next, ``[P]`` float64.

    If the present one is expected to leave enough successes, the next one has at least its entropy. If not, success is
    raised first, as far as the divergence allows; what allowance that leaves goes to entropy.

    Returns:
        None where too few of the episodes count for the present distribution to tell: gather more.
    """
    success, effective = estimate(family, phi, episodes, limits.caution)
    if float(effective) < limits.effective:
        return None

    def near(x: Tensor, expected: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [family.divergence(x, phi) / limits.divergence - 1.0, 1.0 - expected[1] / limits.effective]

    def widest(x: Tensor) -> tuple[Tensor, Tensor]:
        expected = estimate(family, x, episodes, limits.caution)
        return -family.entropy(x), torch.stack([*near(x, expected), 1.0 - expected[0] / limits.success])

    def safest(x: Tensor) -> tuple[Tensor, Tensor]:
        expected = estimate(family, x, episodes, limits.caution)
        return -expected[0], torch.stack(near(x, expected))

    start = phi
    if float(success) < limits.success:
        start = _improved(family, safest, phi)
        if float(estimate(family, start, episodes, limits.caution)[0]) < limits.success:
            return start
    return _improved(family, widest, start)


def _improved(family: Family, problem: Problem, start: Tensor) -> Tensor:
    """A solution in which all constraints hold, as they do at ``start``; ``start`` where nothing better is found."""
    found = minimise(problem, start, family.low, family.high)
    found = nearest_feasible(lambda x: problem(x)[1], start, found)
    with torch.no_grad():
        return found if float(problem(found)[0]) < float(problem(start)[0]) else start
