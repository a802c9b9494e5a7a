"""CARP: probabilities of the codes by hand, their spread over the steps, and a bandit."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from visuomotor.data.windows import WindowConfig
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.carp import CarpConfig
from visuomotor.policies.likelihoods.carp import CarpLikelihood, CarpLikelihoodConfig


@pytest.fixture
def make(tiny_policy):
    def build(window=None, **settings):
        policy = tiny_policy(CarpConfig(scales=[1, 2, 4], codes=8, width=8), window=window)
        horizon = policy.spec.window.horizon
        g = torch.Generator().manual_seed(3)
        slope = torch.linspace(-1, 1, horizon)[:, None]
        policy.head.fit(0.6 * torch.randn(300, 1, 2, generator=g) + 0.2 * slope * torch.randn(300, 1, 2, generator=g))
        return CarpLikelihood(policy, CarpLikelihoodConfig(**settings))

    return build


def test_the_log_probability_by_hand(make, observe):
    likelihood = make(temperature=0.7, std=2.0)
    policy, head = likelihood.policy, likelihood.policy.head
    obs = observe(policy, 4)
    record = likelihood.rollout(obs, Draws(0))
    codes, log_prob = record.aux["codes"], record.aux["log_prob"]
    assert log_prob.shape == (4, 4, 8)
    x = torch.zeros(4, 8, 2)
    with torch.no_grad():
        *coarse, last = policy.net(obs).at(head.times)
        for k, length in enumerate([1, 2, 4]):
            p = (head.logits(coarse[k](x), k) / 0.7).softmax(-1)
            for b in range(4):
                chosen = [float(p[b, i, codes[b, k, i]].log()) for i in range(length)]
                assert float(log_prob[b, k].sum()) == pytest.approx(sum(chosen), abs=1e-4)
                assert float(log_prob[b, k, 0]) == pytest.approx(chosen[0] / (8 / length), abs=1e-5)
            x = x + head.quantizer.decode(codes[:, k, :length], k)
        mean = x + head.rest(last(x))
    rest = Normal(mean, 2.0 * head.residual_std).log_prob(record.chunk).sum(-1)
    assert torch.allclose(log_prob[:, 3], rest, atol=1e-4)


def test_every_code_counts_and_of_the_rest_what_was_executed(make, observe, executed_of):
    likelihood = make()
    executed = executed_of(likelihood.policy, 5)
    record = likelihood.rollout(observe(likelihood.policy, 5), Draws(0))
    mask = likelihood.mask(executed, record)
    assert mask[:, :3].all()
    assert torch.equal(mask[:, 3], executed)


def test_codes_are_drawn_with_their_probabilities(make, observe):
    likelihood = make(temperature=1.0)
    policy = likelihood.policy
    obs = {k: v[:1].expand(8000, -1, -1) for k, v in observe(policy, 1).items()}
    record = likelihood.rollout(obs, Draws(0))
    with torch.no_grad():
        first = policy.net({k: v[:1] for k, v in obs.items()}).at(policy.head.times)[0]
        p = policy.head.logits(first(torch.zeros(1, 8, 2)), 0).softmax(-1)[0, 0]
    share = record.aux["codes"][:, 0, 0].bincount(minlength=8) / 8000
    assert torch.allclose(share, p, atol=0.02)


def test_the_entropy_is_that_of_the_choice(make, observe):
    likelihood = make(temperature=0.7)
    obs = observe(likelihood.policy, 3)
    found = likelihood.evaluate(obs, likelihood.rollout(obs, Draws(0)))
    first = likelihood.policy.net(obs).at(likelihood.policy.head.times)[0]
    p = (likelihood.policy.head.logits(first(torch.zeros(3, 8, 2)), 0) / 0.7).softmax(-1)[:, 0]
    assert torch.allclose(found.entropy[:, 0].sum(-1), -(p * p.log()).sum(-1), atol=1e-4)


def test_a_bandit_is_learnt(make, improve):
    likelihood = make(window=WindowConfig(n_obs=1, horizon=4, n_exec=4), temperature=1.0)
    target = torch.tensor([0.5, -0.5])
    returns = improve(
        likelihood, lambda a: -(a - target).square().sum(-1).mean(-1), updates=15, n=256, lr=3e-3, level="chain"
    )
    assert returns[-1] > 0.5 * returns[0]
