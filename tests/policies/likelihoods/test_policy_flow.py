"""PolicyFlow: ratio and regulariser by hand, the estimate of the end's movement, and a bandit."""

from __future__ import annotations

import math

import pytest
import torch

from visuomotor.data.windows import WindowConfig
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.flow import FlowConfig
from visuomotor.policies.likelihoods.base import Record
from visuomotor.policies.likelihoods.policy_flow import PolicyFlowConfig, PolicyFlowLikelihood, brownian_residual

ONE = WindowConfig(n_obs=1, horizon=1, n_exec=1)


def test_ratio_and_penalty_by_hand(tiny_policy):
    policy = tiny_policy(FlowConfig(clip=None), window=ONE)
    likelihood = PolicyFlowLikelihood(policy, PolicyFlowConfig(std_init=0.2, brownian=0.1))
    out = policy.backbone.out[-1]
    torch.nn.init.zeros_(out.weight)
    torch.nn.init.constant_(out.bias, 0.5)  # the clean chunk, whatever the point of the path
    end, noise = torch.tensor([[[0.4, 0.4]]]), torch.tensor([[[1.0, 0.0]]])
    aux = {
        "end": end, "noise": noise, "time": torch.tensor([[0.5]]), "clean": torch.tensor([[[[0.45, 0.5]]]]),
        "log_prob": torch.tensor([[[0.3]]]),
    }  # fmt: skip
    found = likelihood.evaluate({"state": torch.zeros(1, 1, 3)}, Record(end + torch.tensor([[[0.1, -0.1]]]), aux))
    assert found.mean is not None
    assert found.penalty is not None
    # The end moves by (0.5 - 0.45) / 0.5 = 0.1 and by 0: the noise is now (0, -0.1), of standard deviation 0.2.
    assert found.mean.flatten().tolist() == pytest.approx([0.5, 0.4])
    log_prob = -0.5 * 0.25 - 2 * math.log(0.2) - math.log(2 * math.pi)
    assert float(found.log_ratio.sum().detach()) == pytest.approx(log_prob - 0.3, abs=1e-5)
    # x = (0.7, 0.2); u_now = (x - 0.5) / 0.5 = (0.4, -0.6), u_then = (0.5, -0.6).
    eta = (0.5 * 0.4 + 0.7 + 0.5 * 0.5, 0.5 * -0.6 + 0.2 + 0.5 * -0.6)
    assert float(found.penalty.detach()) == pytest.approx(0.1 * (eta[0] ** 2 + eta[1] ** 2) / 2, abs=1e-5)


def test_nothing_is_left_where_the_flow_follows_the_negative_score():
    # Clean data at 0 alone: x = t * noise, so u = noise = x / t, and the score is -x / t^2.
    x, t = torch.tensor([0.6]), torch.tensor(0.5)
    score = -x / t**2
    towards = score  # in this time, which runs against the paper's, the velocity of a diffusing density is the score
    assert torch.allclose(brownian_residual(towards, x / t, x, t), torch.zeros(1), atol=1e-6)


@pytest.mark.parametrize("prediction", ["sample", "velocity"])
def test_the_mean_over_the_grid_is_how_far_the_end_moves(prediction, tiny_policy, observe):
    """To first order: one bias of the network moves a little, and the end with it."""
    policy = tiny_policy(FlowConfig(sample_steps=4, clip=None, prediction=prediction))
    points = 400
    likelihood = PolicyFlowLikelihood(policy, PolicyFlowConfig(points=points))
    obs = observe(policy, 3)
    record = likelihood.rollout(obs, Draws(0))
    assert set(record.aux["time"].unique().tolist()) == {0.25, 0.5, 0.75, 1.0}
    noise = record.aux["noise"][:, None]
    before = policy.head.sample(policy.net(obs), noise)
    assert torch.allclose(before, record.aux["end"], atol=1e-5)
    with torch.no_grad():
        policy.backbone.out[-1].bias.add_(1e-3)
    moved = policy.head.sample(policy.net(obs), noise) - before
    mean = likelihood.evaluate(obs, record).mean
    assert mean is not None
    estimate = mean.mean(1).detach() - before
    assert float((estimate * moved).sum() / (estimate.norm() * moved.norm())) > 0.8
    if prediction == "velocity":  # where the velocity does not depend on the place it would be exact
        assert torch.allclose(estimate, moved, rtol=0.3, atol=1e-4)


def test_the_noise_at_the_end_is_learnt_within_its_bounds(tiny_policy, improve):
    policy = tiny_policy(FlowConfig(sample_steps=2), window=ONE)
    likelihood = PolicyFlowLikelihood(policy, PolicyFlowConfig(std_init=0.3, brownian=0.0))
    target = torch.tensor([0.9, -0.9])
    returns = improve(likelihood, lambda a: -(a[:, 0] - target).square().sum(-1), updates=15, n=256, lr=2e-3)
    assert returns[-1] > 0.5 * returns[0]
    assert torch.all(likelihood.std < 0.3)  # what costs reward shrinks
    assert torch.all(likelihood.std > 0.02)
