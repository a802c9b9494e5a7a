"""DPPO's chain by hand, against the head's own stochastic sampling, and its settings."""

from __future__ import annotations

import math

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.diffusion import DiffusionConfig
from visuomotor.policies.likelihoods.diffusion import DiffusionChain, DiffusionChainConfig


def test_one_step_by_hand(tiny_policy, observe):
    # One DDIM step leads from pure noise to the clean estimate, here 0.25 everywhere, with the floor's noise.
    policy = tiny_policy(DiffusionConfig(train_steps=20))
    with torch.no_grad():
        policy.backbone.out[1].weight.zero_()
        policy.backbone.out[1].bias.fill_(0.25)
    likelihood = DiffusionChain(policy, DiffusionChainConfig(steps=1, std_min=0.2))
    record = likelihood.rollout(observe(policy, 3), Draws(0))
    z = (record.chunk - 0.25) / 0.2
    by_hand = -0.5 * z.square() - math.log(0.2) - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(record.aux["log_prob"][:, 0], by_hand.sum(-1), atol=1e-5)
    assert float(z.abs().max()) <= 3.0 + 1e-5


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_the_steps_are_those_of_the_heads_stochastic_sampling(tiny_policy, observe, solver):
    policy = tiny_policy(DiffusionConfig(train_steps=20))
    likelihood = DiffusionChain(policy, DiffusionChainConfig(solver=solver, steps=4, eta=1.0, std_min=1e-9))
    obs, shape = observe(policy, 5), (5, *policy.noise_shape[1:])
    record = likelihood.rollout(obs, Draws(0))
    draws = Draws(0)
    noise = torch.stack([draws.normal(shape) for _ in range(5)], 1)
    noise[:, 1:] = noise[:, 1:].clamp(-3.0, 3.0)
    if solver == "ddim":
        policy.head.set_solver("ddim", 4, eta=1.0)
    assert torch.allclose(policy.sample(obs, noise), likelihood.action(record, obs, None), atol=1e-5)


def test_it_is_deployed_without_the_noise_of_training(tiny_policy):
    policy = tiny_policy(DiffusionConfig(train_steps=20, solver="ddim", eta=0.7))
    likelihood = DiffusionChain(policy, DiffusionChainConfig(steps=5, eta=1.0))
    c = policy.head.config
    assert (c.solver, c.sample_steps, c.eta, likelihood.n_terms) == ("ddim", 5, 0.0, 5)
    assert policy.head.noise_count() == 1


def test_the_floor_holds_where_the_solver_has_less_noise(tiny_policy, observe):
    policy = tiny_policy(DiffusionConfig(train_steps=20))
    obs = observe(policy, 2)
    for eta, floor in ((1.0, 0.1), (0.0, 0.1), (1.0, 0.3)):
        likelihood = DiffusionChain(policy, DiffusionChainConfig(steps=4, eta=eta, std_min=floor))
        found = likelihood.evaluate(obs, likelihood.rollout(obs, Draws(0))).std
        assert found is not None
        std = found[0, :, 0, 0]
        solver = torch.tensor([step.s for step in policy.head.steps(eta=eta)])
        assert torch.allclose(std, solver.clamp_min(floor))
        assert float(std[-1]) == pytest.approx(floor)


def test_the_last_steps_alone_are_rated(tiny_policy, observe):
    head = DiffusionConfig(train_steps=20)
    whole = DiffusionChain(tiny_policy(head), DiffusionChainConfig(steps=4))
    last = DiffusionChain(tiny_policy(head), DiffusionChainConfig(steps=4, train_last=1))
    obs = observe(whole.policy, 3)
    one, all_ = last.rollout(obs, Draws(0)), whole.rollout(obs, Draws(0))
    assert torch.allclose(one.chunk, all_.chunk, atol=1e-6)  # the same steps, drawn the same
    assert one.aux["log_prob"].shape == (3, 1, 8)
    assert torch.allclose(one.aux["log_prob"][:, 0], all_.aux["log_prob"][:, 3], atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "dpmpp"}, "likelihood.solver"),
        ({"steps": 0}, "steps=0"),
        ({"train_last": 6}, "train_last=6"),
        ({"std_min": 0.0}, "std_min=0.0"),
        ({"eta": -1.0}, "eta=-1.0"),
        ({"mask": "some"}, "likelihood.mask"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DiffusionChainConfig(**settings)


def test_more_steps_than_the_head_was_trained_with_are_refused(tiny_policy):
    with pytest.raises(ConfigError, match="30"):
        DiffusionChain(tiny_policy(DiffusionConfig(train_steps=20)), DiffusionChainConfig(steps=30))


def test_the_first_steps_stay_what_they_were_and_the_last_ones_are_trained(tiny_policy, observe):
    policy = tiny_policy(DiffusionConfig(train_steps=20))
    likelihood = DiffusionChain(policy, DiffusionChainConfig(steps=4, train_last=2))
    obs = observe(policy, 6)
    before = likelihood.rollout(obs, Draws(0)).aux["chain"]
    with torch.no_grad():
        for p in likelihood.parameters():
            if p.requires_grad:
                p.add_(0.05)
    after = likelihood.rollout(obs, Draws(0)).aux["chain"]
    assert torch.equal(before[:, 0], after[:, 0])  # where the rated steps begin
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)


def test_a_policy_with_stages_is_trained_on_as_it_was_trained_before(tiny_policy):
    policy = tiny_policy(DiffusionConfig(train_steps=20))
    settings = DiffusionChainConfig(steps=4, train_last=2)
    DiffusionChain(policy, settings)
    stages = policy.backbone
    DiffusionChain(policy, settings)
    assert policy.backbone is stages  # not stages of stages
    for other in (DiffusionChainConfig(steps=4), DiffusionChainConfig(steps=4, train_last=1)):
        with pytest.raises(ConfigError, match="fine-tuned at times up to"):
            DiffusionChain(policy, other)
