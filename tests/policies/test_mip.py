"""MIP: loss by hand, its optimum for a Gaussian target, and the two passes of sampling."""

from __future__ import annotations

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.mip import MIPConfig, MIPHead

SIZES = ChunkSizes(action_dim=1, horizon=2, n_obs=1, feature_dim=1)


def test_loss_by_hand(function_net):
    # t = 0.8 weights the first pass 1 / 0.64 and the second 1 / 0.04: shares 1 / 17 and 16 / 17.
    head = MIPHead(MIPConfig(second_time=0.8), SIZES)
    action = torch.tensor([[[1.0], [2.0]]])
    net = function_net(lambda x, t: torch.where(t.view(-1, 1, 1) > 0, 1.0, 0.0).expand_as(x))
    loss = head.loss(net, action, Draws(0))
    assert loss[0].tolist() == pytest.approx([1 / 17, 4 / 17 + 16 / 17])


def test_the_second_pass_sees_the_action_with_noise_of_the_stated_size(function_net):
    head = MIPHead(MIPConfig(), SIZES)
    seen = {}

    def net(x, t):
        seen[round(float(t[0]), 3)] = x
        return x

    head.loss(function_net(net), torch.full((4000, 2, 1), 0.5), Draws(0))
    assert set(seen) == {0.0, 0.9}
    assert float(seen[0.0].abs().max()) == 0.0
    assert float(seen[0.9].mean()) == pytest.approx(0.5, abs=0.005)
    assert float(seen[0.9].std()) == pytest.approx(0.1, rel=0.03)


def test_optimum_of_a_gaussian_target(function_net):
    # a ~ N(m, s^2). Best first pass: m, error s^2. Best second pass: the posterior mean, error s^2 n^2 / (s^2 + n^2).
    m, s, n = 0.3, 0.2, 0.1
    head = MIPHead(MIPConfig(), SIZES)
    action = m + s * torch.randn(20_000, 2, 1, generator=torch.Generator().manual_seed(0))

    def best(x, t):
        return torch.where(t.view(-1, 1, 1) > 0, m + s**2 / (s**2 + n**2) * (x - m), torch.full_like(x, m))

    first, second = 1 / 0.9**2, 1 / 0.1**2
    expected = (first * s**2 + second * s**2 * n**2 / (s**2 + n**2)) / (first + second)
    assert float(head.loss(function_net(best), action, Draws(1)).mean()) == pytest.approx(expected, rel=0.02)
    worse = function_net(lambda x, t: best(x, t) + 0.02)
    assert float(head.loss(worse, action, Draws(1)).mean()) == pytest.approx(expected + 0.02**2, rel=0.03)
    assert torch.allclose(head.sample(function_net(best), torch.empty(3, 0, 2, 1)), torch.full((3, 2, 1), m))


def test_sample_feeds_the_first_answer_to_the_second_pass(function_net):
    head = MIPHead(MIPConfig(), SIZES)
    net = function_net(lambda x, t: torch.where(t.view(-1, 1, 1) > 0, 10 * x + 1, x + 2))
    assert head.noise_count() == 0
    assert head.sample(net, torch.empty(1, 0, 2, 1)).flatten().tolist() == [21.0, 21.0]


@pytest.mark.parametrize("t", [0.0, 1.0, -0.5])
def test_settings_are_checked(t):
    with pytest.raises(ConfigError, match=r"second_time=.*\(0, 1\)"):
        MIPConfig(second_time=t)
