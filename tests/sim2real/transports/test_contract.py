"""Every transport against an independent robot on real middleware: what arrives on both sides is what was sent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import positions, trajectory
from robot_arm import UR_JOINTS, Arm, Log
from ros_harness import NODES, Robot, environment, free_domain, python_of, ros_master, running, until

from visuomotor.sim2real.messages import FloatArray, JointState, JointTrajectory
from visuomotor.sim2real.transports.base import COMMAND
from visuomotor.sim2real.transports.definitions import type_hash
from visuomotor.sim2real.transports.inproc import Bus

FEW = "JointState,Image,CompressedImage,Bool,Float64MultiArray,String,JointTrajectory"
MORE = f"{FEW},PoseStamped,TwistStamped,WrenchStamped"
KINDS = {"cyclone": f"{FEW},JointGroupCommand", "jazzy": MORE, "kilted": MORE, "rospy": f"{MORE},JointGroupCommand"}
TOPICS = {
    "forward_position": ("/forward_position_controller/commands", "std_msgs/msg/Float64MultiArray"),
    "joint_trajectory": ("/joint_trajectory_controller/joint_trajectory", "trajectory_msgs/msg/JointTrajectory"),
}
MODES = pytest.mark.parametrize("mode", TOPICS)


def run(transport: str, peer: str, mode: str, log: Path, **variables: str) -> tuple[dict[str, Any], Robot]:
    """One second of commands; what the bridge's side saw, and the robot with its log."""
    env = environment(free_domain(), **variables)
    topic, _ = TOPICS[mode]
    python = python_of(peer if transport == "rclpy" else transport)
    with running(Robot(peer, log, mode, topic, env)) as robot:
        command = [
            python,
            str(NODES / "contract.py"),
            transport,
            mode,
            topic,
            KINDS[peer],
            "0" if peer == "cyclone" else "10",
        ]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as client:
            assert client.stdout is not None
            line = client.stdout.readline()
            robot.set(graph=True)
            if line:
                until(lambda: robot.records("graph"), what="the robot's view of the graph")
            _, errors = client.communicate("\n", timeout=30)
        assert client.returncode == 0, errors[-3000:]
        robot.quit()
    return json.loads(line), robot


def check(bridge: dict[str, Any], robot: Robot, mode: str, peer: str) -> None:
    topic, kind = TOPICS[mode]
    assert bridge["connected"]
    assert bridge["echo"] == dict.fromkeys(KINDS[peer].split(","), True)
    assert bridge["undecodable"] == 0
    assert 0.003 < bridge["period_s"] < 0.03  # the robot publishes every 4 ms, or as often as a busy machine lets it
    assert abs(bridge["stamp_s"]) < 2.0
    if mode == "forward_position":
        got = [r["data"] for r in robot.records("forward")]
    else:
        records = robot.records("trajectory")
        refused = [r["refused"] for r in records]
        assert refused.count("last velocity") == 1
        assert refused.count("") == len(refused) - 1
        taken = [r for r in records if not r["refused"]]
        sorted_names = [sorted(range(6), key=r["names"].__getitem__) for r in taken]
        got = [[r["points"][-1][1][i] for i in order] for r, order in zip(taken, sorted_names, strict=True)]
        own = sorted(range(6), key=UR_JOINTS.__getitem__)
        bridge["sent"] = [[row[i] for i in own] for row in bridge["sent"]]
    places = [bridge["sent"].index(row) for row in got]  # bit for bit
    assert places == sorted(places)
    assert len(set(places)) >= 0.8 * len(bridge["sent"])  # the newest counts: a slow listener may miss some
    target = bridge["sent"][-1]
    names = UR_JOINTS if mode == "forward_position" else sorted(UR_JOINTS)
    assert all(abs(bridge["last"][n] - x) < 0.02 for n, x in zip(names, target, strict=True))
    publishers, subscribers = bridge["graph"][topic]
    assert ["/bridge", kind] in [p[:2] for p in publishers]
    if peer != "cyclone":  # a program without ROS does not say what its node is called
        assert ["/robot", kind] in [s[:2] for s in subscribers]


@MODES
def test_dds_with_a_robot_of_plain_cyclone(mode: str, tmp_path: Path) -> None:
    bridge, robot = run("dds", "cyclone", mode, tmp_path / "robot.jsonl")
    check(bridge, robot, mode, "cyclone")
    assert "durability" in bridge["incompatible"]


@pytest.mark.ros
@pytest.mark.parametrize("distribution", ["jazzy", "kilted"])
@pytest.mark.parametrize("transport", ["dds", "rclpy"])
@MODES
def test_ros_2(transport: str, distribution: str, mode: str, tmp_path: Path) -> None:
    bridge, robot = run(transport, distribution, mode, tmp_path / "robot.jsonl")
    check(bridge, robot, mode, distribution)
    assert "durability" in bridge["incompatible"]
    graph = robot.records("graph")[-1]
    topic, topic_type = TOPICS[mode]
    assert "/bridge" in graph["nodes"]
    assert topic in graph["owned"]
    (publisher,) = graph["publishers"]
    assert (publisher["type"], publisher["hash"]) == (topic_type, type_hash(topic_type))
    if (transport, distribution) != ("dds", "kilted"):  # Fast DDS 3 does not ask Cyclone whose an endpoint is
        assert publisher["node"] == "bridge"


@pytest.mark.ros
@MODES
def test_ros_1(mode: str, tmp_path: Path) -> None:
    python_of("rospy")
    with ros_master() as variables:
        bridge, robot = run("rospy", "rospy", mode, tmp_path / "robot.jsonl", **variables)
    check(bridge, robot, mode, "rospy")


@MODES
def test_inproc(mode: str, tmp_path: Path) -> None:
    bus, states = Bus(latency_ns=1_000_000), list[JointState]()
    arm = Arm(Log(tmp_path / "robot.jsonl"), clock=lambda: bus.now_ns * 1e-9)
    robot, bridge = bus.node("robot"), bus.node("bridge")
    topic, _ = TOPICS[mode]
    kind: type[Any] = FloatArray if mode == "forward_position" else JointTrajectory
    robot.subscribe(topic, kind, lambda m, _: take(arm, m, bus), COMMAND)
    publisher = robot.advertise("/joint_states", JointState)
    bridge.subscribe("/joint_states", JointState, lambda m, t: states.append(m))
    out, sent = bridge.advertise(topic, kind), list[Any]()
    for tick in range(400):
        bus.advance(4_000_000)
        arm.step(0.004)
        names, values = arm.state()
        publisher.publish(JointState(stamp_ns=robot.stamp_ns(), name=tuple(names), position=np.array(values)))
        if tick < 250 and tick % 5 == 0:
            message = trajectory(tick // 5) if mode == "joint_trajectory" else FloatArray(data=positions(tick // 5))
            out.publish(message)
            sent.append(message)
    if mode == "joint_trajectory":
        out.publish(trajectory(0, last_velocity=0.1))
    bus.advance(10_000_000)
    log = [json.loads(line) for line in (tmp_path / "robot.jsonl").read_text().splitlines()]
    last = dict(zip(states[-1].name, states[-1].position, strict=True))
    assert len(states) == 400
    if mode == "forward_position":
        assert [r["data"] for r in log if r["kind"] == "forward"] == [m.data.tolist() for m in sent]
        end = dict(zip(UR_JOINTS, sent[-1].data, strict=True))
    else:
        refused = [r["refused"] for r in log if r["kind"] == "trajectory"]
        assert refused == [""] * len(sent) + ["last velocity"]
        end = dict(zip(sent[-1].joint_names, sent[-1].points[-1].positions, strict=True))
    assert all(abs(last[name] - q) < 1e-6 for name, q in end.items())


def take(arm: Any, message: Any, bus: Bus) -> None:
    if isinstance(message, FloatArray):
        arm.forward(message.data.tolist())
    else:
        points = [(p.time_from_start_ns * 1e-9, p.positions.tolist(), p.velocities.tolist()) for p in message.points]
        arm.follow(message.stamp_ns * 1e-9, message.joint_names, points, bus.now_ns * 1e-9)
