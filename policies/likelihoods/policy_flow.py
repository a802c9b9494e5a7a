"""PolicyFlow: ratios from differences of a flow's velocity along a straight path (Yang et al. 2026, arXiv:2602.01156).

What is implemented, in this framework's convention (noise ``z`` at t = 1, clean chunk ``y`` at t = 0, velocity
``u = noise - clean``; the paper runs time the other way, with velocity ``v = -u``):

* *Acting*: ``a = y + n``, ``y`` the end of the flow from ``z`` by the head's own solver, ``n ~ N(0, sigma^2)`` with
  one learned ``sigma`` for every component of the action.
* *Ratio* (the paper's eq. 13): the weights of now move the end by about ``delta = u_then(x_t) - u_now(x_t)``, taken at
  a point ``x_t = (1 - t) y + t z`` of the straight path between noise and end as it was then, so

      ratio = N(n; delta, sigma_now^2) / N(n; 0, sigma_then^2).

  Times are drawn uniformly from those that an Euler solver of the head's number of steps visits, once for a decision;
  there are ``points`` of them, each with a ratio. With ``ppo.level=step`` each is clipped for itself.
* *Brownian regulariser* (algorithm 1): ``weight * |eta|^2`` with ``eta = (1 - s) v_now - (x - s v_then)`` and
  ``s = 1 - t``, which turns the velocity towards the negative score, as that of a Brownian motion is; here
  ``-eta = t u_now + x + (1 - t) u_then``. Taken as the mean over components, positions and points.
* The entropy of ``n`` (weight ``ppo.entropy``).

Taken from summaries, reviews and reimplementations of the paper, not from its text: the mean in the regulariser is what
its released code is reported to do (the paper writes the squared norm), and its eq. 16 is reported to have ``v_then``
in both places, which would have no gradient. Drawing the times once for a decision instead of anew for each minibatch
is ours (what the network said then is recorded, where the paper keeps a copy of it). The proof of the error bound (of
the order of the clip range) could not be seen. Where the network predicts the clean chunk the estimate is larger than
the movement (about twice, with few steps): a later step undoes most of an earlier one, which the straight path ignores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.flow import FlowHead
from visuomotor.policies.heads.gaussian import bounded_std, check_std, gaussian_log_prob
from visuomotor.policies.likelihoods.base import Evaluation, Likelihood, LikelihoodConfig, Record, gaussian_entropy
from visuomotor.policies.policy import Policy

__all__ = ["PolicyFlowConfig", "PolicyFlowLikelihood", "brownian_residual"]


@dataclass(kw_only=True, slots=True)
class PolicyFlowConfig(LikelihoodConfig):
    """Noise at the end of the flow, and how its movement is estimated.

    Attributes:
        points: times of every decision at which velocities are compared, ``M``.
        brownian: weight of the Brownian regulariser.
        std_init: of the noise at the end of the flow, in normalised units; learned from there.
        std_min: its lower bound.
        std_max: its upper bound.
        steps: of the head's solver; null keeps those that it has.
    """

    points: int = 1
    brownian: float = 0.0025
    std_init: float = 0.1
    std_min: float = 0.02
    std_max: float = 0.5
    steps: int | None = None

    def __post_init__(self) -> None:
        LikelihoodConfig.__post_init__(self)
        check_std("policyflow", self.std_min, self.std_init, self.std_max, 0.0)
        if self.points < 1 or self.brownian < 0.0:
            raise ConfigError(
                f"likelihood: points={self.points} and brownian={self.brownian:g}: expected at least 1 and 0"
            )


class PolicyFlowLikelihood(Likelihood):
    """``M`` = ``points``. The ratio is an approximation whose error is small within PPO's clip range.

    Raises:
        ConfigError: the policy's head is no flow, or its flow begins at zero, where there is no path from noise.
    """

    def __init__(self, policy: Policy, config: PolicyFlowConfig) -> None:
        head = policy.head
        if not isinstance(head, FlowHead):
            raise ConfigError(f"likelihood policyflow: the policy's head is a {type(head).__name__}, not a flow")
        if head.config.start != "noise":
            raise ConfigError(f"likelihood policyflow: the flow begins at {head.config.start}, not at noise")
        super().__init__(policy, config)
        self._head, self._own, self.n_terms = head, config, config.points
        if config.steps is not None:
            head.set_solver(steps=config.steps)
        self.raw_std = nn.Parameter(torch.zeros(policy.spec.action.size, device=policy.device))

    @property
    def std(self) -> Tensor:
        """Standard deviation ``[Da]`` of the noise at the end of the flow."""
        c = self._own
        return bounded_std(self.raw_std, low=c.std_min, init=c.std_init, high=c.std_max)

    @torch.no_grad()
    def rollout(self, obs: Mapping[str, Tensor], draws: Draws) -> Record:
        net = self.policy.net(obs)
        batch, steps = len(net.seen.features), self._head.config.sample_steps
        z = draws.normal((batch, *self.policy.noise_shape))
        end = self._head.sample(net, z).float()
        chunk = end + self.std * draws.normal(tuple(end.shape))
        time = 1.0 - draws.integers(0, steps, (batch, self.n_terms)).float() / steps  # 1, ..., 1 / steps
        aux = {"noise": z[:, 0], "end": end, "time": time}
        aux["clean"] = self._clean(net, aux)
        aux["log_prob"] = gaussian_log_prob(chunk, end, self.std).sum(-1)[:, None]  # [B, 1, H]
        return Record(chunk, aux)

    def evaluate(self, obs: Mapping[str, Tensor], record: Record) -> Evaluation:
        aux, x, t = record.aux, _path(record.aux), record.aux["time"][..., None, None]
        now, then = self._clean(self.policy.net(obs), aux), aux["clean"]
        mean = aux["end"][:, None] + (now - then) / t  # u = (x - clean) / t; the same x in both would be rounded away
        std = self.std.expand_as(mean)
        log_prob = gaussian_log_prob(record.chunk[:, None], mean, std).sum(-1)
        residual = brownian_residual((x - now) / t, (x - then) / t, x, t)
        penalty = self._own.brownian * residual.square().mean((1, 2, 3))
        return Evaluation(log_prob - aux["log_prob"], gaussian_entropy(std), mean, std, penalty)

    def mask(self, executed: Tensor, record: Record) -> Tensor:
        return executed[:, None].expand(-1, self.n_terms, -1)

    def _clean(self, net: NetFn, aux: Mapping[str, Tensor]) -> Tensor:
        """The clean chunk ``[B, M, H, Da]`` behind the points of the path, bounded as when it is sampled."""
        x, time = _path(aux), aux["time"]
        row = torch.arange(len(x), device=x.device).repeat_interleave(self.n_terms)
        return self._head.estimate_at(net.rows(row), x.flatten(0, 1), time.flatten()).float().view_as(x)


def brownian_residual(now: Tensor, then: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """``t u_now + x + (1 - t) u_then`` for velocities ``u`` at the point ``x`` and time ``t``, elementwise.

    0 where the flow moves along the negative score: that is ``(x + (1 - t) u) / t``, the mean noise by ``t``.
    """
    return t * now + x + (1.0 - t) * then


def _path(aux: Mapping[str, Tensor]) -> Tensor:
    """``x_t [B, M, H, Da]`` on the straight line from the end to the noise."""
    return torch.lerp(aux["end"][:, None], aux["noise"][:, None], aux["time"][..., None, None])
