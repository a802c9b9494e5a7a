from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from visuomotor.data.rotations import (
    axis_angle_to_quat,
    matrix_to_quat,
    matrix_to_rot6d,
    quat_multiply,
    quat_to_axis_angle,
    quat_to_matrix,
    rot6d_to_matrix,
)

H = math.sqrt(0.5)
vectors = arrays(np.float64, (3,), elements=st.floats(-1, 1, width=32))
quats = (
    arrays(np.float64, (4,), elements=st.floats(-1, 1, width=32))
    .filter(lambda q: np.linalg.norm(q) > 1e-3)
    .map(lambda q: q / np.linalg.norm(q))
)


def as_numpy(x):
    return np.asarray(x)


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("quat", "matrix"),
    [
        ([1.0, 0, 0, 0], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ([H, 0, 0, H], [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),  # +90 deg about z: x goes to y
        ([H, H, 0, 0], [[1, 0, 0], [0, 0, -1], [0, 1, 0]]),  # +90 deg about x: y goes to z
        ([H, 0, H, 0], [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]),  # +90 deg about y: z goes to x
        ([0.0, 1, 0, 0], [[1, 0, 0], [0, -1, 0], [0, 0, -1]]),  # 180 deg about x
        ([0.0, 0, 1, 0], [[-1, 0, 0], [0, 1, 0], [0, 0, -1]]),
        ([0.0, 0, 0, 1], [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]),
        ([0.5, 0.5, 0.5, 0.5], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]),  # 120 deg about (1, 1, 1): x to y to z
    ],
)
def test_hand_values(make, quat, matrix):
    q, m = make([quat]), make([matrix]) * 1.0
    np.testing.assert_allclose(as_numpy(quat_to_matrix(q)), as_numpy(m), atol=1e-7)
    np.testing.assert_allclose(as_numpy(matrix_to_quat(m)), as_numpy(q), atol=1e-7)
    np.testing.assert_allclose(as_numpy(matrix_to_rot6d(m))[0], [*matrix[0], *matrix[1]])


def test_rot6d_is_gram_schmidt_of_two_rows():
    # Row 0 is (2, 0, 0); row 1 loses its part along it: (5, 3, 0) -> (0, 1, 0); row 2 is the cross product.
    np.testing.assert_allclose(rot6d_to_matrix(np.array([2.0, 0, 0, 5, 3, 0])), np.eye(3), atol=1e-12)
    m = rot6d_to_matrix(np.array([0.0, 3, 0, 0, 0, -2]))
    np.testing.assert_allclose(m, [[0, 1, 0], [0, 0, -1], [-1, 0, 0]], atol=1e-12)


def test_axis_angle_hand_values():
    np.testing.assert_allclose(axis_angle_to_quat(np.array([0, 0, math.pi / 2])), [H, 0, 0, H])
    np.testing.assert_allclose(axis_angle_to_quat(np.zeros(3)), [1, 0, 0, 0])
    np.testing.assert_allclose(quat_to_axis_angle(np.array([-H, 0, 0, -H])), [0, 0, math.pi / 2])
    np.testing.assert_allclose(quat_to_axis_angle(np.array([1.0, 0, 0, 0])), [0, 0, 0])


def test_quat_multiply_is_hamilton():
    i, j, k = np.eye(4)[1:]
    np.testing.assert_array_equal(quat_multiply(i, j), k)
    np.testing.assert_array_equal(quat_multiply(j, i), -k)
    np.testing.assert_array_equal(quat_multiply(k, k), [-1, 0, 0, 0])


@settings(deadline=None)
@given(q=quats)
def test_matrix_is_a_rotation_and_both_quaternions_give_it(q):
    m = quat_to_matrix(q)
    np.testing.assert_allclose(m @ m.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(m) == pytest.approx(1)
    np.testing.assert_allclose(quat_to_matrix(-q), m, atol=1e-15)
    back = matrix_to_quat(m)
    assert back[0] >= 0
    assert abs(back @ q) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(rot6d_to_matrix(matrix_to_rot6d(m)), m, atol=1e-12)


@settings(deadline=None)
@given(p=quats, q=quats, v=vectors)
def test_product_composes_rotations(p, q, v):
    together = quat_to_matrix(quat_multiply(p, q)) @ v
    np.testing.assert_allclose(together, quat_to_matrix(p) @ (quat_to_matrix(q) @ v), atol=1e-9)


@settings(deadline=None)
@given(axis=vectors.filter(lambda v: np.linalg.norm(v) > 1e-2), angle=st.floats(0, math.pi - 1e-6))
def test_axis_angle_round_trip(axis, angle):
    v = axis / np.linalg.norm(axis) * angle
    np.testing.assert_allclose(quat_to_axis_angle(axis_angle_to_quat(v)), v, atol=1e-9)


@settings(deadline=None)
@given(axis=vectors.filter(lambda v: np.linalg.norm(v) > 1e-2), below=st.floats(-1e-4, 1e-4))
def test_near_half_a_turn_in_float32(axis, below):
    v = torch.tensor(axis / np.linalg.norm(axis) * (math.pi + below), dtype=torch.float32)
    m = quat_to_matrix(axis_angle_to_quat(v))
    again = quat_to_matrix(axis_angle_to_quat(quat_to_axis_angle(matrix_to_quat(m))))
    assert torch.isfinite(again).all()
    torch.testing.assert_close(again, m, atol=2e-6, rtol=0)


def test_float32_stays_float32_and_shape_is_free():
    q = torch.randn(2, 5, 4)
    assert quat_to_matrix(q).shape == (2, 5, 3, 3)
    for out in (matrix_to_quat(quat_to_matrix(q)), quat_to_axis_angle(q), matrix_to_rot6d(quat_to_matrix(q))):
        assert out.dtype == torch.float32
        assert out.shape[:2] == (2, 5)
    assert quat_to_axis_angle(np.ones((0, 4), np.float32)).dtype == np.float32


def test_degenerate_input_and_gradients_stay_finite():
    assert torch.isfinite(rot6d_to_matrix(torch.zeros(6))).all()
    v = torch.zeros(3, requires_grad=True)
    axis_angle_to_quat(v).sum().backward()
    six = torch.tensor([1.0, 0, 0, 0, 1, 0], requires_grad=True)
    rot6d_to_matrix(six).sum().backward()
    assert six.grad is not None
    assert torch.isfinite(six.grad).all()
