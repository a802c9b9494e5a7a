"""The whole bridge against a robot in another process: what the tests of faults on real middleware drive.

python bridge_driver.py SETTINGS      a JSON object:

* ``transport``, ``interface``: how the robot is reached; ``mode``, ``topic``: how it is commanded, at ``rate_hz``
* ``policy``: ``moving`` (all joints swing), or ``adversary`` (not a number, infinities, jumps, in all mixtures)
* ``commands``: end after so many; 0: at a line of input that says quit
* ``session``: bridge and policy in processes of their own, as ``visuomotor deploy`` has them
* ``log``: file of JSON lines: ``sent`` for each command, ``state`` for each change, ``pids``, ``end``

Requests of the operator come as lines of input: start, reset, hold, ... It is run in environments without torch too.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from robot_arm import UR_JOINTS, Log

from visuomotor.data.actions import ActionConfig
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.remote.source import PlanRequest
from visuomotor.sim2real.robots.config import CommandConfig, JointLimits, RobotConfig, StateStream
from visuomotor.sim2real.runtime.board import RequestBox, StatusBoard
from visuomotor.sim2real.runtime.build import PolicyFacts, RuntimeConfig, Setup, make_bridge, make_rhythm
from visuomotor.sim2real.runtime.episodes import EpisodeConfig
from visuomotor.sim2real.runtime.link import DirectLink
from visuomotor.sim2real.runtime.pacing import Pacer
from visuomotor.sim2real.runtime.pilot import Pilot
from visuomotor.sim2real.runtime.session import Session
from visuomotor.sim2real.runtime.streamer import loop_hz
from visuomotor.sim2real.runtime.types import Request, State, Tick
from visuomotor.sim2real.safety.config import SafetyConfig
from visuomotor.sim2real.transports.choose import TransportConfig, make_transport

VELOCITY, ACCELERATION, JERK = 2.0, 8.0, 80.0
SWING, RATE = 0.8, 1.4  # of the moving policy [rad], [rad/s]: 1.12 rad/s at most
DIRECTION = np.array([1.0, 0.5, -0.5, 0.3, 0.2, 0.8])
HORIZON = 16


def robot(settings: dict[str, Any]) -> RobotConfig:
    limits = JointLimits(low=-3.0, high=3.0, velocity=VELOCITY, acceleration=ACCELERATION, jerk=JERK)
    command = CommandConfig(mode=settings["mode"], topic=settings["topic"], rate_hz=settings["rate_hz"])
    return RobotConfig(
        name="ur", joints=list(UR_JOINTS), limits=dict.fromkeys(UR_JOINTS, limits), command=command,
        state=StateStream(rate_hz=250.0),
    )  # fmt: skip


def spec(fps: float, n_exec: int) -> PolicySpec:
    return PolicySpec(
        obs={"joint_pos": ArraySpec(shape=(6,), role="observation", unit="rad", names=UR_JOINTS)},
        action_key="action",
        action=ArraySpec(shape=(6,), role="action", names=UR_JOINTS, unit="rad"),
        fps=fps,
        window=WindowConfig(n_obs=1, horizon=HORIZON, n_exec=n_exec),
        action_config=ActionConfig(),
    )


class Moving:
    """Chunks along a swing that begins where the arm is when it is first asked."""

    def __init__(self, policy: PolicySpec) -> None:
        self.spec, self._began = policy, 0.0
        assert policy.fps is not None
        self._times = np.arange(HORIZON) / policy.fps
        self._home = np.zeros(6)

    def plan(self, request: PlanRequest) -> np.ndarray:
        if request.previous is None:
            self._began, self._home = time.monotonic(), request.obs["joint_pos"][-1].astype(float)
        times = time.monotonic() - self._began + self._times
        return (self._home + SWING * (1 - np.cos(RATE * times))[:, None] / 2 * DIRECTION).astype(np.float32)

    def close(self) -> None:
        pass


class Adversary(Moving):
    """Whatever a policy that has gone mad may say, after it has been believed for a moment."""

    def __init__(self, policy: PolicySpec) -> None:
        super().__init__(policy)
        self._random = np.random.default_rng(0)
        self._count, self._kind, self._offset = 0, 0, np.zeros(6)

    def plan(self, request: PlanRequest) -> np.ndarray:
        random, shape = self._random, (HORIZON, 6)
        base = request.obs["joint_pos"][-1].astype(float)
        self._count = 0 if request.previous is None else self._count + 1
        if self._count % 6 == 0:  # 0.24 s of the same kind
            self._kind = int(random.integers(0, 7))
            self._offset = random.uniform(-0.45, 0.45, 6)
        if self._count < 10:
            chunk = base + np.linspace(0, 0.1, HORIZON)[:, None] * np.sign(self._offset)
        elif self._kind < 3:  # at full speed to somewhere
            chunk = base + np.tile(self._offset, (HORIZON, 1))
        elif self._kind == 3:  # no two alike
            chunk = base + random.uniform(-0.45, 0.45, shape)
        elif self._kind == 4:  # to and fro
            chunk = base + 0.45 * np.where(np.arange(HORIZON)[:, None] % 2, 1.0, -1.0) * np.ones(6)
        elif self._kind == 5:
            chunk = base + random.normal(0, 10.0, shape)
        else:
            chunk = base + np.tile(self._offset, (HORIZON, 1))
            wrong = random.random(shape) < random.random()
            chunk[wrong] = random.choice([np.nan, np.inf, -np.inf, 1e30, -np.pi], int(wrong.sum()))
        return chunk.astype(np.float32)


def make_pilot(settings: dict[str, Any], setup: Setup) -> Pilot:
    assert setup.policy is not None
    kind = Adversary if settings["policy"] == "adversary" else Moving
    n_exec = setup.policy.spec.window.n_exec
    rhythm = make_rhythm(setup, n_exec=n_exec, delay=None, ensemble=False, decay=0.01)
    return Pilot(kind(setup.policy.spec), rhythm)


def obey(put: Callable[[Request], None], over: threading.Event) -> None:
    """Requests by lines of input; the end of the input is the end."""
    for line in sys.stdin:
        if line.strip() == "quit":
            break
        put(Request(line.strip()))
    over.set()


def run_direct(settings: dict[str, Any], setup: Setup, log: Log) -> None:
    """Bridge and policy in this process: every tick is written down."""
    config = TransportConfig(name=settings["transport"], node="bridge", interface=settings["interface"])
    transport = make_transport(config)
    box, over, ticks = RequestBox(), threading.Event(), list[Tick]()
    link = DirectLink(make_pilot(settings, setup), latency_s=0.02)
    bridge = make_bridge(setup, transport, link=link, board=StatusBoard(), requests=box, listeners=[ticks.append])
    threading.Thread(target=obey, args=(box.put, over), daemon=True).start()
    pacer = Pacer(round(1e9 / loop_hz(setup.robot)), lambda: bridge.parts.observer.state_ns, transport.now_ns)
    number, sent, state = 0, 0, State.IDLE
    while not over.is_set() and not 0 < settings["commands"] <= sent:
        bridge.tick(pacer.wait())
        number += 1
        tick = ticks.pop()
        if tick.sent is not None:
            sent += 1
            log("sent", tick=number, q=tick.sent.tolist())
        if tick.state is not state:
            state = tick.state
            log("state", state=str(state), fault=bridge.parts.supervisor.fault)
            if state is State.FAULT and settings["policy"] == "adversary":
                box.put(Request.RESET)
        if state is State.IDLE and number % 100 == 0:
            log("idle", problems=list(bridge.parts.watch.problems(transport.now_ns(), state, 0.0, None)))
    log("end", ticks=number, overruns=pacer.overruns, faults=len(bridge.faults))
    bridge.parts.observer.close()
    transport.close()


def run_session(settings: dict[str, Any], setup: Setup, log: Log) -> None:
    """Bridge and policy as ``visuomotor deploy`` starts them; this process is the policy's."""
    config = TransportConfig(name=settings["transport"], node="bridge", interface=settings["interface"])
    session = Session(setup, config)
    log("pids", policy=os.getpid(), bridge=session.process.pid)
    over = threading.Event()
    threading.Thread(target=obey, args=(session.requests.put, over), daemon=True).start()
    threading.Thread(target=watch, args=(session.board, log), daemon=True).start()
    threading.Thread(target=quit_after, args=(over, session.requests), daemon=True).start()
    summary = session.run(lambda: make_pilot(settings, setup))
    log("end", faults=summary["faults"])


def quit_after(over: threading.Event, requests: RequestBox) -> None:
    over.wait()
    requests.put(Request.QUIT)


def watch(board: StatusBoard, log: Log) -> None:
    state = ""
    while True:
        status = board.read()
        if status.state != state:
            state = status.state
            log("state", state=str(state), fault=status.fault)
        time.sleep(0.005)


def main() -> None:
    settings = {"interface": "", "policy": "moving", "commands": 0, "rate_hz": 125.0, "session": False}
    settings |= json.loads(sys.argv[1])
    adverse = settings["policy"] == "adversary"
    policy = PolicyFacts(spec=spec(50.0, 2) if adverse else spec(20.0, 4), fps=50.0 if adverse else 20.0)
    episodes = EpisodeConfig(home=False, auto=True, seconds=1e5, reset_s=0.1)
    runtime = RuntimeConfig(decode_threads=False, action_time=0.0)
    # a stream of refused targets is a fault; here it shall go on, so that more of them reach the filter
    safety = SafetyConfig(reject_fault_s=10.0 if adverse else 0.5)
    setup = Setup(robot=robot(settings), policy=policy, episodes=episodes, runtime=runtime, safety=safety)
    (run_session if settings["session"] else run_direct)(settings, setup, Log(settings["log"]))


if __name__ == "__main__":
    main()
