from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.angles import from_sin_cos, sin_cos, wrap
from visuomotor.data.errors import ConfigError


def test_wrap_hand_values():
    x = np.array([0.0, math.pi, -math.pi, 3 * math.pi / 2, -3 * math.pi / 2, 7.0])
    expected = [0, -math.pi, -math.pi, -math.pi / 2, math.pi / 2, 7 - 2 * math.pi]
    np.testing.assert_allclose(wrap(x), expected, atol=1e-12)


@settings(deadline=None)
@given(x=st.floats(-1e4, 1e4))
def test_wrap_is_the_same_angle_in_the_half_open_range(x):
    y = wrap(np.array(x))
    assert -math.pi <= y < math.pi
    assert math.isclose(math.cos(x - y), 1, abs_tol=1e-12)


@settings(deadline=None)
@given(x=st.floats(-20, 20, width=32))
def test_wrap_keeps_the_range_in_float32(x):
    y = wrap(torch.tensor(x))
    assert y.dtype == torch.float32
    assert -np.float32(math.pi) <= y.item() < np.float32(math.pi)


def test_just_below_minus_pi_does_not_become_pi():
    assert wrap(np.array(np.nextafter(-math.pi, -4))) < math.pi
    assert wrap(torch.tensor(np.nextafter(np.float32(-math.pi), np.float32(-4)))) < math.pi


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_sin_cos_layout_and_inverse(make):
    x = make([[10.0, math.pi / 2, 20.0, -math.pi / 3]])
    y = sin_cos(x, [3, 1])
    np.testing.assert_allclose(np.asarray(y), [[10, 1, 0, 20, -math.sqrt(0.75), 0.5]], atol=1e-6)
    np.testing.assert_allclose(np.asarray(from_sin_cos(y, [3, 1])), np.asarray(x), atol=1e-6)
    np.testing.assert_allclose(np.asarray(from_sin_cos(y * 3.0, [3, 1]))[:, 1], [math.pi / 2], atol=1e-6)


def test_a_component_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"component 2 does not exist.*0\.\.1"):
        sin_cos(np.zeros((3, 2)), [2])
