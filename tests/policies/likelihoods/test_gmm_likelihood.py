"""Mixtures: the density of what was executed, the entropy against integrals, two modes, and weights that learn."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from visuomotor.data.windows import WindowConfig
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gmm import ChunkMixture, GMMConfig
from visuomotor.policies.likelihoods.gmm import GMMLikelihood, GMMLikelihoodConfig, mixture_entropy

ONE = WindowConfig(n_obs=1, horizon=1, n_exec=1)


def _mixture(log_weight, mean, std) -> ChunkMixture:
    """One-dimensional, of one step."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
    return ChunkMixture(torch.log_softmax(torch.tensor([log_weight]), -1), mean, std)


def test_executed_positions_have_their_own_density_whatever_came_before(tiny_policy, observe, executed_of):
    policy = tiny_policy(GMMConfig(modes=3))
    likelihood = GMMLikelihood(policy, GMMLikelihoodConfig())
    obs = observe(policy, 7)
    record = likelihood.rollout(obs, Draws(0))
    mask = likelihood.mask(executed_of(policy, 7), record)
    found = policy.head.distribution(policy.net(obs))
    log_prob = (record.aux["log_prob"] * mask).sum((1, 2))
    for i, last in enumerate([2, 5, 5, 2, 5, 5, 2]):  # executed from position 1 on, 1 or 4 of them
        parts = Independent(Normal(found.mean[i, :, 1:last], found.std[i, :, 1:last]), 2)
        known = MixtureSameFamily(Categorical(logits=found.log_weight[i]), parts).log_prob(record.chunk[i, 1:last])
        assert float(log_prob[i]) == pytest.approx(float(known.detach()), abs=1e-4)


def test_the_entropy_of_one_mode_is_that_of_a_gaussian():
    found = _mixture([0.0], [0.3], [0.5])
    assert float(mixture_entropy(found)) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.25))


def test_modes_in_one_place_add_nothing_and_modes_far_apart_the_entropy_of_the_choice():
    one = float(mixture_entropy(_mixture([0.0], [0.0], [0.5])))
    assert float(mixture_entropy(_mixture([0.0, 1.0], [0.0, 0.0], [0.5, 0.5]))) == pytest.approx(one, abs=1e-5)
    choice = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    far = float(mixture_entropy(_mixture([0.0, math.log(3.0)], [-9.0, 9.0], [0.5, 0.5])))
    assert far == pytest.approx(one + choice, abs=1e-5)


@pytest.mark.parametrize("apart", [0.2, 0.5, 1.0, 2.0, 4.0])
def test_between_them_it_is_a_lower_bound_and_close(apart):
    found = _mixture([0.0, 0.5], [-apart / 2, apart / 2], [0.5, 0.3])
    x = torch.linspace(-8, 8, 40001)
    log_p = found.log_prob(x.view(-1, 1, 1).expand(-1, 1, 1))[:, 0]
    exact = float(-(log_p.exp() * log_p).sum() * (x[1] - x[0]))
    estimate = float(mixture_entropy(found))
    assert estimate <= exact + 1e-4
    assert estimate == pytest.approx(exact, abs=0.15)


def test_entropies_of_steps_sum_to_that_of_the_chunk():
    g = torch.Generator().manual_seed(0)
    found = ChunkMixture(
        torch.log_softmax(torch.randn(4, 3, generator=g), -1), torch.randn(4, 3, 5, 2, generator=g),
        torch.rand(4, 3, 5, 2, generator=g) + 0.2,
    )  # fmt: skip
    flat = ChunkMixture(found.log_weight, found.mean.flatten(2)[:, :, None], found.std.flatten(2)[:, :, None])
    assert torch.allclose(mixture_entropy(found).sum(1), mixture_entropy(flat)[:, 0], atol=1e-4)


def test_the_weights_of_the_modes_get_their_gradient(tiny_policy, observe):
    policy = tiny_policy(GMMConfig(modes=2, std_init=0.1), window=WindowConfig(n_obs=2, horizon=4, n_exec=2))
    likelihood = GMMLikelihood(policy, GMMLikelihoodConfig())
    seen: list[torch.Tensor] = []

    def split(out):  # two modes far apart, whose weights are what is learnt
        mean = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1).expand(len(out), 2, 4, 2)
        seen.append(torch.zeros(len(out), 2).requires_grad_())
        return ChunkMixture(torch.log_softmax(seen[-1], -1), mean, torch.full_like(mean, 0.1))

    policy.head._split = split
    obs = observe(policy, 400)
    record = likelihood.rollout(obs, Draws(0))
    executed = torch.tensor([False, True, True, False]).expand(400, -1)
    went_up = record.chunk[:, 1, 0] > 0
    log_ratio = (likelihood.evaluate(obs, record).log_ratio * likelihood.mask(executed, record)).sum((1, 2))
    (log_ratio * torch.where(went_up, 1.0, -1.0)).sum().backward()
    # d log w_k / d logits = onehot(k) - w: 0.5 towards the second mode in every row.
    assert seen[-1].grad is not None
    assert torch.allclose(seen[-1].grad, torch.tensor([-0.5, 0.5]).expand(400, 2), atol=1e-4)


def test_of_two_good_places_the_better_is_found_from_scratch(tiny_policy, improve):
    """A Gaussian between them would get nothing: the reward is two peaks, the one at (0.7, 0.7) twice as high."""
    policy = tiny_policy(GMMConfig(modes=4, std_init=0.3), window=ONE)
    likelihood = GMMLikelihood(policy, GMMLikelihoodConfig())

    def reward(a):
        x = a[:, 0]
        up, down = ((x - c).square().sum(-1) for c in (0.7, -0.7))
        return (-8.0 * up).exp() + 0.5 * (-8.0 * down).exp()

    returns = improve(likelihood, reward, updates=36, n=256, lr=3e-3)
    assert returns[0] < 0.1
    assert returns[-1] > 0.8  # the lesser peak gives 0.5 at most


def test_a_bandit_is_learnt(tiny_policy, improve):
    likelihood = GMMLikelihood(tiny_policy(GMMConfig(modes=3, std_init=0.3), window=ONE), GMMLikelihoodConfig())
    target = torch.tensor([0.5, -0.3])
    returns = improve(likelihood, lambda a: -(a[:, 0] - target).square().sum(-1), updates=12, n=256, lr=3e-3)
    assert returns[-1] > 0.6 * returns[0]
