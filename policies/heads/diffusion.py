"""Denoising diffusion over action chunks (Ho et al. 2020; Chi et al. 2023, Diffusion Policy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import ChunkSizes, HeadConfig, NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.matching import MatchingHead
from visuomotor.policies.heads.schedule import SOLVERS, alphas_cumprod, solver_steps
from visuomotor.policies.iterative import Guide, IterativeHead, Level, WarmStart

__all__ = ["PREDICTIONS", "DenoisingStep", "DiffusionConfig", "DiffusionHead"]

PREDICTIONS = ("epsilon", "sample", "v")
_SCHEDULES = ("squaredcos_cap_v2", "linear", "scaled_linear")
_SPACINGS = ("trailing", "leading", "linspace")


@dataclass(kw_only=True, slots=True)
class DiffusionConfig(HeadConfig):
    """How noise is added, what is predicted, and how it is removed again.

    Attributes:
        train_steps: ``K``, noise levels seen in training.
        beta_schedule: ``squaredcos_cap_v2`` (Diffusion Policy's), ``linear`` or ``scaled_linear``.
        prediction: what the backbone outputs: ``sample`` (the clean chunk), ``epsilon`` (the noise, as in Diffusion
            Policy) or ``v``.
        solver: ``ddpm``, ``ddim`` or ``dpmpp`` (DPM-Solver++ 2M).
        sample_steps: denoising steps at sampling, at most ``train_steps``.
        spacing: which noise levels these visit; ``trailing`` starts at pure noise (Lin et al. 2024), ``leading`` is
            what diffusers' DDPM and DDIM do when nothing is said.
        eta: DDIM's noise level; 0 is deterministic, 1 is as noisy as DDPM.
        clip: bound of the clean estimate at every step, in normalised units. Only right for actions normalised to
            [-1, 1]; None with z-scored actions.
    """

    train_steps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    prediction: str = "sample"
    solver: str = "dpmpp"
    sample_steps: int = 16
    spacing: str = "trailing"
    eta: float = 0.0
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        choices = {
            "beta_schedule": _SCHEDULES,
            "prediction": PREDICTIONS,
            "solver": SOLVERS,
            "spacing": _SPACINGS,
        }
        for name, options in choices.items():
            if (value := getattr(self, name)) not in options:
                raise ConfigError(f"head diffusion: unknown {name} {value!r}. {nearest(value, options)}")
        if not 1 <= self.sample_steps <= self.train_steps:
            raise ConfigError(
                f"head diffusion: sample_steps {self.sample_steps}: expected 1 to train_steps = {self.train_steps}"
            )
        if self.eta and self.solver != "ddim":
            raise ConfigError(f"head diffusion: eta={self.eta} belongs to solver 'ddim', not {self.solver!r}")
        if self.eta < 0.0 or (self.clip is not None and self.clip <= 0.0):
            raise ConfigError(f"head diffusion: eta={self.eta} must be >= 0 and clip={self.clip} positive or null")


class DenoisingStep(NamedTuple):
    """``x_next = a x + b clean + c clean_before + s z``: Python floats, so that no step gathers or synchronises."""

    level: Level
    a: float
    b: float
    c: float
    s: float


class DiffusionHead(MatchingHead, IterativeHead):
    """Trains on a random noise level of ``K``; samples by linear solver steps from tensors (see ``schedule``)."""

    time_scale = 1.0  # t is a step number, 0..K-1

    alpha: Tensor  # [K] sqrt(alpha_bar): how much of the clean chunk is left at step t
    sigma: Tensor  # [K] sqrt(1 - alpha_bar): how much noise

    def __init__(self, config: DiffusionConfig, sizes: ChunkSizes) -> None:
        super().__init__(sizes)
        self.config = config
        bar = alphas_cumprod(config.train_steps, config.beta_schedule)
        self.register_buffer("alpha", bar.sqrt(), persistent=False)
        self.register_buffer("sigma", (1.0 - bar).sqrt(), persistent=False)
        self.set_solver()

    @property
    def levels(self) -> Sequence[Level]:
        return [step.level for step in self._steps]

    @property
    def times(self) -> Tensor:
        """``t [S]`` of the :attr:`levels`, on the CPU."""
        return self._t

    def set_solver(self, solver: str | None = None, steps: int | None = None, eta: float | None = None) -> None:
        """As for every head; ``eta`` is DDIM's, which another choice of solver puts to 0 unless it is given."""
        c = self.config
        kept = c.eta if solver in (None, c.solver) else 0.0
        self.config = c = replace(
            c,
            solver=c.solver if solver is None else solver,
            sample_steps=c.sample_steps if steps is None else steps,
            eta=kept if eta is None else eta,
        )
        self._steps = self.steps()
        self._t = torch.tensor([int(step.level.t) for step in self._steps])

    def steps(self, eta: float | None = None) -> list[DenoisingStep]:
        """The steps of the solver, or those that it would take with another ``eta``: at the same times."""
        c = self.config
        found = solver_steps(
            c.solver,
            c.sample_steps,
            train_steps=c.train_steps,
            beta_schedule=c.beta_schedule,
            spacing=c.spacing,
            eta=c.eta if eta is None else eta,
        )
        levels = [Level(float(t), float(self.alpha[t]), float(self.sigma[t])) for t in found.t.tolist()]
        weights = (v.tolist() for v in (found.a, found.b, found.c, found.s))
        return [DenoisingStep(*row) for row in zip(levels, *weights, strict=True)]

    def draw_times(self, n: int, draws: Draws) -> Tensor:
        return draws.integers(0, self.config.train_steps, (n,))

    def loss_at(self, net: NetFn, action: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        alpha, sigma = self.alpha[time].view(-1, 1, 1), self.sigma[time].view(-1, 1, 1)
        noisy = alpha * action + sigma * noise
        target = {"epsilon": noise, "sample": action}.get(self.config.prediction)
        if target is None:
            target = alpha * noise - sigma * action  # v (Salimans and Ho 2022)
        return (net(noisy, time) - target).square().mean(-1)

    def noise_count(self) -> int:
        return 1 + sum(step.s != 0.0 for step in self._steps)

    def sample(
        self, net: NetFn, noise: Tensor, *, guide: Guide | None = None, start: WarmStart | None = None
    ) -> Tensor:
        first, x = self.begin(noise[:, 0], start)
        used, previous = 1, torch.zeros_like(x)
        steps = zip(net.at(self._t[first:]), self._steps[first:], strict=True)
        for i, (net_at_t, (level, a, b, c, s)) in enumerate(steps):
            estimate = partial(self.estimate, net_at_t, level)
            clean = estimate(x) if guide is None else guide(estimate, x, level)
            if i == 0 and c != 0.0:  # a multi-step solver that begins here has no previous estimate yet
                previous = clean
            x = a * x + b * clean
            if c != 0.0:
                x = x + c * previous
            if s != 0.0:
                x = x + s * noise[:, used]
                used += 1
            previous = clean
        return x

    def clean_estimate(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        if self.config.prediction == "epsilon":
            clean = (x - level.sigma * output) / level.alpha
        elif self.config.prediction == "sample":
            clean = output
        else:
            clean = level.alpha * x - level.sigma * output
        return clean if self.config.clip is None else clean.clamp(-self.config.clip, self.config.clip)
