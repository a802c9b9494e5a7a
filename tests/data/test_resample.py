"""Streams brought to one rate: arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visuomotor.data.errors import DataError
from visuomotor.data.importing import resample as rs

S = 1_000_000_000


def ns(*seconds: float) -> np.ndarray:
    return np.array([round(s * S) for s in seconds], np.int64)


def test_grid_is_rounded_from_the_index() -> None:
    # 30 Hz: 1/30 s = 33,333,333.3 ns; step 3 is exactly 0.1 s, not 3 * 33,333,333
    assert rs.grid(5, 5 + S // 10, 30.0).tolist() == [5, 33_333_338, 66_666_672, 100_000_005]
    assert rs.grid(0, S, 1.0).tolist() == [0, S]
    assert rs.grid(7, 7, 10.0).tolist() == [7]
    assert rs.grid(8, 7, 10.0).tolist() == []


def test_a_long_grid_does_not_drift() -> None:
    # 1e6 steps of 30 Hz are 33,333.333... s
    assert rs.grid(0, 33_334 * S, 30.0)[1_000_000] == 33_333_333_333_333


def test_hold_takes_the_latest_and_nearest_the_nearer() -> None:
    times, at = ns(0, 1, 2), ns(-0.1, 0, 0.4, 0.5, 0.6, 2, 9)
    assert rs.hold_index(times, at).tolist() == [-1, 0, 0, 0, 0, 2, 2]
    assert rs.nearest_index(times, at).tolist() == [0, 0, 0, 0, 1, 2, 2]  # 0.5 is equally near: the earlier
    assert rs.nearest_index(ns(3), at).tolist() == [0] * 7


def test_linear_lies_on_the_line() -> None:
    times, values = ns(0, 1, 3), np.array([[0.0, 10.0], [2.0, 10.0], [6.0, 0.0]])
    got = rs.linear(times, values, ns(0.25, 1, 2.5, 7))
    # 0.25 of 0..2 is 0.5; at 2.5, 3/4 of 2..6 is 5 and of 10..0 is 2.5; after the end the last
    assert got.tolist() == [[0.5, 10.0], [2.0, 10.0], [5.0, 2.5], [6.0, 0.0]]


def test_angles_go_the_short_way() -> None:
    # from 3 rad to -3 rad it is 2 pi - 6 = 0.2832 rad over pi: half way is pi, which is -pi in [-pi, pi)
    got = rs.angle(ns(0, 1), np.array([[3.0], [-3.0]]), ns(0, 0.25, 0.5, 1))[:, 0]
    np.testing.assert_allclose(got, [3.0, 3.0 + (2 * np.pi - 6) / 4, -np.pi, -3.0], atol=1e-12)
    # without negative samples the circle is [0, 2 pi): from 6.2 on to 0.1 (short way) never passes pi
    got = rs.angle(ns(0, 1), np.array([[6.2], [0.1]]), ns(0.5))[0, 0]
    assert got == pytest.approx((6.2 + 0.1 + 2 * np.pi) / 2 - 2 * np.pi)


def test_slerp_halves_a_quarter_turn() -> None:
    # about z: 0 and 90 degrees (wxyz); a third of it is 30 degrees: cos 15, sin 15
    q = np.array([[1, 0, 0, 0], [np.sqrt(0.5), 0, 0, np.sqrt(0.5)]])
    got = rs.slerp(ns(0, 3), q, ns(1))[0]
    np.testing.assert_allclose(got, [np.cos(np.pi / 12), 0, 0, np.sin(np.pi / 12)], atol=1e-12)
    flipped = rs.slerp(ns(0, 3), q * np.array([[1.0], [-1.0]]), ns(1))[0]  # -q is the same rotation
    np.testing.assert_allclose(flipped, got, atol=1e-12)


def test_slerp_of_equal_rotations_and_of_none() -> None:
    q = np.array([[0.0, 1, 0, 0], [0.0, 1, 0, 0]])
    np.testing.assert_allclose(rs.slerp(ns(0, 1), q, ns(0.3)), [[0, 1, 0, 0]], atol=1e-12)
    with pytest.raises(DataError, match="sample 1 is a quaternion of length 0"):
        rs.slerp(ns(0, 1), np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]]), ns(0))


def test_resample_keeps_the_type_where_nothing_is_invented() -> None:
    values = np.array([1, 2, 3], np.int32)
    assert rs.resample(ns(0, 1, 2), values, ns(0.6, 1.6), "hold").tolist() == [1, 2]
    assert rs.resample(ns(0, 1, 2), values, ns(0.6, 1.6), "nearest").tolist() == [2, 3]
    assert rs.resample(ns(0, 1, 2), values, ns(0.6), "hold").dtype == np.int32
    assert rs.resample(ns(0, 1, 2), values, ns(0.5), "linear").tolist() == [1.5]


def test_order_and_equal_times() -> None:
    assert rs.in_order(np.array([3, 1, 2, 1])).tolist() == [3, 2, 0]  # of the two at 1 the later one


def test_ages_gaps_and_lost_samples() -> None:
    times = ns(0, 0.1, 0.2, 0.6, 0.7)  # one pause of 0.4 s: three samples of 10 Hz are missing
    np.testing.assert_allclose(rs.ages(times, ns(0.05, 0.5, -1)), [0.05, 0.3, np.inf])
    assert rs.gaps(times, 0.2) == [(2, pytest.approx(0.4))]
    assert rs.missing_samples(times) == 3
    assert rs.missing_samples(ns(1)) == 0


def test_intersection() -> None:
    assert rs.intersection([ns(0, 5), ns(1, 4), ns(2, 9)]) == (2 * S, 4 * S)


def test_split_at_gaps_and_changes() -> None:
    assert rs.split_at_gaps(ns(0, 1, 5, 6, 20), 2.0) == [(0, S), (5 * S, 6 * S), (20 * S, 20 * S)]
    parts = rs.split_at_changes(ns(1, 2, 3, 6), [False, True, True, False], 8 * S)
    assert parts == [(S, 2 * S - 1, False), (2 * S, 6 * S - 1, True), (6 * S, 8 * S, False)]


@given(
    st.lists(st.integers(0, 10**12), min_size=2, max_size=20, unique=True),
    st.lists(st.integers(-(10**11), 2 * 10**12), min_size=1, max_size=20),
)
def test_interpolation_stays_within_its_neighbours(times: list[int], at: list[int]) -> None:
    t = np.array(sorted(times), np.int64)
    values = np.random.default_rng(0).normal(size=(len(t), 2))
    when = np.array(at, np.int64)
    got = rs.linear(t, values, when)
    before = np.clip(np.searchsorted(t, when, side="right") - 1, 0, len(t) - 1)
    after = np.minimum(before + 1, len(t) - 1)
    low, high = np.minimum(values[before], values[after]), np.maximum(values[before], values[after])
    assert (got >= low - 1e-12).all()
    assert (got <= high + 1e-12).all()
    np.testing.assert_array_equal(rs.linear(t, values, t), values)  # at its own times a stream is itself
    chosen = rs.nearest_index(t, when)
    best = np.abs(t[None] - when[:, None]).min(axis=1)
    np.testing.assert_array_equal(np.abs(t[chosen] - when), best)
