"""Faults of the whole bridge on real middleware: judged by what the robot, a process of its own, received."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ros_harness import Cable, Driven, Robot, environment, free_domain, python_of, ros_master, running, until

VELOCITY, ACCELERATION, JERK = 2.0, 8.0, 80.0  # of the driver's arm
BRAKE_S = VELOCITY / ACCELERATION + ACCELERATION / JERK
PERIOD_S = 0.008
DETECT_S = 0.1
LIFESPAN_S = 0.1  # of commands, beyond which an old one is dropped
TOPICS = {
    "forward_position": "/forward_position_controller/commands",
    "joint_trajectory": "/joint_trajectory_controller/joint_trajectory",
}
MIDDLEWARE = [
    ("dds", "cyclone"),
    *(pytest.param(t, p, marks=pytest.mark.ros) for t in ("dds", "rclpy") for p in ("jazzy", "kilted")),
    pytest.param("rospy", "rospy", marks=pytest.mark.ros),
]


@contextmanager
def deployed(
    folder: Path, mode: str = "forward_position", transport: str = "dds", peer: str = "cyclone",
    options: tuple[str, ...] = (), **settings: Any,
) -> Iterator[tuple[Robot, Driven]]:  # fmt: skip
    """A robot and a bridge that reaches it."""
    python = python_of(peer if transport == "rclpy" else transport)
    with ros_master() if transport == "rospy" else nullcontext({}) as variables:
        env = environment(free_domain(), **variables)
        settings |= {"transport": transport, "mode": mode, "topic": TOPICS[mode]}
        settings.setdefault("rate_hz", 125.0 if mode == "forward_position" else 25.0)
        with running(Robot(peer, folder / "robot.jsonl", mode, TOPICS[mode], env, *options)) as robot:
            until(lambda: (folder / "robot.jsonl").exists(), what="the robot's start")
            with running(Driven(python, folder / "bridge.jsonl", env, **settings)) as bridge:
                yield robot, bridge


def received(robot: Robot, after: float = 0.0) -> np.ndarray:
    """Positions that the robot was told ``[P, 6]``; what is no number is NaN."""
    rows = [[np.nan if x is None else x for x in r["data"]] for r in robot.records("forward") if r["t"] > after]
    return np.array(rows).reshape(-1, 6)


def check_steps(robot: Robot, bridge: Driven, rate_hz: float = 125.0) -> int:
    """No command that came is no number, none is another than was sent, and all that were sent keep the limits.

    Of a message that was lost on the way, the next one's step is longer; so the limits are checked where all ticks are
    known, and it is checked that what came is that. Returns how many came.
    """
    sent, got = bridge.records("sent"), received(robot)
    assert np.isfinite(got).all()
    coming = iter([r["q"] for r in sent])
    for i, row in enumerate(got.tolist()):
        assert any(q == row for q in coming), f"command {i} was not sent, or came out of turn: {row}"
    ticks = np.array([r["tick"] for r in sent])
    q, dt = np.array([r["q"] for r in sent]), 1 / rate_hz
    begins = np.flatnonzero(np.diff(ticks) != 1) + 1  # after a fault the arm is not commanded for a while
    for part in np.split(q, begins):
        v = np.diff(part, axis=0) / dt
        a = np.diff(v, axis=0) / dt
        assert np.abs(v).max(initial=0) <= VELOCITY * (1 + 1e-6)
        assert np.abs(a).max(initial=0) <= ACCELERATION * (1 + 1e-6)
        assert np.abs(np.diff(a, axis=0) / dt).max(initial=0) <= JERK * (1 + 1e-4)
    for begin in begins:
        assert np.abs(q[begin] - q[begin - 1]).max() < 1e-3
    assert np.abs(q).max() <= 3.0
    return len(got)


def moving_s(robot: Robot, since: float) -> float:
    """For how long it went on being moved, counted in commands: each is a tick, however late it comes on a busy CI."""
    q = received(robot, since)
    steps = np.abs(np.diff(q, axis=0)).max(1, initial=0)
    moved = np.flatnonzero(steps > 0)
    return 0.0 if not len(moved) else float((moved[-1] + 1) * PERIOD_S)


def wait_until_fast(robot: Robot, speed: float = 0.5) -> None:
    def fast() -> bool:
        q = received(robot)[-2:]
        return len(q) == 2 and bool(np.abs(q[1] - q[0]).max() / PERIOD_S > speed)

    until(fast, 30.0, "fast motion")


@pytest.mark.slow
@pytest.mark.parametrize(("transport", "peer"), MIDDLEWARE)
def test_ten_thousand_commands_of_an_adversary(transport: str, peer: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"policy": "adversary", "commands": 10_000, "rate_hz": 500.0}
    with deployed(tmp_path, transport=transport, peer=peer, **settings) as (robot, bridge):
        assert bridge.process.wait(200) == 0
        time.sleep(0.5)
        robot.quit()
        assert check_steps(robot, bridge, 500.0) >= 9_500


def test_an_adversary_for_a_short_while(tmp_path: Path) -> None:
    with deployed(tmp_path, policy="adversary", commands=600) as (robot, bridge):
        assert bridge.process.wait(60) == 0
        time.sleep(0.2)
        assert check_steps(robot, bridge) >= 570
        steps = np.abs(np.diff(received(robot), axis=0))
        assert steps.max() > 0.1 * VELOCITY * PERIOD_S  # it was not simply refused to move


@pytest.mark.slow
def test_every_fault_of_the_state_stops_the_arm_and_nothing_clears_itself(tmp_path: Path) -> None:
    faults: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"silent": True}, {"silent": False}, "state: no message for"),
        ({"nan": True}, {"nan": False}, ""),
        ({"frozen": True}, {"frozen": False}, "commanded"),
    ]
    with deployed(tmp_path) as (robot, bridge):
        for wrong, right, said in faults:
            bridge.wait_for("run")
            wait_until_fast(robot)
            since = time.monotonic()
            robot.set(**wrong)
            bridge.wait_for("fault")
            fault = next(r for r in reversed(bridge.records("state")) if r["state"] == "fault")
            assert said in fault["fault"]
            time.sleep(1.0)
            window_s = 0.4 if "frozen" in wrong else 0.0  # a tracking error takes longer to tell from a delay
            assert moving_s(robot, since) <= DETECT_S + BRAKE_S + window_s + 0.1
            robot.set(**right)
            time.sleep(0.5)
            assert bridge.state == "fault"
            bridge.ask("reset")
        bridge.wait_for("run")
        bridge.ask("quit")
        assert bridge.process.wait(30) == 0
        check_steps(robot, bridge)


@pytest.mark.ros
@pytest.mark.parametrize("distribution", ["jazzy", "kilted"])
@pytest.mark.parametrize("transport", ["dds", "rclpy"])
def test_bytes_that_are_no_message_are_no_sign_of_life(transport: str, distribution: str, tmp_path: Path) -> None:
    with deployed(tmp_path, transport=transport, peer=distribution) as (robot, bridge):
        bridge.wait_for("run")
        wait_until_fast(robot)
        since = time.monotonic()
        robot.set(garbage=True)
        bridge.wait_for("fault")
        assert "state: no message for" in bridge.fault
        time.sleep(1.0)
        assert moving_s(robot, since) <= DETECT_S + BRAKE_S + 0.1
        robot.set(garbage=False)
        time.sleep(0.5)
        bridge.ask("reset")
        bridge.wait_for("run")
        check_steps(robot, bridge)


@pytest.mark.slow
def test_other_clocks_and_orders_change_nothing(tmp_path: Path) -> None:
    with deployed(tmp_path) as (robot, bridge):
        robot.set(offset_s=3600.0)
        bridge.wait_for("run")
        wait_until_fast(robot)
        robot.set(reverse=True)
        time.sleep(1.5)
        assert bridge.state == "run", bridge.fault
        check_steps(robot, bridge)


@pytest.mark.slow
def test_a_glitch_of_minus_pi_is_not_followed(tmp_path: Path) -> None:
    with deployed(tmp_path) as (robot, bridge):
        bridge.wait_for("run")
        wait_until_fast(robot)
        robot.set(glitch=True)
        time.sleep(0.02)
        robot.set(glitch=False)
        time.sleep(1.0)
        check_steps(robot, bridge)
        assert received(robot)[:, 1].min() > -2.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--command-durability", "transient_local"), "durability"),
        (("--command-type", "JointState"), "nobody listens"),
    ],
)
def test_a_robot_that_cannot_hear_us_is_not_started(options: tuple[str, str], said: str, tmp_path: Path) -> None:
    with deployed(tmp_path, options=options) as (robot, bridge):
        until(lambda: any(said in p for r in bridge.records("idle") for p in r["problems"]), 30.0, "the explanation")
        assert bridge.state in ("", "idle")
        assert not bridge.records("sent")
        assert not robot.records("forward")
        assert not robot.records("wrong")


@pytest.mark.slow
def test_a_second_publisher_stops_the_arm(tmp_path: Path) -> None:
    with deployed(tmp_path) as (robot, bridge):
        bridge.wait_for("run")
        wait_until_fast(robot)
        since = time.monotonic()
        domain = int(_variable(robot, "ROS_DOMAIN_ID"))
        from visuomotor.sim2real.messages import FloatArray
        from visuomotor.sim2real.transports.dds import DdsTransport

        rival = DdsTransport("rival", domain)
        try:
            rival.advertise(TOPICS["forward_position"], FloatArray)
            bridge.wait_for("fault")
            assert "more publisher" in bridge.fault
            time.sleep(1.0)
            assert moving_s(robot, since) < 3.0
        finally:
            rival.close()
        check_steps(robot, bridge)


def _variable(robot: Robot, name: str) -> str:
    entries = Path(f"/proc/{robot.process.pid}/environ").read_bytes().split(b"\0")
    return next(e.decode().split("=", 1)[1] for e in entries if e.startswith(name.encode()))


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_policy_that_is_killed_or_stopped(number: signal.Signals, tmp_path: Path) -> None:
    with deployed(tmp_path, session=True) as (robot, bridge):
        bridge.wait_for("run", 60.0)
        wait_until_fast(robot)
        pids = bridge.records("pids")[0]
        since = time.monotonic()
        os.kill(pids["policy"], number)
        time.sleep(2.0)
        assert moving_s(robot, since) <= DETECT_S + BRAKE_S + 0.1
        # on a busy machine commands are lost for as long as they live; further than that nothing jumps
        assert np.abs(np.diff(received(robot), axis=0)).max() <= VELOCITY * LIFESPAN_S
        os.kill(pids["policy"], signal.SIGKILL)
        until(lambda: not _alive(pids["bridge"]), 20.0, "the end of the bridge, at rest")


@pytest.mark.slow
def test_a_killed_bridge_leaves_the_arm_where_it_was_told_to_be(tmp_path: Path) -> None:
    with deployed(tmp_path, session=True) as (robot, bridge):
        bridge.wait_for("run", 60.0)
        wait_until_fast(robot)
        os.kill(bridge.records("pids")[0]["bridge"], signal.SIGKILL)
        time.sleep(0.3)
        count = len(received(robot))
        time.sleep(0.5)
        assert len(received(robot)) == count  # nothing more comes; the controller holds the last position
        assert bridge.process.wait(20) != 0  # and the policy's process says that the bridge is gone


def test_a_killed_bridge_leaves_a_trajectory_that_brakes(tmp_path: Path) -> None:
    with deployed(tmp_path, "joint_trajectory", session=True) as (robot, bridge):
        bridge.wait_for("run", 60.0)
        until(lambda: _speed(robot) > 0.5, 30.0, "fast motion")
        os.kill(bridge.records("pids")[0]["bridge"], signal.SIGKILL)
        since = time.monotonic()
        until(lambda: _speed(robot) == 0, 5.0, "rest")
        rest = next(r["t"] for r in robot.records("desired") if r["t"] > since and not any(r["v"]))
        assert rest - since < BRAKE_S + 0.5
        time.sleep(0.5)
        after = [r["q"] for r in robot.records("desired") if r["t"] > rest]
        assert np.ptp(np.array(after), axis=0).max() == 0
        assert not [r for r in robot.records("trajectory") if r["refused"]]
        assert np.abs([r["v"] for r in robot.records("desired")]).max() <= VELOCITY * 1.01


def _speed(robot: Robot) -> float:
    desired = robot.records("desired")
    return max(map(abs, desired[-1]["v"])) if desired else 0.0


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["cyclone", *(pytest.param(p, marks=pytest.mark.ros) for p in ("jazzy", "kilted"))])
@pytest.mark.parametrize("mode", TOPICS)
def test_a_network_that_is_cut_and_comes_back(mode: str, peer: str, tmp_path: Path) -> None:
    python_of(peer)
    cable = Cable()
    try:
        env = environment(free_domain(), ROS_AUTOMATIC_DISCOVERY_RANGE="SUBNET")
        ours, theirs = cable.interfaces[1], f'<NetworkInterface name="{cable.interfaces[0]}"/>'
        general = f"<General><Interfaces>{theirs}</Interfaces></General>"
        uri = f'<CycloneDDS><Domain Id="any">{general}</Domain></CycloneDDS>'
        topic, logs = TOPICS[mode], (tmp_path / "robot.jsonl", tmp_path / "bridge.jsonl")
        settings = {"transport": "dds", "interface": ours, "mode": mode, "topic": topic}
        settings["rate_hz"] = 125.0 if mode == "forward_position" else 25.0
        robot_env = env | ({"CYCLONEDDS_URI": uri} if peer == "cyclone" else {})
        with (
            running(Robot(peer, logs[0], mode, topic, robot_env, host=cable.hosts[0])) as robot,
            running(Driven(python_of("dds"), logs[1], env, host=cable.hosts[1], **settings)) as bridge,
        ):
            cut_and_mend(cable, robot, bridge, mode)
    finally:
        cable.remove()


def cut_and_mend(cable: Cable, robot: Robot, bridge: Driven, mode: str) -> None:
    kind = "forward" if mode == "forward_position" else "trajectory"
    bridge.wait_for("run", 60.0)
    if mode == "forward_position":
        wait_until_fast(robot)
    else:
        until(lambda: _speed(robot) > 0.5, 30.0, "fast motion")
    cable.plug(False)
    bridge.wait_for("fault", 5.0)
    assert "state: no message for 0.1" in bridge.fault
    time.sleep(1.5)
    count = len(robot.records(kind))
    if mode == "joint_trajectory":
        assert _speed(robot) == 0
    cable.plug(True)
    time.sleep(4.0)
    assert bridge.state == "fault"
    assert len(robot.records(kind)) == count, "old commands were delivered after the cut"
    if mode == "forward_position":
        check_steps(robot, bridge)
    bridge.ask("reset")
    bridge.wait_for("run")
