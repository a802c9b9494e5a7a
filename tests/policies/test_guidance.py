"""Pseudo-inverse guidance: weights by hand and against the paper's, a Gaussian whose answer is known, steering."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from visuomotor.data.actions import ActionConfig, ActionTransform
from visuomotor.data.errors import ConfigError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.base import ChunkSizes
from visuomotor.policies.execution.build import make_actor
from visuomotor.policies.execution.config import ExecuteConfig, SteerConfig
from visuomotor.policies.guidance import (
    Agreement,
    PseudoInverseGuide,
    Steering,
    guidance_weight,
    nearest_on_path,
    soft_mask,
)
from visuomotor.policies.heads.diffusion import DiffusionConfig, DiffusionHead
from visuomotor.policies.heads.edm import EDMConfig, EDMHead
from visuomotor.policies.heads.flow import FlowConfig, FlowHead
from visuomotor.policies.iterative import Level

SIZES = ChunkSizes(action_dim=1, horizon=2, n_obs=1, feature_dim=1)


def test_soft_mask_by_hand():
    # 6 steps ahead, 1 certain, 3 executed: c = (3 - i) / (3 - 1 + 1)
    def falling(c):
        return c * (math.e**c - 1) / (math.e - 1)

    assert soft_mask(6, 1, 3).tolist() == pytest.approx([1, falling(2 / 3), falling(1 / 3), 0, 0, 0])
    assert soft_mask(5, 2, 3).tolist() == [1, 1, 0, 0, 0]  # d = H - s: nothing between


@pytest.mark.parametrize("tau", [0.05, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("beta", [1.0, 5.0, 1e9])
def test_on_the_straight_path_the_weight_is_that_of_the_paper(tau, beta):
    # arXiv:2506.07339, eq. 2: the velocity (towards clean) gains min(beta, (1 - tau) / (tau r^2)) J^T W (y - clean),
    # and the clean estimate is A + (1 - tau) v.
    r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    paper = (1 - tau) * min(beta, (1 - tau) / (tau * r2))
    assert guidance_weight(Level(1 - tau, tau, 1 - tau), beta) == pytest.approx(paper)


def test_the_weight_at_pure_noise_is_finite():
    assert guidance_weight(Level(1.0, 0.0, 1.0), 5.0) == 5.0


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_paths_that_differ_in_scale_are_guided_alike(scale):
    # x -> scale * x turns one path into another (straight into exploding: scale = 1 / alpha) and J into J / scale.
    for level in (Level(0, 0.8, 0.6), Level(0, 1.0, 4.0), Level(0, 0.1, 0.9)):
        other = Level(0, scale * level.alpha, scale * level.sigma)
        assert guidance_weight(other, 5.0) == pytest.approx(scale * guidance_weight(level, 5.0))


@pytest.mark.parametrize("level", [Level(0, 0.7, 0.3), Level(0, 0.6, 0.8), Level(0, 1.0, 5.0)])
def test_independent_data_of_unit_variance_agree_exactly(level):
    # clean = alpha x / (alpha^2 + sigma^2), so J and the weight cancel and the estimate becomes what is known.
    def estimate(x):
        return level.alpha / (level.alpha**2 + level.sigma**2) * x

    x, y = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    weight = torch.tensor([1.0, 1.0, 0.5, 0.0]).expand(3, 4)
    out = PseudoInverseGuide([Agreement(y, weight)], beta=1e9)(estimate, x, level)
    clean, w = estimate(x), weight[..., None]
    assert torch.allclose(out, clean + w * (y - clean), atol=1e-5)


HEADS = {
    "flow": lambda: FlowHead(FlowConfig(prediction="sample", sample_steps=100, clip=None), SIZES),
    "edm": lambda: EDMHead(EDMConfig(sample_steps=80, sigma_max=20.0, sigma_data=1.0, clip=None), SIZES),
    "diffusion": lambda: DiffusionHead(
        DiffusionConfig(prediction="sample", solver="ddim", sample_steps=100, clip=None), SIZES
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_gaussian_is_conditioned_on_its_known_step(name, function_net):
    # Two steps of unit variance with correlation rho: knowing the first, the second has mean rho * y.
    rho, known = 0.8, 1.0
    head = HEADS[name]()
    cov = torch.tensor([[1.0, rho], [rho, 1.0]])
    by_time = {round(level.t, 5): level for level in head.levels}

    def net(x, t):
        level = by_time[round(float(t[0]), 5)]
        a, s = level.alpha, level.sigma
        if name == "edm":  # the net sees c_in x and its output is scaled: undo both
            c_in = (1.0 + s**2) ** -0.5
            x = x / c_in
        gain = a * cov @ torch.linalg.inv(a * a * cov + s * s * torch.eye(2))
        clean = torch.einsum("ij,bjd->bid", gain, x)
        return (clean - x / (1 + s**2)) / (s * c_in) if name == "edm" else clean

    noise = torch.randn(2000, head.noise_count(), 2, 1, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1.0, 0.0]).expand(2000, 2)
    guide = PseudoInverseGuide([Agreement(torch.full((2000, 2, 1), known), weight)], beta=1e9)
    plain = head.sample(function_net(net), noise)
    assert plain.mean(0).flatten().tolist() == pytest.approx([0, 0], abs=0.06)
    guided = head.sample(function_net(net), noise, guide=guide)
    # Before it is certain of the first step, the pseudo-inverse ignores what the second says about it: slightly below.
    assert guided.mean(0).flatten().tolist() == pytest.approx([known, rho * known], abs=0.09)
    assert float(guided[:, 1].std()) == pytest.approx((1 - rho**2) ** 0.5, abs=0.05)
    assert float(guided[:, 0].std()) < 0.1  # certain, where the plain samples have a spread of 1


def test_nearest_points_by_hand():
    path = torch.tensor([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0]])
    points = torch.tensor([[3.0, 2.0], [12.0, 4.0], [-5.0, -1.0], [11.0, 30.0]])
    assert nearest_on_path(points, path).tolist() == [[3, 0], [10, 4], [0, 0], [10, 10]]
    assert nearest_on_path(points, path[:1]).tolist() == [[0, 0]] * 4


@pytest.mark.parametrize("mode", ["absolute", "relative", "delta"])
def test_steered_chunks_come_nearer_to_the_target(make_policy, mode):
    policy, _ = make_policy(mode)
    policy.eval()
    obs = {"state": torch.tensor([[100.0, 0.0, 0.0]])}
    target = torch.tensor([110.0])

    def first_component(steer):
        actor = make_actor(policy, num_envs=1, config=ExecuteConfig(beta=20.0), steer=steer)
        actor.reset([3])
        return torch.stack([actor.act(obs)[0, 0] for _ in range(8)])

    plain = (first_component(None) - target).abs().mean()
    steered = (first_component(SteerConfig(target=[110.0], dims=[0], strength=1.0)) - target).abs().mean()
    assert float(steered) < 0.95 * float(plain)
    assert torch.equal(first_component(None), first_component(SteerConfig(target=[110.0], strength=0.0)))


def test_steering_leaves_the_other_components_alone():
    class Turning:
        """Offsets of a position and an angle from where the robot is, in units of 1 and pi."""

        spec = SimpleNamespace(
            action=ArraySpec(shape=(2,)), window=WindowConfig(n_obs=1, horizon=2, n_exec=1),
            action_config=ActionConfig(mode="relative", reference_key="state", angle_dims=[1]),
        )  # fmt: skip
        device, gain = torch.device("cpu"), torch.tensor([1.0, torch.pi])
        transform = ActionTransform(spec.action_config, action_size=2, n_obs=1, reference_size=2)

        def normalize_action(self, action, obs):
            return self.transform.forward(action, obs["state"][:, 0]) / self.gain

        def unnormalize_action(self, chunk, obs):
            return self.transform.inverse(chunk * self.gain, obs["state"][:, 0])

    policy: Any = Turning()
    wish = Steering(policy, SteerConfig(target=[5.0], strength=1.0), {"state": torch.tensor([[[2.0, 1.0]]])})
    residual = wish(torch.tensor([[[1.0, 1.2], [2.0, -0.3]]]))  # 1.2 pi is -0.8 pi once it was an action
    assert torch.allclose(residual, torch.tensor([[[2.0, 0.0], [1.0, 0.0]]]), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target": [1.0], "path": [[1.0]]}, "not both"),
        ({"path": [[1.0, 2.0], [3.0]]}, r"\[1, 2\] values"),
        ({"target": [1.0], "dims": [0, 1]}, "one for each"),
        ({"target": [1.0], "strength": -1.0}, "strength=-1"),
        ({"target": [float("nan"), 1.0]}, "not all finite"),
        ({"dims": [0]}, r"steer.dims=\[0\] belong to a point"),
    ],
)
def test_wrong_targets_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        SteerConfig(**settings)


def test_components_that_do_not_exist_are_refused(make_policy):
    with pytest.raises(ConfigError, match=r"component 2 does not exist.*0\.\.1"):
        make_actor(make_policy()[0], num_envs=1, steer=SteerConfig(target=[0.0], dims=[2]))
