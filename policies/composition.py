"""Several policies as one: a weighted sum of what they estimate at every denoising step.

Du et al. 2023 ("Reduce, Reuse, Recycle"); for robots Wang et al. 2024 (PoCo, arXiv:2402.02511) and Cao et al. 2025
(GPC, arXiv:2510.01068). The policies may observe different things, and predict noise, velocity or clean chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Head
from visuomotor.policies.conditioned import Prefix
from visuomotor.policies.iterative import Estimate, Guide, IterativeHead, Level, WarmStart
from visuomotor.policies.policy import LossConfig, Policy
from visuomotor.policies.spec import PolicySpec

__all__ = ["ComposedPolicy", "convex_weights"]

_SAME = 1e-5


class ComposedPolicy:
    """Policies whose clean estimates are summed with weights at every noise level.

    With weights that sum to 1 the sum of clean estimates is that of scores, noises or velocities, and its score is that
    of the product of the noisy densities, each to the power of its weight. At pure noise all of them agree, which is
    why other sums are refused.

    Args:
        policies: at least one; the first gives the solver and the noise.
        weights: one each, summing to 1; a negative one leads away from a policy.

    Raises:
        ConfigError: policies that do not share actions, normalisation, window and noise path, with what differs.
    """

    def __init__(self, policies: Sequence[Policy], weights: Sequence[float]) -> None:
        if len(weights) != len(policies) or not abs(sum(weights) - 1.0) <= 1e-6:  # of NaN neither is true
            raise ConfigError(
                f"{len(policies)} policies with the weights {list(weights)}: expected one for each, summing to 1"
            )
        self._lead, self._others = policies[0], list(policies[1:])
        for i, other in enumerate(self._others, 1):
            _check_together(self._lead, other, i)
        self._weights = [float(w) for w in weights]
        observed = {k: v for p in policies for k, v in p.spec.obs.items()}
        constant = frozenset(k for p in policies for k in p.spec.constant_keys)
        self.spec: PolicySpec = replace(self._lead.spec, obs=observed, constant_keys=constant)
        self.loss_config = LossConfig()

    @property
    def head(self) -> Head:
        """That of the first policy."""
        return self._lead.head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._lead.device

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """``(M, H, Da)``."""
        return self._lead.noise_shape

    def normalize_action(self, action: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """As :meth:`Policy.normalize_action`."""
        return self._lead.normalize_action(action, obs)

    def unnormalize_action(self, chunk: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """As :meth:`Policy.unnormalize_action`."""
        return self._lead.unnormalize_action(chunk, obs)

    def sample(
        self, obs: Mapping[str, Tensor], noise: Tensor, *, prefix: Prefix | None = None, guide: Guide | None = None,
        start: WarmStart | None = None,
    ) -> Tensor:  # fmt: skip
        """As :meth:`Policy.sample`.

        Raises:
            ConfigError: a prefix; guided real-time chunking does without.
        """
        if prefix is not None:
            raise ConfigError("composed policies cannot go on from known actions: use execute.mode=rtc_guided")
        differentiates = guide is not None and guide.needs_gradient
        with torch.inference_mode(not differentiates), torch.no_grad():
            others = [_estimates(p, obs) for p in self._others]
        return self._lead.sample(obs, noise, guide=_Blend(self._weights, others, guide), start=start)


class _Blend:
    """Weighted sum of clean estimates, as a guide of the first policy; another guide sees the sum."""

    def __init__(
        self, weights: Sequence[float], others: Sequence[Mapping[Level, Estimate]], guide: Guide | None
    ) -> None:
        self._weights, self._others, self._guide = weights, others, guide
        self.needs_gradient = guide is not None and guide.needs_gradient

    def __call__(self, estimate: Estimate, x: Tensor, level: Level) -> Tensor:
        blended = partial(self._sum, estimate, level)
        return blended(x) if self._guide is None else self._guide(blended, x, level)

    def _sum(self, estimate: Estimate, level: Level, x: Tensor) -> Tensor:
        total = self._weights[0] * estimate(x)
        for weight, other in zip(self._weights[1:], self._others, strict=True):
            total = total + weight * other[level](x)
        return total


def _estimates(policy: Policy, obs: Mapping[str, Tensor]) -> dict[Level, Estimate]:
    """What ``policy`` estimates at each of its noise levels."""
    head = policy.head
    assert isinstance(head, IterativeHead)
    at = policy.net(obs).at(torch.tensor([level.t for level in head.levels]))
    return {level: partial(head.estimate, f, level) for level, f in zip(head.levels, at, strict=True)}


def _check_together(lead: Policy, other: Policy, i: int) -> None:
    """Refuse policy ``i`` if it cannot be composed with the first."""
    a, b = lead.spec, other.spec
    windows = tuple((s.window.n_obs, s.window.horizon) for s in (a, b))
    for what, x, y in (
        ("action", a.action, b.action),
        ("action settings", a.action_config, b.action_config),
        ("(n_obs, horizon)", *windows),
        ("rate", a.fps, b.fps),
        ("head", type(lead.head).__name__, type(other.head).__name__),
    ):
        if x != y:
            raise ConfigError(f"compose: policy {i} has {what} {y}, the first has {x}: expected the same")
    shared = [k for k in a.obs.keys() & b.obs.keys() if a.obs[k].shape != b.obs[k].shape]
    if shared:
        raise ConfigError(f"compose: observation {shared[0]!r} has different shapes in policy {i} and the first")
    if not isinstance(lead.head, IterativeHead) or not isinstance(other.head, IterativeHead):
        raise ConfigError(
            "compose sums what policies estimate at every denoising step of diffusion, flow matching or EDM; "
            f"{type(lead.head).__name__} has no such steps"
        )
    if list(lead.head.levels) != list(other.head.levels):
        raise ConfigError(
            f"compose: policy {i} and the first visit different noise levels; give solver= and sample_steps= for both, "
            "and train them with the same noise schedule"
        )
    probe = torch.stack([torch.zeros(a.action.size), torch.ones(a.action.size)]).to(lead.device)
    mine, theirs = (p.normalizer.normalize("action", probe) for p in (lead, other))
    if not torch.allclose(mine, theirs, rtol=_SAME, atol=_SAME):
        raise ConfigError(
            f"compose: policy {i} and the first normalise actions differently, so their noisy chunks do not mean the "
            "same; train both on the same demonstrations with the same seed and action.norm"
        )


def convex_weights(n: int, parts: int) -> list[list[float]]:
    """All weights of ``n`` policies that are multiples of ``1 / parts``, not negative, and sum to 1."""
    grid = [c for c in product(range(parts + 1), repeat=n - 1) if sum(c) <= parts]
    return [[(parts - sum(c)) / parts, *(i / parts for i in c)] for c in reversed(grid)]
