"""The bridge on a simulated clock: what the robot receives, whatever goes wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from arm_rig import ACCELERATION, JERK, JOINTS, MS, VELOCITY, Rig, at, robot, spec

from visuomotor.sim2real.messages import Boolean, JointState
from visuomotor.sim2real.runtime.build import RuntimeConfig
from visuomotor.sim2real.runtime.episodes import EpisodeConfig
from visuomotor.sim2real.runtime.types import Request, State

START = np.array([0.1, -0.4, 0.7])
BRAKE_S = VELOCITY / ACCELERATION + ACCELERATION / JERK + 0.02


def moving(t: float) -> np.ndarray:
    return START + np.array([0.3 * t, 0.2 * np.sin(t), -0.2 * t])


def check_limits(rig: Rig) -> None:
    """Every command ever received is finite and within every limit, by differences of the positions."""
    q, v, a, j = rig.motion()
    assert np.isfinite(q).all()
    assert np.abs(v).max() <= VELOCITY * (1 + 1e-6)
    assert np.abs(a).max() <= ACCELERATION * (1 + 1e-6)
    assert np.abs(j).max() <= JERK * (1 + 1e-5)


def rest_after(rig: Rig) -> float:
    """Seconds from now until the last command that moved."""
    now = rig.bus.now_ns
    rig.run(1.5)
    _q, v, _, _ = rig.motion(now)
    moved = np.flatnonzero(np.abs(v).max(1) > 0)
    return 0.0 if not len(moved) else float((moved[-1] + 1) * rig.period_ns * 1e-9)


def test_the_arm_follows_a_moving_reference_through_the_bridge() -> None:
    rig = Rig(moving, latency_s=0.04)
    rig.start()
    rig.run(3.0)
    assert rig.bridge.state is State.RUN
    q, _, _, _ = rig.motion()
    # the last command was worked out for the end of its tick, in the script's own time
    elapsed = (rig.bus.now_ns - rig._run_ns) * 1e-9 + rig.period_ns * 1e-9
    np.testing.assert_allclose(q[-1], moving(elapsed), atol=0.01)
    check_limits(rig)


@pytest.mark.parametrize("mode", ["forward_position", "joint_trajectory"])
def test_a_policy_of_100_ms_never_makes_the_arm_stop(mode: str) -> None:
    rng = np.random.default_rng(0)
    noise = lambda: rng.normal(0, 0.005, 3)  # noqa: E731  (chunks disagree)
    rig = Rig(None, config=robot(mode), latency_s=0.1)
    rig.script._path = lambda t: START + np.array([0.5 * t - 1.0, 0.0, 0.0])
    rig.arm.q = START - np.array([1.0, 0.0, 0.0])
    plan = rig.script.plan
    rig.script.plan = lambda request: plan(request) + noise().astype(np.float32)
    rig.start()
    rig.run(2.0)
    now = rig.bus.now_ns
    rig.run(3.0)
    if mode == "forward_position":
        q, v, a, _ = rig.motion(now)
        check_limits(rig)
        assert v[:, 0].min() >= 0.25  # half of the reference's
        assert np.abs(a).max() <= ACCELERATION * (1 + 1e-6)
    else:
        times = np.arange(now + 20 * MS, rig.bus.now_ns, 10 * MS)
        sent = list(rig.arm.trajectories)
        q = np.stack([at([s for s in sent if s[0] <= t][-1], t) for t in times])
        assert (np.diff(q[:, 0]) / 0.01).min() >= 0.25
    assert rig.bridge.counts["chunks_refused"] == 0


def test_joints_are_found_by_name_whatever_their_order() -> None:
    rig = Rig(lambda t: START, policy=spec(names=("elbow", "pan", "lift")))
    rig.script._path = lambda t: START[[2, 0, 1]]
    rig.start()
    rig.run(1.0)
    np.testing.assert_allclose(rig.arm.received[-1][1], START, atol=1e-6)
    np.testing.assert_allclose(rig.script.requests[-1].obs["joint_pos"][0], START, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
def test_bad_actions_never_reach_the_robot(bad: float) -> None:
    rig = Rig(moving)
    rig.start()
    rig.run(0.5)
    rig.script._path = lambda t: np.array([0.0, bad, 0.0])
    rig.run(1.0)
    check_limits(rig)
    rig.script._path = moving
    rig.run(0.3)
    check_limits(rig)


def test_a_jump_of_the_policy_is_limited() -> None:
    rig = Rig(lambda t: START + (0.4 if int(t) % 2 else 0.0))
    rig.start()
    rig.run(4.0)
    check_limits(rig)
    assert rig.bridge.state is State.RUN


def test_a_lost_joint_state_brakes_the_arm_and_says_so() -> None:
    rig = Rig(moving)
    rig.start()
    rig.run(1.0)
    rig.arm.silent = True
    lost = rig.bus.now_ns
    while rig.tick() is State.RUN:
        pass
    assert rig.bridge.state is State.FAULT
    assert (rig.bus.now_ns - lost) * 1e-9 <= 0.1 + 0.004 + 2 * rig.period_ns * 1e-9
    assert rest_after(rig) <= BRAKE_S
    check_limits(rig)
    (fault,) = rig.bridge.faults
    assert "state: no message for 0.1" in fault
    assert "limit 0.100 s" in fault


def test_stale_stamps_count_as_a_lost_stream() -> None:
    rig = Rig(moving)
    rig.start()
    rig.run(1.0)
    rig.arm.distort = lambda m: replace(m, stamp_ns=m.stamp_ns - 400 * MS)  # delivered 0.4 s late
    rig.run(0.3)
    assert rig.bridge.state is State.FAULT
    check_limits(rig)


def test_minus_pi_for_a_while_is_not_believed() -> None:
    """Interbotix reports -pi for a joint that it could not read."""
    rig = Rig(moving)
    rig.start()
    count = 0

    def glitch(m: JointState) -> JointState:
        nonlocal count
        count += 1
        return replace(m, position=np.full(5, -np.pi)) if count % 10 < 3 else m

    rig.arm.distort = glitch
    rig.run(2.0)
    assert rig.bridge.state is State.RUN
    check_limits(rig)
    seen = np.stack([t.measured for t in rig.ticks if t.state is State.RUN])
    assert seen.min() > -2.0
    assert any("a jump" in line for line in rig.bridge.log.shown)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_states_that_are_no_numbers_are_lost_states(value: float) -> None:
    rig = Rig(moving)
    rig.start()
    rig.arm.distort = lambda m: replace(m, position=np.full(5, value))
    rig.run(0.5)
    assert rig.bridge.state is State.FAULT
    check_limits(rig)


def test_clocks_an_hour_apart_change_nothing() -> None:
    rig = Rig(moving, offset_ns=3600 * 1_000_000_000)
    rig.start()
    rig.run(2.0)
    assert rig.bridge.state is State.RUN
    ages = [t.time_ns - t.observed.time_ns for t in rig.ticks if t.observed is not None]
    assert min(ages) >= 0
    assert max(ages) < 20 * MS


def test_a_policy_that_stalls_ends_in_a_fault_after_its_last_chunk() -> None:
    rig = Rig(moving, runtime=RuntimeConfig(decode_threads=False, patience_s=0.5))
    rig.start()
    rig.run(1.0)
    rig.link.receive = lambda now_ns: None
    rig.run(2.5)
    assert rig.bridge.state is State.FAULT
    assert "no action for 0.5" in rig.bridge.faults[0]
    check_limits(rig)
    assert rig.bus.now_ns - rig.arm.received[-1][0] > 500 * MS  # at rest: nothing is sent any more
    assert (rig.arm.received[-1][1] == rig.arm.received[-40][1]).all()


def test_a_policy_that_dies_brakes_the_arm_at_once() -> None:
    rig = Rig(moving)
    rig.start()
    rig.run(1.0)
    rig.link.trouble = lambda now_ns: "the policy's process (7) has died"
    rig.tick()
    assert rig.bridge.state is State.FAULT
    assert rest_after(rig) <= BRAKE_S
    check_limits(rig)
    assert rig.bridge.faults == ["the policy's process (7) has died"]


def test_a_press_of_the_stop_that_is_over_before_the_next_tick_stops() -> None:
    rig = Rig(moving)
    rig.start()
    rig.run(0.5)
    publisher = rig.arm.node.advertise(rig.config.stop_topic, Boolean)
    publisher.publish(Boolean(data=True))
    publisher.publish(Boolean(data=False))
    rig.run(0.05)
    assert rig.bridge.state is State.FAULT
    assert "the stop topic" in rig.bridge.parts.supervisor.fault


def test_the_stop_topic_and_the_operator_stop_and_nothing_clears_itself() -> None:
    rig = Rig(moving)
    rig.start()
    rig.run(0.5)
    publisher = rig.arm.node.advertise(rig.config.stop_topic, Boolean)
    publisher.publish(Boolean(data=True))
    rig.run(0.1)
    assert rig.bridge.state is State.FAULT
    rig.box.put(Request.START)
    rig.box.put(Request.RESET)
    rig.run(1.0)
    assert rig.bridge.state is State.FAULT  # the topic still says stop
    publisher.publish(Boolean(data=False))
    rig.run(0.5)
    assert rig.bridge.state is State.FAULT
    rig.box.put(Request.RESET)
    rig.run(0.1)
    assert rig.bridge.state is State.READY
    check_limits(rig)


def test_hold_and_go_on_without_a_jump() -> None:
    rig = Rig(moving)
    rig.start()
    rig.run(1.0)
    rig.box.put(Request.HOLD)
    rig.run(1.0)
    assert rig.bridge.state is State.HOLD
    here = rig.arm.q.copy()
    rig.script._path = lambda t: here
    rig.box.put(Request.START)
    rig.run(1.0)
    assert rig.bridge.state is State.RUN
    np.testing.assert_allclose(rig.arm.q, here, atol=0.01)
    check_limits(rig)


def test_a_second_publisher_of_commands_keeps_the_bridge_from_starting() -> None:
    from visuomotor.sim2real.messages import FloatArray

    rig = Rig(moving)
    rig.arm.node.advertise(rig.config.command.topic, FloatArray)
    rig.run(0.3)
    rig.box.put(Request.START)
    rig.run(0.2)
    assert rig.bridge.state is State.IDLE
    assert not rig.arm.received
    assert any("2 publishers" in line for line in rig.bridge.log.shown)


def test_nothing_is_sent_in_a_dry_run() -> None:
    rig = Rig(moving, runtime=RuntimeConfig(decode_threads=False, dry_run=True))
    rig.start()
    rig.run(1.0)
    assert rig.bridge.state is State.RUN
    assert not rig.arm.received
    assert rig.bridge.counts["chunks"] > 3


def test_episodes_follow_each_other_and_end() -> None:
    rig = Rig(moving, episodes=EpisodeConfig(home=False, auto=True, count=2, seconds=0.5))
    for _ in range(2000):
        rig.tick()
        if rig.bridge.done:
            break
    results = rig.bridge.parts.conductor.results
    assert [(r.success, r.ended_by, r.seed) for r in results] == [(False, "time", 0), (False, "time", 1)]
    outcomes = [t.outcome for t in rig.ticks if t.outcome is not None]
    assert outcomes == [False, False]
    check_limits(rig)


def test_trajectories_end_at_rest_and_go_on_from_the_one_before() -> None:
    rig = Rig(moving, config=robot("joint_trajectory"))
    rig.start()
    rig.run(2.0)
    sent = rig.arm.trajectories
    assert len(sent) > 80
    for _, message in sent:
        times = [p.time_from_start_ns for p in message.points]
        assert times[0] >= 0
        assert all(a < b for a, b in itertools.pairwise(times))
        assert (message.points[-1].velocities == 0).all()
        assert message.joint_names == JOINTS
        assert message.stamp_ns == 0
    for (t0, before), (t1, after) in itertools.pairwise(sent):
        first = after.points[0]
        when = t1 + first.time_from_start_ns
        same = [p for p in before.points if abs(t0 + p.time_from_start_ns - when) <= MS]
        assert len(same) == 1, "the old trajectory passes through the first point of the new one"
        np.testing.assert_allclose(first.positions, same[0].positions, atol=1e-9)
        np.testing.assert_allclose(first.velocities, same[0].velocities, atol=1e-9)


def test_ticks_that_come_late_bend_no_trajectory() -> None:
    """On a busy machine ticks come unevenly, and sometimes not at all for longer than a trajectory reaches."""
    rig = Rig(lambda t: START + np.array([0.5 * np.sin(t), 0.0, 0.0]), config=robot("joint_trajectory"))
    rig.start()
    rng = np.random.default_rng(1)
    places = []
    for i in range(400):
        wait = 250 if i % 60 == 59 else int(rng.integers(5, 16))
        for _ in range(wait):
            rig.bus.advance(MS)
            rig.arm.tick(rig.bus.now_ns)
            places.append(rig.arm.q[0])
        rig.bridge.tick(rig.bus.now_ns)
    assert rig.bridge.state is State.RUN, rig.bridge.log.shown
    speed = np.diff(places) / 1e-3
    assert np.abs(speed).max() > 0.4
    assert np.abs(speed).max() <= VELOCITY
    assert np.abs(np.diff(speed)).max() <= 0.5  # a velocity that jumps would be a position that was replaced


def test_a_killed_bridge_leaves_a_trajectory_that_brakes_within_the_limits() -> None:
    rig = Rig(moving, config=robot("joint_trajectory"))
    rig.start()
    rig.run(1.5)
    _began, last = rig.arm.trajectories[-1]
    q = np.stack([p.positions for p in last.points])
    v = np.stack([p.velocities for p in last.points])
    t = np.array([p.time_from_start_ns for p in last.points]) * 1e-9
    assert t[-1] <= rig.bridge.parts.streamer.lead_ns * 1e-9 + BRAKE_S
    slopes = np.diff(v, axis=0) / np.diff(t)[:, None]
    assert np.abs(slopes).max() <= ACCELERATION * (1 + 1e-6)
    assert np.abs(v).max() <= VELOCITY
    assert np.isfinite(q).all()
