"""Training times: densities by hand, stratification exact and the same on any number of ranks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.times import TimeConfig, sample_times, stratified_uniform


class _Fixed(Draws):
    """Draws whose uniform numbers are given."""

    def __init__(self, *values: float) -> None:
        super().__init__(0)
        self._values = torch.tensor(values)

    def uniform(self, shape):
        assert shape == tuple(self._values.shape)
        return self._values


def test_the_three_distributions_by_hand():
    u = 0.125, 0.5
    assert sample_times(TimeConfig(min_time=0.0), 2, _Fixed(*u)).tolist() == [0.125, 0.5]
    assert sample_times(TimeConfig(min_time=0.2), 2, _Fixed(*u)).tolist() == pytest.approx([0.3, 0.6])
    # Beta(1.5, 1) has the distribution function s^1.5: 0.125^(2/3) = 0.25, and pi0's t is 0.001 + 0.999 s.
    beta = sample_times(TimeConfig(distribution="beta"), 2, _Fixed(*u)).tolist()
    assert beta == pytest.approx([0.001 + 0.999 * 0.25, 0.001 + 0.999 * 0.5 ** (2 / 3)])
    # The median of a logit-normal is sigmoid(mean); one standard deviation is at u = 0.8413.
    config = TimeConfig(distribution="logit_normal", logit_mean=-0.4, logit_std=2.0, min_time=0.0)
    expected = [1 / (1 + math.exp(0.4)), 1 / (1 + math.exp(0.4 - 2.0))]
    assert sample_times(config, 2, _Fixed(0.5, 0.8413447)).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("name", "a"), [("uniform", 1.0), ("beta", 1.5)])
def test_moments(name, a, stratified):
    mean, std = a / (a + 1), (a / ((a + 1) ** 2 * (a + 2))) ** 0.5  # of Beta(a, 1); uniform is Beta(1, 1)
    t = sample_times(TimeConfig(distribution=name, min_time=0.0, stratified=stratified), 20_000, Draws(3))
    assert float(t.mean()) == pytest.approx(mean, abs=0.01)
    assert float(t.std()) == pytest.approx(std, abs=0.01)
    assert 0.0 <= float(t.min()) <= float(t.max()) <= 1.0


def test_extreme_numbers_stay_in_range():
    for name in ("uniform", "beta", "logit_normal"):
        t = sample_times(TimeConfig(distribution=name), 2, _Fixed(0.0, 1.0 - 2**-24))
        assert torch.isfinite(t).all()
        assert float(t.min()) >= 0.001
        assert float(t.max()) <= 1.0


@given(n=st.integers(1, 200), world=st.integers(1, 3))
def test_stratified_numbers_fall_one_into_each_slice_on_any_number_of_ranks(n, world):
    whole = stratified_uniform(n * world, Draws(1, 2))
    slices = (whole.double() * (n * world)).floor().long()
    assert sorted(slices.tolist()) == list(range(n * world))
    parts = [stratified_uniform(n, Draws(1, 2, rank=r, world_size=world)) for r in range(world)]
    assert torch.equal(torch.cat(parts), whole)


def test_stratified_neighbours_are_far_apart():
    u = stratified_uniform(256, Draws(0))
    four = u.view(-1, 4).sort(dim=1).values  # as with loss.noise_draws=4
    assert float(four.diff(dim=1).min()) > 0.1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"distribution": "logitnormal"}, "logit_normal"),
        ({"logit_std": 0.0}, "logit_std=0.0"),
        ({"beta_power": -1.0}, "beta_power=-1.0"),
        ({"min_time": 1.0}, r"\[0, 1\)"),
    ],
)
def test_refusals(settings, says):
    with pytest.raises(ConfigError, match=says):
        TimeConfig(**settings)
