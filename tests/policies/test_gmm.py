"""The mixture head against torch.distributions, its decomposition over the steps, and how a mode is drawn."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, Observed
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gaussian import ChunkGaussian
from visuomotor.policies.heads.gmm import ChunkMixture, GMMConfig, GMMHead

SIZES = ChunkSizes(action_dim=2, horizon=3, n_obs=1, feature_dim=1)


def _mixture(k=4, batch=5):
    g = torch.Generator().manual_seed(0)
    weight = torch.log_softmax(torch.randn(batch, k, generator=g), -1)
    mean, std = torch.randn(batch, k, 3, 2, generator=g), torch.rand(batch, k, 3, 2, generator=g) + 0.2
    return ChunkMixture(weight, mean, std), torch.randn(batch, 3, 2, generator=g)


def _known(m: ChunkMixture, steps: int) -> MixtureSameFamily:
    parts = Independent(Normal(m.mean[:, :, :steps], m.std[:, :, :steps]), 2)
    return MixtureSameFamily(Categorical(logits=m.log_weight), parts)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_first_steps_sum_to_their_own_density(steps):
    mixture, action = _mixture()
    found = mixture.log_prob(action)[:, :steps].sum(1)
    assert torch.allclose(found, _known(mixture, steps).log_prob(action[:, :steps]), atol=1e-4)


def test_one_mode_is_a_gaussian():
    mixture, action = _mixture(k=1)
    known = ChunkGaussian(mixture.mean[:, 0], mixture.std[:, 0]).log_prob(action).sum(-1)
    assert torch.allclose(mixture.log_prob(action), known, atol=1e-4)


def test_an_absurd_action_has_a_finite_density_and_gradient():
    mixture, action = _mixture()
    mean = mixture.mean.clone().requires_grad_()
    log_prob = ChunkMixture(mixture.log_weight, mean, torch.full_like(mean, 1e-2)).log_prob(action + 100)
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(mean.grad).all()


def test_a_mode_is_drawn_by_the_inverse_of_the_cumulative_weights():
    weight = torch.tensor([0.2, 0.5, 0.3]).log().expand(6, 3)
    mixture = ChunkMixture(weight, torch.zeros(6, 3, 1, 1), torch.ones(6, 3, 1, 1))
    assert mixture.pick(torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1.0])).tolist() == [0, 0, 1, 1, 2, 2]


def test_modes_are_sampled_by_their_weights_and_for_the_whole_chunk(function_net):
    # Weights 1/4 and 3/4 over means -1 and 1: logits 0 and log 3.
    head = GMMHead(GMMConfig(modes=2), SIZES)
    row = torch.cat(
        [torch.tensor([3.0]).log() * torch.tensor([0.0, 1.0]), torch.tensor([-1.0, -1, 1, 1]), torch.zeros(4)]
    )
    net = function_net(lambda x, t: row.expand(len(x), 3, -1))
    out = head.sample(net, torch.randn(4000, 1, 3, 2, generator=torch.Generator().manual_seed(0)))
    assert float((out == 1).all(2).all(1).float().mean()) == pytest.approx(0.75, abs=0.03)
    assert (out == out[:, :1, :1]).all()
    assert head.noise_count() == 1
    # Weights are pooled over the steps.
    slope = torch.tensor([-1.0, 0.0, 1.0])[None, :, None]
    tilted = function_net(lambda x, t: row + torch.cat([slope, slope, torch.zeros(1, 3, 8)], dim=-1))
    assert torch.allclose(head.distribution(tilted).log_weight.exp(), torch.tensor([[0.25, 0.75]]))


def test_temperature_adds_the_spread_of_the_mode(function_net):
    head = GMMHead(GMMConfig(modes=1, temperature=0.5, std_init=0.4), SIZES)
    noise = torch.randn(2, head.noise_count(), 3, 2)
    assert noise.shape[1] == 2
    out = head.sample(function_net(lambda x, t: torch.zeros(len(x), 3, 5)), noise)
    assert torch.allclose(out, 0.5 * 0.4 * noise[:, 1])


def test_loss_and_uncertainty_are_negative_log_likelihoods(function_net):
    head = GMMHead(GMMConfig(modes=3), SIZES)
    out = torch.randn(4, 3, 15, generator=torch.Generator().manual_seed(1))
    net = function_net(lambda x, t: out)
    net.seen = Observed(torch.zeros(4, 1, 1))
    action = torch.rand(4, 3, 2)
    known = _known(head.distribution(net), 3).log_prob(action)
    assert torch.allclose(head.uncertainty(net, action), -known, atol=1e-4)
    assert torch.allclose(head.loss(net, action, Draws(0)).sum(1), -known / 2, atol=1e-4)


def test_the_least_loss_of_gaussian_data_is_its_entropy(function_net):
    head = GMMHead(GMMConfig(modes=1), SIZES)
    data = 0.3 + 0.2 * torch.randn(2048, 3, 2, generator=torch.Generator().manual_seed(0))
    free = torch.zeros(3, 5, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=0.05)
    net = function_net(lambda x, t: free.expand(len(x), 3, 5))
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(net, data, Draws(0)).mean().backward()
        optimizer.step()
    entropy = float(Normal(0.0, 0.2).entropy())
    assert head.loss(net, data, Draws(0)).mean().item() == pytest.approx(entropy, abs=0.02)
    assert torch.allclose(head.distribution(net).mean[0, 0], data.mean(0), atol=2e-3)


@pytest.mark.parametrize(
    ("settings", "says"), [({"modes": 0}, "modes=0"), ({"std_min": 1.0}, r"std_min=1\.0, std_init=0\.5")]
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=says):
        GMMConfig(**settings)
