"""A bridge and an arm on a simulated clock: what the tests of the runtime drive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visuomotor.data.actions import ActionConfig
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.messages import FloatArray, JointState, JointTrajectory
from visuomotor.sim2real.remote.source import PlanRequest
from visuomotor.sim2real.robots.config import CommandConfig, JointLimits, RobotConfig, StateStream
from visuomotor.sim2real.runtime.board import RequestBox, StatusBoard
from visuomotor.sim2real.runtime.bridge import Bridge
from visuomotor.sim2real.runtime.build import PolicyFacts, RuntimeConfig, Setup, make_bridge, make_rhythm
from visuomotor.sim2real.runtime.episodes import EpisodeConfig
from visuomotor.sim2real.runtime.link import DirectLink, PolicyLink
from visuomotor.sim2real.runtime.pilot import Pilot
from visuomotor.sim2real.runtime.streamer import loop_hz
from visuomotor.sim2real.runtime.types import Request, State, Tick
from visuomotor.sim2real.transports.inproc import Bus

JOINTS = ("pan", "lift", "elbow")
VELOCITY, ACCELERATION, JERK = 2.0, 8.0, 80.0
MS = 1_000_000


def robot(mode: str = "forward_position", **others: Any) -> RobotConfig:
    """An arm of three joints without a model."""
    limits = {
        j: JointLimits(low=-3.0, high=3.0, velocity=VELOCITY, acceleration=ACCELERATION, jerk=JERK) for j in JOINTS
    }
    topic = "/arm/joint_trajectory" if mode == "joint_trajectory" else "/arm/commands"
    rate = 50.0 if mode == "joint_trajectory" else 125.0
    command = others.pop("command", CommandConfig(mode=mode, topic=topic, rate_hz=rate))
    return RobotConfig(
        name="rig",
        joints=list(JOINTS),
        limits=limits,
        command=command,
        state=others.pop("state", StateStream(rate_hz=250.0)),
        **others,
    )


def spec(names: tuple[str, ...] = JOINTS, **others: Any) -> PolicySpec:
    """A policy of joint positions at 20 Hz that sees joint positions."""
    obs = others.pop("obs", {"joint_pos": ArraySpec(shape=(3,), role="observation", unit="rad", names=JOINTS)})
    return PolicySpec(
        obs=obs,
        action_key="action",
        action=ArraySpec(shape=(len(names),), role="action", names=names, unit="rad"),
        fps=20.0,
        window=WindowConfig(n_obs=1, horizon=16, n_exec=4),
        action_config=ActionConfig(),
        **others,
    )


class Script:
    """A source of chunks that follow ``path(t [s]) -> action``, ``t`` from the first observation of the episode on."""

    def __init__(self, path: Callable[[float], np.ndarray], policy: PolicySpec) -> None:
        self.spec, self._path = policy, path
        self.requests: list[PlanRequest] = []
        self.time_s: Callable[[], float] = lambda: 0.0

    def plan(self, request: PlanRequest) -> np.ndarray:
        self.requests.append(request)
        times = self.time_s() + np.arange(self.spec.window.horizon) / 20.0
        return np.stack([self._path(float(t)) for t in times]).astype(np.float32)

    def close(self) -> None:
        pass


@dataclass
class FakeArm:
    """An arm that goes where it is told at once, and publishes where it is: joints in another order, others between."""

    bus: Bus
    config: RobotConfig
    offset_ns: int = 0
    period_ns: int = 4 * MS
    q: np.ndarray = field(default_factory=lambda: np.array([0.1, -0.4, 0.7]))
    received: list[tuple[int, np.ndarray]] = field(default_factory=list)
    trajectories: list[tuple[int, JointTrajectory]] = field(default_factory=list)
    silent: bool = False
    distort: Callable[[JointState], JointState] = lambda m: m

    def __post_init__(self) -> None:
        self.node = self.bus.node("arm", clock_offset_ns=self.offset_ns)
        self._states = self.node.advertise(self.config.state.topic, JointState)
        if self.config.command.mode == "joint_trajectory":
            self.node.subscribe(self.config.command.topic, JointTrajectory, self._on_trajectory)
        else:
            self.node.subscribe(self.config.command.topic, FloatArray, self._on_command)
        self._next_ns = 0

    def _on_command(self, message: FloatArray, received_ns: int) -> None:
        self.received.append((received_ns, np.array(message.data)))
        self.q = np.array(message.data)

    def _on_trajectory(self, message: JointTrajectory, received_ns: int) -> None:
        self.trajectories.append((received_ns, message))

    def tick(self, now_ns: int) -> None:
        if self.trajectories:
            self.q = at(self.trajectories[-1], now_ns)
        if now_ns < self._next_ns or self.silent:
            return
        self._next_ns = now_ns + self.period_ns
        names = ("elbow", "gripper_left", "pan", "wheel", "lift")
        position = np.array([self.q[2], 0.01, self.q[0], 99.0, self.q[1]])
        message = JointState(stamp_ns=self.node.stamp_ns(), name=names, position=position, velocity=0 * position)
        self._states.publish(self.distort(message))


def at(trajectory: tuple[int, JointTrajectory], now_ns: int) -> np.ndarray:
    """Where a trajectory is at a time: linear between its points, which lie close together."""
    began, message = trajectory
    times = np.array([p.time_from_start_ns for p in message.points]) + began
    table = np.stack([p.positions for p in message.points])
    return np.array([np.interp(now_ns, times, column) for column in table.T])


class Rig:
    """Everything, one tick at a time."""

    def __init__(
        self, path: Callable[[float], np.ndarray] | None = None, *, config: RobotConfig | None = None,
        policy: PolicySpec | None = None, latency_s: float = 0.1, offset_ns: int = 0,
        episodes: EpisodeConfig | None = None,
        runtime: RuntimeConfig | None = None, link: PolicyLink | None = None, saved: Mapping[str, Any] | None = None,
        bus: Bus | None = None, ensemble: bool = False, n_exec: int = 4,
    ) -> None:  # fmt: skip
        self.bus = bus or Bus()
        self.config = config or robot()
        self.policy = policy or spec()
        self.arm = FakeArm(self.bus, self.config, offset_ns)
        runtime = runtime or RuntimeConfig(decode_threads=False, action_time=0.0)
        self.setup = Setup(
            robot=self.config,
            policy=PolicyFacts(spec=self.policy, fps=20.0, saved_control=saved),
            episodes=episodes or EpisodeConfig(home=False),
            runtime=runtime,
        )
        self.script = Script(path or (lambda t: self.arm.q), self.policy)
        rhythm = make_rhythm(self.setup, n_exec=n_exec, delay=None, ensemble=ensemble, decay=0.01)
        self.pilot = Pilot(self.script, rhythm)
        self.link = link or DirectLink(self.pilot, latency_s=latency_s)
        self.board, self.box, self.ticks = StatusBoard(), RequestBox(), list[Tick]()
        self.node = self.bus.node("bridge")
        self.bridge: Bridge = make_bridge(
            self.setup, self.node, link=self.link, board=self.board, requests=self.box, listeners=[self.ticks.append]
        )
        self.period_ns = round(1e9 / loop_hz(self.config))
        self._run_ns: int | None = None
        self.script.time_s = lambda: (self.ticks[-1].time_ns - self._run_ns) * 1e-9 if self._run_ns is not None else 0.0

    def tick(self) -> State:
        for _ in range(self.period_ns // MS):
            self.bus.advance(MS)
            self.arm.tick(self.bus.now_ns)
        self.bus.advance(self.period_ns % MS)
        state = self.bridge.tick(self.bus.now_ns)
        if state is State.RUN and self._run_ns is None:
            self._run_ns = self.bus.now_ns
        return state

    def run(self, seconds: float) -> State:
        """Let time pass."""
        state = self.bridge.state
        for _ in range(round(seconds * 1e9 / self.period_ns)):
            state = self.tick()
        return state

    def start(self) -> None:
        """Until the policy acts."""
        self.run(0.3)
        assert self.bridge.state is State.READY, self.bridge.log.shown
        self.box.put(Request.START)
        self.run(0.05)
        assert self.bridge.state is State.RUN, self.bridge.log.shown

    def motion(self, since_ns: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Positions, velocities, accelerations and jerks of the commands received after ``since_ns``."""
        q = np.stack([p for t, p in self.arm.received if t >= since_ns])
        dt = self.period_ns * 1e-9
        v = np.diff(q, axis=0) / dt
        a = np.diff(v, axis=0) / dt
        return q, v, a, np.diff(a, axis=0) / dt
