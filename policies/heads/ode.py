"""Explicit Runge-Kutta solvers over the clean estimate, for every head whose noise path is a straight line in sigma.

Flow matching (``x = (1 - t) clean + t noise``) and EDM (``x = clean + sigma noise``) sample by the same equation in
their noise level ``s`` (``t`` or ``sigma``),

    dx/ds = (x - clean(x, s)) / s,

so all stages and steps are linear in ``x`` and in the clean estimates so far. The weights are worked out once, in
Python floats: nothing is divided by ``s`` while sampling, and a step to ``s = 0`` keeps nothing of ``x``. Whatever
changes a clean estimate (a bound, a guide) does so at every evaluation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, islice
from typing import NamedTuple

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import NetFn
from visuomotor.policies.iterative import Estimate, Guide, IterativeHead, Level, WarmStart

__all__ = ["MAX_STEPS", "SOLVERS", "OdeHead", "SolverStep", "advance", "check_solver", "solver_step"]

SOLVERS = ("euler", "midpoint", "heun", "rk4")
MAX_STEPS = 100

# Butcher tableaus: the rows of a below the first (which is empty), and b. c is the sums of the rows.
_TABLEAUS: dict[str, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "euler": ((), (1.0,)),
    "midpoint": (((1 / 2,),), (0.0, 1.0)),
    "heun": (((1.0,),), (1 / 2, 1 / 2)),
    "rk4": (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    "ralston3": (((1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),  # Ralston 1962
}
# A stage at s = 0 has no slope. These have none, and one step of theirs keeps the order of the whole.
_LAST = {"heun": "midpoint", "rk4": "ralston3"}


class SolverStep(NamedTuple):
    """One step. Weights are those of ``(x, clean_0, clean_1, ...)``, where ``x`` is what the step began with."""

    levels: tuple[float, ...]  # s of each evaluation
    inputs: tuple[tuple[float, ...], ...]  # the noisy chunk that each evaluation sees
    output: tuple[float, ...]
    noise: float = 0.0  # standard deviation of what is added to x before the step


def check_solver(head: str, solver: str, steps: int) -> None:
    """Refuse a solver that there is not, and a number of steps outside 1 to 100.

    Raises:
        ConfigError: with what exists.
    """
    if solver not in SOLVERS:
        raise ConfigError(f"head {head}: unknown solver {solver!r}. {nearest(solver, SOLVERS)}")
    if not 1 <= steps <= MAX_STEPS:
        raise ConfigError(f"head {head}: sample_steps {steps}: expected 1 to {MAX_STEPS}")


def solver_step(solver: str, start: float, end: float, noise: float = 0.0) -> SolverStep:
    """The step of ``solver`` from noise level ``start`` down to ``end``, where ``0 <= end < start``.

    To ``end = 0``, Heun takes a midpoint step and RK4 one of Ralston's third order.
    """
    rows, b = _TABLEAUS[_LAST.get(solver, solver) if end == 0.0 else solver]
    n, h = len(b), end - start
    levels = tuple(start + h * sum(row) for row in ((), *rows))
    inputs: list[list[float]] = []

    def combine(row: Sequence[float]) -> list[float]:
        total = [1.0] + [0.0] * n
        for j, weight in enumerate(row):
            share = weight * h / levels[j]  # the slope of stage j is (its input - clean_j) / levels[j]
            for k, value in enumerate(inputs[j]):
                total[k] += share * value
            total[1 + j] -= share
        return total

    for row in ((), *rows):
        stage = combine(row)  # reads the inputs so far
        inputs.append(stage)
    output = tuple(combine(b))
    return SolverStep(levels, tuple(tuple(w[: 1 + i]) for i, w in enumerate(inputs)), output, noise)


def advance(step: SolverStep, x: Tensor, estimates: Sequence[Estimate]) -> Tensor:
    """``x [B, H, Da]`` at the beginning of ``step`` to its end, with one estimate for each of its evaluations."""
    terms = [x]
    for weights, estimate in zip(step.inputs, estimates, strict=True):
        terms.append(estimate(_weighted(weights, terms)))
    return _weighted(step.output, terms)


def _weighted(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    used = [(w, term) for w, term in zip(weights, terms, strict=True) if w != 0.0]
    weight, total = used[0]
    total = total if weight == 1.0 else weight * total
    for weight, term in used[1:]:
        total = torch.add(total, term, alpha=weight)
    return total


class OdeHead(IterativeHead):
    """A head that samples by :func:`solver_step`. One step is one (Euler) to four (RK4) evaluations of the network."""

    def _plan(self, steps: Sequence[SolverStep]) -> None:
        """Set what :meth:`sample` follows."""
        self._steps = list(steps)
        self._levels = [self._level(s) for step in steps for s in step.levels]
        self._times = torch.tensor([level.t for level in self._levels])
        # The evaluation that each step begins with.
        self._entries = [0, *accumulate(len(step.levels) for step in steps[:-1])]

    @abstractmethod
    def _level(self, s: float) -> Level:
        """The place on the noise path where the noise level is ``s``."""

    @property
    def levels(self) -> Sequence[Level]:
        """Every evaluation of the network, the stages within a step included."""
        return self._levels

    @property
    def steps(self) -> Sequence[SolverStep]:
        """The steps of the solver; their evaluations in a row are the :attr:`levels`."""
        return self._steps

    @property
    def times(self) -> Tensor:
        """``t [S]`` of the :attr:`levels`, on the CPU."""
        return self._times

    def noise_count(self) -> int:
        return 1 + sum(step.noise != 0.0 for step in self._steps[1:])

    def sample(
        self, net: NetFn, noise: Tensor, *, guide: Guide | None = None, start: WarmStart | None = None
    ) -> Tensor:
        first, x = self.begin(noise[:, 0], start)
        evaluations = zip(net.at(self._times[first:]), self._levels[first:], strict=True)
        used = 1
        for i, step in enumerate(self._steps[self._entries.index(first) :]):
            if i and step.noise:  # the first one begins with the whole noise of its level
                x = x + step.noise * noise[:, used]
                used += 1
            now = islice(evaluations, len(step.levels))
            x = advance(step, x, [partial(self._evaluate, net_at_t, level, guide) for net_at_t, level in now])
        return x

    def begin(self, noise: Tensor, start: WarmStart | None = None) -> tuple[int, Tensor]:
        """A warm start in the midst of a step makes the whole step."""
        n = len(self._levels)
        if start is not None and 1 <= start.steps <= n:
            start = start._replace(steps=n - max(e for e in self._entries if e <= n - start.steps))
        return super().begin(noise, start)

    def _evaluate(self, net_at_t: Callable[[Tensor], Tensor], level: Level, guide: Guide | None, x: Tensor) -> Tensor:
        estimate = partial(self.estimate, net_at_t, level)
        return estimate(x) if guide is None else guide(estimate, x, level)
