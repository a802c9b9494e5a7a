"""Plain regression: losses by hand, and what each loss has for its optimum."""

from __future__ import annotations

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.regression import RegressionConfig, RegressionHead, regression_error

SIZES = ChunkSizes(action_dim=2, horizon=2, n_obs=1, feature_dim=1)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("l2", [[5.0, 0.005]]),  # (1 + 9) / 2, (0 + 0.01) / 2
        ("l1", [[2.0, 0.05]]),
        ("huber", [[1.9, 0.0125]]),  # with delta 0.2: (0.9 + 2.9) / 2 and (0 + 0.01 / 2 / 0.2) / 2
    ],
)
def test_loss_by_hand(loss, expected, function_net):
    head = RegressionHead(RegressionConfig(loss=loss, huber_delta=0.2), SIZES)
    action = torch.tensor([[[1.0, -3.0], [0.0, 0.1]]])
    found = head.loss(function_net(lambda x, t: torch.zeros_like(x)), action, Draws(0))
    assert found[0].tolist() == pytest.approx(expected[0])


@pytest.mark.parametrize(("loss", "optimum"), [("l2", 3.0), ("l1", 1.0)])
def test_optimum_is_the_mean_or_the_median(loss, optimum):
    data = torch.tensor([0.0, 0.5, 1.0, 1.5, 12.0])
    grid = torch.linspace(-2, 14, 1601)
    total = regression_error(loss, grid[:, None], data).mean(1)
    assert float(grid[total.argmin()]) == pytest.approx(optimum, abs=0.011)


def test_sample_is_the_answer_to_nothing(function_net):
    head = RegressionHead(RegressionConfig(), SIZES)
    assert head.noise_count() == 0
    out = head.sample(function_net(lambda x, t: x + t.view(-1, 1, 1) + 0.25), torch.empty(3, 0, 2, 2))
    assert torch.equal(out, torch.full((3, 2, 2), 0.25))


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"loss": "l3"}, r"'l3'.*l1"), ({"huber_delta": 0.0}, r"huber_delta=0\.0.*positive")],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=says):
        RegressionConfig(**settings)
