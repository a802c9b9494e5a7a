"""Returns, values of held-out episodes, and the weights that are made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from visuomotor.data.errors import ConfigError
from visuomotor.policies.learn.values import ValueFitConfig, discounted_returns, held_out_values
from visuomotor.policies.learn.weights import advantage_weights, effective_share, intervention_weights

ENDS = np.array([3, 5])


def test_returns_are_discounted_within_each_episode() -> None:
    reward = np.array([1.0, 0.0, 4.0, 0.0, 2.0])
    np.testing.assert_allclose(discounted_returns(reward, ENDS, 0.5), [1 + 4 * 0.25, 2.0, 4.0, 1.0, 2.0])


def test_weights_grow_with_the_advantage_and_have_mean_one() -> None:
    advantage = np.array([-1.0, 1.0])  # standard deviation 1
    weight = advantage_weights(advantage, temperature=0.5, largest=1e6)
    assert weight[1] / weight[0] == pytest.approx(math.exp(4.0))
    assert weight.mean() == pytest.approx(1.0)
    clipped = advantage_weights(advantage, temperature=0.5, largest=3.0)
    assert clipped[1] / clipped[0] == pytest.approx(3.0 / math.exp(-2.0))
    np.testing.assert_array_equal(advantage_weights(np.full(4, 0.3), 1.0, 20.0), 1.0)


def test_interventions_have_half_of_the_mass_and_what_led_to_them_none() -> None:
    human = np.array([0, 0, 0, 1, 1, 0, 1, 1], bool)  # the second episode is a demonstration
    weight = intervention_weights(human, np.array([6, 8]), before=2)
    np.testing.assert_allclose(weight, [4 / 4, 0, 0, 2, 2, 1, 1, 1])
    assert weight.sum() == pytest.approx(8)
    np.testing.assert_array_equal(intervention_weights(np.zeros(8, bool), np.array([6, 8]), 2), 1.0)


def test_effective_share() -> None:
    assert effective_share(np.ones(5)) == pytest.approx(1.0)
    assert effective_share(np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)


def test_values_of_held_out_episodes_are_the_expected_return_and_no_memory_of_their_own() -> None:
    """The return is the state's first component plus luck, the same over an episode: only the former can be known."""
    rng = np.random.default_rng(0)
    ends = np.arange(1, 81) * 5
    luck = np.repeat(rng.choice([-1.0, 1.0], 80), 5)
    x = np.stack([rng.normal(size=400), np.repeat(rng.normal(size=80), 5)], 1)  # the second tells episodes apart
    values = held_out_values(x, x[:, 0] + luck, ends, ValueFitConfig(steps=300, width=32), seed=0)
    assert np.corrcoef(values, x[:, 0])[0, 1] > 0.85
    assert abs(np.corrcoef(values, luck)[0, 1]) < 0.3
    again = held_out_values(x, x[:, 0] + luck, ends, ValueFitConfig(steps=300, width=32), seed=0)
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("values", [{"folds": 1}, {"steps": 0}, {"lr": 0.0}])
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="value"):
        ValueFitConfig(**values)  # type: ignore[arg-type]
