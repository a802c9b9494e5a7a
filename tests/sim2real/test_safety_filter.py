"""What the filter is given is followed as far as its limits allow, and refused where it makes no sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.sim2real.safety.config import ArmLimits, SafetyConfig
from visuomotor.sim2real.safety.filter import Filtered, SafetyFilter

LOW = np.array([-2.9, -1.8, -2.9, -3.1, -2.9, 0.0, -2.9])
HIGH = np.array([2.9, 1.8, 2.9, -0.07, 2.9, 3.75, 2.9])
HOME = np.array([0.0, 0.1, 0.0, -2.3, 0.0, 2.4, 0.785])
LIMITS = ArmLimits(
    low=LOW, high=HIGH, velocity=np.full(7, 2.0), acceleration=np.linspace(5, 10, 7), jerk=np.linspace(100, 400, 7)
)
WILD: dict[str, Any] = {
    "first_command": np.inf,
    "jump": np.inf,
    "resume_after_s": 0.0,
}  # every finite target is pursued
TICK = 0.008


def make(dt: float = TICK, limits: ArmLimits = LIMITS, at: np.ndarray = HOME, **config: Any) -> SafetyFilter:
    filter = SafetyFilter(limits, dt, SafetyConfig(**config))
    filter.start(at)
    return filter


# ---- following


def follow(filter: SafetyFilter, targets: np.ndarray) -> np.ndarray:
    return np.array([filter.step(target).position for target in targets])


@pytest.mark.parametrize("dt", [0.002, 0.008, 0.02])
def test_a_standing_target_is_reached_without_overshoot_and_kept(dt: float) -> None:
    filter = make(dt, **WILD, ramp_in_s=0.0)
    goal = HOME + np.array([0.8, -0.5, 0.3, 0.01, 1e-5, -0.2, 1.5])
    sent = follow(filter, np.tile(goal, (round(3 / dt), 1)))
    past = (sent - goal) * np.sign(goal - HOME)
    assert past.max() < 1e-9
    assert (np.diff(sent, axis=0) * np.sign(goal - HOME) >= -1e-12).all()  # never backwards
    still = sent[round(2.5 / dt) :]
    np.testing.assert_allclose(still, np.tile(goal, (len(still), 1)), atol=1e-9)
    assert np.abs(np.diff(still, n=3, axis=0)).max() / dt**3 < 1e-3 * LIMITS.jerk.min()  # no limit cycle
    filter.step(None)
    assert filter.at_rest


def lag(sent: np.ndarray, targets: np.ndarray, dt: float) -> float:
    """Delay [s] by least squares."""
    slope = np.gradient(targets, dt, axis=0)
    return -float(((sent - targets) * slope).sum() / (slope * slope).sum())


@pytest.mark.parametrize("dt", [0.002, 0.008, 0.02])
def test_a_smooth_target_is_followed_with_a_lag_of_milliseconds(dt: float) -> None:
    filter = make(dt, **WILD, ramp_in_s=0.0)
    t = np.arange(round(4 / dt)) * dt
    targets = HOME + 0.2 * np.sin(2 * np.pi * 0.5 * t)[:, None] * np.linspace(0.5, 1, 7)
    sent = follow(filter, targets)
    settled = slice(round(1 / dt), None)
    assert abs(lag(sent[settled], targets[settled], dt)) < 3e-3
    assert np.abs(sent - targets)[settled].max() < 6e-3


ONE = np.ones(7)
SLOW = ArmLimits(low=-9 * ONE, high=9 * ONE, velocity=2 * ONE, acceleration=8 * ONE, jerk=80 * ONE)


def test_small_disagreements_between_chunks_stay_small() -> None:
    """0.5 rad/s, and every 0.2 s another offset of some 5 mrad that fades in within 0.1 s; slow joints (jerk 80).

    Taking the target's momentary acceleration for what will go on made 70 mrad of them, and stopped the arm.
    """
    rng, filter = np.random.default_rng(0), make(limits=SLOW, **WILD, ramp_in_s=0.0)
    t, offset, last = np.arange(750) * TICK, np.zeros(750), 0.0
    for k in range(30):
        new = rng.normal(0.0, 0.005)
        share = np.clip((t - 0.2 * k) / 0.1, 0.0, 1.0)
        offset += (new - last) * share**2 * (3 - 2 * share)
        last = new
    sent = follow(filter, HOME + (0.5 * t + offset)[:, None])[125:]
    assert np.abs(sent - HOME - (0.5 * t + offset)[125:, None]).max() < 0.02
    speed = np.diff(sent, axis=0) / TICK
    assert 0.25 < speed.min() < speed.max() < 0.8


def test_noise_of_the_target_is_not_made_more() -> None:
    filter = make(limits=SLOW, **WILD, ramp_in_s=0.0)
    t, rng = np.arange(500) * TICK, np.random.default_rng(0)
    path = HOME + 0.5 * t[:, None]
    sent = follow(filter, path + rng.normal(0.0, 5e-4, path.shape))[125:]
    assert (sent - path[125:]).std() < 3e-3
    assert (np.diff(sent, axis=0) > 0).all()


def test_straight_pieces_between_the_actions_of_a_policy_are_followed_closely() -> None:
    """20 Hz actions, joined by lines: every corner would take infinite acceleration."""
    dt = 0.002
    filter = make(dt, **WILD, ramp_in_s=0.0)
    t, knots = np.arange(round(4 / dt)) * dt, np.arange(0, 4.1, 0.05)
    line = np.interp(t, knots, 0.2 * np.sin(2 * np.pi * 0.5 * knots))
    targets = HOME + line[:, None]
    sent = follow(filter, targets)
    settled = slice(round(1 / dt), None)
    assert abs(lag(sent[settled], targets[settled], dt)) < 5e-3
    assert np.abs(sent - targets)[settled].max() < 0.01


def test_the_velocity_grows_from_a_ramp() -> None:
    filter = make(jump=np.inf, first_command=np.inf, ramp_share=0.2, ramp_in_s=1.0)
    sent = follow(filter, np.tile(HOME - 2.0, (100, 1)))
    speed = np.abs(np.diff(sent[:, 0])) / TICK
    most = 0.9 * LIMITS.velocity[0]
    shares = 0.2 + 0.8 * np.arange(1, 101) * TICK
    assert (speed <= most * shares[1:] + 1e-6).all()
    assert speed.max() > 0.6 * most


def test_slow_is_slow_and_goes_anywhere() -> None:
    filter = make()
    sent = np.array([filter.step(HOME + 0.9, slow=True).position for _ in range(500)])
    np.testing.assert_allclose(sent[-1, 0], HOME[0] + 0.9, atol=1e-6)
    assert np.abs(np.diff(sent, axis=0)).max() / TICK <= 0.2 * 0.9 * 2.0 + 1e-9


# ---- refusing


def texts(filtered: Filtered) -> list[str]:
    return [event.text for event in filtered.events]


def test_the_first_target_has_to_be_near() -> None:
    filter = make()
    out = filter.step(HOME + np.array([0, 0, 0, 0, 0, -0.3, 0.0]))
    assert texts(out) == ["the first target is 0.300 rad from the arm at joint 5; limit 0.2 rad"]
    assert out.events[0].fatal
    assert not out.following
    np.testing.assert_array_equal(out.position, HOME)
    assert filter.step(HOME + 0.01).events == ()


def test_a_target_that_is_no_number_brakes_and_is_followed_again_after_good_ones() -> None:
    filter = make(ramp_in_s=0.0)
    moving = [filter.step(HOME + 0.005 * k) for k in range(40)][-1]
    bad = np.where(np.arange(7) == 2, np.nan, HOME + 0.2)
    out = filter.step(bad)
    assert texts(out) == ["the target is not finite: joint 2 nan"]
    assert filter.step(bad).events == ()  # said once
    assert np.abs(filter.velocity).max() < np.abs(moving.velocity).max()
    good = [filter.step(HOME + 0.2).following for _ in range(20)]
    assert good.index(True) == pytest.approx(0.1 / TICK, abs=1)
    for _ in range(100):
        out = filter.step(HOME + 0.2)
    np.testing.assert_allclose(out.position, HOME + 0.2, atol=1e-6)


def test_refused_targets_become_a_fault() -> None:
    filter = make()
    filter.step(HOME)
    outs = [filter.step(np.full(7, np.nan)) for _ in range(80)]
    fatal = [i for i, out in enumerate(outs) if any(e.fatal for e in out.events)]
    assert fatal == [62]  # the 63rd tick of 8 ms is the first at 0.5 s
    assert texts(outs[62]) == ["targets have been refused for 0.50 s; limit 0.5 s"]


def test_a_jump_of_the_target_is_not_pursued() -> None:
    filter = make(ramp_in_s=0.0)
    filter.step(HOME)
    out = filter.step(HOME - np.array([0.8, 0, 0, 0, 0, 0, 0]))
    assert texts(out) == ["the target is 0.800 rad from the arm at joint 0; limit 0.5 rad"]
    assert not out.events[0].fatal
    np.testing.assert_allclose(filter.position, HOME)


@pytest.mark.parametrize("bad", [np.zeros(6), np.zeros((7, 1)), np.array("up"), np.zeros(0)])
def test_a_target_of_another_shape_is_refused(bad: np.ndarray) -> None:
    filter = make()
    assert "expected 7 numbers" in texts(filter.step(bad))[0]
    np.testing.assert_array_equal(filter.position, HOME)


def test_a_target_beyond_a_limit_ends_there() -> None:
    filter = make(**WILD)
    out = [filter.step(HOME + 9.0) for _ in range(600)]
    assert "the target of joint 0 is 9.000; it may be -2.880 to 2.880" in texts(out[0])
    np.testing.assert_allclose(out[-1].position, HIGH - 0.02, atol=2e-6)


def test_after_braking_to_rest_the_next_target_is_a_first_one() -> None:
    filter = make(ramp_in_s=0.0)
    filter.step(HOME)
    filter.step(HOME + 0.4)  # later targets may lead by 0.5
    while not filter.at_rest:
        filter.step(None)
    filter.step(None)
    assert [e.kind for e in filter.step(filter.position + 0.4).events] == ["first_command"]


def test_an_arm_beyond_its_limits_goes_back_but_no_further() -> None:
    at = HOME.copy()
    at[1] = 1.85  # limit 1.8, margin 0.02
    filter = make(at=at, **WILD)
    rng = np.random.default_rng(0)
    sent = np.array([filter.step(at + rng.uniform(-0.5, 0.5)).position for _ in range(400)])
    assert sent[:, 1].max() <= 1.85 + 1e-9
    while filter.position[1] > 1.7:
        filter.step(HOME)
    sent = np.array([filter.step(at).position for _ in range(400)])
    assert sent[:, 1].max() <= 1.78 + 1e-9


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (np.full(7, np.nan), "expected 7 finite numbers"),
        (np.zeros(3), "expected 7 finite numbers"),
        (np.where(np.arange(7) == 5, -np.pi, HOME), r"joint 5 is measured at -3.142; its limits are 0.000 to 3.750"),
    ],
)
def test_a_measurement_that_cannot_be_is_no_start(at: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(at=at)


def test_limits_that_make_no_sense_are_refused() -> None:
    parts = {k: getattr(LIMITS, k) for k in ("low", "high", "velocity", "acceleration", "jerk")}
    for key, value in (("velocity", np.zeros(7)), ("high", LOW), ("jerk", np.full(7, np.nan)), ("low", np.zeros(6))):
        with pytest.raises(ConfigError, match="limits"):
            ArmLimits(**{**parts, key: value})
    with pytest.raises(UserError, match="no velocity limit"):
        make(limits=ArmLimits(**{**parts, "velocity": np.full(7, np.inf)}))
    with pytest.raises(UserError, match="a tick of 0"):
        make(0.0)
    with pytest.raises(ConfigError, match="velocity_share=2"):
        SafetyConfig(velocity_share=2.0)


# ---- coming to rest


def running(dt: float = TICK) -> SafetyFilter:
    filter = make(dt, **WILD, ramp_in_s=0.0)
    for k in range(round(0.5 / dt)):
        filter.step(HOME + 1.5 * k * dt * np.array([1, -1, 1, 1, -1, -1, 1]))
    assert np.abs(filter.velocity).max() > 1.0
    return filter


def test_the_arm_is_at_rest_as_soon_as_its_limits_allow() -> None:
    filter = running()
    a, j = LIMITS.acceleration, LIMITS.jerk
    bound = (
        np.abs(filter.velocity) / a + 2.5 * a / j
    )  # v/a, and the jerk to begin, to end, and to take back what it had
    ticks = 0
    while not filter.at_rest:
        filter.step(None)
        ticks += 1
    assert ticks * TICK <= bound.max() + 2 * TICK


@pytest.mark.parametrize("dt", [0.008, 0.05])
def test_the_tail_of_a_trajectory_is_the_brake(dt: float) -> None:
    filter = running()
    q0, positions, velocities, times = filter.position, *filter.resting_tail(dt)
    np.testing.assert_allclose(np.diff(times, prepend=0.0), dt)
    assert (velocities[-1] == 0.0).all()
    inside = HIGH - 0.02 - positions
    assert (inside > 0).all()
    np.testing.assert_allclose(np.diff(np.vstack([q0, positions]), axis=0) / dt, velocities, atol=10 * dt + 0.02)
    for _ in range(round(times[-1] / TICK) + 1):
        last = filter.step(None)
    np.testing.assert_allclose(last.position, positions[-1], atol=1e-9)
    assert filter.at_rest
    still = filter.resting_tail(dt)
    assert still[0].shape == (1, 7)
    assert (still[1] == 0).all()
