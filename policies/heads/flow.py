"""Flow matching on the straight path from noise to action chunks (Lipman et al. 2023; Liu et al. 2023, rectified flow).

Noise is at t = 1, as in pi0 (arXiv:2410.24164): ``x = (1 - t) * clean + t * noise``, velocity ``noise - clean``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import ChunkSizes, HeadConfig, NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.matching import MatchingHead
from visuomotor.policies.heads.ode import OdeHead, check_solver, solver_step
from visuomotor.policies.heads.times import TimeConfig, sample_times
from visuomotor.policies.iterative import Level, WarmStart

__all__ = ["FlowConfig", "FlowHead"]

_PREDICTIONS = ("velocity", "sample")
_STARTS = ("noise", "zeros")
_MIN_T = 0.05  # where the velocity loss of a predicted chunk, error / t, stops growing (Li and He, arXiv:2511.13720)


@dataclass(kw_only=True, slots=True)
class FlowConfig(HeadConfig):
    """What is predicted and weighted in training, and how it is integrated.

    Attributes:
        prediction: what the backbone outputs: ``sample`` (the clean chunk) or ``velocity`` (noise - clean, as in pi0).
        loss_on: what the squared error is of: ``sample`` or ``velocity``. One is t^2 times the other, so ``velocity``
            puts more weight on low noise.
        time: the distribution of training times.
        solver: ``euler``, ``midpoint``, ``heun`` or ``rk4``.
        sample_steps: steps of the solver, 1 to 100. The network is evaluated once a step with ``euler``, twice with
            ``midpoint`` and ``heun``, 4 times with ``rk4`` (3 in its last step).
        start: ``noise``, or ``zeros``: integrate from zero instead, which gives one and the same chunk for an
            observation (Pan et al., arXiv:2512.01809).
        clip: bound of the clean estimate at every evaluation, in normalised units. Only right for actions normalised
            to [-1, 1]; None with z-scored actions.
    """

    prediction: str = "sample"
    loss_on: str = "sample"
    time: TimeConfig = field(default_factory=TimeConfig)
    solver: str = "euler"
    sample_steps: int = 10
    start: str = "noise"
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        choices = {"prediction": _PREDICTIONS, "loss_on": _PREDICTIONS, "start": _STARTS}
        for name, options in choices.items():
            if (value := getattr(self, name)) not in options:
                raise ConfigError(f"head flow: unknown {name} {value!r}. {nearest(value, options)}")
        check_solver("flow", self.solver, self.sample_steps)
        if self.clip is not None and self.clip <= 0.0:
            raise ConfigError(f"head flow: clip={self.clip} must be positive or null")


class FlowHead(MatchingHead, OdeHead):
    """Trains at a random time; samples by Runge-Kutta steps on an even grid from t = 1 to 0."""

    time_scale = 100.0  # sinusoids over [0, 1] like those of diffusion over 0..100

    def __init__(self, config: FlowConfig, sizes: ChunkSizes) -> None:
        super().__init__(sizes)
        self.config = config
        self.set_solver()

    def set_solver(self, solver: str | None = None, steps: int | None = None) -> None:
        c = self.config
        self.config = c = replace(
            c, solver=c.solver if solver is None else solver, sample_steps=c.sample_steps if steps is None else steps
        )
        n = c.sample_steps
        self._plan([solver_step(c.solver, (n - i) / n, (n - i - 1) / n) for i in range(n)])

    def draw_times(self, n: int, draws: Draws) -> Tensor:
        return sample_times(self.config.time, n, draws)

    def loss_at(self, net: NetFn, action: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        c, t = self.config, time.view(-1, 1, 1)
        target = action if c.prediction == "sample" else noise - action
        error = net((1.0 - t) * action + t * noise, time) - target
        if c.loss_on != c.prediction:  # an error of the velocity is 1 / t times that of the clean chunk
            error = t * error if c.loss_on == "sample" else error / t.clamp_min(_MIN_T)
        return error.square().mean(-1)

    def begin(self, noise: Tensor, start: WarmStart | None = None) -> tuple[int, Tensor]:
        if self.config.start == "zeros" and start is None:
            noise = torch.zeros_like(noise)
        return super().begin(noise, start)

    def clean_estimate(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        return self._clean(output, x, level.t)

    def estimate_at(self, net: NetFn, x: Tensor, t: Tensor) -> Tensor:
        """The clean chunk behind ``x [B, H, Da]``, where every row is at a time ``t [B]`` of its own."""
        return self._clean(net(x, t), x, t.view(-1, 1, 1))

    def _clean(self, output: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        clean = output if self.config.prediction == "sample" else x - t * output
        return clean if self.config.clip is None else clean.clamp(-self.config.clip, self.config.clip)

    def _level(self, s: float) -> Level:
        return Level(s, 1.0 - s, s)
