"""The energy head: energies whose gradient is known, the descent, and the second derivative in training."""

from __future__ import annotations

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.energy import EnergyConfig, EnergyHead

SIZES = ChunkSizes(action_dim=2, horizon=3, n_obs=1, feature_dim=1)
CENTRE = torch.tensor([[0.2, -0.4], [0.0, 0.1], [0.5, 0.9]])


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_descent_of_a_quadratic_bowl_ends_at_its_bottom(steps, function_net):
    # A constant f = c makes E = |x|^2 / 2 - x . c = |x - c|^2 / 2 - |c|^2 / 2.
    head = EnergyHead(EnergyConfig(sample_steps=steps), SIZES)
    net = function_net(lambda x, t: CENTRE.expand_as(x) + 0 * x)
    noise = torch.randn(5, 1, 3, 2)
    assert torch.allclose(head.sample(net, noise), CENTRE.expand(5, 3, 2), atol=1e-6)
    energy = head.uncertainty(net, noise[:, 0])
    bowl = 0.5 * (noise[:, 0] - CENTRE).square().sum((1, 2)) - 0.5 * CENTRE.square().sum()
    assert torch.allclose(energy, bowl, atol=1e-5)


def test_a_step_follows_the_whole_gradient(function_net):
    # f = w x gives E = (1/2 - w) |x|^2: a full step leads to 2 w x, and w x alone would miss the half of it.
    head = EnergyHead(EnergyConfig(sample_steps=1, clip=None), SIZES)
    noise = torch.randn(4, 1, 3, 2)
    assert torch.allclose(head.sample(function_net(lambda x, t: 0.3 * x), noise), 0.6 * noise[:, 0], atol=1e-6)


def test_steps_are_as_documented(function_net):
    # Towards 0 with sizes 1/3, 1/2, 1: 2/3, 1/3 and 0 of the start are left; two steps of three are seen through t.
    seen = []

    def net(x, t):
        seen.append(x.detach())
        return 0 * x

    head = EnergyHead(EnergyConfig(sample_steps=3), SIZES)
    noise = torch.randn(1, 1, 3, 2)
    head.sample(function_net(net), noise)
    for x, left in zip(seen, (1.0, 2 / 3, 1 / 3), strict=True):
        assert torch.allclose(x, left * noise[:, 0], atol=1e-6)
    noisy = EnergyHead(EnergyConfig(sample_steps=3, langevin=0.3), SIZES)
    noise = torch.randn(1, noisy.noise_count(), 3, 2)
    seen.clear()
    out = noisy.sample(function_net(net), noise)
    second = 2 / 3 * noise[:, 0] + 0.2 * noise[:, 1]
    assert torch.allclose(seen[1], second, atol=1e-6)
    assert torch.allclose(seen[2], second / 2 + 0.1 * noise[:, 2], atol=1e-6)
    assert torch.allclose(out, torch.zeros_like(out), atol=1e-6)


def test_a_wild_energy_cannot_leave_the_bounds(function_net):
    head = EnergyHead(EnergyConfig(), SIZES)
    out = head.sample(function_net(lambda x, t: 1e3 * x.sin()), torch.randn(8, 1, 3, 2))
    assert float(out.abs().max()) <= 1.0


def test_loss_of_a_gaussian_target_from_pure_noise(function_net):
    # Noise says nothing of the action, so the best landing is the mean, and the least loss the variance.
    head = EnergyHead(EnergyConfig(start="noise"), SIZES)
    action = CENTRE + 0.3 * torch.randn(8000, 3, 2, generator=torch.Generator().manual_seed(0))
    best = function_net(lambda x, t: CENTRE.expand_as(x) + 0 * x)
    assert head.loss(best, action, Draws(0)).mean().item() == pytest.approx(0.09, rel=0.03)
    off = function_net(lambda x, t: CENTRE.expand_as(x) + 0.1 + 0 * x)
    assert head.loss(off, action, Draws(0)).mean().item() == pytest.approx(0.10, rel=0.03)


def test_loss_between_noise_and_action_by_hand(function_net):
    # f = w x lands at 2 w x with x = (1 - s) a + s z; for a = 1 and w = 1/2 the error is s (z - 1).
    head = EnergyHead(EnergyConfig(), SIZES)
    draws = Draws(4)
    s, z = draws.uniform((6, 1, 1)), draws.normal((6, 3, 2))
    found = head.loss(function_net(lambda x, t: 0.5 * x), torch.ones(6, 3, 2), Draws(4))
    assert torch.allclose(found, (s * (z - 1)).square().mean(-1), atol=1e-5)


@pytest.mark.parametrize("train_steps", [1, 3])
def test_training_differentiates_through_the_step(train_steps, function_net):
    head = EnergyHead(EnergyConfig(train_steps=train_steps, start="noise"), SIZES)
    w = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    net = function_net(lambda x, t: (w * x).tanh())
    action = torch.full((4, 3, 2), 0.5)

    def loss(value: float) -> float:
        with torch.no_grad():
            old, w.data = w.data.clone(), torch.tensor(value, dtype=torch.float64)
            out = float(head.loss(net, action, Draws(0)).double().mean())
            w.data = old
        return out

    (found,) = torch.autograd.grad(head.loss(net, action, Draws(0)).mean(), w)
    if train_steps == 1:  # later steps start where earlier ones led, detached: not a plain derivative
        assert found.item() == pytest.approx((loss(0.405) - loss(0.395)) / 0.01, rel=1e-2)
    assert found.item() != 0.0


def test_steps_can_be_changed_after_training_and_a_solver_is_refused():
    head = EnergyHead(EnergyConfig(), SIZES)
    head.set_solver(steps=3)
    assert head.config.sample_steps == 3
    with pytest.raises(ConfigError, match="no choice of solvers"):
        head.set_solver("ddim")
    with pytest.raises(ConfigError, match="sample_steps=0"):
        head.set_solver(steps=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"start": "nois"}, r"'nois'.*noise"),
        ({"train_steps": 0}, "train_steps=0"),
        ({"langevin": -1.0}, r"langevin=-1\.0"),
        ({"clip": 0.0}, r"clip=0\.0"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=says):
        EnergyConfig(**settings)
