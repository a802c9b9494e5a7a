"""What likelihoods made of Gaussian steps promise: a ratio of 1 at first, the density by hand, the deployed policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.act import ActConfig
from visuomotor.policies.heads.diffusion import DiffusionConfig
from visuomotor.policies.heads.edm import EDMConfig
from visuomotor.policies.heads.flow import FlowConfig
from visuomotor.policies.heads.meanflow import MeanFlowConfig
from visuomotor.policies.heads.mip import MIPConfig
from visuomotor.policies.heads.regression import RegressionConfig
from visuomotor.policies.heads.shortcut import ShortcutConfig
from visuomotor.policies.likelihoods.base import Likelihood, Record
from visuomotor.policies.likelihoods.diffusion import DiffusionChainConfig
from visuomotor.policies.likelihoods.flow import FlowChainConfig
from visuomotor.policies.likelihoods.flow_sde import FlowSDEConfig
from visuomotor.policies.likelihoods.noisy import NoisyOutput, NoisyOutputConfig
from visuomotor.policies.likelihoods.registry import make_likelihood
from visuomotor.policies.nets.unet1d import UnetConfig

_DIFFUSION = DiffusionConfig(train_steps=20, sample_steps=4)
_NOISY = NoisyOutputConfig(std_init=0.25)
CASES: dict[str, tuple[Any, Any]] = {
    "dppo": (_DIFFUSION, DiffusionChainConfig(steps=4)),
    "dppo last": (_DIFFUSION, DiffusionChainConfig(steps=4, train_last=2, eta=0.5)),
    "dppo noise": (
        DiffusionConfig(train_steps=20, prediction="epsilon", sample_steps=4),
        DiffusionChainConfig(std_min=0.2),
    ),
    "dppo ddpm": (_DIFFUSION, DiffusionChainConfig(solver="ddpm", steps=3)),
    "reinflow": (FlowConfig(), FlowChainConfig(steps=3, std_min=0.1, std_init=0.2, std_max=0.3)),
    "reinflow fixed": (FlowConfig(start="zeros", prediction="velocity"), FlowChainConfig(learn_std=False)),
    "flow_sde": (FlowConfig(), FlowSDEConfig()),
    "flow_sde velocity": (FlowConfig(prediction="velocity", clip=None), FlowSDEConfig(steps=3)),
    "noisy meanflow": (MeanFlowConfig(), _NOISY),
    "noisy shortcut": (ShortcutConfig(sample_steps=2), _NOISY),
    "noisy mip": (MIPConfig(), _NOISY),
    "noisy regression": (RegressionConfig(), _NOISY),
    "noisy act": (ActConfig(sample_latent=True, latent_dim=20), _NOISY),
    "noisy edm": (EDMConfig(sample_steps=3), _NOISY),
    "noisy flow": (FlowConfig(sample_steps=2), _NOISY),
    "noisy diffusion": (DiffusionConfig(train_steps=20, sample_steps=3, solver="ddpm"), _NOISY),
}
N = 12


@pytest.fixture
def make(tiny_policy: Callable[..., Any]) -> Callable[..., Likelihood]:
    def build(case: str, **options: Any) -> Likelihood:
        head, config = CASES[case]
        return make_likelihood(tiny_policy(head, **options), config)

    return build


def _points(record: Record) -> Tensor:
    """Where each rated step led, ``[B, M, H, Da]``."""
    if "chain" in record.aux:
        return record.aux["chain"][:, 1:]
    return record.aux.get("end", record.chunk)[:, None]


class _Quiet(Draws):
    """Noise at the beginning, and none afterwards."""

    def __init__(self, *key: int) -> None:
        super().__init__(*key)
        self.first: Tensor | None = None

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        noise = super().normal(shape)
        if self.first is not None:
            return torch.zeros_like(noise)
        self.first = noise
        return noise


def _perturb(likelihood: Likelihood, by: float = 0.01) -> None:
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in likelihood.parameters():
            p.add_(by * torch.randn(p.shape, generator=g))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled_the_ratio_begins_within_a_thousandth_of_1(make, observe, case):
    likelihood = make(case)
    obs = observe(likelihood.policy, N)
    record = likelihood.rollout(obs, Draws(0))
    found = torch.compile(likelihood.evaluate)(obs, record)
    assert float((found.log_ratio.detach().exp() - 1.0).abs().max()) <= 1e-3
    plain, compiled = (_gradients(likelihood, x) for x in (likelihood.evaluate(obs, record), found))
    torch.testing.assert_close(compiled, plain, rtol=1e-2, atol=1e-3)


def _gradients(likelihood: Likelihood, found: Any) -> Tensor:
    likelihood.zero_grad()
    found.log_ratio.sum().backward()
    return torch.cat([p.grad.flatten() for p in likelihood.parameters() if p.grad is not None])


@pytest.mark.parametrize("backbone", [None, UnetConfig(dims=[8, 16], groups=4, time_dim=8)], ids=["mlp", "unet"])
@pytest.mark.parametrize("case", CASES)
def test_the_ratio_is_1_before_the_first_update_in_any_batch_and_after_a_reload(make, observe, case, backbone):
    if backbone is not None and case == "noisy act":
        pytest.skip("ACT's latent makes the net's input another size; the perceptron covers it")
    likelihood, again = make(case, backbone=backbone), make(case, backbone=backbone)
    _perturb(likelihood)
    obs = observe(likelihood.policy, N)
    record = likelihood.rollout(obs, Draws(0))
    assert likelihood.evaluate(obs, record).log_ratio.shape == (N, likelihood.n_terms, 8)
    again.policy.load_state_dict(likelihood.policy.state_dict())
    again.load_state_dict(likelihood.own_state(), strict=False)
    bound = 1e-5 if backbone is None else 4e-5  # convolutions round differently by batch and mode
    for one in (likelihood, again):
        for rows in (torch.arange(N), torch.arange(5), torch.tensor([11, 3])):
            found = one.evaluate({k: v[rows] for k, v in obs.items()}, record.rows(rows))
            error = float((found.log_ratio.detach().exp() - 1.0).abs().max())
            assert error <= bound


@pytest.mark.parametrize("case", CASES)
def test_the_log_ratio_is_that_of_the_gaussian_densities(make, observe, case):
    likelihood = make(case)
    obs = observe(likelihood.policy, N)
    record = likelihood.rollout(obs, Draws(0))
    before = likelihood.evaluate(obs, record)
    _perturb(likelihood)
    after = likelihood.evaluate(obs, record)
    x = _points(record).double()

    def density(e: Any) -> Tensor:
        z = (x - e.mean.double()) / e.std.double()
        return (-0.5 * z**2 - e.std.double().log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    expected = density(after) - density(before)
    assert expected.abs().max() > 0.01
    assert torch.allclose(after.log_ratio.double(), expected, atol=1e-3, rtol=1e-3)
    entropy = (after.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
    assert torch.allclose(after.entropy, entropy, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_density(make, observe, case):
    # d log p = ((x - mean) / std^2 dmean + (z^2 - 1) / std dstd), for every parameter at once along a direction.
    likelihood = make(case)
    obs = observe(likelihood.policy, N)
    record = likelihood.rollout(obs, Draws(0))
    params = [p for p in likelihood.parameters() if p.requires_grad]
    found = likelihood.evaluate(obs, record)
    direct = torch.autograd.grad(found.log_ratio.sum(), params, retain_graph=True, allow_unused=True)
    off, std = (_points(record) - found.mean).detach(), found.std.detach()
    slopes = [off / std**2, ((off / std) ** 2 - 1.0) / std]
    outputs = [(f, s) for f, s in zip((found.mean, found.std), slopes, strict=True) if f.requires_grad]
    by_hand = torch.autograd.grad(
        [f for f, _ in outputs], params, [s for _, s in outputs], retain_graph=True, allow_unused=True
    )
    moved = 0
    for a, b in zip(direct, by_hand, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()) + 1e-6)
            moved += bool(a.abs().max() > 0)
    assert moved > 5
    assert not list(likelihood.policy.normalizer.parameters())  # nothing of it is ever trained


@pytest.mark.parametrize("case", CASES)
def test_rollouts_without_noise_are_the_deployed_policy(make, observe, case, tiny_policy):
    head, config = CASES[case]
    if isinstance(config, DiffusionChainConfig):  # other eta means other steps; the floor is exploration in any case
        config = DiffusionChainConfig(solver=config.solver, steps=config.steps, eta=0.0, train_last=config.train_last)
    if isinstance(config, FlowSDEConfig):
        config = FlowSDEConfig(steps=config.steps, noise_level=1e-6)
    likelihood = make_likelihood(tiny_policy(head), config)
    policy = likelihood.policy
    obs, quiet = observe(policy, N), _Quiet(0)
    record = likelihood.rollout(obs, quiet)
    assert quiet.first is not None
    noise = quiet.first if quiet.first.ndim == 4 else quiet.first[:, None]
    missing = policy.noise_shape[0] - noise.shape[1]  # of a stochastic solver: without noise too
    noise = torch.cat([noise, noise.new_zeros(N, missing, *noise.shape[2:])], 1)
    expected = policy.sample(obs, noise)
    assert torch.allclose(likelihood.action(record, obs, None), expected, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_it_learns_a_bandit(make, improve, case):
    likelihood = make(case)
    chain = likelihood.n_terms > 1
    returns = improve(
        likelihood, lambda a: -(a - 0.3).square().mean((1, 2)), updates=12, n=128, lr=5e-3, epochs=3,
        reduce="mean" if chain else "sum", clip=0.03 if chain else 0.3,
    )  # fmt: skip
    assert returns[-1] > returns[0] + 0.3 * abs(returns[0])


@pytest.mark.parametrize("head", [MeanFlowConfig(), ShortcutConfig(sample_steps=2)], ids=["meanflow", "shortcut"])
def test_a_chunk_beyond_its_bound_is_executed_within_it_and_has_a_gradient(tiny_policy, observe, head):
    policy = tiny_policy(head)
    out = policy.backbone.out[-1]
    torch.nn.init.zeros_(out.weight)
    torch.nn.init.constant_(out.bias, 1.1)
    likelihood = NoisyOutput(policy, _NOISY)
    obs = observe(policy, N)
    record = likelihood.rollout(obs, Draws(0))
    executed = likelihood.action(record, obs, None)
    assert float(executed.max()) == pytest.approx(1.0)
    assert float(executed.min()) < 0.9  # what is better inside is seen
    likelihood.evaluate(obs, record).log_ratio[0].sum().backward()
    assert out.bias.grad.abs().min() > 0


def test_exactly_what_influenced_the_action_counts(make, observe, executed_of):
    likelihood = make("dppo")
    executed = executed_of(likelihood.policy, N)
    record = likelihood.rollout(observe(likelihood.policy, N), Draws(0))
    assert torch.equal(likelihood.mask(executed, record), executed[:, None].expand(-1, 4, -1))  # DPPO's own
    likelihood.config.mask = "exact"
    mask = likelihood.mask(executed, record)
    assert mask[:, :3].all()
    assert torch.equal(mask[:, 3], executed)


def test_what_is_learnt_beside_the_policy_is_kept_apart(make):
    likelihood = make("reinflow")
    assert {k.split(".")[0] for k in likelihood.own_state()} == {"noise_net"}
    assert sum(not n.startswith("policy.") for n, _ in likelihood.named_parameters()) == 6
    assert set(make("noisy mip").own_state()) == {"raw_std"}
    assert not make("dppo").own_state()
    assert not make("flow_sde").own_state()
    assert not make("reinflow fixed").own_state()
