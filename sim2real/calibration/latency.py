"""Measure the delays of a robot by moving one joint: of its commands, and of its cameras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from visuomotor.data.errors import ConfigError, DataError, UserError, nearest
from visuomotor.sim2real.calibration.delay import Chirp, Delay, delay_between, fitting_amplitude
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.messages import JointState, Message
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.robots.topics import camera_message
from visuomotor.sim2real.runtime.images import pixels
from visuomotor.sim2real.runtime.streamer import loop_hz, make_streamer
from visuomotor.sim2real.runtime.streams import HeaderClock
from visuomotor.sim2real.safety.config import ArmLimits, SafetyConfig
from visuomotor.sim2real.safety.filter import SafetyFilter
from visuomotor.sim2real.transports.base import Transport

__all__ = ["Latencies", "LatencyProbe"]

_SETTLE_S = 1.0  # standing, before and after the chirp
_WAIT_S = 5.0  # for the first joint state
_ALIKE = 0.9  # less correlation than this is no measurement of commands ...
_SEEN = 0.4  # ... and than this none of a camera


@dataclass(frozen=True)
class Latencies:
    """What was measured.

    Attributes:
        joint: that was moved, by ``amplitude`` [rad or m].
        command: from sending a command to the bridge knowing the arm there: what every joint state takes on its way
            cannot be told from clocks that differ.
        cameras: from exposure to the stamp, against the stamps of the joint states; None: the camera saw no motion.
    """

    joint: str
    amplitude: float
    command: Delay
    cameras: dict[str, Delay | None] = field(default_factory=dict)


class LatencyProbe:
    """Moves one joint and listens.

    Args:
        robot: whose delays are measured.
        transport: how to reach it.
        limits: of its joints.
        kinematics: of the arm; needed where commands are motions of the hand.
        wait_until: lets time pass until the transport's clock shows so many ns.
        cameras: keys of the cameras that are measured too.

    Raises:
        ConfigError: a camera that the robot does not have.
    """

    def __init__(
        self, robot: RobotConfig, transport: Transport, limits: ArmLimits, kinematics: Kinematics | None,
        wait_until: Callable[[int], None], cameras: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self._robot, self._transport, self._limits, self._wait_until = robot, transport, limits, wait_until
        self._dt_ns = round(1e9 / loop_hz(robot))
        self._filter = SafetyFilter(limits, self._dt_ns * 1e-9, SafetyConfig(), kinematics)
        self._streamer = make_streamer(robot, transport, kinematics, limits.velocity, limits.acceleration)
        self._states: list[tuple[JointState, int]] = []
        self._frames: dict[str, list[tuple[Any, int]]] = {}
        transport.subscribe(robot.state.topic, JointState, self._take_state)
        for key in cameras:
            if key not in robot.cameras:
                raise ConfigError(f"the robot has no camera {key!r}. {nearest(key, robot.cameras)}")
            self._frames[key] = []
            stream = robot.cameras[key]
            transport.subscribe(stream.topic, camera_message(stream), partial(self._take_frame, key))

    def measure(self, joint: str, chirp: Chirp) -> Latencies:
        """Move ``joint`` by the chirp, or as much of it as the limits allow, and work the delays out.

        Raises:
            UserError: no joint states, a joint at its limit, or an arm that does not follow.
        """
        names = self._robot.joints
        if joint not in names:
            raise ConfigError(f"the robot has no joint {joint!r}. {nearest(joint, names)}")
        j, q0 = names.index(joint), self._first_state()
        margin = SafetyConfig().position_margin
        amplitude = fitting_amplitude(chirp, self._limits, j, float(q0[j]), margin)
        chirp = Chirp(amplitude, chirp.low_hz, chirp.high_hz, chirp.duration_s)
        self._states.clear()
        for box in self._frames.values():
            box.clear()
        commanded = self._move(q0, j, chirp)
        measured = self._measured(joint)
        command = delay_between(commanded, measured)
        if command.correlation < _ALIKE:
            raise UserError(
                f"joint {joint!r} does not follow its commands (correlation {command.correlation:.2f}, expected "
                f"{_ALIKE:g}): is the controller active, and does nothing else command the arm?"
            )
        cameras = {key: self._camera(key, measured) for key in self._frames}
        return Latencies(joint, amplitude, command, cameras)

    def _take_state(self, message: JointState, received_ns: int) -> None:
        if set(self._robot.joints) <= set(message.name):
            self._states.append((message, received_ns))

    def _take_frame(self, key: str, message: Message, received_ns: int) -> None:
        self._frames[key].append((message, received_ns))

    def _first_state(self) -> np.ndarray:
        """Positions ``[n]`` now."""
        begin = self._transport.now_ns()
        while not self._states and self._transport.now_ns() < begin + _WAIT_S * 1e9:
            self._wait_until(self._transport.now_ns() + self._dt_ns)
        if not self._states:
            raise UserError(f"no joint states on {self._robot.state.topic} with all of {', '.join(self._robot.joints)}")
        m = self._states[-1][0]
        q = m.position[[m.name.index(n) for n in self._robot.joints]]
        if not np.isfinite(q).all():
            raise UserError(f"{self._robot.state.topic}: positions that are no numbers: {q.tolist()}")
        return np.asarray(q, dtype=np.float64)

    def _move(self, q0: np.ndarray, joint: int, chirp: Chirp) -> tuple[np.ndarray, np.ndarray]:
        """Command the chirp through the safety filter; returns when each position was to be reached [s], and it."""
        self._filter.start(q0)
        self._streamer.start()
        begin = self._transport.now_ns()
        times, values = [], []
        steps = round((chirp.duration_s + 2 * _SETTLE_S) * 1e9 / self._dt_ns)
        for k in range(steps):
            now = begin + k * self._dt_ns
            self._wait_until(now)
            motions = []
            for reached_ns in self._streamer.times(now):
                target = q0.copy()
                target[joint] += chirp.at(np.array((reached_ns - begin) * 1e-9 - _SETTLE_S))
                motions.append(self._filter.step(target))
                times.append(reached_ns * 1e-9)
                values.append(motions[-1].position[joint])
            if fatal := [e.text for m in motions for e in m.events if e.fatal]:
                raise UserError("; ".join(fatal))
            if motions:
                self._streamer.send(now, motions, lambda: self._filter.resting_tail(0.05), self._newest(), 1.0)
        return np.array(times), np.array(values)

    def _newest(self) -> np.ndarray:
        m = self._states[-1][0] if self._states else None
        if m is None:
            return self._filter.position
        return np.asarray(m.position[[m.name.index(n) for n in self._robot.joints]], dtype=np.float64)

    def _measured(self, joint: str) -> tuple[np.ndarray, np.ndarray]:
        """When each measured position was true [s of our clock], and it."""
        clock = HeaderClock(self._robot.state.latency_s)
        states = list(self._states)
        for m, received in states:  # the smallest way of all of them, also for the first
            clock.event_ns(m.stamp_ns, received)
        times = [clock.event_ns(m.stamp_ns, received) * 1e-9 for m, received in states]
        values = [m.position[m.name.index(joint)] for m, _ in states]
        return np.array(times), np.array(values)

    def _camera(self, key: str, measured: tuple[np.ndarray, np.ndarray]) -> Delay | None:
        """By how much the camera's change of picture follows the joint's speed."""
        clock = HeaderClock()
        frames = list(self._frames[key])
        for m, received in frames:
            clock.event_ns(m.stamp_ns, received)
        times, changes, last = [], [], None
        for m, received in frames:
            try:
                picture = pixels(m).astype(np.float32)
            except DataError as e:
                raise UserError(f"camera {key!r}: {e}") from None
            at = clock.event_ns(m.stamp_ns, received) * 1e-9
            if last is not None and at > last[0]:
                changes.append(float(np.abs(picture - last[1]).mean()) / (at - last[0]))
                times.append((at + last[0]) / 2)  # what changed did so between both
            last = (at, picture)
        t, q = measured
        speed = np.abs(np.gradient(q, t)) if len(t) > 2 else np.zeros(0)
        try:
            delay = delay_between((t, speed), (np.array(times), np.array(changes)), most_s=0.6)
        except UserError:
            return None
        return delay if delay.correlation >= _SEEN else None
