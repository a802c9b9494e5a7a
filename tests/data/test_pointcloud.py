"""Point clouds: the pinhole model and rigid motions by hand, farthest points against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.pointcloud import (
    crop_box,
    depth_to_points,
    farthest_points,
    spread_evenly,
    take_points,
    transform_points,
)


def test_depth_to_points_by_hand():
    depth = torch.tensor([[2.0, 0.0, 4.0], [1.0, math.nan, math.inf]])
    points, measured = depth_to_points(depth, torch.tensor([2.0, 4.0, 1.0, 0.5]))
    # x = (u - 1) / 2 * z, y = (v - 0.5) / 4 * z
    expected = [[-1.0, -0.25, 2.0], [0, 0, 0], [2.0, -0.5, 4.0], [-0.5, 0.125, 1.0], [0, 0, 0], [0, 0, 0]]
    assert points.tolist() == expected
    assert measured.tolist() == [True, False, True, True, False, False]


def test_a_stride_keeps_the_geometry_of_the_full_image():
    depth = 1 + torch.rand(2, 5, 7)
    intrinsics = torch.tensor([[3.0, 3.0, 3.0, 2.0], [5.0, 4.0, 2.0, 2.0]])
    full, _ = depth_to_points(depth, intrinsics)
    thin, _ = depth_to_points(depth, intrinsics, stride=3)
    assert thin.shape == (2, 2 * 3, 3)
    assert torch.equal(thin, full.view(2, 5, 7, 3)[:, ::3, ::3].reshape(2, 6, 3))


def test_rigid_motion_by_hand():
    quarter_turn = torch.tensor([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])  # about z, then shift
    points = torch.tensor([[1.0, 0.0, 0.0, 7.0], [0.0, 2.0, 5.0, 8.0]])
    assert transform_points(points, quarter_turn).tolist() == [[1.0, 3.0, 3.0, 7.0], [-1.0, 2.0, 8.0, 8.0]]


def test_crop_includes_the_faces():
    points = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1.01, 0, 0], [0, -0.01, 0]])
    assert crop_box(points, torch.zeros(3), torch.ones(3)).tolist() == [True, True, False, False]


def test_spread_evenly_by_hand():
    valid = torch.tensor([[0, 1, 1, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0], [0] * 7]).bool()
    assert spread_evenly(valid, 2).tolist() == [[1, 4], [3, 3], [0, 0]]
    assert spread_evenly(valid, 4).tolist()[0] == [1, 2, 4, 5]


def test_farthest_points_by_hand():
    line = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])[None, :, None] * torch.tensor([1.0, 0, 0])
    # Centroid 3.2: farthest is 10; then 0; then 3 (distance 3 to 0), then 1 or 2 (distance 1): the first.
    assert farthest_points(line, 4).tolist() == [[4, 0, 3, 1]]
    valid = torch.tensor([[True, True, True, True, False]])  # centroid 1.5: 0 and 3 are equally far
    assert farthest_points(line, 3, valid).tolist() == [[0, 3, 1]]
    two = torch.tensor([[False, True, False, True, False]])
    assert set(farthest_points(line, 4, two)[0].tolist()) == {1, 3}  # repeated, never an invalid one


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_farthest_points_do_not_notice_what_the_missing_ones_hold(bad):
    cloud = torch.rand(1, 20, 3, generator=torch.Generator().manual_seed(0))
    valid = torch.arange(20)[None] % 3 > 0
    expected = farthest_points(cloud, 6, valid)
    cloud[~valid] = bad  # as an organised cloud of a robot's camera has them
    assert torch.equal(farthest_points(cloud, 6, valid), expected)
    assert len(set(expected[0].tolist())) == 6


def brute_force(points: list[list[float]], valid: list[bool], n: int) -> list[int]:
    """Farthest point sampling as its definition reads, one sample, in double precision."""
    keep = [i for i, v in enumerate(valid) if v]
    centre = [sum(points[i][k] for i in keep) / len(keep) for k in range(3)]
    chosen = [max(keep, key=lambda i: math.dist(points[i], centre))]
    while len(chosen) < n:
        chosen.append(max(keep, key=lambda i: min(math.dist(points[i], points[j]) for j in chosen)))
    return chosen


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n_points=st.integers(5, 40), share=st.floats(0.0, 0.7))
def test_farthest_points_against_brute_force(seed, n_points, share):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(3, n_points, 4, generator=generator)
    valid = torch.rand(3, n_points, generator=generator) >= share
    valid[:, :3] = True  # two points are equally far from their middle
    n = min(5, int(valid.sum(1).min()))
    got = farthest_points(points, n, valid)
    for row in range(3):
        assert got[row].tolist() == brute_force(points[row, :, :3].tolist(), valid[row].tolist(), n)


@pytest.mark.parametrize("n", [1, 6])
def test_the_chosen_points_do_not_depend_on_the_order(n):
    points = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(3))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(4))
    a = take_points(points, farthest_points(points, n))
    b = take_points(points[:, order], farthest_points(points[:, order], n))
    assert torch.equal(a, b)
