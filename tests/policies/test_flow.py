"""Flow matching: loss by hand, the field of a Gaussian, and diffusers' own Euler steps."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.flow import FlowConfig, FlowHead
from visuomotor.policies.heads.ode import SOLVERS
from visuomotor.policies.heads.times import TimeConfig, sample_times
from visuomotor.policies.iterative import WarmStart

SIZES = ChunkSizes(action_dim=2, horizon=4, n_obs=2, feature_dim=1)


def _head(**settings) -> FlowHead:
    return FlowHead(FlowConfig(**settings), SIZES)


def _spy(seen, function):
    """``function(x)`` as a net that notes what it is asked."""

    def net(x, t):
        seen.append((x, t))
        return function(x)

    return net


def test_the_loss_by_hand(function_net):
    # A net of zeros is wrong by the whole target: the clean chunk, or noise - clean.
    zero = function_net(lambda x, t: torch.zeros_like(x))
    action = torch.tensor([[[1.0, 3.0], [0.0, 2.0]]])
    t, noise = _drawn(1, action)
    for prediction, target in (("sample", action), ("velocity", noise - action)):
        other = "sample" if prediction == "velocity" else "velocity"
        plain = _head(prediction=prediction, loss_on=prediction).loss(zero, action, Draws(0))
        assert torch.allclose(plain, target.square().mean(-1))
        weighted = _head(prediction=prediction, loss_on=other).loss(zero, action, Draws(0))
        factor = t**2 if other == "sample" else 1 / t**2
        assert torch.allclose(weighted, plain * factor.view(-1, 1))
    assert plain[0].tolist() != weighted[0].tolist()


def _drawn(n, action):
    """What a loss with ``Draws(0)`` uses."""
    draws = Draws(0)
    return sample_times(TimeConfig(), n, draws), draws.normal(tuple(action.shape))


def test_the_net_sees_the_straight_path(function_net):
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    net = function_net(_spy(seen, lambda x: x))
    action = torch.full((3, 4, 2), 2.0)
    _head().loss(net, action, Draws(0))
    t, noise = _drawn(3, action)
    x, time = seen[0]
    assert torch.equal(time, t)
    assert torch.allclose(x, (1 - t.view(-1, 1, 1)) * action + t.view(-1, 1, 1) * noise)


def test_the_velocity_loss_of_a_predicted_chunk_stays_bounded(function_net):
    head = _head(loss_on="velocity", time=TimeConfig(min_time=0.0, distribution="beta", beta_power=0.05))
    loss = head.loss(function_net(lambda x, t: torch.zeros_like(x)), torch.ones(500, 4, 2), Draws(0))
    assert float(loss.max()) == pytest.approx(1 / 0.05**2)  # most of these times are almost 0


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", ["sample", "velocity"])
def test_a_perfect_net_has_no_loss_and_samples_the_target(prediction, solver, function_net):
    target = torch.rand(3, 4, 2) - 0.5
    head = _head(prediction=prediction, solver=solver, sample_steps=3, time=TimeConfig(min_time=0.01))

    def know(x, t):  # velocity on the straight line to the target: (x - target) / t
        return target.expand_as(x) if prediction == "sample" else (x - target) / t.view(-1, 1, 1)

    net = function_net(know)
    assert float(head.loss(net, target, Draws(1)).max()) < 1e-8
    out = head.sample(net, torch.randn(3, 1, 4, 2))
    assert torch.allclose(out, target, atol=1e-4)


@pytest.mark.parametrize(("solver", "steps"), [("euler", 100), ("midpoint", 10), ("heun", 20), ("rk4", 8)])
@pytest.mark.parametrize("prediction", ["sample", "velocity"])
def test_a_gaussian_target_is_sampled_with_its_mean_and_spread(prediction, solver, steps, function_net):
    # For clean ~ N(m, s^2) the best estimate from x is m + (1-t) s^2 / ((1-t)^2 s^2 + t^2) (x - (1-t) m).
    mean, std = 0.2, 0.3
    head = _head(prediction=prediction, solver=solver, sample_steps=steps, clip=None)

    def net(x, t):
        t = t.view(-1, 1, 1)
        clean = mean + (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2) * (x - (1 - t) * mean)
        return clean if prediction == "sample" else (x - clean) / t

    noise = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    out = head.sample(function_net(net), noise)
    assert float(out.mean()) == pytest.approx(mean + std * float(noise.mean()), abs=0.01)
    assert float(out.std()) == pytest.approx(std * float(noise.std()), rel=0.06)


def test_one_euler_step_by_hand(function_net):
    noise = torch.full((1, 1, 4, 2), 0.5)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    net = _spy(seen, lambda x: 0.2 * x)
    one = _head(prediction="velocity", sample_steps=1).sample(function_net(net), noise)
    assert torch.allclose(one, torch.full_like(one, 0.4))  # 0.5 - 1 * 0.2 * 0.5
    two = _head(prediction="velocity", sample_steps=2).sample(function_net(net), noise)
    assert torch.allclose(two, torch.full_like(two, 0.405))  # 0.5 * (1 - 0.5 * 0.2)^2
    assert [float(t) for _, t in seen] == [1.0, 1.0, 0.5]


@pytest.mark.parametrize("n", [1, 4, 10, 100])
def test_a_whole_run_equals_diffusers_flow_matching(n, function_net):
    def net(x, t):
        return torch.tanh(2.0 * x + t.view(-1, 1, 1)) * 1.3

    peer = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    peer.set_timesteps(sigmas=[(n - i) / n for i in range(n)])
    noise = torch.randn(3, 1, 4, 2, generator=torch.Generator().manual_seed(0))
    x = noise[:, 0]
    for t, sigma in zip(peer.timesteps, peer.sigmas, strict=False):
        x = peer.step(net(x, sigma.expand(3)), t, x).prev_sample
    ours = _head(prediction="velocity", sample_steps=n, clip=None).sample(function_net(net), noise)
    assert float((ours - x).abs().max()) <= 1e-5 * float(x.abs().max())


def test_clip_bounds_every_estimate(function_net):
    noise = 3 * torch.randn(2, 1, 4, 2, generator=torch.Generator().manual_seed(0))
    net = function_net(lambda x, t: -2 * x)
    assert float(_head(prediction="velocity", clip=0.5).sample(net, noise).abs().max()) <= 0.5
    assert float(_head(prediction="velocity", clip=None).sample(net, noise).abs().max()) > 1.0


def test_from_zeros_there_is_one_chunk_but_a_warm_start_keeps_its_noise(function_net):
    net = function_net(lambda x, t: 0.3 * x + 0.1)
    a, b = (torch.randn(1, 1, 4, 2, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    head = _head(start="zeros")
    assert torch.equal(head.sample(net, a), head.sample(net, b))
    assert torch.equal(head.sample(net, a), _head().sample(net, torch.zeros_like(a)))
    warm = WarmStart(torch.zeros(1, 4, 2), 3)
    assert not torch.equal(head.sample(net, a, start=warm), head.sample(net, b, start=warm))


def test_a_warm_start_by_hand(function_net):
    # 2 of 4 steps: x = 0.5 * chunk + 0.5 * noise at t = 0.5, then two Euler steps with the velocity 1.
    chunk, noise = torch.full((1, 4, 2), 0.8), torch.full((1, 1, 4, 2), 0.2)
    head = _head(prediction="velocity", sample_steps=4)
    out = head.sample(function_net(lambda x, t: torch.ones_like(x)), noise, start=WarmStart(chunk, 2))
    assert torch.allclose(out, torch.full_like(out, 0.5 * 0.8 + 0.5 * 0.2 - 2 * 0.25))


def test_another_solver_keeps_what_is_not_named():
    head = _head(start="zeros")
    head.set_solver(steps=3)
    head.set_solver("midpoint")
    assert (head.config.solver, head.config.sample_steps, head.config.start) == ("midpoint", 3, "zeros")
    assert [level.t for level in head.levels] == pytest.approx([1, 5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 6])
    assert all(level.alpha == 1 - level.t and level.sigma == level.t for level in head.levels)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prediction": "velocty"}, "velocity"),
        ({"loss_on": "noise"}, "loss_on 'noise'"),
        ({"start": "zero"}, "zeros"),
        ({"solver": "rk45"}, "rk4"),
        ({"sample_steps": 0}, "1 to 100"),
        ({"clip": 0.0}, "clip=0.0"),
    ],
)
def test_refusals(settings, says):
    with pytest.raises(ConfigError, match=says):
        FlowConfig(**settings)
