"""MeanFlow: a chunk in one evaluation (Geng et al. 2025, Mean Flows for One-step Generative Modeling, 2505.13447).

Along a path of the flow, ``dx/dt = v``, the average velocity satisfies ``u = v - (t - r) du/dt``: a target made of the
network's own derivative, so that neither a teacher nor an integration is needed. For ``xhat = x - t u`` the identity
reads ``r / t (xhat - clean) + (t - r) dxhat/dt = 0`` (the parametrisation is that of Lu et al., Pixel Mean Flows,
arXiv:2601.22158). The loss squares the difference of the two sides, with derivatives taken as constants.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import ChunkSizes, NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.average_velocity import AverageVelocityConfig, AverageVelocityHead, spread_rows
from visuomotor.policies.heads.dispersive import DispersiveConfig, dispersive_loss
from visuomotor.policies.heads.times import TimeConfig, sample_times

__all__ = ["DERIVATIVES", "MeanFlowConfig", "MeanFlowHead"]

DERIVATIVES = ("jvp", "difference")
_TANGENTS = ("data", "model")
_HALF_WIDTH = 5e-3  # of the central difference, in t: error O(h^2) against float32 rounding of O(1e-7 / h)


@dataclass(kw_only=True, slots=True)
class MeanFlowConfig(AverageVelocityConfig):
    """How the average velocity is learnt.

    Attributes:
        flow_ratio: share of the batch with r = t, which learns the velocity from data: 0.75 in the paper, 0.5 in MP1
            (arXiv:2507.10543). The others learn jumps.
        time: the distribution of t and r (the larger of two draws is t); the paper's best is logit-normal with mean
            -0.4.
        derivative: ``jvp`` (exact, forward mode) or ``difference`` (central, two evaluations; less memory and time;
            Fang et al., OMP, arXiv:2512.19347).
        tangent: the velocity along which it is taken: ``data`` (noise - clean, as in the paper) or ``model`` (what the
            network says at r = t: less noise in the target for another evaluation; Geng et al., Improved Mean Flows,
            arXiv:2512.02012).
        adaptive_power: in the loss a chunk has the weight ``1 / (mean squared error + adaptive_floor) **
            adaptive_power``, a constant for the gradient: 0 for none, 1 in the MeanFlow paper, 0.5 in MP1
            (arXiv:2507.10543). Above 0 chunks far from the prediction count less, so that it leans to the likelier of
            several modes instead of their mean.
        adaptive_floor: see ``adaptive_power``; in squared normalised units.
        dispersive: the dispersive loss of MP1, off by default.
    """

    flow_ratio: float = 0.75
    time: TimeConfig = field(default_factory=TimeConfig)
    derivative: str = "jvp"
    tangent: str = "data"
    adaptive_power: float = 1.0
    adaptive_floor: float = 1e-3
    dispersive: DispersiveConfig = field(default_factory=DispersiveConfig)

    def __post_init__(self) -> None:
        AverageVelocityConfig.__post_init__(self)
        for name, options in {"derivative": DERIVATIVES, "tangent": _TANGENTS}.items():
            if (value := getattr(self, name)) not in options:
                raise ConfigError(f"head meanflow: unknown {name} {value!r}. {nearest(value, options)}")
        if self.time.stratified:
            raise ConfigError("head meanflow: time.stratified would draw t and r from the same slice: set it to false")
        if self.time.min_time <= 0.0:
            raise ConfigError(f"head meanflow: time.min_time={self.time.min_time:g}: r / t needs it above 0")
        if not 0.0 < self.flow_ratio < 1.0:
            raise ConfigError(
                f"head meanflow: flow_ratio={self.flow_ratio:g}: expected a share in (0, 1). At 0 the velocity that "
                "jumps are made of is never learnt and training collapses (MP1 falls from 82 % to 2 % success); at 1 "
                "no jumps are learnt, and policy=flow does the same"
            )
        if self.adaptive_power < 0.0 or self.adaptive_floor <= 0.0:
            raise ConfigError(
                f"head meanflow: adaptive_power={self.adaptive_power:g} must not be negative and "
                f"adaptive_floor={self.adaptive_floor:g} positive"
            )


class MeanFlowHead(AverageVelocityHead):
    """Trains on the MeanFlow identity; the derivative is taken for the rows with r < t only, in float32."""

    config: MeanFlowConfig

    def __init__(self, config: MeanFlowConfig, sizes: ChunkSizes) -> None:
        super().__init__(config, sizes)
        self.compiles = config.derivative != "jvp"  # torch.compile has no forward-mode derivatives

    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        c, b = self.config, len(action)
        first, second = sample_times(c.time, b, draws), sample_times(c.time, b, draws)
        noise = draws.normal(tuple(action.shape))
        rows = spread_rows(b, 1.0 - c.flow_ratio, draws.rank * b, action.device)
        t = first.index_copy(0, rows, torch.maximum(first, second)[rows])
        step = torch.zeros_like(t).index_copy(0, rows, (first - second).abs()[rows])
        velocity = noise - action
        x = action + t.view(b, 1, 1) * velocity
        times = torch.stack([t, step], 1)
        if c.dispersive.weight:
            out, hidden = net.with_hidden(x, times)
        else:
            out, hidden = net(x, times), None
        out = out.float()
        target = action if c.prediction == "sample" else velocity
        if len(rows):
            clean, v = action[rows], velocity[rows]
            jumps = self.target(net.rows(rows), out.detach()[rows], x[rows], times[rows], clean, v)
            target = target.index_copy(0, rows, jumps)
        loss = self._weighted((out - target).square())
        if hidden is not None:
            loss = loss + c.dispersive.weight * dispersive_loss(hidden, c.dispersive.temperature)
        return loss

    @torch.no_grad()
    def target(self, net: NetFn, out: Tensor, x: Tensor, times: Tensor, clean: Tensor, velocity: Tensor) -> Tensor:
        """What the network should say instead of ``out`` by the MeanFlow identity, ``[n, H, Da]``.

        Args:
            net: of these ``n`` observations.
            out: its output for the others.
            x: noisy chunks ``[n, H, Da]``.
            times: ``(t, t - r)``, ``[n, 2]``.
            clean, velocity: of the path through ``x``, ``[n, H, Da]``.
        """
        t, step = times[:, :1, None], times[:, 1:, None]
        with torch.autocast(x.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            along = velocity if self.config.tangent == "data" else self._velocity(net, x, times)
            slope = self._derivative(net, x, times, along)
        if self.config.prediction == "velocity":
            return velocity - step * slope
        return out - (1.0 - step / t) * (out - clean) - step * slope

    def _velocity(self, net: NetFn, x: Tensor, times: Tensor) -> Tensor:
        """The velocity of the flow at ``x`` by the network itself."""
        out = net(x, torch.stack([times[:, 0], torch.zeros_like(times[:, 0])], 1))
        return out if self.config.prediction == "velocity" else (x - out) / times[:, :1, None]

    def _derivative(self, net: NetFn, x: Tensor, times: Tensor, along: Tensor) -> Tensor:
        """d net / dt on the path: x moves by ``along``, t and t - r by 1 (r stands still)."""
        if self.config.derivative == "jvp":
            slope: Tensor = torch.func.jvp(net, (x, times), (along, torch.ones_like(times)))[1]
            return slope
        h = _HALF_WIDTH
        # Both evaluations drop the same units: otherwise their difference would be that of two networks.
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            ahead = net(x + h * along, times + h)
        return (ahead - net(x - h * along, times - h)) / (2.0 * h)

    def _weighted(self, square: Tensor) -> Tensor:
        """Squared errors ``[B, H, Da]`` to the loss of every step ``[B, H]``, with the adaptive weight of its chunk."""
        weight = (square.detach().mean((1, 2)) + self.config.adaptive_floor).pow(-self.config.adaptive_power)
        return square.mean(-1) * weight[:, None]
