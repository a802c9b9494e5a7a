"""gSDE: the density by hand, noise that is held, its size, squashing, and a bandit."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from visuomotor.data.windows import WindowConfig
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gaussian import GaussianConfig, GaussianHead
from visuomotor.policies.likelihoods.gaussian import GaussianLikelihood, GaussianLikelihoodConfig
from visuomotor.policies.likelihoods.gsde import GSDEConfig, GSDELikelihood

ONE = WindowConfig(n_obs=1, horizon=1, n_exec=1)


def _noise(likelihood: GSDELikelihood, obs, draws: Draws) -> torch.Tensor:
    policy = likelihood.policy
    assert isinstance(policy.head, GaussianHead)
    with torch.no_grad():
        mean = policy.head.distribution(policy.net(obs)).mean
    return likelihood.rollout(obs, draws).aux["x"] - mean


def test_like_observations_get_like_noise_while_it_is_held(tiny_policy, observe):
    likelihood = GSDELikelihood(tiny_policy(GaussianConfig()), GSDEConfig(hold=3, std_min=1e-4))
    obs = observe(likelihood.policy, 50)
    noise = [_noise(likelihood, obs, Draws(7, 0, t)) for t in range(4)]
    assert torch.allclose(noise[0], noise[1], atol=1e-3)
    assert torch.allclose(noise[0], noise[2], atol=1e-3)
    assert not torch.allclose(noise[0], noise[3], atol=1e-1)  # decision 3 has a new matrix
    assert not torch.allclose(noise[0], _noise(likelihood, obs, Draws(7, 1, 0)), atol=1e-1)  # so has the next update
    near = {"state": obs["state"] + 1e-3}
    assert torch.allclose(_noise(likelihood, near, Draws(7, 0, 1)), noise[0], atol=2e-2)


def test_each_world_has_a_matrix_of_its_own(tiny_policy, observe):
    likelihood = GSDELikelihood(tiny_policy(GaussianConfig()), GSDEConfig(hold=3))
    obs = {k: v[:1].expand(20, -1, -1) for k, v in observe(likelihood.policy, 1).items()}
    noise = _noise(likelihood, obs, Draws(7, 0, 0))
    assert float(noise.std(0).min()) > 0.2


def test_the_spread_is_what_the_density_says_it_is(tiny_policy, observe):
    likelihood = GSDELikelihood(tiny_policy(GaussianConfig()), GSDEConfig(std_init=0.4, std_min=0.1))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        likelihood.log_sigma.add_(0.5 * torch.randn(likelihood.log_sigma.shape, generator=g))
    obs = {k: v[:1].expand(6000, -1, -1) for k, v in observe(likelihood.policy, 1).items()}
    record = likelihood.rollout(obs, Draws(0, 0, 0))
    found = likelihood.evaluate(obs, record)
    assert found.mean is not None
    assert found.std is not None
    assert torch.allclose(record.aux["x"].std(0), found.std[0, 0], rtol=0.04)
    # ... which is sum_i (z_i sigma_ij)^2 + std_min^2 with z of length 1.
    policy = likelihood.policy
    z = policy.backbone.condition(policy.net(obs).seen).vector[0]
    z = z / z.norm()
    variance = (z[:, None] * likelihood.log_sigma.exp()).square().sum(0) + 0.1**2
    assert torch.allclose(found.std[0, 0, 3], variance.sqrt(), atol=1e-5)
    log_prob = Normal(found.mean[:, 0], found.std[:, 0]).log_prob(record.aux["x"]).sum(-1)
    assert torch.allclose(record.aux["log_prob"][:, 0], log_prob, atol=1e-4)


def test_it_begins_with_the_spread_that_was_asked_for(tiny_policy, observe):
    likelihood = GSDELikelihood(tiny_policy(GaussianConfig()), GSDEConfig(std_init=0.4, std_min=0.1))
    obs = observe(likelihood.policy, 4)
    std = likelihood.evaluate(obs, likelihood.rollout(obs, Draws(0, 0, 0))).std
    assert std is not None
    assert torch.allclose(std, torch.tensor(0.4), atol=1e-5)


def test_a_squashed_policy_stays_inside_and_has_the_same_ratio(tiny_policy, observe):
    likelihood = GSDELikelihood(tiny_policy(GaussianConfig(squash=True)), GSDEConfig(std_init=1.2))
    obs = observe(likelihood.policy, 100)
    record = likelihood.rollout(obs, Draws(0, 0, 0))
    assert torch.equal(record.chunk, record.aux["x"].tanh())
    assert float(record.chunk.abs().max()) < 1.0


def test_the_ratio_of_a_squashed_gaussian_is_that_of_the_squashed_densities(tiny_policy, observe):
    policy = tiny_policy(GaussianConfig(squash=True, std_init=0.4))
    likelihood = GaussianLikelihood(policy, GaussianLikelihoodConfig())
    obs = observe(policy, 20)
    record = likelihood.rollout(obs, Draws(0))
    assert float(record.chunk.abs().max()) < 0.999  # where log_prob of an action is exact
    before = policy.head.distribution(policy.net(obs)).log_prob(record.chunk)
    with torch.no_grad():
        for p in policy.backbone.out.parameters():
            p.mul_(1.2)
    after = policy.head.distribution(policy.net(obs)).log_prob(record.chunk)
    found = likelihood.evaluate(obs, record).log_ratio
    assert torch.allclose(found[:, 0], (after - before).sum(-1), atol=1e-3)


@pytest.mark.parametrize("kind", ["gsde", "gsde squashed", "squashed"])
def test_a_bandit_is_learnt(kind, tiny_policy, improve):
    policy = tiny_policy(GaussianConfig(squash="squashed" in kind, std_from_obs=False), window=ONE)
    gsde = kind.startswith("gsde")
    likelihood = (
        GSDELikelihood(policy, GSDEConfig(std_init=0.3))
        if gsde
        else GaussianLikelihood(policy, GaussianLikelihoodConfig())
    )
    target = torch.tensor([0.8, -0.6])
    returns = improve(likelihood, lambda a: -(a[:, 0] - target).square().sum(-1), updates=12, n=256, lr=3e-3)
    assert returns[-1] > 0.5 * returns[0]
