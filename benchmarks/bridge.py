"""What the bridge adds to an action's way, and whether the arm goes on while a chunk is made.

    python benchmarks/bridge.py --seconds 20 --out bridge.json

Over DDS on this machine: a robot in a process of its own publishes joint states and measures how old the newest of them
is when a command arrives (both ways through the middleware included); the bridge measures from receiving a state to
having sent the command. Chunks take 100 ms. On a simulated clock: the slowest command along a reference that moves at a
steady speed, as a share of that speed, and the largest acceleration as a share of its limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.actions import ActionConfig
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.messages import FloatArray, JointState
from visuomotor.sim2real.remote.source import PlanRequest
from visuomotor.sim2real.robots.config import CommandConfig, JointLimits, RobotConfig, StateStream
from visuomotor.sim2real.runtime.board import RequestBox, StatusBoard
from visuomotor.sim2real.runtime.build import PolicyFacts, RuntimeConfig, Setup, make_bridge, make_rhythm
from visuomotor.sim2real.runtime.episodes import EpisodeConfig
from visuomotor.sim2real.runtime.link import DirectLink
from visuomotor.sim2real.runtime.pilot import Pilot
from visuomotor.sim2real.runtime.session import Session
from visuomotor.sim2real.runtime.streamer import loop_hz
from visuomotor.sim2real.safety.config import SafetyConfig
from visuomotor.sim2real.transports.choose import TransportConfig, make_transport
from visuomotor.sim2real.transports.inproc import Bus

JOINTS = tuple(f"joint_{i}" for i in range(1, 7))
SPEED, ACCELERATION = 0.5, 8.0  # of the reference [rad/s], of the limits [rad/s^2]


class Steady:
    """Chunks along a straight line that the first joint follows; ``delay_s`` is slept, ``clock`` is [s]."""

    def __init__(self, delay_s: float, noise: float, clock: Any = time.monotonic) -> None:
        names = JOINTS
        self.spec = PolicySpec(
            obs={"joint_pos": ArraySpec(shape=(6,), unit="rad", names=names)},
            action_key="action",
            action=ArraySpec(shape=(6,), role="action", names=names, unit="rad"),
            fps=20.0,
            window=WindowConfig(n_obs=1, horizon=16, n_exec=4),
            action_config=ActionConfig(),
        )
        self._delay_s, self._noise, self.clock = delay_s, noise, clock
        self._rng, self._began = np.random.default_rng(0), 0.0

    def plan(self, request: PlanRequest) -> np.ndarray:
        now = self.clock()
        if request.plan == 0:
            self._began = now
        time.sleep(self._delay_s)
        chunk = self._rng.normal(0.0, self._noise, 6) * np.ones((16, 1))
        t = now - self._began + np.arange(16) / 20.0
        chunk[:, 0] += SPEED * (2.0 - np.abs(t % 8.0 - 4.0)) + 2.0 * SPEED - 1.0  # to and fro, from -1 rad on
        return chunk.astype(np.float32)

    def close(self) -> None:
        pass


def setup(source: Steady, seconds: float) -> Setup:
    limit = JointLimits(low=-3.1, high=3.1, velocity=2.0, acceleration=ACCELERATION, jerk=80.0)
    robot = RobotConfig(
        name="benchmark",
        joints=list(JOINTS),
        limits=dict.fromkeys(JOINTS, limit),
        state=StateStream(rate_hz=125.0, max_age_s=1.0),
        command=CommandConfig(mode="forward_position", topic="/bench/commands", rate_hz=125.0),
    )
    return Setup(
        robot=robot,
        policy=PolicyFacts(spec=source.spec, fps=20.0),
        safety=SafetyConfig(policy_timeout_s=1.0, tracking_error=10.0),
        episodes=EpisodeConfig(auto=True, count=1, seconds=seconds, home=False, end_on_fault=True),
        runtime=RuntimeConfig(decode_threads=False, action_time=0.0),
    )


def robot_process(domain: int, ends: Any, ages: Any) -> None:
    """Publishes at 125 Hz; sends the ages of the newest state at each command [s]."""
    transport = make_transport(TransportConfig(name="dds", node="robot", domain=domain))
    publisher = transport.advertise("/joint_states", JointState)
    sent, found, q = [time.monotonic()], [], [np.array([-1.0, 0, 0, 0, 0, 0])]

    def take(message: FloatArray, received_ns: int) -> None:
        found.append(time.monotonic() - sent[0])
        q[0] = np.array(message.data)

    transport.subscribe("/bench/commands", FloatArray, take)
    due = time.monotonic()
    while not ends.is_set():
        stamp = transport.stamp_ns()
        sent[0] = time.monotonic()
        publisher.publish(JointState(stamp_ns=stamp, name=JOINTS, position=q[0], velocity=np.zeros(6)))
        due += 0.008
        time.sleep(max(0.0, due - time.monotonic()))
    ages.send(found)
    transport.close()


def over_dds(seconds: float) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ends, (mine, theirs) = context.Event(), context.Pipe(duplex=False)
    domain = 1 + os.getpid() % 100
    robot = context.Process(target=robot_process, args=(domain, ends, theirs))
    robot.start()
    source = Steady(0.1, 0.0)
    made = setup(source, seconds)
    session = Session(made, TransportConfig(name="dds", node="bridge", domain=domain))
    rhythm = make_rhythm(made, n_exec=4, delay=None, ensemble=False, decay=0.01)
    result = session.run(lambda: Pilot(source, rhythm))
    ends.set()
    ages = 1e3 * np.array(mine.recv())
    robot.join()
    return {
        "age_of_state_at_command_ms": {"p50": float(np.percentile(ages, 50)), "p95": float(np.percentile(ages, 95))},
        "bridge": result["latencies"],
        "counts": result["counts"],
        "overruns": result["overruns"],
        "faults": result["faults"],
    }


def continuity(noise: float, seconds: float) -> dict[str, float]:
    """On a simulated clock, with chunks that take 100 ms and disagree by ``noise`` [rad]."""
    bus = Bus()
    node = bus.node("robot")
    publisher = node.advertise("/joint_states", JointState)
    sent: list[np.ndarray] = []
    node.subscribe("/bench/commands", FloatArray, lambda m, _: sent.append(np.array(m.data)))
    source = Steady(0.0, noise, lambda: bus.now_ns * 1e-9)
    made = setup(source, seconds + 2.0)
    link = DirectLink(Pilot(source, make_rhythm(made, n_exec=4, delay=None, ensemble=False, decay=0.01)), latency_s=0.1)
    bridge = make_bridge(made, bus.node("bridge"), link=link, board=StatusBoard(), requests=RequestBox())
    period = round(1e9 / loop_hz(made.robot))
    while len(sent) < round(125 * (seconds + 1.5)):
        q = sent[-1] if sent else np.array([-1.0, 0, 0, 0, 0, 0])
        publisher.publish(JointState(stamp_ns=node.stamp_ns(), name=JOINTS, position=q, velocity=np.zeros(6)))
        bus.advance(period)
        bridge.tick(bus.now_ns)
    velocity = np.diff(np.stack(sent), axis=0) * 125.0
    acceleration = np.diff(velocity, axis=0) * 125.0
    return {
        "slowest_share_of_speed": float(velocity[188:, 0].min() / SPEED),
        "acceleration_share_of_limit": float(np.abs(acceleration).max() / ACCELERATION),
        "refused_chunks": bridge.counts["chunks_refused"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    document = {
        "continuity": {f"noise {n * 1e3:g} mrad": continuity(n, 2.5) for n in (0.0, 0.005)},
        "dds": over_dds(args.seconds),
    }
    print(json.dumps(document, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
