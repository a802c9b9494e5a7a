"""EDM: preconditioning and noise levels by hand, the field of a Gaussian, and diffusers' own EDM steps."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import EDMEulerScheduler

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.edm import EDMConfig, EDMHead
from visuomotor.policies.heads.ode import SOLVERS
from visuomotor.policies.iterative import Level

SIZES = ChunkSizes(action_dim=2, horizon=4, n_obs=2, feature_dim=1)


def _head(**settings) -> EDMHead:
    return EDMHead(EDMConfig(**settings), SIZES)


def _sigma(t):
    """The noise level that the net is told as ``t = ln(sigma) / 4``."""
    return (4 * t).exp().view(-1, 1, 1)


def _spy(seen, function):
    """``function(x)`` as a net that notes what it is asked."""

    def net(x, t):
        seen.append((x, t))
        return function(x)

    return net


def test_preconditioning_by_hand(function_net):
    # sigma_data = 0.5, sigma = 1: c_skip = 0.25 / 1.25, c_out = 0.5 / sqrt(1.25), c_in = 1 / sqrt(1.25), c_noise = 0.
    head = _head(sigma_data=0.5, clip=None)
    clean = head.clean_estimate(torch.tensor(3.0), torch.tensor(2.0), Level(0.0, 1.0, 1.0))
    assert float(clean) == pytest.approx(0.2 * 2 + 0.5 / 1.25**0.5 * 3)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    one = _head(sigma_data=0.5, clip=None, sigma_max=1.0, sample_steps=1)
    one.sample(function_net(_spy(seen, lambda x: x)), torch.full((1, 1, 4, 2), 2.0))
    assert torch.allclose(seen[0][0], torch.full((1, 4, 2), 2 / 1.25**0.5))
    assert float(seen[0][1]) == 0.0


@pytest.mark.parametrize("data", [0.5, 1.0])
@pytest.mark.parametrize("distribution", ["log_normal", "log_logistic"])
def test_input_and_target_of_the_net_have_unit_variance_at_every_level(data, distribution, function_net):
    head = _head(sigma_data=data, distribution=distribution)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    net = function_net(_spy(seen, torch.zeros_like))  # so the loss is the target squared
    action = data * torch.randn(6000, 4, 2, generator=torch.Generator().manual_seed(0))
    target_power = head.loss(net, action, Draws(0)).mean(-1)
    x, t = seen[0]
    for part in t.argsort().chunk(5):  # from low to high noise
        assert float(x[part].square().mean()) == pytest.approx(1.0, abs=0.06)
        assert float(target_power[part].mean()) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_perfect_net_has_no_loss_and_samples_the_target(solver, function_net):
    target, data = torch.rand(3, 4, 2) - 0.5, 0.4
    head = _head(sigma_data=data, solver=solver, sample_steps=4)

    def know(x, t):
        total = data**2 + _sigma(t) ** 2
        noisy = x * total.sqrt()
        return (target - data**2 / total * noisy) * total.sqrt() / (_sigma(t) * data)

    net = function_net(know)
    assert float(head.loss(net, target, Draws(1)).max()) < 1e-6
    out = head.sample(net, torch.randn(3, 1, 4, 2))
    assert torch.allclose(out, target, atol=1e-4)


def _gaussian(mean, std, data):
    """The best F for a target N(mean, std^2), whose best estimate is mean + std^2 / (std^2 + sigma^2) (x - mean)."""

    def net(x, t):
        total = data**2 + _sigma(t) ** 2
        noisy = x * total.sqrt()
        clean = mean + std**2 / (std**2 + _sigma(t) ** 2) * (noisy - mean)
        return (clean - data**2 / total * noisy) * total.sqrt() / (_sigma(t) * data)

    return net


@pytest.mark.parametrize(
    ("solver", "steps", "churn"),
    [("euler", 100, 0.0), ("heun", 20, 0.0), ("midpoint", 20, 0.0), ("rk4", 10, 0.0), ("heun", 40, 8.0)],
)
def test_a_gaussian_target_is_sampled_with_its_mean_and_spread(solver, steps, churn, function_net):
    mean, std = 0.2, 0.3
    head = _head(sigma_data=0.5, sigma_max=40.0, solver=solver, sample_steps=steps, churn=churn, clip=None)
    noise = torch.randn(4000, head.noise_count(), 1, 1, generator=torch.Generator().manual_seed(0))
    out = head.sample(function_net(_gaussian(mean, std, 0.5)), noise)
    assert float(out.mean()) == pytest.approx(mean, abs=0.02)
    assert float(out.std()) == pytest.approx(std, rel=0.05)


def test_levels_by_hand():
    even = _head(rho=1.0, sigma_min=1.0, sigma_max=3.0, sample_steps=3)
    assert [level.sigma for level in even.levels] == pytest.approx([3.0, 2.0, 1.0])
    assert [level.t for level in even.levels] == pytest.approx([math.log(s) / 4 for s in (3.0, 2.0, 1.0)])
    assert [level.alpha for level in even.levels] == [1.0] * 3
    heun = _head(rho=1.0, sigma_min=1.0, sigma_max=3.0, sample_steps=3, solver="heun")
    assert [level.sigma for level in heun.levels] == pytest.approx([3.0, 2.0, 2.0, 1.0, 1.0])  # Karras: 2 N - 1
    assert [level.sigma for level in _head(sample_steps=1).levels] == [10.0]


def test_churn_by_hand():
    # 4 steps with S_churn = 1 raise the level by a quarter where it lies between the bounds.
    head = _head(rho=1.0, sigma_min=1.0, sigma_max=4.0, sample_steps=4, churn=1.0, churn_min=1.5, churn_max=3.5)
    assert [level.sigma for level in head.levels] == pytest.approx([4.0, 3.75, 2.5, 1.0])
    assert head.noise_count() == 3
    assert _head(churn=100.0, sample_steps=1, sigma_max=1.0).levels[0].sigma == pytest.approx(2**0.5)  # at most
    quiet = _head(churn=0.0)
    assert quiet.noise_count() == 1


def test_churn_adds_the_noise_that_raises_the_level(function_net):
    head = _head(rho=1.0, sigma_min=1.0, sigma_max=2.0, sample_steps=2, churn=0.5, churn_max=1.5, churn_noise=2.0)
    seen = []

    class Guide:
        needs_gradient = False

        def __call__(self, estimate, x, level):
            seen.append(x)
            return torch.zeros_like(x)

    noise = torch.tensor([0.5, 2.0]).view(1, 2, 1, 1)
    head.sample(function_net(lambda x, t: x), noise, guide=Guide())
    # 2 * 0.5 at level 2; half of it at level 1; then up to level 1.25: sqrt(1.5625 - 1) = 0.75 times S_noise times 2.
    assert [float(x) for x in seen] == pytest.approx([1.0, 0.5 + 0.75 * 2.0 * 2.0])


@pytest.mark.parametrize("n", [2, 5, 20])
def test_a_whole_run_equals_diffusers_edm(n, function_net):
    def net(x, t):
        return torch.tanh(2.0 * x + t.view(-1, 1, 1)) * 1.3

    peer = EDMEulerScheduler(sigma_min=0.002, sigma_max=10.0, sigma_data=0.5, rho=7.0)
    peer.set_timesteps(n)
    noise = torch.randn(3, 1, 4, 2, generator=torch.Generator().manual_seed(0))
    x = peer.sigmas[0] * noise[:, 0]
    for t in peer.timesteps:
        scaled = peer.scale_model_input(x, t)
        x = peer.step(net(scaled, t.expand(3)), t, x).prev_sample
    head = _head(sigma_min=0.002, sigma_max=10.0, sigma_data=0.5, sample_steps=n, clip=None)
    ours = head.sample(function_net(net), noise)
    assert float((ours - x).abs().max()) <= 1e-5 * float(x.abs().max())


@pytest.mark.parametrize("stratified", [False, True])
def test_training_levels_follow_their_distribution_within_the_range(stratified, function_net):
    for distribution, quartile in (("log_normal", 0.6744898), ("log_logistic", math.log(3.0))):
        head = _head(distribution=distribution, p_mean=-1.0, p_std=0.5, stratified=stratified, sigma_data=0.5)
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        head.loss(function_net(_spy(seen, lambda x: x)), torch.zeros(8000, 1, 1), Draws(0))
        log_sigma = 4 * seen[0][1]
        assert float(log_sigma.median()) == pytest.approx(-1.0, abs=0.03)
        assert float(log_sigma.quantile(0.75)) == pytest.approx(-1.0 + 0.5 * quartile, abs=0.03)
        assert math.log(0.005) <= float(log_sigma.min()) <= float(log_sigma.max()) <= math.log(10.0)


def test_sigma_data_is_measured_unless_it_is_given():
    chunks = torch.tensor([3.0, -4.0]).view(2, 1, 1)
    measured = _head()
    measured.fit(chunks)
    assert float(measured.sigma_data) == pytest.approx(12.5**0.5)  # root of the mean of 9 and 16
    again = _head()
    again.load_state_dict(measured.state_dict())
    assert float(again.sigma_data) == pytest.approx(12.5**0.5)
    given = _head(sigma_data=0.5)
    given.fit(chunks)
    assert float(given.sigma_data) == 0.5


def test_clip_bounds_every_estimate(function_net):
    noise = torch.randn(2, 1, 4, 2, generator=torch.Generator().manual_seed(0))
    net = function_net(lambda x, t: 3 * x)
    assert float(_head(clip=0.5).sample(net, noise).abs().max()) <= 0.5
    assert float(_head(clip=None).sample(net, noise).abs().max()) > 0.5


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"distribution": "lognormal"}, "log_normal"),
        ({"sigma_min": 1.0, "sigma_max": 0.5}, "0 < min < max"),
        ({"sigma_data": 0.0}, "sigma_data=0.0"),
        ({"rho": -7.0}, "rho=-7.0"),
        ({"churn": -1.0}, "churn=-1.0"),
        ({"solver": "dpmpp"}, "heun"),
        ({"sample_steps": 101}, "1 to 100"),
    ],
)
def test_refusals(settings, says):
    with pytest.raises(ConfigError, match=says):
        EDMConfig(**settings)
