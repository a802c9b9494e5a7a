"""MeanFlow: the identity on analytic flows, derivatives by hand, collapse, backbones, determinism, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Backbone, ChunkSizes, NetSizes, Observed
from visuomotor.policies.conditioned import ConditionedNet, Prefix
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.average_velocity import spread_rows
from visuomotor.policies.heads.dispersive import DispersiveConfig, dispersive_loss
from visuomotor.policies.heads.meanflow import MeanFlowConfig, MeanFlowHead
from visuomotor.policies.heads.times import TimeConfig
from visuomotor.policies.nets.dit import DiT, DiTConfig
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP
from visuomotor.policies.nets.transformer import Transformer, TransformerConfig
from visuomotor.policies.nets.unet1d import ConditionalUnet1d, UnetConfig

CPU = torch.device("cpu")
MEAN, STD = 0.2, 0.3
EACH = [(p, d) for p in ("sample", "velocity") for d in ("jvp", "difference")]


def _head(action_dim=1, horizon=1, **settings):
    sizes = ChunkSizes(action_dim=action_dim, horizon=horizon, n_obs=2, feature_dim=5)
    return MeanFlowHead(MeanFlowConfig(**{"clip": None, "adaptive_power": 0.0, **settings}), sizes)


def _spread(t):
    return ((1 - t) ** 2 * STD**2 + t**2).sqrt()  # of x_t for clean ~ N(MEAN, STD^2)


def _exact(prediction):
    """What MeanFlow should find for a Gaussian, whose flow keeps the rank: x_r = m_r + S_r / S_t (x - m_t)."""

    def net(x, times):
        t, step = times[:, :1, None], times[:, 1:, None].clamp_min(1e-3)
        r = t - step
        end = (1 - r) * MEAN + _spread(r) / _spread(t) * (x - (1 - t) * MEAN)
        u = (x - end) / step
        return x - t * u if prediction == "sample" else u

    return net


def _expected(x, t):
    """The expected clean chunk and velocity at x, and so the velocity of the flow there."""
    clean = MEAN + (1 - t) * STD**2 / _spread(t) ** 2 * (x - (1 - t) * MEAN)
    return clean, (x - clean) / t


@pytest.mark.parametrize(("prediction", "derivative"), EACH)
def test_the_average_velocity_of_a_gaussian_is_its_own_target(prediction, derivative, function_net):
    head = _head(prediction=prediction, derivative=derivative)
    g = torch.Generator().manual_seed(0)
    t = 0.3 + 0.7 * torch.rand(500, generator=g)
    times = torch.stack([t, (0.1 + 0.9 * torch.rand(500, generator=g)) * t], 1).double()  # (t, t - r)
    x = torch.randn(500, 1, 1, generator=g).double()
    clean, velocity = _expected(x, times[:, :1, None])
    net = function_net(_exact(prediction))
    out = net(x, times)
    target = head.target(net, out, x, times, clean, velocity)
    assert float((target - out).abs().max()) < {"jvp": 1e-6, "difference": 1e-3}[derivative]
    wrong = head.target(net, out + 0.1, x, times, clean, velocity + 0.1)
    assert float((wrong - out).abs().max()) > 0.05


@pytest.mark.parametrize(("prediction", "derivative"), EACH)
@pytest.mark.parametrize("tangent", ["data", "model"])
def test_the_loss_is_stationary_at_the_exact_network_and_only_there(prediction, derivative, tangent, function_net):
    # out = exact + a * direction: at a = 0 the gradient is 0 up to the noise of the draws, at a = 0.3 it is not.
    head = _head(prediction=prediction, derivative=derivative, tangent=tangent)
    action = MEAN + STD * torch.randn(40_000, 1, 1, generator=torch.Generator().manual_seed(0))
    for direction in (lambda x, t: torch.ones_like(x), lambda x, t: x * t[:, 1:, None]):
        gradients = []
        for a in (0.0, 0.3):
            weight = torch.tensor(a, requires_grad=True)
            net = function_net(lambda x, t, w=weight, d=direction: _exact(prediction)(x, t) + w * d(x, t))
            (gradient,) = torch.autograd.grad(head.loss(net, action, Draws(1)).mean(), weight)
            gradients.append(abs(float(gradient)))
        assert gradients[0] < 0.03
        assert gradients[1] > 3 * gradients[0]


@pytest.mark.parametrize("prediction", ["sample", "velocity"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_gaussian_is_sampled_with_its_mean_and_spread(prediction, steps, function_net):
    head = _head(prediction=prediction, sample_steps=steps)
    noise = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    out = head.sample(function_net(_exact(prediction)), noise)
    assert float(out.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(out.std()) == pytest.approx(STD, rel=0.02)
    assert torch.allclose(out, MEAN + STD * noise[:, 0], atol=2e-3)  # any number of jumps ends at the same place


def test_the_target_of_a_polynomial_by_hand(function_net):
    # net = x^2 + 3 t - (t - r) at x = 2, t = 0.8, t - r = 0.2, along v = 0.5: slope 2 * 2 * 0.5 + 3 - 1 = 4.
    net = function_net(lambda x, t: x**2 + 3 * t[:, :1, None] - t[:, 1:, None])
    x, times = torch.tensor([[[2.0]]]), torch.tensor([[0.8, 0.2]])
    clean, velocity = torch.tensor([[[1.0]]]), torch.tensor([[[0.5]]])
    out = net(x, times)  # 4 + 2.4 - 0.2 = 6.2
    for derivative in ("jvp", "difference"):
        u = _head(prediction="velocity", derivative=derivative).target(net, out, x, times, clean, velocity)
        assert float(u) == pytest.approx(0.5 - 0.2 * 4, abs=1e-3)
        sample = _head(prediction="sample", derivative=derivative).target(net, out, x, times, clean, velocity)
        assert float(sample) == pytest.approx(6.2 - 0.75 * (6.2 - 1.0) - 0.2 * 4, abs=1e-3)
    model = _head(prediction="velocity", tangent="model").target(net, out, x, times, clean, velocity)
    assert float(model) == pytest.approx(0.5 - 0.2 * (2 * 2 * 6.4 + 2), abs=1e-4)  # net(x, (0.8, 0)) = 6.4


def _backbone(name, dropout=0.2):
    sizes = NetSizes(input_dim=3, output_dim=3, horizon=8, n_obs=2, feature_dim=5, n_times=2)
    torch.manual_seed(0)
    net: Backbone
    if name == "mlp":
        net = ResidualMLP(MLPConfig(width=32, depth=2, dropout=dropout), sizes)
    elif name == "unet":
        net = ConditionalUnet1d(UnetConfig(dims=[16, 32], groups=4), sizes)
    elif name == "dit":
        net = DiT(DiTConfig(width=32, layers=2, dropout=dropout), sizes)
    else:
        net = Transformer(TransformerConfig(width=32, encoder_layers=1, decoder_layers=2, dropout=dropout), sizes)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return net


@pytest.mark.parametrize("name", ["mlp", "unet", "dit", "transformer"])
@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_bf16_autocast_leaves_the_derivative_in_float32(name, derivative):
    net = _backbone(name, dropout=0.0)
    head = _head(3, 8, derivative=derivative, dispersive=DispersiveConfig(weight=0.5))
    features, action = torch.randn(6, 2, 5), torch.randn(6, 8, 3)

    def target(dtype):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            bound = ConditionedNet(net, head, Observed(features))
            loss = head.loss(bound, action, Draws(0))
            sub = bound.rows(torch.arange(6))
            x, times = torch.randn(6, 8, 3, generator=torch.Generator().manual_seed(1)), torch.full((6, 2), 0.5)
            zero = torch.zeros_like(x)
            return loss, head.target(sub, zero, x, times, zero, torch.ones_like(x))

    (loss, exact), (loss16, under) = target(torch.float32), target(torch.bfloat16)
    assert loss.shape == loss16.shape == (6, 8)
    assert under.dtype == torch.float32
    assert torch.allclose(under, exact, atol=0.03 * float(exact.detach().abs().max()))
    loss16.mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", ["mlp", "unet", "dit", "transformer"])
def test_both_derivatives_agree_on_a_network(name):
    net = _backbone(name, dropout=0.0).requires_grad_(False)
    bound = ConditionedNet(net, _head(3, 8), Observed(torch.randn(4, 2, 5)))
    x, v, times = torch.randn(4, 8, 3), torch.randn(4, 8, 3), torch.rand(4, 2)
    out = bound(x, times)
    jvp, difference = (
        _head(3, 8, derivative=d).target(bound.rows(torch.arange(4)), out, x, times, x, v)
        for d in ("jvp", "difference")
    )
    assert torch.allclose(jvp, difference, atol=2e-3 * float(jvp.abs().max()))


def test_the_difference_drops_the_same_units_on_both_sides():
    bound = ConditionedNet(_backbone("mlp").train(), _head(3, 8), Observed(torch.randn(4, 2, 5)))
    x, times = torch.randn(4, 8, 3), torch.rand(4, 2)
    zero = torch.zeros_like(x)
    target = _head(3, 8, derivative="difference").target(bound.rows(torch.arange(4)), zero, x, times, zero, zero + 1)
    assert float(target.abs().max()) < 20.0  # two networks would differ by O(1), divided by 0.01


def test_known_steps_of_a_chunk_are_seen_by_the_derivative():
    head = _head(3, 8)
    sizes = NetSizes(input_dim=7, output_dim=3, horizon=8, n_obs=2, feature_dim=5, n_times=2)
    net = ResidualMLP(MLPConfig(width=32, depth=2), sizes)
    action = torch.randn(6, 8, 3)
    prefix = Prefix(action, torch.arange(8).expand(6, 8) < 2)
    bound = ConditionedNet(net, head, Observed(torch.randn(6, 2, 5)), prefix_dim=3, prefix=prefix)
    loss = head.loss(bound, action, Draws(0))
    assert loss.shape == (6, 8)
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("steps", [1, 4])
def test_each_jump_is_one_evaluation(steps, function_net):
    seen = []

    def net(x, times):
        seen.append(times[0].tolist())
        return torch.zeros_like(x)

    head = _head(2, 4)
    head.set_solver(steps=steps)
    head.sample(function_net(net), torch.randn(3, 1, 4, 2))
    assert seen == [pytest.approx([1 - i / steps, 1 / steps]) for i in range(steps)]


def test_samples_are_bounded_deterministic_and_follow_their_rows():
    net = _backbone("mlp").eval().requires_grad_(False)
    head = _head(3, 8, clip=0.1)
    features, noise = torch.randn(5, 2, 5), torch.randn(5, 1, 8, 3)
    order = torch.tensor([3, 0, 4, 1, 2])
    out = head.sample(ConditionedNet(net, head, Observed(features)), noise)
    assert float(out.abs().max()) == pytest.approx(0.1)
    assert torch.equal(out, head.sample(ConditionedNet(net, head, Observed(features)), noise))
    moved = head.sample(ConditionedNet(net, head, Observed(features[order])), noise[order])
    assert torch.allclose(moved, out[order], atol=1e-6)


def test_the_loss_is_a_function_of_the_draws_and_of_the_global_row():
    net = _backbone("mlp", dropout=0.0)
    head = _head(3, 8, flow_ratio=0.75)
    features, action = torch.randn(8, 2, 5), torch.randn(8, 8, 3)

    def loss(rows, **ranks):
        return head.loss(ConditionedNet(net, head, Observed(features[rows])), action[rows], Draws(7, **ranks)).detach()

    whole = loss(slice(0, 8))
    assert torch.equal(whole, loss(slice(0, 8)))
    for rank in range(2):  # ranks divide the batch, and its jumps, as one process would
        part = loss(slice(4 * rank, 4 * rank + 4), rank=rank, world_size=2)
        assert torch.allclose(part, whole[4 * rank : 4 * rank + 4], atol=1e-5)


def test_rows_are_spread_evenly():
    assert spread_rows(8, 0.25, 0, CPU).tolist() == [3, 7]
    assert spread_rows(4, 0.5, 4, CPU).tolist() == [1, 3]
    assert spread_rows(1, 0.25, 0, CPU).tolist() == []
    assert len(spread_rows(100, 0.3, 0, CPU)) == 30


def test_spread_rows_stay_on_the_device():
    # A copy to the GPU in every step would be one too many: in a CUDA graph it is forbidden.
    rows = spread_rows(8, 0.25, 0, torch.device("meta"))
    assert rows.device.type == "meta"
    assert rows is spread_rows(8, 0.25, 0, torch.device("meta"))


def test_the_adaptive_weight_by_hand(function_net):
    # The net says 0 and the slope is 0, so with r = t the error is the action: mean square 4, weight (4 + 0.1)^-0.5.
    head = _head(1, 1, flow_ratio=0.99, adaptive_power=0.5, adaptive_floor=0.1)
    scale = torch.tensor(0.0, requires_grad=True)
    loss = head.loss(function_net(lambda x, t: x * 0 + scale), torch.full((1, 1, 1), 2.0), Draws(0))
    assert float(loss.detach()) == pytest.approx(4 * 4.1**-0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), scale)
    assert float(gradient) == pytest.approx(-4 * 4.1**-0.5)  # d (2 - s)^2 = -4; no gradient through the weight


def test_the_dispersive_loss_by_hand_and_its_gradient():
    hidden = torch.tensor([[0.0, 0.0], [1.0, 1.0]], requires_grad=True)  # |difference|^2 / D = 1
    loss = dispersive_loss(hidden, 0.5)
    assert float(loss.detach()) == pytest.approx(math.log((2 + 2 * math.exp(-2.0)) / 4))
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient[1, 0] < 0 < gradient[0, 0]  # descending moves them apart


def _learn(flow_ratio, power, steps=300):
    """Two equally good modes at +-0.6; how far one-step samples lie from the nearer one, and the share at the upper."""
    head = _head(1, 1, adaptive_power=power, derivative="difference")
    head.config.flow_ratio = flow_ratio  # past the check of the settings
    sizes = NetSizes(input_dim=1, output_dim=1, horizon=1, n_obs=2, feature_dim=5, n_times=2)
    torch.manual_seed(0)
    net = ResidualMLP(MLPConfig(width=64, depth=2, dropout=0.0), sizes)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for step in range(steps):
        draws = Draws(0, step)
        action = 0.6 * (2.0 * (draws.uniform((256, 1, 1)) < 0.5) - 1.0) + 0.05 * draws.normal((256, 1, 1))
        loss = head.loss(ConditionedNet(net, head, Observed(torch.zeros(256, 2, 5))), action, draws)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
    noise = torch.randn(2000, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = head.sample(ConditionedNet(net.eval(), head, Observed(torch.zeros(2000, 2, 5))), noise)
    return float((out.abs() - 0.6).abs().mean()), float((out > 0).float().mean())


def test_one_step_keeps_both_modes():
    error, share = _learn(0.75, 1.0)  # the defaults
    assert error < 0.05
    assert 0.4 < share < 0.6


def test_without_flow_rows_one_step_lies_between_the_modes():
    error, _ = _learn(0.75, 0.0)
    collapsed, _ = _learn(0.0, 0.0)
    assert collapsed > 1.5 * error


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"flow_ratio": 0.0}, "collapses"),
        ({"flow_ratio": 1.0}, "no jumps are learnt"),
        ({"derivative": "jpv"}, "Did you mean 'jvp'"),
        ({"prediction": "noise"}, "unknown prediction 'noise'"),
        ({"tangent": "modle"}, "Did you mean 'model'"),
        ({"sample_steps": 0}, "at least 1"),
        ({"clip": 0.0}, "positive"),
        ({"adaptive_floor": 0.0}, "positive"),
        ({"time": TimeConfig(stratified=True)}, "same slice"),
        ({"time": TimeConfig(min_time=0.0)}, "above 0"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=says):
        MeanFlowConfig(**settings)


def test_a_solver_is_refused_and_so_are_bad_steps():
    head = _head()
    with pytest.raises(ConfigError, match=r"no solver 'heun'.*sample_steps"):
        head.set_solver("heun")
    with pytest.raises(ConfigError, match="sample_steps 0"):
        head.set_solver(steps=0)


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"temperature": 0.0}])
def test_dispersive_settings_are_checked(settings):
    with pytest.raises(ConfigError, match="temperature"):
        DispersiveConfig(**settings)
