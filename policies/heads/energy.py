"""Energy-based policy: a scalar energy of chunk and observation, and gradient descent on it.

Energy-based transformers (Gladstone et al. 2025, arXiv:2507.02092) and EBT-Policy (Davies et al. 2025,
arXiv:2510.27545): a chunk is found by descending a learned energy, and training differentiates through these very
steps, with the chunk detached between them. Where this differs, and why:

- The energy is ``E(x) = |x|^2 / 2 - x . f(x)`` with the backbone's output ``f`` (the dot-product form of Equilibrium
  Matching, Wang and Du 2025, arXiv:2510.02300). A step of size 1 leads to ``f(x) + J^T x``, so that an untrained
  network already takes steps of the right size; with a bare scalar output EBT has to learn a step size of the order
  of 1000, and is sensitive to it.
- A training chain begins between noise and demonstration, ``(1 - s) a + s z``, and not at pure noise. From noise that
  knows nothing of ``a`` the best end of the chain is the mean over all modes; from between, every mode gets a basin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import ChunkSizes, Head, HeadConfig, NetFn
from visuomotor.policies.draws import Draws

__all__ = ["EnergyConfig", "EnergyHead"]

_STARTS = ("between", "noise")


@dataclass(kw_only=True, slots=True)
class EnergyConfig(HeadConfig):
    """The descent in training and at sampling.

    Attributes:
        start: where a chain of training begins: ``between`` noise and demonstration, or at pure ``noise`` as in EBT.
        train_steps: steps of a chain of training, each with its own loss. One costs about as much as three of a
            regression.
        sample_steps: ``K``, gradient steps at sampling. Step ``k`` of size ``1 / (K - k)``: small ones first, which
            can still turn to either mode, and a full one at the end.
        langevin: standard deviation of the noise that is added after the first step, falling to 0 before the last;
            0 is plain descent.
        clip: bound of where a full step would lead, in normalised units; keeps the descent stable. Only right for
            actions normalised to [-1, 1]; None with z-scored actions.
    """

    start: str = "between"
    train_steps: int = 1
    sample_steps: int = 10
    langevin: float = 0.0
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.start not in _STARTS:
            raise ConfigError(f"head energy: unknown start {self.start!r}. {nearest(self.start, _STARTS)}")
        if self.train_steps < 1 or self.sample_steps < 1:
            raise ConfigError(
                f"head energy: train_steps={self.train_steps} and sample_steps={self.sample_steps}: expected at least 1"
            )
        if self.langevin < 0.0 or (self.clip is not None and self.clip <= 0.0):
            raise ConfigError(
                f"head energy: langevin={self.langevin} must be >= 0 and clip={self.clip} positive or null"
            )


class EnergyHead(Head):
    """Descends a learned energy. The energy of a chunk rates it: it is that chunk's :meth:`uncertainty`.

    Sums of energies are energies (products of experts), and a weighted sum of outputs ``f`` has the weighted sum of
    the energies: goal guidance works.
    """

    is_field = True
    needs_gradient = True
    compiles = False  # torch.compile has no second derivatives

    def __init__(self, config: EnergyConfig, sizes: ChunkSizes) -> None:
        super().__init__(sizes)
        self.config = config

    def energy(self, net: NetFn, x: Tensor) -> Tensor:
        """``E [B]`` of the normalised chunks ``x [B, H, Da]``, relative to the energy of the zero chunk; in float32."""
        with torch.autocast(x.device.type, enabled=False):
            t = torch.zeros(1, device=x.device)
            return _energy(_in_float32(net, len(x)).at(t)[0], x.float())

    def set_solver(self, solver: str | None = None, steps: int | None = None) -> None:
        if solver is not None:
            raise ConfigError(f"solver={solver!r}: an energy has no choice of solvers, only of sample_steps")
        self.config = replace(self.config, sample_steps=self.config.sample_steps if steps is None else steps)

    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        batch, shape = len(action), tuple(action.shape)
        s = draws.uniform((batch, 1, 1)) if self.config.start == "between" else 1.0
        x = (1.0 - s) * action + s * draws.normal(shape)
        t = torch.zeros(batch, device=action.device)
        total = torch.zeros(shape[:2], device=action.device)
        with torch.autocast(action.device.type, enabled=False):  # derivatives of derivatives want the precision
            net = _in_float32(net, batch)
            for _ in range(self.config.train_steps):
                landing = _landing(lambda chunk: net(chunk, t), x, differentiable=torch.is_grad_enabled())
                total = total + (landing - action).square().mean(-1)
                # A step of random size leads on: the chain meets what sampling will meet.
                x = x + draws.uniform((batch, 1, 1)) * (landing.detach() - x)
        return total / self.config.train_steps

    def noise_count(self) -> int:
        return self.config.sample_steps if self.config.langevin else 1

    def sample(self, net: NetFn, noise: Tensor) -> Tensor:
        c, x = self.config, noise[:, 0]
        with torch.autocast(x.device.type, enabled=False):
            (field,) = _in_float32(net, len(x)).at(torch.zeros(1))
            for k in range(c.sample_steps):
                landing = _landing(field, x, differentiable=False)
                if c.clip is not None:
                    landing = landing.clamp(-c.clip, c.clip)
                left = c.sample_steps - k
                x = x + (landing - x) / left
                if c.langevin and left > 1:
                    x = x + c.langevin * (left - 1) / c.sample_steps * noise[:, k + 1]
        return x

    def uncertainty(self, net: NetFn, action: Tensor) -> Tensor:
        return self.energy(net, action)


def _in_float32(net: NetFn, batch: int) -> NetFn:
    """``net`` with observations of float32, so that it runs without autocast."""
    return net.rows(torch.arange(batch, device=net.seen.features.device))


def _energy(field: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        return (0.5 * x.square() - x * field(x)).sum((1, 2))


def _landing(field: Callable[[Tensor], Tensor], x: Tensor, *, differentiable: bool) -> Tensor:
    """Where a full gradient step from ``x`` leads, ``x - dE/dx``; a function of the weights if differentiable."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(_energy(field, x).sum(), x, create_graph=differentiable)
    return x.detach() - slope
