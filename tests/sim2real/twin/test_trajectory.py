"""The rules of the joint_trajectory_controller, by cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visuomotor.sim2real.messages import JointTrajectory, TrajectoryPoint
from visuomotor.sim2real.twin.trajectory import Knots, at, bounds, refusal, sorted_knots

NONE = np.zeros(0)
S = 1_000_000_000


def point(
    time_s: float,
    positions: list[float],
    velocities: list[float] | None = None,
    accelerations: list[float] | None = None,
) -> TrajectoryPoint:
    return TrajectoryPoint(
        time_from_start_ns=round(time_s * S),
        positions=np.array(positions),
        velocities=NONE if velocities is None else np.array(velocities),
        accelerations=NONE if accelerations is None else np.array(accelerations),
    )


def trajectory(*points: TrajectoryPoint, names: tuple[str, ...] = ("a", "b"), stamp_ns: int = 0) -> JointTrajectory:
    return JointTrajectory(stamp_ns=stamp_ns, joint_names=names, points=points)


GOOD = trajectory(point(0, [0, 0], [1, 0]), point(1, [1, 0], [0, 0]))


def test_names_choose_the_columns() -> None:
    swapped = trajectory(point(0, [1, 2], [3, 4]), point(2, [5, 6], [0, 0]), names=("b", "a"))
    assert refusal(swapped, ("a", "b"), 0) == ""
    knots = sorted_knots(swapped, ("a", "b"))
    assert knots.positions.tolist() == [[2, 1], [6, 5]]
    assert knots.velocities.tolist() == [[4, 3], [0, 0]]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (GOOD, ""),
        (trajectory(), "no points"),
        (trajectory(point(0, [0, 0]), names=("a", "c")), "unknown ['c'], missing ['b']"),
        (trajectory(point(0, [0]), names=("a",)), "missing ['b']"),
        (trajectory(point(0, [0, 0]), names=("a", "a")), "missing ['b']"),
        (trajectory(point(1, [0, 0]), point(1, [1, 1])), "times do not increase"),
        (trajectory(point(-1, [0, 0]), point(1, [1, 1])), "times do not increase"),
        (trajectory(point(0, [0, 0]), point(1, [1, 1], [0, 0.1])), "the last point moves, with 0.1000 rad/s"),
        (trajectory(point(0, [0, 0, 0])), "point 0 has 3 positions for 2 joints"),
        (trajectory(point(0, [])), "point 0 has 0 positions"),
        (trajectory(point(0, [0, np.nan])), "point 0: positions are not finite"),
        (trajectory(point(0, [0, 0], [np.inf, 0]), point(1, [0, 0])), "velocities are not finite"),
        (trajectory(point(0, [0, 0]), point(1, [1, 1]), stamp_ns=8 * S), "it ended 1.000 s ago"),
        (trajectory(point(0, [0, 0]), point(3, [1, 1]), stamp_ns=8 * S), ""),
    ],
)
def test_refusals(message: JointTrajectory, why: str) -> None:
    found = refusal(message, ("a", "b"), 10 * S)
    assert (found == "") == (why == "")
    assert why in found


def test_positions_alone_are_joined_by_straight_lines() -> None:
    knots = sorted_knots(trajectory(point(0, [0, 1]), point(2, [4, 1])), ("a", "b"))
    q, v = at(knots, 0.5)
    assert q.tolist() == [1, 1]
    assert v.tolist() == [2, 0]
    assert bounds(knots)[0].tolist() == [2, 0]
    assert bounds(knots)[1].tolist() == [0, 0]


def test_with_velocities_a_cubic() -> None:
    # from rest to rest over 1: x = 3 t^2 - 2 t^3, fastest in the middle with 3/2, |a| = 6 at both ends
    knots = sorted_knots(trajectory(point(0, [0, 0], [0, 0]), point(1, [1, 0], [0, 0])), ("a", "b"))
    for t in (0.25, 0.5, 0.8):
        q, v = at(knots, t)
        np.testing.assert_allclose(q, [3 * t**2 - 2 * t**3, 0], atol=1e-12)
        np.testing.assert_allclose(v, [6 * t - 6 * t**2, 0], atol=1e-12)
    speed, acceleration = bounds(knots)
    np.testing.assert_allclose(speed, [1.5, 0], atol=1e-12)
    np.testing.assert_allclose(acceleration, [6, 0], atol=1e-12)


def test_with_accelerations_a_quintic() -> None:
    # the minimum-jerk way from rest to rest: x = 10 t^3 - 15 t^4 + 6 t^5
    knots = sorted_knots(trajectory(point(0, [0, 0], [0, 0], [0, 0]), point(1, [1, 0], [0, 0], [0, 0])), ("a", "b"))
    for t in (0.1, 0.5, 0.7):
        np.testing.assert_allclose(at(knots, t)[0][0], 10 * t**3 - 15 * t**4 + 6 * t**5, atol=1e-12)
    np.testing.assert_allclose(bounds(knots)[0][0], 1.875, atol=1e-12)  # 15/8, in the middle


def test_it_holds_after_the_end_and_waits_before_the_beginning() -> None:
    knots = sorted_knots(GOOD, ("a", "b"))
    assert at(knots, 7.0)[0].tolist() == [1, 0]
    assert at(knots, 7.0)[1].tolist() == [0, 0]
    assert at(knots, -1.0)[0].tolist() == [0, 0]
    single = sorted_knots(trajectory(point(0.5, [2, 3])), ("a", "b"))
    assert at(single, 0.0)[0].tolist() == [2, 3]
    assert bounds(single)[0].tolist() == [0, 0]


@given(st.lists(st.floats(-2, 2), min_size=18, max_size=18), st.floats(0.02, 0.5))
def test_pieces_meet_in_position_velocity_and_acceleration(values: list[float], dt: float) -> None:
    x = np.array(values).reshape(3, 2, 3)
    knots = Knots(np.array([0.0, dt, 3 * dt]), *x.transpose(2, 0, 1))
    speed, acceleration = bounds(knots)
    for i, t in enumerate(knots.times_s):
        np.testing.assert_allclose(at(knots, min(t, 3 * dt - 1e-9))[0], x[i, :, 0], atol=1e-6)
    times = np.linspace(0, 3 * dt, 400)[:-1]
    q = np.array([at(knots, float(t))[0] for t in times])
    v = np.diff(q, axis=0) / (times[1] - times[0])
    assert (np.abs(v) <= 1.05 * speed + 1e-6).all()  # the chord of a curve is nowhere steeper than the curve
    assert np.isfinite(acceleration).all()
