"""The closed forms of a jerk-limited stop against arithmetic by hand, integration in small steps, and ruckig."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.sim2real.safety.profile import after, duration, extent, settle
from visuomotor.sim2real.safety.tracking import Motion, pursue

RATES = st.floats(-3.0, 3.0)
SHARES = st.floats(-1.0, 1.0)


def test_a_stop_that_reaches_the_largest_deceleration() -> None:
    """From velocity 2 with 4 and jerk 8: 0.5 s up to -4 takes 8 * 0.25 / 2 = 1 of the velocity, 0.5 s back the other
    1. Nothing is left to hold, and by symmetry the way is that of the mean velocity: 1 in 1 s.
    """
    side, _, _, rise, hold, fall, peak, distance = settle(2.0, 0.0, 4.0, 4.0, 8.0)
    assert (side, peak) == (-1.0, 4.0)
    assert (rise, hold, fall) == pytest.approx((0.5, 0.0, 0.5))
    assert distance == pytest.approx(1.0)
    # one more m/s takes 0.25 s at 4 m/s^2
    way = settle(3.0, 0.0, 4.0, 4.0, 8.0)
    assert way[4] == pytest.approx(0.25)
    assert duration(way) == pytest.approx(1.25)
    assert way[7] == pytest.approx(3.0 * 1.25 / 2)


def test_a_stop_that_does_not() -> None:
    """v 1, jerk 4: the peak is sqrt(4 * 1) = 2, half a second up and half down; symmetric: 1 * 1 / 2."""
    way = settle(1.0, 0.0, 100.0, 100.0, 4.0)
    assert way[6] == pytest.approx(2.0)
    assert (duration(way), way[7]) == pytest.approx((1.0, 0.5))


def test_an_acceleration_alone_is_taken_back_and_its_velocity_too() -> None:
    """v 0, a 2, jerk 2: 1 s down to 0 gives v 1; then as above with jerk 2: peak sqrt(2)."""
    way = settle(0.0, 2.0, 9.0, 9.0, 2.0)
    assert way[6] == pytest.approx(math.sqrt(2.0))
    assert duration(way) == pytest.approx((2 + math.sqrt(2)) / 2 + math.sqrt(2) / 2)


@settings(max_examples=100, deadline=None)
@given(v=RATES, share=SHARES, up=st.floats(0.5, 10), down=st.floats(0.5, 10), jerk=st.floats(1, 500))
def test_integration_says_the_same(v: float, share: float, up: float, down: float, jerk: float) -> None:
    a = share * (up if share > 0 else down)
    way = settle(v, a, up, down, jerk)
    total, x, n = duration(way), 0.0, 400
    last = (0.0, v, a)
    for i in range(1, n + 1):
        dt = total / n
        now = after(way, jerk, i * dt)
        x += dt * (last[1] + now[1]) / 2
        assert abs(now[0] - x) <= 1e-3 + jerk * dt**2 * total
        assert -down - 1e-9 <= now[2] <= up + 1e-9
        assert abs(now[2] - last[2]) <= jerk * dt * (1 + 1e-6) + 1e-9
        assert abs(now[1] - last[1]) <= max(up, down) * dt * (1 + 1e-6) + 1e-9
        last = now
    assert after(way, jerk, total * 1.001 + 1e-9) == (way[7], 0.0, 0.0)
    assert last[1] == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(v=RATES, share=SHARES, most=st.floats(0.5, 10), jerk=st.floats(1, 500), part=st.floats(0, 1))
def test_after_some_of_the_way_the_best_way_is_the_rest(
    v: float, share: float, most: float, jerk: float, part: float
) -> None:
    way = settle(v, share * most, most, most, jerk)
    x, w, b = after(way, jerk, part * duration(way))
    rest = settle(w, b, most, most, jerk)
    assert x + rest[7] == pytest.approx(way[7], abs=1e-9)
    assert duration(rest) == pytest.approx((1 - part) * duration(way), abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(v=RATES, share=SHARES, most=st.floats(0.5, 10), jerk=st.floats(1, 500))
def test_the_extent_is_that_of_the_way(v: float, share: float, most: float, jerk: float) -> None:
    way = settle(v, share * most, most, most, jerk)
    xs = [after(way, jerk, duration(way) * i / 500)[0] for i in range(501)]
    low, high = extent(v, share * most, most, jerk)
    slack = 1e-9 + (abs(v) + most * most / jerk) * duration(way) / 500
    assert low <= min(xs) + 1e-9 <= low + slack
    assert high >= max(xs) - 1e-9 >= high - slack


@settings(max_examples=60, deadline=None)
@given(
    start=st.tuples(st.floats(-1, 1), st.floats(-0.9, 0.9)), goal=st.floats(-2, 2), most=st.floats(1, 8),
    jerk=st.floats(10, 200), speed=st.floats(0.9, 3),
)  # fmt: skip
def test_a_standing_target_is_reached_as_fast_as_ruckig_does(
    start: tuple[float, float], goal: float, most: float, jerk: float, speed: float
) -> None:
    """Ruckig computes time-optimal motions: an independent implementation."""
    ruckig = pytest.importorskip("ruckig")
    question = ruckig.InputParameter(1)
    question.current_position, question.current_velocity, question.current_acceleration = [start[0]], [start[1]], [0.0]
    question.target_position, question.target_velocity, question.target_acceleration = [goal], [0.0], [0.0]
    question.max_velocity, question.max_acceleration, question.max_jerk = [speed], [most], [jerk]
    answer = ruckig.Trajectory(1)
    assert ruckig.Ruckig(1).calculate(question, answer) in (ruckig.Result.Working, ruckig.Result.Finished)
    now, dt, ticks = Motion(start[0], start[1], 0.0), 0.002, 0
    while not (abs(now.q - goal) < 1e-7 and abs(now.v) < 1e-4) and ticks < 10000:
        now = pursue(now, goal, 0.0, speed, most, jerk, dt)
        ticks += 1
    assert ticks * dt <= answer.duration + 3 * dt
    assert ticks * dt >= answer.duration - 0.02  # the last 1e-7 rad take ruckig some time too
