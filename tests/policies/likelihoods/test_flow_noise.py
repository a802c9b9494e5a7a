"""Noise in flows: the stochastic step keeps the marginals, rows have steps of their own, the noise net its bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.flow import FlowConfig
from visuomotor.policies.likelihoods.flow import FlowChain, FlowChainConfig
from visuomotor.policies.likelihoods.flow_sde import FlowSDE, FlowSDEConfig, sde_step
from visuomotor.policies.likelihoods.noise_net import NoiseNet


@given(st.floats(0.02, 1.0), st.floats(0.01, 0.99), st.floats(0.01, 0.9))
def test_the_stochastic_step_has_the_noise_of_the_level_that_it_leads_to(t, share, level):
    s = share * t
    of_x, of_clean, std = sde_step(t, s, level)
    # x = (1 - t) clean + t noise: what becomes of the clean chunk, and of old and new noise together.
    assert of_x * (1 - t) + of_clean == pytest.approx(1 - s)
    if std <= s:
        assert (of_x * t) ** 2 + std**2 == pytest.approx(s**2)


def test_the_stochastic_step_is_that_of_the_sde_to_first_order():
    t, dt, a, clean, noise = 0.6, 1e-4, 0.8, 0.3, -1.2
    x, v = (1 - t) * clean + t * noise, noise - clean
    g2 = a**2 * t
    drift = -v * dt - g2 / (2 * t) * (x + (1 - t) * v) * dt
    of_x, of_clean, std = sde_step(t, t - dt, a)
    assert of_x * x + of_clean * clean - x == pytest.approx(drift, rel=1e-3)
    assert std**2 == pytest.approx(g2 * dt)


def test_the_last_step_is_the_clean_chunk_with_noise_around_it():
    assert sde_step(0.25, 0.0, 0.5) == pytest.approx((0.0, 1.0, 0.5 * 0.25))


def test_samples_of_a_gaussian_keep_mean_and_spread(tiny_policy, observe, monkeypatch):
    # For data N(0.3, 0.4^2) the expected clean chunk is known, so the only error is that of the solver.
    likelihood = FlowSDE(tiny_policy(FlowConfig(clip=None)), FlowSDEConfig(steps=80, noise_level=0.5))

    def estimate(_net_at, level, x):
        t, variance = level.t, 0.16
        gain = (1 - t) * variance / ((1 - t) ** 2 * variance + t**2)
        return 0.3 + gain * (x - (1 - t) * 0.3)

    monkeypatch.setattr(likelihood.policy.head, "estimate", estimate)
    chunk = likelihood.rollout(observe(likelihood.policy, 1000), Draws(0)).chunk
    assert float(chunk.mean()) == pytest.approx(0.3, abs=0.01)
    assert float(chunk.std()) == pytest.approx(0.4, abs=0.012)


def test_every_row_has_a_random_step_of_its_own_and_its_mask(tiny_policy, observe, executed_of):
    policy = tiny_policy(FlowConfig())
    likelihood = FlowSDE(policy, FlowSDEConfig(steps=4, noise_level=0.5, mask="exact"))
    record = likelihood.rollout(observe(policy, 64), Draws(0))
    step = record.aux["step"]
    assert step.dtype == torch.int64
    assert set(step.tolist()) == {0, 1, 2, 3}
    executed = executed_of(policy, 64)
    mask = likelihood.mask(executed, record)
    assert torch.equal(mask[step == 3, 0], executed[step == 3])
    assert mask[step < 3].all()
    likelihood.config.mask = "executed"
    assert torch.equal(likelihood.mask(executed, record)[:, 0], executed)


def test_the_record_names_the_density_of_its_step(tiny_policy, observe):
    policy = tiny_policy(FlowConfig(clip=None))
    with torch.no_grad():  # the clean estimate is 0.25 everywhere
        policy.backbone.out[1].weight.zero_()
        policy.backbone.out[1].bias.fill_(0.25)
    likelihood = FlowSDE(policy, FlowSDEConfig(steps=2, noise_level=0.4))
    record = likelihood.rollout(observe(policy, 8), Draws(0))
    a = record.aux
    for row in range(8):
        t, s = ((1.0, 0.5), (0.5, 0.0))[int(a["step"][row])]
        of_x, of_clean, std = sde_step(t, s, 0.4)
        z = (a["end"][row] - of_x * a["start"][row] - of_clean * 0.25) / std
        by_hand = (-0.5 * z.square() - math.log(std) - 0.5 * math.log(2 * math.pi)).sum(-1)
        assert torch.allclose(a["log_prob"][row, 0], by_hand, atol=1e-4)


def _net(**bounds: float) -> NoiseNet:
    settings = {"low": 0.05, "init": 0.1, "high": 0.2, "time_scale": 100.0} | bounds
    return NoiseNet(6, 4, 2, **settings)


def test_noise_begins_where_it_should_and_stays_within_its_bounds():
    net, features = _net(), torch.randn(5, 2, 3)
    t = torch.linspace(0.1, 1.0, 5)
    assert torch.allclose(net(features, t), torch.full((5, 4, 2), 0.1))
    with torch.no_grad():
        for p in net.layers[-1].parameters():
            p.normal_(0.0, 100.0)
    std = net(features, t).detach()
    assert float(std.min()) == pytest.approx(0.05, rel=1e-3)
    assert float(std.max()) == pytest.approx(0.2, rel=1e-3)
    assert len({float(v) for v in std[:, 0, 0]}) > 1


def test_the_upper_bound_is_held_and_then_falls():
    net = _net()
    found = []
    for share in (0.0, 0.35, 0.675, 1.0):
        net.set_progress(share)
        found.append(float(net.high))
    assert found == pytest.approx([0.2, 0.2, 0.2 - 0.5 * 0.3 * 0.15, 0.05 * 0.3 + 0.2 * 0.7])


def test_noise_sends_no_gradient_into_the_encoder():
    features = torch.randn(5, 2, 3, requires_grad=True)
    net = _net()
    net(features, torch.ones(5)).sum().backward()
    assert features.grad is None
    assert net.layers[-1].bias.grad is not None


def test_the_bound_is_part_of_the_state(tiny_policy, observe):
    first, second = (FlowChain(tiny_policy(FlowConfig()), FlowChainConfig()) for _ in range(2))
    first.set_progress(0.9)
    obs = observe(first.policy, 4)
    record = first.rollout(obs, Draws(0))
    assert second.evaluate(obs, record).log_ratio.abs().max() > 0.01
    second.load_state_dict(first.own_state(), strict=False)
    assert second.evaluate(obs, record).log_ratio.abs().max() <= 1e-5


@pytest.mark.parametrize("settings", [{"std_min": 0.0}, {"std_init": 0.5}, {"std_max": 0.09}, {"steps": 0}])
def test_settings_of_the_chain_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        FlowChainConfig(**settings)


@pytest.mark.parametrize("settings", [{"noise_level": 0.0}, {"steps": 0}])
def test_settings_of_the_random_step_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        FlowSDEConfig(**settings)
