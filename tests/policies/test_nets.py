"""Backbones: shapes, dependence on every input, and refusals."""

from __future__ import annotations

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, NetSizes, Observed
from visuomotor.policies.conditioned import ConditionedNet
from visuomotor.policies.heads.diffusion import DiffusionConfig, DiffusionHead
from visuomotor.policies.nets.embedding import SinusoidalEmbedding
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP
from visuomotor.policies.nets.unet1d import ConditionalUnet1d, UnetConfig


def _unet(dims=(16, 32, 64), groups=4, horizon=16):
    config = UnetConfig(dims=list(dims), groups=groups)
    return ConditionalUnet1d(config, NetSizes(input_dim=3, output_dim=3, horizon=horizon, n_obs=2, feature_dim=5))


def _mlp():
    config = MLPConfig(width=32, depth=2, dropout=0.0)
    return ResidualMLP(config, NetSizes(input_dim=3, output_dim=3, horizon=16, n_obs=2, feature_dim=5))


@pytest.mark.parametrize("build", [_mlp, _unet])
def test_output_has_the_shape_of_the_chunk_and_depends_on_all_inputs(build):
    torch.manual_seed(0)
    net = build()
    for p in net.parameters():  # blocks start as the identity: give every weight something to do
        torch.nn.init.normal_(p, std=0.2)
    x, t, features = torch.randn(4, 16, 3), torch.tensor([0, 10, 50, 99]), torch.randn(4, 2, 5)
    out = net(x, t, net.condition(Observed(features)))
    assert out.shape == (4, 16, 3)
    for changed in (
        net(x + 1, t, net.condition(Observed(features))),
        net(x, t + 1, net.condition(Observed(features))),
        net(x, t, net.condition(Observed(features + 1))),
    ):
        assert float((changed - out).detach().abs().min(dim=0).values.max()) > 0
    one = net(x[1:2], t[1:2], net.condition(Observed(features[1:2])))
    assert torch.allclose(one, out[1:2], atol=1e-5)  # a row does not depend on its neighbours


def test_every_parameter_of_the_unet_gets_a_gradient():
    net = _unet()
    net(
        torch.randn(2, 16, 3), torch.tensor([1, 2]), net.condition(Observed(torch.randn(2, 2, 5)))
    ).square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("dims", [[32], [32, 64], [16, 32, 64, 128]])
def test_unet_of_any_depth(dims):
    net = _unet(dims, groups=8)
    assert net(torch.randn(2, 16, 3), torch.zeros(2), net.condition(Observed(torch.randn(2, 2, 5)))).shape == (2, 16, 3)


def test_unet_refuses_a_horizon_it_cannot_halve():
    with pytest.raises(ConfigError, match=r"horizon 10.*multiple of 4"):
        _unet(horizon=10)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"dims": []}, "empty"), ({"dims": [60]}, r"\[60\].*groups = 8"), ({"kernel_size": 4}, "even")],
)
def test_unet_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=says):
        UnetConfig(**settings)


def test_sinusoids_by_hand():
    embed = SinusoidalEmbedding(4, max_period=100.0)  # frequencies 1 and 1/100
    expected = [0.8414710, 0.0099998, 0.5403023, 0.9999500]  # sin 1, sin 0.01, cos 1, cos 0.01
    assert embed(torch.tensor([1.0]))[0].tolist() == pytest.approx(expected, abs=1e-6)
    scaled = SinusoidalEmbedding(4, scale=100.0, max_period=100.0)
    assert torch.allclose(scaled(torch.tensor([0.01])), embed(torch.tensor([1.0])), atol=1e-6)


@pytest.mark.parametrize("build", [_mlp, _unet])
def test_a_grid_of_times_gives_what_single_times_give(build):
    torch.manual_seed(0)
    net = build().requires_grad_(False)
    head = DiffusionHead(DiffusionConfig(), ChunkSizes(action_dim=3, horizon=16, n_obs=2, feature_dim=5))
    bound = ConditionedNet(net, head, Observed(torch.randn(3, 2, 5)))
    x, times = torch.randn(3, 16, 3), torch.tensor([99, 50, 0])
    for t, at_t in zip(times, bound.at(times), strict=True):
        assert torch.allclose(at_t(x), bound(x, t.expand(3)), atol=1e-5)
