"""What every likelihood of this kind promises: a ratio of 1 at first, in any batch; gradients; nothing of the past."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.carp import CarpConfig
from visuomotor.policies.heads.diffusion import DiffusionConfig
from visuomotor.policies.heads.edm import EDMConfig
from visuomotor.policies.heads.energy import EnergyConfig, EnergyHead
from visuomotor.policies.heads.flow import FlowConfig, FlowHead
from visuomotor.policies.heads.gaussian import GaussianConfig, GaussianHead
from visuomotor.policies.heads.gmm import GMMConfig
from visuomotor.policies.likelihoods.base import Likelihood, Record
from visuomotor.policies.likelihoods.carp import CarpLikelihoodConfig
from visuomotor.policies.likelihoods.fpo import FPOConfig, FPOPlusConfig
from visuomotor.policies.likelihoods.gaussian import GaussianLikelihoodConfig
from visuomotor.policies.likelihoods.gmm import GMMLikelihoodConfig
from visuomotor.policies.likelihoods.gsde import GSDEConfig
from visuomotor.policies.likelihoods.policy_flow import PolicyFlowConfig
from visuomotor.policies.likelihoods.registry import default_likelihood, likelihoods_for, make_likelihood
from visuomotor.policies.nets.unet1d import UnetConfig
from visuomotor.policies.ppo.objective import reduce_log_ratio

CASES: dict[str, tuple[Any, Any]] = {
    "gaussian": (GaussianConfig(std_from_obs=False), GaussianLikelihoodConfig()),
    "gaussian bounded": (GaussianConfig(std_init=0.5), GaussianLikelihoodConfig(std_floor=0.1, std_ceiling=0.2)),
    "squashed": (GaussianConfig(squash=True), GaussianLikelihoodConfig()),
    "gsde": (GaussianConfig(std_from_obs=False), GSDEConfig()),
    "gsde squashed": (GaussianConfig(squash=True), GSDEConfig(hold=3)),
    "gmm": (GMMConfig(), GMMLikelihoodConfig()),
    "gmm floor": (GMMConfig(std_init=0.03), GMMLikelihoodConfig(std_floor=0.1)),
    "carp": (CarpConfig(scales=[1, 2, 4], codes=8, width=8), CarpLikelihoodConfig()),
    "fpo flow": (FlowConfig(), FPOConfig(pairs=3, scale=1.0)),
    "fpo velocity": (
        FlowConfig(prediction="velocity", loss_on="velocity"),
        FPOConfig(pairs=3, scale=1.0, max_loss=4.0),
    ),
    "fpo noisy": (FlowConfig(start="zeros"), FPOConfig(pairs=3, scale=1.0, std=0.1, steps=2)),
    "fpo diffusion": (DiffusionConfig(train_steps=20, sample_steps=4), FPOConfig(pairs=3, scale=1.0)),
    "fpo ddpm": (DiffusionConfig(train_steps=20, sample_steps=4, solver="ddpm"), FPOConfig(pairs=3, scale=1.0)),
    "fpo_plus edm": (EDMConfig(sample_steps=4), FPOPlusConfig(pairs=3, scale=1.0)),
    "policyflow": (FlowConfig(), PolicyFlowConfig(points=3)),
    "policyflow velocity": (FlowConfig(prediction="velocity"), PolicyFlowConfig(steps=4)),
}
N = 10


@pytest.fixture
def make(tiny_policy):
    def build(case: str, **options: Any) -> Likelihood:
        head, config = CASES[case]
        policy = tiny_policy(head, **options)
        policy.head.fit(0.5 * torch.randn(200, 8, 2, generator=torch.Generator().manual_seed(2)))
        return make_likelihood(policy, config)

    return build


def _error(case, found, mask, **how):
    """Largest distance of a ratio from 1."""
    # Losses are multiplied by a scale (of 1 here, where the weights are fresh and losses large), differences of clean
    # chunks divided by t and sigma: in other batches float32 leaves up to 1e-5 of a component.
    approximate = case.startswith(("fpo", "policyflow"))
    how = {"reduce": "mean" if approximate else "sum", "level": "step", **how}
    return float((reduce_log_ratio(found.log_ratio.detach(), mask, 2, **how).exp() - 1.0).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_the_ratio_is_1_with_the_weights_that_drew_the_chunk(case, make, observe, executed_of):
    likelihood = make(case)
    policy = likelihood.policy
    likelihood.train()  # must not bring dropout back
    obs, record = observe(policy, N), likelihood.rollout(observe(policy, N), Draws(0, 1, 2))
    assert record.chunk.shape == (N, 8, 2)
    assert not any(v.requires_grad for v in record.aux.values())
    mask = likelihood.mask(executed_of(policy, N), record)
    assert mask.shape == (N, likelihood.n_terms, 8)
    found = likelihood.evaluate(obs, record)
    assert found.log_ratio.shape == (N, likelihood.n_terms, 8)
    assert found.log_ratio.requires_grad
    assert _error(case, found, mask) <= 1e-5
    for rows in torch.arange(N).flip(0).split(3):  # another order, other batches
        part = likelihood.evaluate({k: v[rows] for k, v in obs.items()}, record.rows(rows))
        assert _error(case, part, mask[rows]) <= 1e-5
        assert _error(case, part, mask[rows], reduce="mean", level="chain") <= 1e-5


@pytest.mark.parametrize(("floor", "ceiling", "expected"), [(0.0, None, 0.5), (0.8, None, 0.8), (0.0, 0.05, 0.05)])
def test_the_spread_is_held_within_its_bounds(tiny_policy, observe, floor, ceiling, expected):
    policy = tiny_policy(GaussianConfig(std_from_obs=False, std_init=0.5))
    likelihood = make_likelihood(policy, GaussianLikelihoodConfig(std_floor=floor, std_ceiling=ceiling))
    obs = observe(policy, N)
    found = likelihood.evaluate(obs, likelihood.rollout(obs, Draws(0, 1, 2)))
    assert found.std is not None
    assert float(found.std.detach().median()) == pytest.approx(expected, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled_the_ratio_begins_within_a_thousandth_of_1(case, make, observe, executed_of):
    likelihood = make(case)
    obs = observe(likelihood.policy, N)
    record = likelihood.rollout(obs, Draws(0, 1, 2))
    mask = likelihood.mask(executed_of(likelihood.policy, N), record)
    found = torch.compile(likelihood.evaluate)(obs, record)
    found.log_ratio.sum().backward()
    assert _error(case, found, mask) <= 1e-3


@pytest.mark.parametrize("case", ["gsde", "gmm", "carp", "fpo flow", "policyflow"])
def test_with_a_convolutional_network_too(case, make, observe, executed_of):
    likelihood = make(case, backbone=UnetConfig(dims=[16, 32], groups=4, time_dim=16))
    obs = observe(likelihood.policy, N)
    record = likelihood.rollout(obs, Draws(0, 1, 2))
    mask = likelihood.mask(executed_of(likelihood.policy, N), record)
    # Convolutions take other kernels where a gradient is wanted: 1e-6 of a clean chunk, by t and sigma.
    bound = 1e-4 if case == "policyflow" else 1e-5
    assert _error(case, likelihood.evaluate(obs, record), mask) <= bound


@pytest.mark.parametrize("case", CASES)
def test_a_rollout_is_a_function_of_its_draws(case, make, observe):
    likelihood = make(case)
    obs = observe(likelihood.policy, N)
    first, again = likelihood.rollout(obs, Draws(0, 1, 2)), likelihood.rollout(obs, Draws(0, 1, 2))
    other = likelihood.rollout(obs, Draws(0, 1, 3))
    assert torch.equal(first.chunk, again.chunk)
    assert all(torch.equal(v, again.aux[k]) for k, v in first.aux.items())
    assert not torch.allclose(first.chunk, other.chunk, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_draw_what_one_draws(case, make, observe):
    likelihood = make(case)
    obs = observe(likelihood.policy, N)
    whole = likelihood.rollout(obs, Draws(0, 1, 2))
    for rank in range(2):
        rows = torch.arange(rank * N // 2, (rank + 1) * N // 2)
        part = likelihood.rollout({k: v[rows] for k, v in obs.items()}, Draws(0, 1, 2, rank=rank, world_size=2))
        assert torch.allclose(part.chunk, whole.chunk[rows], atol=1e-5)
        assert all(torch.allclose(v.float(), whole.aux[k][rows].float(), atol=1e-4) for k, v in part.aux.items())


@pytest.mark.parametrize("case", CASES)
def test_every_trained_weight_gets_a_gradient_and_the_normaliser_none(case, make, observe, executed_of):
    likelihood = make(case)
    policy = likelihood.policy
    obs = observe(policy, N)
    record = likelihood.rollout(obs, Draws(0, 1, 2))
    found = likelihood.evaluate(obs, record)
    log_ratio = (found.log_ratio * likelihood.mask(executed_of(policy, N), record)).sum((1, 2))
    loss = (log_ratio * torch.linspace(-1, 1, N)).sum()
    loss.backward()
    names = [n for n, p in likelihood.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # gsde does not explore with the head's own deviation, and heads of one pass see zeros for a chunk.
    unused = {"policy.head.raw_std"} if case == "gsde" else set()
    assert set(names) == unused | ({"policy.backbone.inp.weight"} if case[:2] in ("ga", "sq", "gs", "gm") else set())
    assert not any(p.requires_grad for p in policy.normalizer.parameters())


@pytest.mark.parametrize("case", CASES)
def test_its_own_state_goes_round(case, make, observe):
    likelihood, other = make(case), make(case)
    with torch.no_grad():
        for p in (p for n, p in likelihood.named_parameters() if not n.startswith("policy.")):
            p.add_(0.3)
    other.load_state_dict(likelihood.own_state(), strict=False)
    obs = observe(likelihood.policy, N)
    assert torch.equal(other.rollout(obs, Draws(5, 0)).chunk, likelihood.rollout(obs, Draws(5, 0)).chunk)


def test_an_energy_has_no_likelihood_and_the_reason_is_said():
    assert likelihoods_for(EnergyHead) == []
    with pytest.raises(ConfigError, match=r"EnergyHead has no likelihood.*known up to a factor.*GaussianHead"):
        default_likelihood(EnergyHead)


def test_a_likelihood_for_another_head_is_refused_with_what_fits(tiny_policy):
    with pytest.raises(ConfigError, match=r"likelihood gmm is for GMMHead, .* FlowHead, which can use: .*fpo"):
        make_likelihood(tiny_policy(FlowConfig()), GMMLikelihoodConfig())
    with pytest.raises(ConfigError, match="policyflow is for FlowHead"):
        make_likelihood(tiny_policy(EnergyConfig()), PolicyFlowConfig())
    assert "gsde" in likelihoods_for(GaussianHead)
    assert {"fpo", "fpo_plus", "policyflow"} < set(likelihoods_for(FlowHead))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: FPOConfig(pairs=0), "pairs=0"),
        (lambda: FPOConfig(scale=0.0), "scale=0"),
        (lambda: FPOConfig(mask="some"), "mask='some' is unknown"),
        (lambda: GSDEConfig(hold=0), "hold=0"),
        (lambda: GSDEConfig(std_min=0.5, std_init=0.2), "std_min=0.5 and std_init=0.2"),
        (lambda: PolicyFlowConfig(points=0), "points=0"),
        (lambda: PolicyFlowConfig(std_max=0.05), "std_max=0.05"),
        (lambda: CarpLikelihoodConfig(std=0.0), "std=0"),
        (lambda: GMMLikelihoodConfig(std_floor=-1.0), "std_floor=-1"),
        (lambda: GaussianLikelihoodConfig(std_floor=0.2, std_ceiling=0.1), "std_ceiling=0.1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        settings()


def test_what_explores_nothing_is_refused(tiny_policy):
    with pytest.raises(ConfigError, match=r"start=zeros.*likelihood.std"):
        make_likelihood(tiny_policy(FlowConfig(start="zeros")), FPOConfig())
    with pytest.raises(ConfigError, match="begins at zeros"):
        make_likelihood(tiny_policy(FlowConfig(start="zeros")), PolicyFlowConfig())
    with pytest.raises(ConfigError, match=r"temperature of 0.*likelihood.temperature"):
        make_likelihood(tiny_policy(CarpConfig(scales=[1, 2], temperature=0.0)), CarpLikelihoodConfig())


def test_a_record_keeps_its_rows_together():
    record = Record(torch.arange(4.0).view(4, 1, 1), {"x": torch.arange(4)})
    assert record.rows(torch.tensor([2, 0])).aux["x"].tolist() == [2, 0]
