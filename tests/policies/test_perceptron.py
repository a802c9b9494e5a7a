"""The plain perceptron: observations in, chunk out, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, NetSizes, Observed
from visuomotor.policies.conditioned import ConditionedNet
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.heads.gaussian import GaussianConfig, GaussianHead
from visuomotor.policies.nets.perceptron import Perceptron, PerceptronConfig
from visuomotor.policies.policy import LossConfig, Policy

SIZES = NetSizes(input_dim=2, output_dim=2, horizon=3, n_obs=2, feature_dim=4)


def test_only_the_observations_decide() -> None:
    net, features = Perceptron(PerceptronConfig(out_gain=1.0), SIZES), torch.randn(5, 2, 4)
    head = GaussianHead(GaussianConfig(), ChunkSizes(action_dim=2, horizon=3, n_obs=2, feature_dim=4))
    bound = ConditionedNet(net, head, Observed(features))
    out = bound(torch.randn(5, 3, 2), torch.rand(5))
    assert out.shape == (5, 3, 2)
    torch.testing.assert_close(bound.at(torch.zeros(1))[0](torch.zeros(5, 3, 2)), out, rtol=0, atol=0)
    other = ConditionedNet(net, head, Observed(features.flip(0)))
    torch.testing.assert_close(other(torch.zeros(5, 3, 2), torch.zeros(5)), out.flip(0))


def test_it_begins_with_orthogonal_weights_and_a_small_answer() -> None:
    net = Perceptron(PerceptronConfig(width=16), SIZES)
    weight = net.hidden[2].get_parameter("weight")
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(16), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        out = net(torch.zeros(8, 3, 2), torch.zeros(8), net.condition(Observed(torch.randn(8, 2, 4))))
    assert float(out.abs().max()) < 0.1


@pytest.mark.parametrize(
    "settings", [{"width": 4}, {"depth": 0}, {"activation": "tahn"}, {"out_gain": 0.0}], ids=lambda s: next(iter(s))
)
def test_senseless_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="backbone perceptron"):
        PerceptronConfig(**settings)


def test_a_head_that_needs_a_chunk_is_refused(make_policy: Callable[..., tuple[Policy, Any]]) -> None:
    policy, _ = make_policy()
    assert isinstance(policy.encoder, ObservationEncoder)
    sizes = {"horizon": policy.spec.window.horizon, "n_obs": policy.spec.window.n_obs}
    net = Perceptron(
        PerceptronConfig(), NetSizes(input_dim=2, output_dim=2, feature_dim=policy.encoder.feature_dim, **sizes)
    )
    parts: dict[str, Any] = {"encoder": policy.encoder, "backbone": net, "normalizer": policy.normalizer}
    with pytest.raises(ConfigError, match="DiffusionHead needs a network that sees a chunk"):
        Policy(policy.spec, head=policy.head, **parts)
    gaussian = GaussianHead(
        GaussianConfig(std_from_obs=False),
        ChunkSizes(action_dim=2, feature_dim=policy.encoder.feature_dim, **sizes),
    )
    Policy(policy.spec, head=gaussian, **parts)
    with pytest.raises(ConfigError, match=r"loss\.max_delay needs a network"):
        Policy(policy.spec, head=gaussian, loss=LossConfig(max_delay=2), **parts)
