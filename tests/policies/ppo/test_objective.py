"""The terms of the objective against arithmetic done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visuomotor.policies.ppo.objective import approximate_kl, reduce_log_ratio, surrogate, value_loss


def one(log_ratio: float, advantage: float, kind: str, clip: float = 0.2) -> tuple[float, float, bool]:
    """Loss, its slope by the ratio, and whether it is clipped."""
    x = torch.tensor([[log_ratio]], requires_grad=True)
    out = surrogate(x, torch.tensor([[advantage]]), torch.tensor([clip]), kind=kind)
    (slope,) = torch.autograd.grad(out.loss.sum(), x)
    return float(out.loss.detach()), float(slope) / math.exp(log_ratio), bool(out.clipped)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (1.1, 2.0, -2.2, -2.0, False),
        (1.5, 2.0, -2.4, 0.0, True),  # no more than 1.2 of a good action
        (0.5, 2.0, -1.0, -2.0, False),  # a good action that became rarer is always pulled back
        (0.5, -2.0, 1.6, 0.0, True),
        (1.5, -2.0, 3.0, 2.0, False),
    ],
)
def test_clip(ratio: float, advantage: float, loss: float, slope: float, clipped: bool) -> None:
    found = one(math.log(ratio), advantage, "clip")
    assert found == (pytest.approx(loss, rel=1e-5), pytest.approx(slope, abs=1e-5), clipped)


@pytest.mark.parametrize(("ratio", "advantage"), [(1.1, 2.0), (1.5, 2.0), (0.5, -3.0), (0.9, -3.0)])
def test_spo_is_a_parabola_that_is_best_at_the_edge_of_the_range(ratio: float, advantage: float) -> None:
    clip = 0.2
    loss, slope, _ = one(math.log(ratio), advantage, "spo", clip)
    assert loss == pytest.approx(-(ratio * advantage - abs(advantage) * (ratio - 1) ** 2 / (2 * clip)), rel=1e-5)
    assert slope == pytest.approx(-(advantage - abs(advantage) * (ratio - 1) / clip), rel=1e-4)
    best = 1 + math.copysign(clip, advantage)
    assert one(math.log(best), advantage, "spo", clip)[1] == pytest.approx(0.0, abs=1e-5)


def test_asymmetric_clips_good_actions_and_pulls_bad_ones_back() -> None:
    assert one(math.log(1.5), 2.0, "asymmetric") == pytest.approx(one(math.log(1.5), 2.0, "clip"))
    assert one(math.log(0.5), -2.0, "asymmetric") == pytest.approx(one(math.log(0.5), -2.0, "spo"))
    assert one(math.log(0.5), -2.0, "asymmetric")[1] < 0  # it becomes likelier again


def test_every_stochastic_step_has_its_own_range() -> None:
    log_ratio, advantage = torch.full((1, 2), math.log(1.15)), torch.ones(1, 2)
    found = surrogate(log_ratio, advantage, torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(found.loss, torch.tensor([[-1.1, -1.15]]))
    assert found.clipped.tolist() == [[True, False]]


def test_reduction_by_hand() -> None:
    log_ratio = torch.tensor([[[1.0, 2.0, 4.0], [8.0, 16.0, torch.nan]]])  # [1, 2, 3]
    mask = torch.tensor([[[True, True, True], [True, True, False]]])  # the last position was not executed
    sums = reduce_log_ratio(log_ratio, mask, 2, reduce="sum", level="step")
    means = reduce_log_ratio(log_ratio, mask, 2, reduce="mean", level="step")
    assert sums.tolist() == [[7.0, 24.0]]
    assert means.tolist() == [[pytest.approx(7 / 6), 6.0]]
    assert reduce_log_ratio(log_ratio, mask, 2, reduce="sum", level="chain").tolist() == [[31.0]]
    assert reduce_log_ratio(log_ratio, mask, 2, reduce="mean", level="chain").tolist() == [[pytest.approx(3.1)]]


def test_what_is_masked_has_no_gradient_even_if_it_is_infinite() -> None:
    x = torch.tensor([[[0.5, 1.0]]], requires_grad=True)
    shown = torch.stack([x[..., 0], x[..., 1] / 0.0], -1)
    reduce_log_ratio(shown, torch.tensor([[[True, False]]]), 1, reduce="sum", level="step").sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0, 0] == 1.0


@given(st.floats(-30.0, 30.0))
def test_divergence_is_never_negative(log_ratio: float) -> None:
    assert float(approximate_kl(torch.tensor(log_ratio))) >= -1e-6


def test_divergence_estimate_is_unbiased() -> None:
    """Of a Gaussian from one that is shifted by 0.3: 0.045 nats."""
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    log_ratio = 0.5 * x.square() - 0.5 * (x - 0.3).square()
    assert float(approximate_kl(log_ratio).mean()) == pytest.approx(0.045, rel=0.02)


def test_value_loss_by_hand() -> None:
    value, old, target = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    assert value_loss(value, old, target, None).tolist() == [0.0, 4.0]
    assert value_loss(value, old, target, 0.5).tolist() == [0.25, 4.0]  # held at 0.5
