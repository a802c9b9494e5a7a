"""Residual quantisation of chunks: by hand, by properties, and on real actions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.store import DemoStore
from visuomotor.policies.heads.quantizer import ResidualQuantizer, kmeans

PUSHT = Path(__file__).parents[2].parent / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"


def _smooth_chunks(n, horizon, dims, seed=0):
    """Random sums of three slow waves a dimension, with a standard deviation of about 0.5."""
    g = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 1, horizon)
    waves = torch.stack([torch.ones(horizon), t - 0.5, torch.cos(np.pi * t)])  # [3, H]
    return torch.einsum("nwd,wh->nhd", 0.4 * torch.randn(n, 3, dims, generator=g), waves)


def _rmse(a, b):
    return float((a - b).square().mean().sqrt())


def test_kmeans_by_hand():
    points = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    assert sorted(kmeans(points, 2)[:, 0].tolist()) == [0.5, 11.0]


def test_kmeans_of_fewer_points_than_centres_keeps_every_point():
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0], [2.0, 3.0]])
    centres = kmeans(points, 8)
    assert centres.shape == (8, 2)
    assert {tuple(c) for c in centres.tolist()} == {(0.0, 1.0), (2.0, 3.0)}


def test_kmeans_leaves_no_centre_without_points():
    g = torch.Generator().manual_seed(0)
    points = torch.cat([torch.randn(500, 3, generator=g), 50 + torch.randn(5, 3, generator=g)])
    centres = kmeans(points, 64)
    assert len(torch.cdist(points, centres).argmin(1).unique()) == 64


def test_one_scale_of_one_knot_is_the_mean_of_the_chunk():
    q = ResidualQuantizer([1], n_codes=2, knots=1, horizon=4, action_dim=1)
    chunks = torch.tensor([[0.0, 1.0, 2.0, 3.0], [-4.0, -4.0, -2.0, -2.0]])[..., None]
    q.fit(chunks)
    codes, sums = q.encode(chunks)
    assert codes.shape == (2, 1, 1)
    assert sums[:, 1, :, 0].tolist() == [pytest.approx([1.5] * 4, abs=1e-6), pytest.approx([-3.0] * 4, abs=1e-6)]
    assert float(q.error[0]) == pytest.approx(0.0, abs=1e-3)  # both means have a code of their own


def test_a_polyline_is_fitted_through_its_knots():
    # Four knots over seven steps lie at steps 0, 2, 4, 6: a polyline with these corners is reproduced.
    q = ResidualQuantizer([1], n_codes=4, knots=4, horizon=7, action_dim=1)
    chunk = torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0, 3.0, 6.0])[None, :, None]
    q.fit(chunk)
    assert torch.allclose(q.state_dict()["codebook_0"][0], torch.tensor([0.0, 2.0, 0.0, 6.0]), atol=1e-5)
    codes, sums = q.encode(chunk)
    assert torch.allclose(sums[:, 1], chunk, atol=1e-5)
    assert torch.allclose(q.decode(codes[:, 0], 0), chunk, atol=1e-5)


def test_sums_are_the_decoded_codes_of_the_scales_before():
    chunks = _smooth_chunks(300, 10, 3)
    q = ResidualQuantizer([1, 2, 4], n_codes=32, knots=2, horizon=10, action_dim=3)
    q.fit(chunks)
    codes, sums = q.encode(chunks)
    assert codes.shape == (300, 3, 4)
    total = torch.zeros_like(chunks)
    for k, length in enumerate(q.lengths):
        assert torch.allclose(sums[:, k], total, atol=1e-6)
        total = total + q.decode(codes[:, k, :length], k)
        assert (codes[:, k, length:] == 0).all()
    assert torch.allclose(sums[:, -1], total, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.sampled_from([(1,), (1, 2, 4), (2, 3)]), st.sampled_from([8, 13, 100]), st.integers(1, 6))
def test_any_size_is_coded_and_each_scale_brings_it_nearer(dims, scales, horizon, knots):
    chunks = _smooth_chunks(60, horizon, dims)
    q = ResidualQuantizer(scales, n_codes=16, knots=knots, horizon=horizon, action_dim=dims)
    q.fit(chunks)
    _, sums = q.encode(chunks)
    errors = [_rmse(chunks, sums[:, k]) for k in range(len(scales) + 1)]
    assert all(later < earlier + 1e-6 for earlier, later in pairwise(errors))
    assert torch.isfinite(sums).all()


@pytest.mark.parametrize(("dims", "bound"), [(2, 0.04), (14, 0.32)])
def test_held_out_chunks_are_reconstructed(dims, bound):
    # Seen: 0.022 and 0.27, for chunks with a root mean square of 0.50. Many independent dimensions in one code are
    # coarse; the head's last pass, a regression, is for what is left.
    train, test = _smooth_chunks(4000, 16, dims), _smooth_chunks(500, 16, dims, seed=1)
    q = ResidualQuantizer([1, 2, 4], n_codes=128, knots=4, horizon=16, action_dim=dims)
    q.fit(train)
    assert _rmse(test, q.encode(test)[1][:, -1]) < bound


def test_fitting_is_a_function_of_the_data():
    chunks, states = _smooth_chunks(500, 8, 2), []
    for _ in range(2):
        q = ResidualQuantizer([1, 2], n_codes=32, knots=4, horizon=8, action_dim=2)
        q.fit(chunks)
        states.append(q.state_dict())
        torch.rand(3)  # the global generator has no say
    assert states[0].keys() == states[1].keys() == {"error", "codebook_0", "codebook_1"}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_with_noise_later_codes_correct_earlier_ones():
    chunks = _smooth_chunks(2000, 16, 2)
    q = ResidualQuantizer([1, 2, 4], n_codes=64, knots=4, horizon=16, action_dim=2)
    q.fit(chunks)
    noise = torch.randn(2000, q.values, generator=torch.Generator().manual_seed(0))
    clean, noisy = q.encode(chunks)[1], q.encode(chunks, noise)[1]
    assert torch.equal(clean, q.encode(chunks, torch.zeros_like(noise))[1])
    assert _rmse(noisy[:, 1], chunks) > 1.1 * _rmse(clean[:, 1], chunks)
    assert _rmse(noisy[:, 3], chunks) < 0.5 * _rmse(noisy[:, 1], chunks)


def test_autocast_does_not_change_the_codes():
    chunks = _smooth_chunks(300, 16, 2)
    q = ResidualQuantizer([1, 2, 4], n_codes=64, knots=4, horizon=16, action_dim=2)
    q.fit(chunks)
    codes, sums = q.encode(chunks)
    with torch.autocast("cpu", torch.bfloat16):
        again, sums_again = q.encode(chunks)
    assert torch.equal(codes, again)
    assert torch.equal(sums, sums_again)


def test_refusals():
    with pytest.raises(ConfigError, match=r"scales=\[1, 2, 4\].*3 steps"):
        ResidualQuantizer([1, 2, 4], n_codes=4, knots=1, horizon=3, action_dim=1)
    q = ResidualQuantizer([1], n_codes=4, knots=1, horizon=3, action_dim=1)
    with pytest.raises(DataError, match=r"\(2, 3, 1\)"):
        q.fit(torch.full((2, 3, 1), torch.nan))


@pytest.mark.skipif(not PUSHT.exists(), reason=f"no Push-T demonstrations at {PUSHT}")
def test_pusht_actions_are_reconstructed():
    store = DemoStore.open(PUSHT)
    episodes = [torch.as_tensor(store.read("action", 0, 12000)[store.episode_slice(i)]) for i in range(80)]
    low, high = torch.cat(episodes).min(0).values, torch.cat(episodes).max(0).values
    train, test = (
        torch.cat([(2 * (e.float() - low) / (high - low) - 1).unfold(0, 16, 1).transpose(1, 2) for e in part])
        for part in (episodes[:70], episodes[70:])
    )  # [n, 16, 2]
    q = ResidualQuantizer([1, 2, 4], n_codes=256, knots=4, horizon=16, action_dim=2)
    q.fit(train)
    assert _rmse(test, q.encode(test)[1][:, -1]) < 0.03
