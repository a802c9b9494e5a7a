"""The Gaussian head against torch.distributions, its entropy, and the optimum of its loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, Observed
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gaussian import ChunkGaussian, GaussianConfig, GaussianHead, bounded_std

SIZES = ChunkSizes(action_dim=2, horizon=3, n_obs=1, feature_dim=1)


def test_density_and_entropy_are_those_of_a_gaussian():
    mean, std, action = torch.randn(4, 3, 2), torch.rand(4, 3, 2) + 0.1, torch.randn(4, 3, 2)
    found, known = ChunkGaussian(mean, std), Normal(mean, std)
    assert torch.allclose(found.log_prob(action), known.log_prob(action), atol=1e-5)
    assert torch.allclose(found.entropy(), known.entropy(), atol=1e-6)


def test_squashed_density_is_that_of_the_actions():
    mean, std = torch.tensor(0.4), torch.tensor(0.7)
    action = torch.linspace(-0.998, 0.998, 20_001)
    found = ChunkGaussian(mean, std, squash=True).log_prob(action)
    known = TransformedDistribution(Normal(mean, std), TanhTransform()).log_prob(action)
    assert torch.allclose(found, known, atol=2e-3)
    assert float(torch.trapezoid(found.exp(), action)) == pytest.approx(1.0, abs=5e-3)
    at_the_edge = ChunkGaussian(mean, std, squash=True).log_prob(torch.tensor([-1.0, 1.0]))
    assert torch.isfinite(at_the_edge).all()


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_loss_is_least_at_the_mean_and_spread_of_the_data(beta, function_net):
    head = GaussianHead(GaussianConfig(beta=beta), SIZES)
    data = 0.3 + 0.2 * torch.randn(512, 3, 2, generator=torch.Generator().manual_seed(0))
    free = torch.zeros(3, 4, requires_grad=True)  # what the network would output, learned directly
    optimizer = torch.optim.Adam([free], lr=0.05)
    net = function_net(lambda x, t: free.expand(len(x), 3, 4))
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(net, data, Draws(0)).mean().backward()
        optimizer.step()
    found = head.distribution(net)
    assert torch.allclose(found.mean[0], data.mean(0), atol=1e-3)
    assert torch.allclose(found.std[0], data.std(0, correction=0), rtol=1e-2)
    if not beta:  # the least negative log-likelihood is the entropy
        loss = head.loss(net, data, Draws(0)).mean()
        assert loss.item() == pytest.approx(found.entropy().mean().item(), abs=1e-3)


def test_beta_weights_by_the_variance_without_a_gradient(function_net):
    out = torch.tensor([0.1, -0.2, 0.5, -0.5]).expand(1, 3, 4)
    net = function_net(lambda x, t: out.expand(len(x), 3, 4))
    action = torch.rand(2, 3, 2)
    plain = GaussianHead(GaussianConfig(beta=0.0), SIZES)
    std = plain.distribution(net).std
    expected = (-plain.distribution(net).log_prob(action) * std).mean(-1)  # std^(2 * 0.5)
    found = GaussianHead(GaussianConfig(beta=0.5), SIZES).loss(net, action, Draws(0))
    assert torch.allclose(found, expected)


def test_spread_stays_between_its_bounds_and_starts_where_it_is_told():
    raw = torch.tensor([-1e4, -3.0, 0.0, 3.0, 1e4])
    std = bounded_std(raw, low=0.01, init=0.2, high=2.0)
    assert std[[0, 2, 4]].tolist() == pytest.approx([0.01, 0.2, 2.0])
    assert (std.diff() > 0).all()


def test_sampling_by_hand(function_net):
    noise = torch.randn(1, 1, 3, 2)
    out = torch.cat([torch.full((1, 3, 2), 0.25), torch.zeros(1, 3, 2)], dim=-1)
    net = function_net(lambda x, t: out)
    noisy = GaussianHead(GaussianConfig(temperature=0.5, std_init=0.3), SIZES)
    assert torch.allclose(noisy.sample(net, noise), 0.25 + 0.5 * 0.3 * noise[:, 0])
    assert noisy.noise_count() == 1
    mean = GaussianHead(GaussianConfig(), SIZES)
    assert mean.noise_count() == 0
    assert torch.equal(mean.sample(net, torch.empty(1, 0, 3, 2)), torch.full((1, 3, 2), 0.25))
    squashed = GaussianHead(GaussianConfig(squash=True), SIZES)
    assert torch.allclose(squashed.sample(net, torch.empty(1, 0, 3, 2)), torch.full((1, 3, 2), math.tanh(0.25)))


def test_a_learned_constant_spread_is_a_parameter_of_the_head(function_net):
    head = GaussianHead(GaussianConfig(std_from_obs=False, std_init=0.3), SIZES)
    assert head.output_dim == 2
    net = function_net(lambda x, t: torch.zeros_like(x))
    head.loss(net, torch.full((4, 3, 2), 0.9), Draws(0)).mean().backward()
    (raw,) = head.parameters()
    assert raw.shape == (3, 2)
    assert raw.grad is not None
    assert bool((raw.grad < 0).all())  # errors of 0.9 are larger than 0.3: descent widens the spread
    assert torch.allclose(head.distribution(net).std, torch.tensor(0.3))


def test_uncertainty_is_the_negative_log_likelihood_of_the_chunk(function_net):
    head = GaussianHead(GaussianConfig(std_init=0.5), SIZES)
    net = function_net(lambda x, t: torch.zeros(len(x), 3, 4))
    net.seen = Observed(torch.zeros(2, 1, 1))
    action = torch.stack([torch.zeros(3, 2), torch.ones(3, 2)])
    at_mean = 6 * math.log(0.5 * math.sqrt(2 * math.pi))
    assert head.uncertainty(net, action).tolist() == pytest.approx([at_mean, at_mean + 6 * 0.5 / 0.25], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"std_min": 0.0}, "0 < std_min"),
        ({"std_init": 5.0}, r"std_init=5\.0, std_max=1\.5"),
        ({"temperature": -1.0}, r"temperature=-1\.0"),
        ({"beta": 2.0}, r"beta=2\.0.*\[0, 1\]"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=says):
        GaussianConfig(**settings)
