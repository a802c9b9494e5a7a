"""Shortcut models: targets by hand, the exact network of a Gaussian, learning, refusals."""

from __future__ import annotations

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Backbone, ChunkSizes, NetSizes, Observed
from visuomotor.policies.conditioned import ConditionedNet
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.shortcut import ShortcutConfig, ShortcutHead
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP
from visuomotor.policies.nets.unet1d import ConditionalUnet1d, UnetConfig

MEAN, STD = 0.2, 0.3


def _head(action_dim=1, horizon=1, **settings):
    sizes = ChunkSizes(action_dim=action_dim, horizon=horizon, n_obs=2, feature_dim=5)
    return ShortcutHead(ShortcutConfig(**{"clip": None, **settings}), sizes)


def _exact(prediction):
    """For clean ~ N(MEAN, STD^2) the flow keeps the rank; a step of 0 is the velocity itself."""

    def spread(t):
        return ((1 - t) ** 2 * STD**2 + t**2).sqrt()

    def net(x, times):
        t, step = times[:, :1, None], times[:, 1:, None]
        r = t - step
        end = (1 - r) * MEAN + spread(r) / spread(t) * (x - (1 - t) * MEAN)
        now = x - MEAN - (1 - t) * STD**2 / spread(t) ** 2 * (x - (1 - t) * MEAN)
        u = torch.where(step > 0, (x - end) / step.clamp_min(1e-6), now / t)
        return x - t * u if prediction == "sample" else u

    return net


@pytest.mark.parametrize("prediction", ["sample", "velocity"])
def test_two_halves_of_a_jump_by_hand(prediction, function_net):
    # The net says that the average velocity is x: from x = 8 a jump of 1/4 leads to 6, the next to 4.5.
    head = _head(prediction=prediction, max_steps=16)
    told = []

    def net(x, times):
        told.append(times[0].tolist())
        return x - times[:, :1, None] * x if prediction == "sample" else x

    target = head._two_jumps(function_net(net), torch.full((1, 1, 1), 8.0), torch.tensor([1.0]), torch.tensor([0.5]))
    average = (8.0 - 4.5) / 0.5
    assert float(target) == pytest.approx(8.0 - average if prediction == "sample" else average)
    assert told == [[1.0, 0.25], [0.75, 0.25]]


def test_the_shortest_jump_is_told_as_an_instant(function_net):
    told = []

    def net(x, times):
        told.append(times[0].tolist())
        return x

    head = _head(max_steps=4)
    head._two_jumps(function_net(net), torch.zeros(1, 1, 1), torch.tensor([0.5]), torch.tensor([0.5]))
    assert told == [[0.5, 0.0], [0.25, 0.0]]
    told.clear()
    head.set_solver(steps=4)
    head.sample(function_net(net), torch.zeros(1, 1, 1, 1))
    assert told == [[1.0, 0.0], [0.75, 0.0], [0.5, 0.0], [0.25, 0.0]]
    told.clear()
    head.set_solver(steps=1)
    head.sample(function_net(net), torch.zeros(1, 1, 1, 1))
    assert told == [[1.0, 1.0]]  # one evaluation


@pytest.mark.parametrize("prediction", ["sample", "velocity"])
def test_the_exact_network_of_a_gaussian_agrees_with_itself(prediction, function_net):
    head, net = _head(prediction=prediction), _exact(prediction)
    x = torch.randn(200, 1, 1, generator=torch.Generator().manual_seed(0))
    for step in (1.0, 0.5, 0.25):
        t = torch.full((200,), 1.0)
        target = head._two_jumps(function_net(net), x, t, torch.full((200,), step))
        assert torch.allclose(target, net(x, torch.tensor([[1.0, step]]).expand(200, 2)), atol=1e-4)
    noise = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    for steps in (1, 2, 8):
        head.set_solver(steps=steps)
        out = head.sample(function_net(net), noise)
        assert torch.allclose(out, MEAN + STD * noise[:, 0], atol=1e-3)


@pytest.mark.parametrize("prediction", ["sample", "velocity"])
def test_the_loss_is_stationary_at_the_exact_network_and_only_there(prediction, function_net):
    head = _head(prediction=prediction, max_steps=128)
    action = MEAN + STD * torch.randn(40_000, 1, 1, generator=torch.Generator().manual_seed(0))
    gradients = []
    for a in (0.0, 0.3):
        weight = torch.tensor(a, requires_grad=True)
        net = function_net(lambda x, t, w=weight: _exact(prediction)(x, t) + w * (t[:, :1, None] - 0.2))
        (gradient,) = torch.autograd.grad(head.loss(net, action, Draws(1)).mean(), weight)
        gradients.append(abs(float(gradient)))
    assert gradients[0] < 0.02
    assert gradients[1] > 3 * gradients[0]


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_every_backbone_trains_in_bf16_and_as_ranks_do(name):
    sizes = NetSizes(input_dim=3, output_dim=3, horizon=8, n_obs=2, feature_dim=5, n_times=2)
    torch.manual_seed(0)
    net: Backbone
    if name == "mlp":
        net = ResidualMLP(MLPConfig(width=32, depth=2, dropout=0.0), sizes)
    else:
        net = ConditionalUnet1d(UnetConfig(dims=[16, 32], groups=4), sizes)
    head = _head(3, 8, flow_ratio=0.5)
    features, action = torch.randn(8, 2, 5), torch.randn(8, 8, 3)

    def loss(rows, **ranks):
        return head.loss(ConditionedNet(net, head, Observed(features[rows])), action[rows], Draws(7, **ranks))

    whole = loss(slice(0, 8))
    for rank in range(2):
        part = loss(slice(4 * rank, 4 * rank + 4), rank=rank, world_size=2)
        assert torch.allclose(part, whole[4 * rank : 4 * rank + 4], atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        loss16 = loss(slice(0, 8))
    assert torch.allclose(loss16, whole, rtol=0.1, atol=0.1)
    loss16.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    order, noise = torch.tensor([2, 0, 1]), torch.randn(3, 1, 8, 3)
    with torch.no_grad():
        out = head.sample(ConditionedNet(net, head, Observed(features[:3])), noise)
        moved = head.sample(ConditionedNet(net, head, Observed(features[order])), noise[order])
    assert torch.allclose(moved, out[order], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_steps": 12}, "power of two"),
        ({"max_steps": 1}, "power of two"),
        ({"sample_steps": 3}, r"sample_steps=3.*power of two"),
        ({"sample_steps": 32}, r"at most max_steps = 16"),
        ({"flow_ratio": 0.0}, "nothing is learnt from the data"),
        ({"flow_ratio": 1.0}, "no jumps"),
        ({"prediction": "noise"}, "unknown prediction"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=says):
        ShortcutConfig(**settings)


def test_steps_that_were_not_trained_are_refused():
    with pytest.raises(ConfigError, match="power of two"):
        _head().set_solver(steps=5)
