"""Smooth problems with few variables and inequality constraints, in float64 with gradients by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Problem", "minimise", "nearest_feasible"]

Problem = Callable[[Tensor], tuple[Tensor, Tensor]]
"""What is minimised, and constraints ``[m]`` that must be 0 or less, of variables ``[P]``."""

_OUTER, _INNER = 12, 40
_TOLERANCE = 1e-4  # of constraints and multipliers; what is found is then moved to where constraints hold


def minimise(problem: Problem, start: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """A local minimum within bounds, by the method of multipliers with L-BFGS (Nocedal and Wright 2006, section 17.4).

    Args:
        problem: differentiable; its constraints are best scaled to the order of 1.
        start: float64 ``[P]``, within the bounds.
        low, high: bounds ``[P]``; the variables are mapped into them by a logistic function, and never reach them.

    Returns:
        ``[P]``; where constraints hold only nearly, see :func:`nearest_feasible`.
    """
    share = ((start - low) / (high - low)).clamp(1e-6, 1.0 - 1e-6)
    y = torch.logit(share).detach().clone().requires_grad_()

    def x() -> Tensor:
        return low + (high - low) * torch.sigmoid(y)

    with torch.enable_grad():
        multipliers = torch.zeros_like(problem(x())[1].detach())
        weight, violated = 10.0, float("inf")
        for _ in range(_OUTER):
            _descend(y, lambda m=multipliers, w=weight: _augmented(*problem(x()), m, w))  # type: ignore[misc]
            constraints = problem(x())[1].detach()
            step = (multipliers + weight * constraints).clamp_min(0.0) - multipliers
            multipliers = multipliers + step
            worst = float(constraints.clamp_min(0.0).max()) if len(constraints) else 0.0
            if worst < _TOLERANCE and float(step.abs().max()) < _TOLERANCE * (1.0 + float(multipliers.max())):
                break
            weight = min(weight * 4.0, 1e6) if worst > 0.25 * violated else weight
            violated = worst
    return x().detach()


def nearest_feasible(constraints: Callable[[Tensor], Tensor], inside: Tensor, outside: Tensor) -> Tensor:
    """The last point ``[P]`` on the way from ``inside``, where all constraints hold, to ``outside`` where they do."""
    with torch.no_grad():
        if bool((constraints(outside) <= 0).all()):
            return outside
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            holds = bool((constraints(inside + middle * (outside - inside)) <= 0).all())
            low, high = (middle, high) if holds else (low, middle)
        return inside + low * (outside - inside)


def _descend(y: Tensor, loss: Callable[[], Tensor]) -> None:
    optimiser = torch.optim.LBFGS(
        [y], max_iter=_INNER, history_size=10, line_search_fn="strong_wolfe", tolerance_grad=1e-6,
        tolerance_change=1e-9,
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)


def _augmented(value: Tensor, constraints: Tensor, multipliers: Tensor, weight: float) -> Tensor:
    """Augmented Lagrangian of inequality constraints (Nocedal and Wright 2006, equation 17.65)."""
    shifted = (multipliers + weight * constraints).clamp_min(0.0)
    return value + (shifted.square() - multipliers.square()).sum() / (2.0 * weight)
