"""FPO: the ratio by hand, on the head's own loss, and a bandit that it solves."""

from __future__ import annotations

import math

import pytest
import torch

from visuomotor.data.windows import WindowConfig
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.diffusion import DiffusionConfig
from visuomotor.policies.heads.edm import EDMConfig
from visuomotor.policies.heads.flow import FlowConfig
from visuomotor.policies.likelihoods.base import Record
from visuomotor.policies.likelihoods.fpo import FPOConfig, FPOLikelihood
from visuomotor.policies.ppo.objective import reduce_log_ratio

ONE = WindowConfig(n_obs=1, horizon=1, n_exec=1)


def _answering(likelihood: FPOLikelihood, value: float) -> None:
    """The network says ``value`` whatever it sees."""
    out = next(m for m in reversed(list(likelihood.policy.backbone.modules())) if isinstance(m, torch.nn.Linear))
    torch.nn.init.zeros_(out.weight)
    torch.nn.init.constant_(out.bias, value)


def test_the_ratio_by_hand(tiny_policy):
    policy = tiny_policy(FlowConfig(), window=ONE)
    likelihood = FPOLikelihood(policy, FPOConfig(pairs=2, scale=3.0))
    time, noise = torch.tensor([[0.5, 1.0]]), torch.zeros(1, 2, 1, 2)
    chunk = torch.tensor([[[0.4, 0.0]]])
    _answering(likelihood, 0.2)
    record = Record(chunk, {"time": time, "noise": noise, "loss": torch.tensor([[[0.14], [0.04]]])})
    found = likelihood.evaluate({"state": torch.zeros(1, 1, 3)}, record)
    # The clean chunk is predicted as (0.2, 0.2), whatever the time: a loss of (0.2^2 + 0.2^2) / 2 = 0.04.
    # Differences 0.10 and 0, by 3 and by 2 components: 0.6 and 0, whose mean over the components of a pair is 0.3.
    assert found.log_ratio[0, :, 0].tolist() == pytest.approx([0.6, 0.0], abs=1e-6)
    mask = likelihood.mask(torch.tensor([[True]]), record)
    per_pair = reduce_log_ratio(found.log_ratio, mask, 2, reduce="mean", level="step").exp()
    assert per_pair[0].tolist() == pytest.approx([math.exp(0.3), 1.0])  # FPO++
    chain = reduce_log_ratio(found.log_ratio, mask, 2, reduce="mean", level="chain").exp()
    assert chain[0].tolist() == pytest.approx([math.exp(0.15)])  # FPO: the mean comes before the exponential


def test_losses_beyond_the_bound_have_no_share(tiny_policy):
    policy = tiny_policy(FlowConfig(), window=ONE)
    likelihood = FPOLikelihood(policy, FPOConfig(pairs=1, max_loss=0.03))
    _answering(likelihood, 0.2)
    aux = {"time": torch.tensor([[0.5]]), "noise": torch.zeros(1, 1, 1, 2), "loss": torch.tensor([[[0.03]]])}
    found = likelihood.evaluate({"state": torch.zeros(1, 1, 3)}, Record(torch.tensor([[[0.4, 0.0]]]), aux))
    assert found.log_ratio.tolist() == [[[0.0]]]  # 0.04 counts as 0.03


@pytest.mark.parametrize("head", [FlowConfig(), DiffusionConfig(train_steps=20, sample_steps=4), EDMConfig()])
def test_the_recorded_losses_are_those_of_training(head, tiny_policy, observe):
    policy = tiny_policy(head)
    likelihood = FPOLikelihood(policy, FPOConfig(pairs=1))
    obs = observe(policy, 6)
    record = likelihood.rollout(obs, Draws(3))
    aux = record.aux

    class Fixed(Draws):  # what training would draw, if it drew these
        def normal(self, shape):
            return aux["noise"][:, 0]

    policy.head.draw_times = lambda n, draws: aux["time"][:, 0]
    with torch.no_grad():
        trained = policy.head.loss(policy.net(obs), record.chunk, Fixed(0))
    assert torch.allclose(aux["loss"][:, 0], trained, atol=1e-6)


def test_what_is_drawn_is_what_is_deployed(tiny_policy, observe):
    policy = tiny_policy(FlowConfig(sample_steps=6))
    likelihood = FPOLikelihood(policy, FPOConfig(steps=3))
    assert policy.head.config.sample_steps == 3
    obs, draws = observe(policy, 5), Draws(4)
    chunk = likelihood.action(likelihood.rollout(obs, draws), obs, None)
    draws.reseed(4)
    assert torch.allclose(chunk, policy.sample(obs, draws.normal((5, *policy.noise_shape))), atol=1e-6)


def test_noise_on_the_chunk_has_the_size_that_was_asked_for(tiny_policy, observe):
    policy = tiny_policy(FlowConfig(start="zeros"))
    likelihood = FPOLikelihood(policy, FPOConfig(std=0.3, pairs=1))
    obs = {k: v[:1].expand(4000, -1, -1) for k, v in observe(policy, 1).items()}
    assert float(likelihood.rollout(obs, Draws(0)).chunk.std(0).mean()) == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize(
    ("head", "scale", "objective"),
    [
        (FlowConfig(sample_steps=3), 12.5, {"level": "chain"}),
        (FlowConfig(sample_steps=3), 12.5, {"level": "step", "kind": "asymmetric"}),
        (FlowConfig(prediction="velocity", loss_on="velocity"), 1.0, {"level": "step", "kind": "asymmetric"}),
        (DiffusionConfig(train_steps=20, sample_steps=3), 12.5, {"level": "chain"}),
    ],
    ids=["fpo", "fpo++", "fpo++ velocity", "fpo diffusion"],
)
def test_a_bandit_is_learnt(head, scale, objective, tiny_policy, improve):
    likelihood = FPOLikelihood(tiny_policy(head, window=ONE), FPOConfig(pairs=2, std=0.2, scale=scale))
    target = torch.tensor([0.9, -0.9])
    returns = improve(
        likelihood, lambda a: -(a[:, 0] - target).square().sum(-1), updates=12, lr=2e-3, clip=0.1, reduce="mean",
        n=256, **objective,
    )  # fmt: skip
    noise = -2 * 0.2**2  # what the exploration costs, whatever the policy
    assert returns[-1] - noise > 0.6 * (returns[0] - noise)
