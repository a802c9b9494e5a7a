"""What the few-step heads have in common: a network that predicts jumps along the noise path, and their sampling.

Noise is at t = 1: ``x_t = (1 - t) clean + t noise``, with the velocity ``v = noise - clean``. The *average velocity*
``u(x_t, r, t)`` is what takes a chunk from time t to an earlier time r along the path of the flow in one jump,
``x_r = x_t - (t - r) u`` (Geng et al. 2025, Mean Flows, arXiv:2505.13447, eq. 3); at r = t it is the velocity of
ordinary flow matching, and ``r = 0, t = 1`` makes a chunk of noise in one evaluation.

The network is told ``(t, t - r)``, and its output is one of two:

- ``sample``: ``xhat = x_t - t u``, where the path would end if it went straight on. A jump is then
  ``x_r = (r / t) x_t + (1 - r / t) xhat``, and the sample of one step is the output itself;
- ``velocity``: ``u``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import ChunkSizes, Head, HeadConfig, NetFn

__all__ = ["PREDICTIONS", "AverageVelocityConfig", "AverageVelocityHead", "spread_rows"]

PREDICTIONS = ("sample", "velocity")


@dataclass(kw_only=True, slots=True)
class AverageVelocityConfig(HeadConfig):
    """Settings that all heads of average velocities have.

    Attributes:
        prediction: what the backbone outputs: ``sample`` (where the path would end) or ``velocity`` (the average
            velocity itself).
        sample_steps: jumps from noise to the chunk, of equal length; each is one evaluation of the backbone.
        clip: bound of the chunk, in normalised units. Only right for actions normalised to [-1, 1]; null with
            z-scored actions.
    """

    prediction: str = "sample"
    sample_steps: int = 1
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ConfigError(f"head: unknown prediction {self.prediction!r}. {nearest(self.prediction, PREDICTIONS)}")
        if self.sample_steps < 1:
            raise ConfigError(f"head: sample_steps {self.sample_steps}: expected at least 1")
        if self.clip is not None and self.clip <= 0.0:
            raise ConfigError(f"head: clip={self.clip}: expected a positive bound, or null for none")


class AverageVelocityHead(Head):
    """Samples by ``sample_steps`` jumps. No guides and no warm starts.

    These correct the estimate of the clean chunk at one noise level. A jump belongs to two levels: except at r = t its
    output is not the expected clean chunk, so a correction derived for that would be wrong.
    """

    time_scale = 1.0
    n_times = 2
    is_field = True

    def __init__(self, config: AverageVelocityConfig, sizes: ChunkSizes) -> None:
        super().__init__(sizes)
        self.config = config
        self._set_steps(config.sample_steps)

    def set_solver(self, solver: str | None = None, steps: int | None = None) -> None:
        if solver is not None:
            raise ConfigError(
                f"{type(self).__name__} has no solver {solver!r}: its network predicts whole jumps, which are taken as "
                "they are; sample_steps sets their number"
            )
        if steps is not None:
            self.config = replace(self.config, sample_steps=steps)
            self._set_steps(steps)

    def noise_count(self) -> int:
        return 1

    def sample(self, net: NetFn, noise: Tensor) -> Tensor:
        return self.bounded(self.unbounded(net, noise))

    def unbounded(self, net: NetFn, noise: Tensor) -> Tensor:
        """:meth:`sample` before the bound, for who learns from the chunk: outside it the bound has no gradient."""
        x = noise[:, 0]
        for share, step, net_at in zip(self._shares, self._steps, net.at(self._times), strict=True):
            out = net_at(x)
            if self.config.prediction == "velocity":
                x = x - step * out
            else:
                x = out if share == 1.0 else (1.0 - share) * x + share * out
        return x

    def bounded(self, chunk: Tensor) -> Tensor:
        """``chunk [B, H, Da]`` within the bound of the settings."""
        return chunk if self.config.clip is None else chunk.clamp(-self.config.clip, self.config.clip)

    def jump(self, out: Tensor, x: Tensor, t: Tensor, step: Tensor) -> Tensor:
        """Where the network's output ``out`` for ``x [n, H, Da]`` at ``t [n]`` leads in a jump of ``step [n]``."""
        t, step = t.view(-1, 1, 1), step.view(-1, 1, 1)
        return x - step * out if self.config.prediction == "velocity" else torch.lerp(x, out, step / t)

    def told(self, step: float) -> float:
        """What the network is told of a jump's length."""
        return step

    def _set_steps(self, steps: int) -> None:
        starts, step = [1.0 - i / steps for i in range(steps)], 1.0 / steps
        self._steps = [step] * steps
        self._shares = [1.0 / (steps - i) for i in range(steps)]  # of the way that is left: step / t
        self._times = torch.tensor([(t, self.told(step)) for t in starts])  # [steps, 2]


@cache
def spread_rows(n: int, share: float, first: int, device: torch.device) -> Tensor:
    """Indices of ``share`` of ``n`` rows, evenly spread; never written to.

    The rows are those ``first .. first + n - 1`` of the batch of all ranks, so that ranks choose as one process would;
    and several draws of one observation, which are neighbours, are divided as well. They are kept on the device: a
    step that is recorded as a CUDA graph must not copy them there.
    """
    marks = [math.floor((first + i) * share + 1e-6) for i in range(n + 1)]
    with torch.inference_mode(False):
        return torch.tensor([i for i in range(n) if marks[i + 1] > marks[i]], dtype=torch.long, device=device)
