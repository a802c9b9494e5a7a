"""Reference values: worked by hand here, or from exhaustive enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visuomotor.data.errors import UserError
from visuomotor.policies.learn.statistics import bootstrap_mean_interval, mcnemar_exact, wilson_interval


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.959964: z^2 = 3.841459; centre (0.8 + 0.192073) / 1.384146 = 0.716740
    # half = 1.959964 / 1.384146 * sqrt(0.016 + 0.009604) = 1.416010 * 0.160011 = 0.226577
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.490162, abs=2e-5)
    assert high == pytest.approx(0.943318, abs=2e-5)
    # at 0 of n the upper end is z^2 / (n + z^2) = 3.841459 / 13.841459
    assert wilson_interval(0, 10) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert wilson_interval(10, 10) == (pytest.approx(0.722467, abs=1e-6), 1.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_rate_and_is_symmetric(pair: tuple[int, int]) -> None:
    k, n = pair
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    other_low, other_high = wilson_interval(n - k, n)
    assert low == pytest.approx(1 - other_high, abs=1e-12)
    assert high == pytest.approx(1 - other_low, abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(UserError, match=f"{k} successes of {n}"):
        wilson_interval(k, n)


def test_bootstrap_of_a_symmetric_sample_is_its_exact_bootstrap_distribution() -> None:
    # Symmetric values: no bias, no acceleration, so BCa is the percentile interval of all 5^5 resamples.
    values = [-2.0, -1.0, 0.0, 1.0, 2.0]
    every = np.array([np.mean(c) for c in itertools.product(values, repeat=5)])
    low, high = bootstrap_mean_interval(values, resamples=40_000)
    assert low == pytest.approx(np.quantile(every, 0.025), abs=0.2)  # the means lie 0.2 apart
    assert high == pytest.approx(np.quantile(every, 0.975), abs=0.2)
    assert low == pytest.approx(-high, abs=0.2)


def test_bootstrap_of_a_large_sample_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 2000)
    half = 1.959964 * values.std() / math.sqrt(2000)
    low, high = bootstrap_mean_interval(values.tolist())
    assert low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_bootstrap_leans_towards_the_long_tail() -> None:
    # 18 ones and two zeros, as scores near the ceiling: more room below the mean 0.9 than above.
    low, high = bootstrap_mean_interval([1.0] * 18 + [0.0] * 2)
    assert 0.9 - low > high - 0.9
    assert low < 0.75
    assert high <= 1.0


def test_bootstrap_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for i in range(300):
        low, high = bootstrap_mean_interval(rng.beta(5, 1, 50).tolist(), resamples=800, seed=i)
        hits += low <= 5 / 6 <= high
    assert 0.91 <= hits / 300 <= 0.98  # 0.95 +- 3 standard errors of 0.0126


def test_bootstrap_is_reproducible_and_honest_about_small_samples() -> None:
    values = [0.1, 0.9, 0.4]
    assert bootstrap_mean_interval(values, seed=4) == bootstrap_mean_interval(values, seed=4)
    assert bootstrap_mean_interval([0.5] * 4) == (0.5, 0.5)
    assert all(math.isnan(x) for x in bootstrap_mean_interval([0.5]))
    for bad in ([], [0.0, math.nan]):
        with pytest.raises(UserError, match="finite"):
            bootstrap_mean_interval(bad)


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(0, 5) == 2 / 32
    assert mcnemar_exact(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar_exact(2, 8) == mcnemar_exact(8, 2)
    assert 0 < mcnemar_exact(400, 700) < 1e-15  # large counts do not overflow
