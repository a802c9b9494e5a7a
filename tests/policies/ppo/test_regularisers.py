from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from visuomotor.data.batches import BatchSource
from visuomotor.data.errors import CheckpointError, ConfigError
from visuomotor.policies.base import ChunkSizes
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gaussian import GaussianConfig, GaussianHead
from visuomotor.policies.likelihoods.base import Evaluation, Likelihood, Record
from visuomotor.policies.likelihoods.gaussian import GaussianLikelihood, GaussianLikelihoodConfig
from visuomotor.policies.policy import Policy
from visuomotor.policies.ppo.regularisers import (
    BCTermConfig,
    HoldConfig,
    TermConfig,
    W2TermConfig,
    build_regularisers,
    gaussian_kl,
)

MakePolicy = Callable[..., tuple[Policy, BatchSource]]
Parts = tuple[Likelihood, BatchSource, dict[str, Tensor], Record]


@pytest.fixture
def parts(make_policy: MakePolicy) -> Parts:
    """A Gaussian policy with one standard deviation per component, demonstrations, and a record of 8 decisions."""
    policy, source = make_policy()
    w = policy.spec.window
    sizes = ChunkSizes(action_dim=2, horizon=w.horizon, n_obs=w.n_obs, feature_dim=policy.encoder.feature_dim)
    policy.head = GaussianHead(GaussianConfig(std_from_obs=False, std_init=0.5), sizes)
    likelihood = GaussianLikelihood(policy, GaussianLikelihoodConfig())
    obs = source.batch(0).obs
    obs = {k: v[:8] for k, v in obs.items()}
    return likelihood, source, obs, likelihood.rollout(obs, Draws(1))


def _shift_mean(likelihood: Likelihood, by: float) -> None:
    """Moves the mean of every component of every step by ``by``."""
    with torch.no_grad():
        _final_bias(likelihood).add_(by)


def _final_bias(likelihood: Likelihood) -> Tensor:
    return [m for m in likelihood.policy.backbone.modules() if isinstance(m, torch.nn.Linear)][-1].bias


def _gradient(likelihood: Likelihood) -> float:
    """By the bias of all components together."""
    grad = _final_bias(likelihood).grad
    assert grad is not None
    return float(grad.sum())


def _term(config: HoldConfig, parts: Parts, shift: float) -> tuple[Tensor, Likelihood]:
    likelihood, source, obs, record = parts
    (term,) = build_regularisers(config, likelihood, source)
    _shift_mean(likelihood, shift)
    return term(likelihood, obs, record, likelihood.evaluate(obs, record), Draws(2)), likelihood


def test_divergence_of_two_gaussians_is_the_textbook_number() -> None:
    kl = gaussian_kl(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(0.0), torch.tensor(1.0))
    assert float(kl) == pytest.approx(-math.log(2) + (4 + 1) / 2 - 0.5)


def test_kl_of_a_mean_that_moved_is_half_its_square_in_standard_deviations(parts: Parts) -> None:
    loss, likelihood = _term(HoldConfig(kl=TermConfig(weight=3.0)), parts, shift=0.2)
    assert loss.item() == pytest.approx(3.0 * 0.5 * (0.2 / 0.5) ** 2, rel=1e-4)
    loss.backward()
    # d/db of weight * b^2 / (2 sigma^2), averaged over components: each bias is one of several components
    assert _gradient(likelihood) == pytest.approx(3.0 * 0.2 / 0.25, rel=1e-4)


def test_w2_of_chunks_that_moved_is_the_square_of_the_way(parts: Parts) -> None:
    loss, likelihood = _term(HoldConfig(w2=W2TermConfig(weight=2.0, samples=4)), parts, shift=0.3)
    assert loss.item() == pytest.approx(2.0 * 0.09, rel=1e-4)
    loss.backward()
    assert _gradient(likelihood) == pytest.approx(2.0 * 2 * 0.3, rel=1e-4)


def test_terms_that_hold_are_zero_at_the_beginning(parts: Parts) -> None:
    config = HoldConfig(kl=TermConfig(weight=1.0), w2=W2TermConfig(weight=1.0))
    likelihood, _, obs, record = parts
    terms = build_regularisers(config, likelihood, None)
    found = likelihood.evaluate(obs, record)
    assert [t.name for t in terms] == ["hold_kl", "hold_w2"]
    assert [t(likelihood, obs, record, found, Draws(0)).item() for t in terms] == pytest.approx([0.0, 0.0], abs=1e-7)


def test_bc_is_the_imitation_loss_of_drawn_windows_and_its_weight_decays(parts: Parts) -> None:
    likelihood, source, obs, record = parts
    (term,) = build_regularisers(HoldConfig(bc=BCTermConfig(weight=0.5, decay=0.9, batch_size=6)), likelihood, source)
    found = likelihood.evaluate(obs, record)
    draws = Draws(5)
    index = draws.integers(0, len(source), (6,))
    plain = float(likelihood.policy.loss(source.gather(index), draws).loss)
    term.begin(3, 0.1)
    loss = term(likelihood, obs, record, found, Draws(5))
    assert loss.item() == pytest.approx(0.5 * 0.9**3 * plain)
    loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in likelihood.policy.backbone.parameters())


def test_held_policy_survives_a_resume_and_refuses_another(parts: Parts) -> None:
    likelihood, _, obs, record = parts
    config = HoldConfig(kl=TermConfig(weight=1.0))
    (term,) = build_regularisers(config, likelihood, None)
    state = {k: v.clone() for k, v in term.state().items()}
    _shift_mean(likelihood, 0.4)
    (resumed,) = build_regularisers(config, likelihood, None)  # a copy of the policy as it is now
    found = likelihood.evaluate(obs, record)
    assert resumed(likelihood, obs, record, found, Draws(0)).item() == pytest.approx(0.0, abs=1e-7)
    resumed.load_state(state)
    assert resumed(likelihood, obs, record, found, Draws(0)).item() == pytest.approx(0.5 * 0.8**2, rel=1e-4)
    with pytest.raises(CheckpointError, match="hold_kl"):
        resumed.load_state({})


def test_what_a_policy_cannot_have_is_refused(parts: Parts) -> None:
    likelihood, source, obs, record = parts
    with pytest.raises(ConfigError, match=r"hold\.data"):
        build_regularisers(HoldConfig(bc=BCTermConfig(weight=1.0)), likelihood, None)
    (kl,) = build_regularisers(HoldConfig(kl=TermConfig(weight=1.0)), likelihood, None)
    ratio_only = Evaluation(torch.zeros(8, 1, record.chunk.shape[1]))
    with pytest.raises(ConfigError, match="no Gaussian steps"):
        kl(likelihood, obs, record, ratio_only, Draws(0))
    likelihood.requires_grad_(False)
    with pytest.raises(ConfigError, match="frozen"):  # before anything is gathered
        build_regularisers(HoldConfig(bc=BCTermConfig(weight=1.0)), likelihood, source)
    with pytest.raises(ConfigError, match=r"hold\.data=a\.zarr would not be read: give hold\.bc\.weight"):
        HoldConfig(data="a.zarr")


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (TermConfig, {"weight": -1.0}),
        (TermConfig, {"decay": 1.5}),
        (BCTermConfig, {"batch_size": 0}),
        (W2TermConfig, {"samples": 0}),
    ],
)
def test_settings_out_of_range_are_refused(config: type[TermConfig], values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="hold"):
        config(**values)
