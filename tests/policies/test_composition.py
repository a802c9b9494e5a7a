"""Policies composed at every noise level: one with itself, Gaussians whose product is known, and refusals."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.data.spec import ArraySpec
from visuomotor.policies.base import ChunkSizes, NetSizes
from visuomotor.policies.composition import ComposedPolicy, convex_weights
from visuomotor.policies.execution.build import make_actor
from visuomotor.policies.execution.config import ExecuteConfig, SteerConfig
from visuomotor.policies.heads.diffusion import DiffusionConfig, DiffusionHead
from visuomotor.policies.heads.edm import EDMConfig, EDMHead
from visuomotor.policies.heads.flow import FlowConfig, FlowHead
from visuomotor.policies.heads.regression import RegressionConfig, RegressionHead
from visuomotor.policies.iterative import WarmStart
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP
from visuomotor.policies.policy import Policy

SIZES = ChunkSizes(action_dim=2, horizon=16, n_obs=2, feature_dim=4)
HEADS = {
    "diffusion": lambda: DiffusionHead(DiffusionConfig(prediction="epsilon"), SIZES),
    "flow": lambda: FlowHead(FlowConfig(solver="heun"), SIZES),
    "edm": lambda: EDMHead(EDMConfig(sigma_data=0.5, churn=2.0), SIZES),
}


@pytest.fixture
def make(make_policy):
    """``make(head, seed)``: a policy with that head and weights of its own, which depend on time and observation."""
    base, _ = make_policy()

    def build(head, seed=0, **spec):
        torch.manual_seed(seed)
        sizes = NetSizes(input_dim=2, output_dim=2, horizon=16, n_obs=2, feature_dim=4, time_scale=head.time_scale)
        net = ResidualMLP(MLPConfig(width=32, depth=2, dropout=0.0), sizes)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        encoder, normalizer = copy.deepcopy(base.encoder), copy.deepcopy(base.normalizer)
        policy = Policy(replace(base.spec, **spec), encoder=encoder, backbone=net, head=head, normalizer=normalizer)
        return policy.eval()

    return build


OBS = {"state": torch.tensor([[[100.0, 3.0, 0.1], [101.0, 2.0, 0.2]]]).repeat(3, 1, 1)}


def _noise(policy):
    return torch.randn(3, *policy.noise_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", HEADS)
def test_a_policy_with_itself_is_itself(make, name):
    policy = make(HEADS[name]())
    both = ComposedPolicy([policy, policy], [0.3, 0.7])
    noise = _noise(policy)
    alone = policy.sample(OBS, noise)
    assert torch.allclose(both.sample(OBS, noise), alone, atol=1e-2)  # pixels, of a range of 100
    assert float((alone[0] - alone[1]).abs().max()) > 0.1  # the noise matters: there is something to be equal
    start = WarmStart(policy.normalize_action(alone, OBS), 2)
    assert torch.allclose(both.sample(OBS, noise, start=start), policy.sample(OBS, noise, start=start), atol=1e-2)


@pytest.mark.parametrize("name", HEADS)
def test_weights_of_one_and_nothing_choose(make, name):
    a, b = make(HEADS[name](), 0), make(HEADS[name](), 1)
    noise = _noise(a)
    assert torch.allclose(ComposedPolicy([a, b], [1.0, 0.0]).sample(OBS, noise), a.sample(OBS, noise), atol=1e-2)
    assert torch.allclose(ComposedPolicy([a, b], [0.0, 1.0]).sample(OBS, noise), b.sample(OBS, noise), atol=1e-2)


class _Gaussian(torch.nn.Module):
    """Backbone of a policy whose actions are N(mean, var): predicts noise, velocity or clean chunks of that."""

    middle = None
    per_step_time = takes_tokens = False

    def __init__(self, head, mean, var):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self._head, self._mean, self._var = [head], mean, var

    def condition(self, seen):
        return type("C", (), {"vector": seen.features.flatten(1), "memory": None})()

    def modulation(self, t, vector):
        return t.float()[:, None].expand(len(vector), 1)

    def denoise(self, x, modulation, memory=None, known=None):
        head, t = self._head[0], float(modulation[0, 0])
        level = min(head.levels, key=lambda level: abs(level.t - t))
        a, s = level.alpha, level.sigma
        clean = self._mean + a * self._var / (a * a * self._var + s * s) * (x - a * self._mean)
        if isinstance(head, FlowHead):
            return clean if head.config.prediction == "sample" else (x - clean) / s
        eps = (x - a * clean) / s
        return {"sample": clean, "epsilon": eps, "v": a * eps - s * clean}[head.config.prediction]


MIXED: dict[str, list[Any]] = {
    "diffusion": [
        DiffusionHead(DiffusionConfig(prediction=p, solver="ddim", sample_steps=50, clip=None), SIZES)
        for p in ("epsilon", "v")
    ],
    "flow": [FlowHead(FlowConfig(prediction=p, sample_steps=100, clip=None), SIZES) for p in ("velocity", "sample")],
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("w", [0.25, 0.5, 1.5])
def test_two_gaussians_give_their_product_at_every_level(make, name, w):
    """Scores add with weights, so at each level precisions do: N(a m1, v1)^w N(a m2, v2)^(1 - w)."""
    (m1, var1), (m2, var2) = (0.3, 0.2), (-0.2, 0.05)
    policies = []
    for head, mean, var in zip(MIXED[name], (m1, m2), (var1, var2), strict=True):
        policy = make(head)
        policy.backbone = _Gaussian(head, mean, var)
        policies.append(policy)
    seen = []

    class Watch:
        needs_gradient = False

        def __call__(self, estimate, x, level):
            clean = estimate(x)
            seen.append((clean, x, level))
            return clean

    ComposedPolicy(policies, [w, 1 - w]).sample(OBS, _noise(policies[0]), guide=Watch())
    assert len(seen) == len(MIXED[name][0].levels)
    for clean, x, (_, a, s) in seen[1:]:  # (the first one of flow has alpha = 0)
        v1, v2 = a * a * var1 + s * s, a * a * var2 + s * s
        score = -w * (x - a * m1) / v1 - (1 - w) * (x - a * m2) / v2
        assert torch.allclose(clean, (x + s * s * score) / a, atol=2e-3 / a)


def test_policies_may_observe_different_things(make):
    spec = ArraySpec(shape=(3,), role="observation")
    a = make(HEADS["flow"]())
    b = make(HEADS["flow"](), 1, obs={"state": spec, "other": ArraySpec(shape=(1,))})
    both = ComposedPolicy([a, b], [0.5, 0.5])
    assert set(both.spec.obs) == {"state", "other"}
    actor = make_actor(both, num_envs=2, config=ExecuteConfig(mode="rtc_guided", delay=1))
    actor.reset([0, 1])
    for _ in range(10):
        action = actor.act({"state": OBS["state"][:2, 0], "other": torch.zeros(2, 1)})
    assert torch.isfinite(action).all()


def test_composed_policies_can_be_steered(make):
    policies = []
    for head, mean in zip(MIXED["flow"], (0.2, -0.2), strict=True):
        policies.append(make(head))
        policies[-1].backbone = _Gaussian(head, mean, 0.1)
    both = ComposedPolicy(policies, [0.5, 0.5])
    target = both.unnormalize_action(torch.full((1, 16, 2), 0.6), OBS)[0, 0]

    def distance(steer):
        actor = make_actor(both, num_envs=1, steer=steer)
        actor.reset([0])
        return float((actor.act({"state": OBS["state"][:1, 0]})[0] - target).norm())

    assert distance(SteerConfig(target=target.tolist(), strength=1.0)) < 0.5 * distance(None)


def test_a_prefix_is_refused(make):
    both = ComposedPolicy([make(HEADS["flow"]()), make(HEADS["flow"](), 1)], [0.5, 0.5])
    with pytest.raises(ConfigError, match="rtc_guided"):
        make_actor(both, num_envs=1, config=ExecuteConfig(mode="rtc", delay=1))


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.6], [float("nan"), 1.0]])
def test_wrong_weights_are_refused(make, weights):
    a = make(HEADS["flow"]())
    with pytest.raises(ConfigError, match="summing to 1"):
        ComposedPolicy([a, a], weights)


def test_policies_that_do_not_go_together_are_refused(make):
    a = make(HEADS["flow"]())
    others = [
        (make(HEADS["edm"]()), "has head EDMHead, the first has FlowHead"),
        (make(FlowHead(FlowConfig(sample_steps=4), SIZES)), "different noise levels"),
        (make(HEADS["flow"](), fps=20.0), "has rate 20"),
        (make(HEADS["flow"](), action=ArraySpec(shape=(2,), role="action", unit="m")), "has action"),
        (make(HEADS["flow"](), obs={"state": ArraySpec(shape=(4,))}), "'state' has different shapes"),
    ]
    for other, says in others:
        with pytest.raises(ConfigError, match=says):
            ComposedPolicy([a, other], [0.5, 0.5])
    r = make(RegressionHead(RegressionConfig(), SIZES))
    with pytest.raises(ConfigError, match="RegressionHead has no such steps"):
        ComposedPolicy([r, r], [0.5, 0.5])
    scaled = make(HEADS["flow"]())
    slot = next(n for n, _ in scaled.normalizer.named_buffers() if n.startswith("gain") and "action" in n)
    scaled.normalizer.get_buffer(slot).mul_(2.0)
    with pytest.raises(ConfigError, match="normalise actions differently"):
        ComposedPolicy([a, scaled], [0.5, 0.5])


def test_the_grid_of_weights():
    assert convex_weights(2, 2) == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    three = convex_weights(3, 4)
    assert len(three) == 15
    assert all(sum(w) == pytest.approx(1.0) and min(w) >= 0 for w in three)
