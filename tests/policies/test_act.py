"""ACT: the loss by hand, what the latent is in training and when acting, two modes, and settings."""

from __future__ import annotations

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, NetSizes, Observed
from visuomotor.policies.conditioned import ConditionedNet
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.act import ActConfig, ActHead
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP

SIZES = ChunkSizes(action_dim=2, horizon=4, n_obs=2, feature_dim=3)


class _Net:
    """What the head is given, and a record of what it asks."""

    def __init__(self, features, function):
        self.seen, self._function, self.inputs = Observed(features), function, []

    def __call__(self, x, t):
        self.inputs.append((x, t))
        return self._function(x, t)


def _head(**settings):
    torch.manual_seed(0)
    return ActHead(ActConfig(**{"latent_dim": 3, "width": 16, "dropout": 0.0, **settings}), SIZES)


def _zeros(x, t):
    return x.new_zeros(*x.shape[:2], 2)


def _posterior(head, mean, log_variance):
    """Make the posterior the same for every chunk."""
    torch.nn.init.zeros_(head.posterior.out.weight)
    with torch.no_grad():
        head.posterior.out.bias.copy_(torch.tensor([*mean, *log_variance]))


def test_loss_by_hand():
    # KL of N(1, e^0) and N(0, e^1) from N(0, 1): 0.5 * (1 + 1 - 1 - 0) = 0.5 and 0.5 * (0 + e - 1 - 1) = 0.359141.
    head = _head(kl_weight=10.0)
    _posterior(head, mean=[1.0, 0.0, 0.0], log_variance=[0.0, 1.0, 0.0])
    action = torch.tensor([[[1.0, -3.0], [0.0, 2.0], [0.0, 0.0], [4.0, 4.0]]])
    loss = head.loss(_Net(torch.zeros(1, 2, 3), _zeros), action, Draws(0))
    kl = 0.5 + 0.5 * (torch.e - 2.0)
    assert loss[0].tolist() == pytest.approx([2 + 10 * kl, 1 + 10 * kl, 10 * kl, 4 + 10 * kl], rel=1e-5)


def test_the_latent_of_training_is_drawn_from_the_posterior():
    head = _head()
    _posterior(head, mean=[1.0, 0.0, -2.0], log_variance=[-2.0, -2.0, -2.0])
    net = _Net(torch.zeros(4000, 2, 3), _zeros)
    head.loss(net, torch.zeros(4000, 4, 2), Draws(0))
    ((latent, t),) = net.inputs
    assert latent.shape == (4000, 4, 3)
    assert torch.equal(latent[:, 0], latent[:, 3])  # one latent a chunk
    assert (t == 0).all()
    assert latent[:, 0].mean(0).tolist() == pytest.approx([1.0, 0.0, -2.0], abs=0.03)
    assert latent[:, 0].std(0).tolist() == pytest.approx([0.3679] * 3, rel=0.05)  # exp(-1)


def test_the_posterior_starts_as_the_standard_normal_and_sees_every_action():
    head = _head()
    features, action = torch.randn(5, 3), torch.randn(5, 4, 2)
    assert all(float(v.detach().abs().max()) == 0 for v in head.posterior(features, action))
    torch.nn.init.normal_(head.posterior.out.weight)
    mean = head.posterior(features, action)[0].detach()
    assert (mean - head.posterior(features + 1, action)[0]).abs().max() > 1e-4
    for step in range(4):
        changed = action.clone()
        changed[:, step] += 1
        assert (mean - head.posterior(features, changed)[0]).abs().max() > 1e-4
    swapped = head.posterior(features, action.flip(1))[0]
    assert (mean - swapped).abs().max() > 1e-4  # the order of the actions counts


def test_evaluation_has_the_loss_of_training():
    head = _head()
    torch.nn.init.normal_(head.posterior.out.weight)
    net, action = _Net(torch.randn(6, 2, 3), _zeros), torch.randn(6, 4, 2)
    training, evaluation = (head.train(mode).loss(net, action, Draws(3)).detach() for mode in (True, False))
    assert torch.allclose(training, evaluation, atol=1e-5)


def test_acting_uses_the_mean_unless_asked_to_draw():
    net = _Net(torch.zeros(2, 2, 3), _zeros)
    noise = torch.arange(16.0).view(2, 1, 4, 2)
    _head().sample(net, noise)
    assert not net.inputs[-1][0].any()
    _head(sample_latent=True).sample(net, noise)
    assert net.inputs[-1][0][:, 0].tolist() == [[0, 1, 2], [8, 9, 10]]


@pytest.mark.parametrize(("latent", "drawn", "count"), [(32, False, 1), (8, True, 1), (9, True, 2), (32, True, 4)])
def test_the_noise_is_large_enough_for_the_latent(latent, drawn, count):
    head = _head(latent_dim=latent, sample_latent=drawn)  # a chunk of noise has 4 * 2 values
    assert head.noise_count() == count
    net = _Net(torch.zeros(1, 2, 3), _zeros)
    head.sample(net, torch.ones(1, count, 4, 2))
    assert net.inputs[0][0].shape == (1, 4, latent)


def test_two_modes_need_a_drawn_latent():
    """Chunks are all +1 or all -1. With a drawn latent both come back; the latent's mean gives one chunk for all."""
    torch.manual_seed(0)
    head = ActHead(ActConfig(latent_dim=2, kl_weight=0.02, width=16, dropout=0.0, sample_latent=True), SIZES)
    net = ResidualMLP(
        MLPConfig(width=32, depth=1, dropout=0.0),
        NetSizes(input_dim=2, output_dim=2, horizon=4, n_obs=2, feature_dim=3),
    )
    optimizer = torch.optim.Adam([*head.parameters(), *net.parameters()], lr=5e-3)
    seen = Observed(torch.zeros(32, 2, 3))
    for step in range(150):
        sign = (torch.arange(32) % 2 * 2 - 1.0)[:, None, None]
        loss = head.loss(ConditionedNet(net, head, seen), sign.expand(-1, 4, 2), Draws(0, step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        out = head.sample(ConditionedNet(net, head, seen), Draws(1).normal((32, 1, 4, 2)))
    modes = out.mean((1, 2))
    assert (out.sub(modes[:, None, None].sign()).abs().mean((1, 2)) < 0.3).float().mean() > 0.8
    assert 0.25 < float((modes > 0).float().mean()) < 0.75


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"latent_dim": 0}, "latent_dim=0"),
        ({"width": 30}, r"width=30.*attention_heads=4"),
        ({"width": 3, "attention_heads": 1}, "width=3"),
        ({"kl_weight": -1.0}, "kl_weight=-1"),
        ({"dropout": 1.0}, "dropout=1"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=says):
        ActConfig(**settings)
