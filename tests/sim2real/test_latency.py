"""Delays found by a chirp: known ones of signals, and those that a twin was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.configs.robots import load_robot
from visuomotor.configs.twin import TwinCommand, build_twin
from visuomotor.data.errors import ConfigError, UserError
from visuomotor.sim2real.calibration.delay import Chirp, delay_between, fitting_amplitude
from visuomotor.sim2real.calibration.latency import Latencies, LatencyProbe
from visuomotor.sim2real.messages import JointState
from visuomotor.sim2real.robots.limits import arm_limits, load_kinematics
from visuomotor.sim2real.safety.config import ArmLimits
from visuomotor.sim2real.transports.base import SENSOR
from visuomotor.sim2real.transports.inproc import Bus

CHIRP = Chirp(0.1, 0.5, 3.0, 4.0)
LIMITS = ArmLimits(
    low=np.array([-1.0]), high=np.array([1.0]), velocity=np.array([1.0]), acceleration=np.array([10.0]),
    jerk=np.array([300.0]), names=("elbow",),
)  # fmt: skip


def test_a_chirp_begins_and_ends_at_rest() -> None:
    t = np.arange(-0.5, 4.5, 1e-3)
    x = CHIRP.at(t)
    assert (x[t <= 0] == 0).all()
    assert (x[t >= 4] == 0).all()
    assert 0.095 < np.abs(x).max() <= 0.1
    acceleration = np.diff(x, 2) / 1e-6
    assert np.abs(acceleration[495:505]).max() < 0.1  # it leaves rest without a jump
    crossings = (np.diff(np.sign(x[(t > 0.6) & (t < 3.4)])) != 0).sum()
    assert crossings == 10  # twice the mean frequency of 1.75 Hz in 2.8 s


@settings(max_examples=30, deadline=None)
@given(delay=st.floats(0.0, 0.5), seed=st.integers(0, 1000), rate=st.sampled_from([50.0, 125.0, 500.0]))
def test_a_delay_is_found_to_a_millisecond(delay: float, seed: int, rate: float) -> None:
    random = np.random.default_rng(seed)
    sent = np.arange(0, 6, 0.008)
    got = np.sort(np.arange(0, 6.5, 1 / rate) + random.uniform(0, 0.2 / rate))
    measured = CHIRP.at(got - delay - 1) + random.normal(0, 1e-3, len(got)) + 0.7
    found = delay_between((sent, CHIRP.at(sent - 1)), (got, measured))
    assert found.seconds == pytest.approx(delay, abs=2e-3)
    assert found.correlation > 0.98


def test_amplitudes_keep_every_limit() -> None:
    slow = Chirp(0.1, 0.2, 0.4, 4.0)
    assert fitting_amplitude(slow, LIMITS, 0, 0.0, 0.02) == 0.1  # as asked for
    assert fitting_amplitude(slow, LIMITS, 0, 0.95, 0.02) == pytest.approx(0.03)  # as much as there is room
    fast = Chirp(0.5, 0.5, 3.0, 4.0)
    amplitude = fitting_amplitude(fast, LIMITS, 0, 0.0, 0.02)
    x = Chirp(amplitude, 0.5, 3.0, 4.0).at(np.arange(0, 4, 1e-3))
    rates = [np.abs(np.diff(x, k)).max() / 1e-3**k for k in (1, 2, 3)]
    shares = [r / limit for r, limit in zip(rates, (1.0, 10.0, 300.0), strict=True)]
    assert max(shares) == pytest.approx(0.8, abs=0.02)
    with pytest.raises(UserError, match=r"'elbow' stands at 0.990, 0.000 from its limits"):
        fitting_amplitude(slow, LIMITS, 0, 0.99, 0.02)


def test_signals_without_a_relation_are_refused() -> None:
    t = np.arange(0, 5, 0.01)
    with pytest.raises(UserError, match="do not overlap"):
        delay_between((t, CHIRP.at(t)), (t + 10, CHIRP.at(t)))
    with pytest.raises(UserError, match="has nothing of"):
        delay_between((t, CHIRP.at(t)), (t, np.zeros(len(t))))
    with pytest.raises(UserError, match="do not overlap"):
        delay_between((np.zeros(0), np.zeros(0)), (t, t))


def probe(words: list[str], cameras: tuple[str, ...] = (), joint: str = "panda_joint7", **twin: Any) -> Latencies:
    """What is measured on a twin."""
    bus = Bus()
    robot = load_robot("panda_twin", words)
    made, plant = build_twin(robot, TwinCommand(cameras=list(cameras), **twin), bus.node("twin"))
    kinematics = load_kinematics(robot)

    def wait_until(time_ns: int) -> None:
        while bus.now_ns < time_ns:
            made.tick()
            bus.advance(5_000_000)

    try:
        limits = arm_limits(robot, kinematics)
        calibration = LatencyProbe(robot, bus.node("probe"), limits, kinematics, wait_until, cameras)
        found = calibration.measure(joint, Chirp(0.1, 0.5, 2.5, 3.0))
        assert made.violations.total == 0
        return found
    finally:
        plant.close()


@pytest.mark.parametrize("mode", ["forward_position", "joint_trajectory"])
def test_more_delay_of_commands_is_measured_as_such(mode: str) -> None:
    topic = "/c/commands" if mode == "forward_position" else "/c/joint_trajectory"
    words = [f"command.mode={mode}", f"command.topic={topic}", "command.rate_hz=50"]
    prompt = probe(words, command_latency_ms=0)
    late = probe(words, command_latency_ms=60)
    assert late.command.seconds - prompt.command.seconds == pytest.approx(
        0.06, abs=0.006
    )  # a period of the twin either way
    assert prompt.command.correlation > 0.95
    assert 0.05 < prompt.amplitude <= 0.1
    if mode == "forward_position":  # what messages take on their way cannot be told from clocks that differ
        assert probe(words, latency_ms=60).command.seconds == pytest.approx(prompt.command.seconds + 0.06, abs=0.01)


@pytest.mark.slow
def test_a_camera_that_stamps_late_is_found_out() -> None:
    prompt = probe([], cameras=("wrist",), joint="panda_joint1").cameras["wrist"]
    late = probe(["cameras.wrist.latency_s=0.08"], cameras=("wrist",), joint="panda_joint1").cameras["wrist"]
    assert prompt is not None
    assert late is not None
    assert late.seconds - prompt.seconds == pytest.approx(0.08, abs=0.02)


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(ConfigError, match=r"no joint 'panda_joint8'.*'panda_joint"):
        probe([], joint="panda_joint8")
    bus = Bus()
    robot = load_robot("panda_twin")
    limits = arm_limits(robot, None)

    def wait_until(time_ns: int) -> None:
        bus.advance(time_ns - bus.now_ns)

    with pytest.raises(ConfigError, match=r"no camera 'wrst'.*'wrist'"):
        LatencyProbe(robot, bus.node("probe"), limits, None, wait_until, ("wrst",))
    silent = LatencyProbe(robot, bus.node("probe"), limits, None, wait_until)
    with pytest.raises(UserError, match="no joint states on /joint_states with all of panda_joint1"):
        silent.measure("panda_joint1", CHIRP)
    states = bus.node("driver").advertise("/joint_states", JointState, SENSOR)

    def still(time_ns: int) -> None:
        states.publish(JointState(stamp_ns=1 + bus.now_ns, name=tuple(robot.joints), position=q))
        bus.advance(time_ns - bus.now_ns)

    q = np.array([0.0, 0.1, 0.0, -2.3, 0.0, 2.4, 0.785])
    with pytest.raises(UserError, match="has nothing of what was commanded"):
        LatencyProbe(robot, bus.node("probe"), limits, None, still).measure("panda_joint1", CHIRP)
