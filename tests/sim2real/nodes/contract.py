"""The bridge's side of the contract tests: one transport, in whatever environment has it, against a robot.

python contract.py TRANSPORT MODE TOPIC KIND,KIND,... PATIENCE

prints one line of JSON and ends after one line of input. PATIENCE [s]: how long nodes may take to say what they own.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from visuomotor.sim2real import messages as m
from visuomotor.sim2real.transports.base import COMMAND, LATCHED, SENSOR, Transport
from visuomotor.sim2real.transports.cdr import encode
from visuomotor.sim2real.transports.choose import TransportConfig, make_transport

JOINTS = (
    "shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint", "wrist_1_joint", "wrist_2_joint", "wrist_3_joint",
)  # fmt: skip
HOME = np.array([0.0, -1.57, 1.57, -1.57, -1.57, 0.0])
STAMP: dict[str, Any] = {"stamp_ns": 1_700_000_000_123_456_789, "frame_id": "base_link"}
_DT_NS = 10_000_000


def samples() -> list[m.Message]:
    """One message of each type."""
    random = np.random.default_rng(0)
    n = random.normal
    picture = random.integers(0, 256, 24 * 96, dtype=np.uint8)
    point = m.TrajectoryPoint(time_from_start_ns=2_500_000_001, positions=n(size=2), velocities=np.zeros(2))
    pose = m.Pose(**STAMP, position=n(size=3), q_xyzw=np.array([0, 0, 0.6, 0.8]))
    return [
        m.JointState(**STAMP, name=("a", "bb"), position=n(size=2), effort=n(size=2)),
        m.Image(**STAMP, height=24, width=32, encoding="rgb8", step=96, data=picture),
        m.CompressedImage(**STAMP, format="jpeg", data=picture[:1001]),
        pose,
        m.Twist(**STAMP, linear=n(size=3), angular=n(size=3)),
        m.Wrench(**STAMP, force=n(size=3), torque=n(size=3)),
        m.FloatArray(data=n(size=5)),
        m.Boolean(data=True),
        m.Text(data="Grüße"),
        m.JointTrajectory(**STAMP, joint_names=("a", "bb"), points=(point,)),
        m.JointCommand(name="arm", command=n(size=3).astype(np.float32)),
        m.Transforms(poses=(pose,), children=("cup",)),
    ]


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def keep_in(got: list[m.Message]) -> Callable[[m.Message, int], None]:
    return lambda message, _: got.append(message)


def echo(transport: Transport, kinds: set[str]) -> dict[str, bool]:
    """Whether the robot sends each message back as it went out."""
    same: dict[str, bool] = {}
    waiting = []
    for message in samples():
        name = m.ROS_NAMES[type(message)].split("/")[-1]
        if name in kinds:
            got: list[m.Message] = []
            transport.subscribe(f"/echo/out/{name}", type(message), keep_in(got), COMMAND)
            waiting.append((name, transport.advertise(f"/echo/in/{name}", type(message)), message, got))
    end = time.monotonic() + 20
    while any(not got for *_, got in waiting) and time.monotonic() < end:
        for _, out, message, got in waiting:
            if not got:
                out.publish(message)  # again and again: the first ones are lost before both sides are connected
        time.sleep(0.05)
    for name, _, message, got in waiting:
        same[name] = bool(got) and encode(got[0]) == encode(message)
    return same


def positions(step: int) -> np.ndarray:
    """Once there and back, never twice the same."""
    return HOME + 0.2 * math.sin(2 * math.pi * step / 100) * np.array([1, 0.5, -0.5, 0.3, 0.2, 0.8]) + 1e-5 * step


def trajectory(step: int, last_velocity: float = 0.0) -> m.JointTrajectory:
    """From where step ``step`` is to the next hundredth, and to rest; in another order than the robot's own."""
    order = [3, 1, 2, 0, 5, 4]
    speed = (positions(step + 1) - positions(step)) / 0.01
    points = [
        m.TrajectoryPoint(time_from_start_ns=50_000_000, positions=positions(step)[order], velocities=speed[order]),
        m.TrajectoryPoint(
            time_from_start_ns=150_000_000,
            positions=(positions(step) + 0.05 * speed)[order],
            velocities=np.full(6, last_velocity),
        ),
    ]
    return m.JointTrajectory(joint_names=tuple(JOINTS[i] for i in order), points=tuple(points))


def command(out: Any, mode: str) -> list[list[float]]:
    """Send for one second; returns the positions sent, of trajectories those of their ends in the robot's order."""
    sent = []
    following = time.monotonic()
    for step in range(0, 100, 1 if mode == "forward_position" else 5):
        if mode == "forward_position":
            out.publish(m.FloatArray(data=positions(step)))
            sent.append(positions(step).tolist())
        else:
            message = trajectory(step)
            out.publish(message)
            end = dict(zip(message.joint_names, message.points[-1].positions.tolist(), strict=True))
            sent.append([end[name] for name in JOINTS])
        following += 0.01 if mode == "forward_position" else 0.05
        time.sleep(max(0.0, following - time.monotonic()))
    if mode == "joint_trajectory":
        out.publish(trajectory(0, last_velocity=0.1))
    return sent


def main() -> None:
    name, mode, topic, kinds, patience_s = sys.argv[1:]
    transport = make_transport(TransportConfig(name=name, node="bridge"))
    states: list[tuple[m.JointState, int]] = []
    stream = transport.subscribe("/joint_states", m.JointState, lambda x, t: states.append((x, t)), SENSOR)
    latched = transport.subscribe("/joint_states", m.JointState, lambda x, t: None, LATCHED)
    out = transport.advertise(topic, m.FloatArray if mode == "forward_position" else m.JointTrajectory)
    connected = until(lambda: states and out.matched())
    result: dict[str, Any] = {"transport": transport.name, "connected": connected}
    result["echo"] = echo(transport, set(kinds.split(",")))
    begin = len(states)
    result["sent"] = command(out, mode)
    time.sleep(0.7)
    until(
        lambda: all(e.node != "?" for i in transport.graph() if i.topic == topic for e in i.subscribers),
        float(patience_s),
    )
    last = states[-1][0]
    times = np.diff([t for _, t in states[begin:]]) / 1e9
    result |= {
        "received": stream.received, "undecodable": stream.undecodable, "incompatible": latched.incompatible,
        "period_s": float(np.mean(times)),
        "last": {n: float(p) for n, p in zip(last.name, last.position, strict=True)},
        "stamp_s": (time.time_ns() - last.stamp_ns) / 1e9,
        "graph": {
            i.topic: [[[e.node, e.ros_type] for e in side] for side in (i.publishers, i.subscribers)]
            for i in transport.graph()
        },
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    sys.stdin.readline()  # the robot is asked what it sees of us before we leave
    transport.close()


if __name__ == "__main__":
    main()
