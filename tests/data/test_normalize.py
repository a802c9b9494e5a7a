from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from visuomotor.data import normalize
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.normalize import ArrayStats, KeyNorm, Normalizer, compute_stats


def normalizer(x, **settings):
    return Normalizer({"x": compute_stats([x])}, {"x": KeyNorm(**settings)})


def test_statistics_by_hand():
    stats = compute_stats([np.array([[1.0, 10], [3, 10]]), np.array([[8.0, 10]])])
    assert stats.count == 3
    np.testing.assert_allclose([stats.min, stats.max, stats.mean], [[1, 10], [8, 10], [4, 10]])
    np.testing.assert_allclose(stats.std, [np.sqrt((9 + 1 + 16) / 3), 0])
    np.testing.assert_allclose(stats.q01, [1.04, 10])  # 1 + 0.02 * (3 - 1)
    np.testing.assert_allclose(stats.q99, [7.9, 10])  # 3 + 0.98 * (8 - 3)


@settings(deadline=None)
@given(
    x=arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.floats(-1e3, 1e3, width=32)),
    cuts=st.lists(st.integers(0, 40), max_size=3),
)
def test_blocks_do_not_matter(x, cuts):
    stats = compute_stats(np.split(x, sorted(c for c in cuts if c <= len(x))))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(stats.mean, exact.mean(0), atol=1e-9)
    np.testing.assert_allclose(stats.std, exact.std(0), atol=1e-6)
    np.testing.assert_allclose(stats.q99, np.quantile(exact, 0.99, axis=0), atol=1e-9)
    assert (stats.min == exact.min(0)).all()
    assert (stats.max == exact.max(0)).all()


def test_large_offsets_do_not_cancel():
    x = 1e9 + np.random.default_rng(0).normal(size=(1000, 1))
    assert compute_stats(np.array_split(x, 7)).std.item() == pytest.approx(x.std(), rel=1e-6)


def test_quantiles_of_a_regular_sample_when_all_does_not_fit(monkeypatch):
    monkeypatch.setattr(normalize, "_MAX_SAMPLED_VALUES", 100)
    x = np.random.default_rng(0).permutation(1000).astype(float)[:, None]
    stats = compute_stats(np.array_split(x, 9))
    every_16th = x[::16]  # 1000 values are halved until at most 100 are left: 63
    np.testing.assert_allclose(stats.q99, np.quantile(every_16th, 0.99, axis=0))
    assert stats.max.item() == 999


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("minmax", [-1, 0, 1]),
        ("zscore", [-1.224745, 0, 1.224745]),
        ("quantile", [-1.020408, 0, 1.020408]),
        ("identity", [2, 4, 6]),
    ],
)
def test_modes_by_hand(mode, expected):
    n = normalizer(np.array([[2.0], [4.0], [6.0]]), mode=mode)
    y = n.normalize("x", torch.tensor([[2.0], [4.0], [6.0]]))
    torch.testing.assert_close(y[:, 0], torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0)


def test_nearly_constant_components_do_not_blow_up():
    # One flip in ten thousand steps: q99 - q01 and std are almost nothing, the flip is not.
    x = np.zeros((10_000, 3))
    x[:, 1] = 7.0
    x[5000, 0], x[5000, 1], x[:, 2] = 3.2, 7.00005, np.linspace(0, 1, 10_000)
    for mode in ("minmax", "zscore", "quantile"):
        n = normalizer(x, mode=mode)
        y = n.normalize("x", torch.tensor(x, dtype=torch.float32))
        assert y.abs().max() <= 10 + 1e-4, mode
        # Component 1 is constant: it is centred and keeps its scale, so a small drift stays small.
        drift = n.normalize("x", torch.tensor([0.0, 7.01, 0.5]))[1]
        assert drift.item() == pytest.approx(0.01, abs=1e-3), mode
        assert n.normalize("x", torch.tensor([1e6, -1e6, 1e6])).abs().max() == 10


@settings(deadline=None, max_examples=60)
@given(
    x=arrays(np.float64, st.tuples(st.integers(1, 30), st.just(4)), elements=st.floats(-1e4, 1e4, width=32)),
    mode=st.sampled_from(["minmax", "zscore", "quantile"]),
)
def test_inverse_is_exact_on_training_values(x, mode):
    n = normalizer(x, mode=mode, dims={"identity": [3]})
    t = torch.tensor(x, dtype=torch.float32)
    y = n.normalize("x", t)
    assert y[:, :3].abs().max() <= 10 * (1 + 1e-5)
    torch.testing.assert_close(n.unnormalize("x", y), t, atol=2e-3, rtol=1e-5)
    torch.testing.assert_close(y[:, 3], t[:, 3])


def test_steps_of_any_shape_and_unclipped_identity():
    x = np.random.default_rng(0).normal(size=(50, 9, 2)) * 100
    n = normalizer(x, dims={"identity": [1]})  # keypoint 0, y
    y = n.normalize("x", torch.tensor(x, dtype=torch.float32).view(5, 10, 9, 2))
    assert y.shape == (5, 10, 9, 2)
    torch.testing.assert_close(y[..., 0, 1].reshape(-1), torch.tensor(x[:, 0, 1], dtype=torch.float32))
    y[..., 0, 1] = 0
    assert y.abs().max() == pytest.approx(1)


def test_dictionary_and_state_dict_round_trips():
    x = np.random.default_rng(0).normal(size=(50, 2))
    n = Normalizer(
        {"a.b": compute_stats([x]), "action": compute_stats([x * 3])},
        {"a.b": KeyNorm(mode="quantile", clip=None), "action": KeyNorm(dims={"zscore": [1]})},
    )
    again = Normalizer.from_dict(json.loads(json.dumps(n.to_dict(), allow_nan=False)))
    assert again.keys == ("a.b", "action")
    for name, value in n.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    other = Normalizer.from_dict(n.to_dict())
    other.load_state_dict(n.state_dict())


def test_bad_input():
    with pytest.raises(DataError, match="no steps"):
        compute_stats([np.zeros((0, 2))])
    with pytest.raises(DataError, match="'min' of component 1 is nan"):
        compute_stats([np.array([[0.0, np.nan]])])
    one = np.ones(1)
    with pytest.raises(DataError, match="'max' of component 0 is inf"):
        ArrayStats(1, one, one * np.inf, one, one, one, one)
    with pytest.raises(ConfigError, match="Did you mean 'minmax'"):
        KeyNorm(mode="min_max")
    with pytest.raises(ConfigError, match="named twice"):
        KeyNorm(dims={"identity": [1], "zscore": [1]})
    with pytest.raises(ConfigError, match=r"component 5.*0\.\.1"):
        normalizer(np.zeros((3, 2)), dims={"identity": [5]})
    with pytest.raises(ConfigError, match="no normalisation for 'y'"):
        normalizer(np.zeros((3, 2))).normalize("y", torch.zeros(2))
    with pytest.raises(ConfigError, match="statistics are of"):
        Normalizer({"x": compute_stats([np.zeros((1, 1))])}, {})
