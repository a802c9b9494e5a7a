"""The twin: a simulated arm that speaks the ROS interface of a real one.

In each period it publishes what is due, takes the commands that have come, asks the controllers where the joints
should be, and lets physics go on. Commands and measurements take their time on the way (``latency``), so nothing is
known before it could be.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.messages import Boolean, JointState, Message, Text
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.robots.topics import VALUE_MESSAGES, camera_message
from visuomotor.sim2real.safety.config import ArmLimits
from visuomotor.sim2real.transports.base import COMMAND, SENSOR, Publisher, Transport
from visuomotor.sim2real.twin.cartesian import HandPose, HandTwist
from visuomotor.sim2real.twin.config import TwinConfig
from visuomotor.sim2real.twin.controllers import Controller, ForwardPosition, ForwardVelocity, JointGroup, Trajectory
from visuomotor.sim2real.twin.plant import Plant
from visuomotor.sim2real.twin.sensors import Mail, Sensors, opening_of
from visuomotor.sim2real.twin.watch import CommandWatch, Violations

__all__ = ["RESET_TOPIC", "STATUS_TOPIC", "SUCCESS_TOPIC", "Twin", "TwinStatus"]

SUCCESS_TOPIC = "/visuomotor/twin/success"
RESET_TOPIC = "/visuomotor/twin/reset"
STATUS_TOPIC = "/visuomotor/twin/status"
_STATUS_HZ = 2.0  # of the status


@dataclass
class TwinStatus:
    """What the twin tells about itself.

    Attributes:
        episode: counts up by one with every reset.
        seed: of the episode.
        success: the goal holds now.
        reached: it has held in this episode.
        score: best of the episode, 0..1.
        commands: taken since the beginning.
        refused: not taken; ``refusal`` is why the last one was not.
    """

    episode: int = -1
    seed: int = -1
    success: bool = False
    reached: bool = False
    score: float = 0.0
    commands: int = 0
    refused: int = 0
    refusal: str = ""


@dataclass
class _Channel:
    """A controller, and the commands on their way to it."""

    controller: Controller
    inbox: deque[tuple[int, Message]] = field(default_factory=deque)

    def receive(self, message: Message, received_ns: int) -> None:
        self.inbox.append((received_ns, message))


class Twin:
    """A simulated arm on a transport.

    Args:
        plant: its physics.
        robot: its interface.
        config: how good its sensors and links are.
        transport: what it speaks on.
        limits: that commands are held against; None: nothing is counted.
        kinematics: for commands of the hand.

    Attributes:
        status: how it stands.
        sensors: what it measures with.

    Raises:
        ConfigError: an interface that does not fit the physics.
    """

    def __init__(
        self, plant: Plant, robot: RobotConfig, config: TwinConfig, transport: Transport, *,
        limits: ArmLimits | None = None, kinematics: Kinematics | None = None,
    ) -> None:  # fmt: skip
        if len(robot.joints) != len(plant.joints):
            raise ConfigError(
                f"robot {robot.name!r} has {len(robot.joints)} joints, the simulated arm {len(plant.joints)}: "
                f"{', '.join(plant.joints)}"
            )
        self._plant, self._robot, self._config, self._transport = plant, robot, config, transport
        plant.reset(config.first_seed)
        observed = plant.observed()
        self.sensors = Sensors(robot, config, {k: len(v) for k, v in observed.items()})
        self.status = TwinStatus()
        self._watch = None if limits is None else CommandWatch(limits, 1.0 / robot.command.rate_hz)
        self._mail, self._requests = Mail(), deque[str]()
        self._latency_ns = round(config.latency_ms * 1e6)
        self._delay_ns = round(config.command_latency_ms * 1e6)
        self._tick = 0
        self._advertise(observed.keys())
        self._arm = _Channel(_controller(robot, kinematics))
        self._listen(robot.command.topic, self._arm)
        self._hand: _Channel | None = None
        g = robot.gripper
        if g is not None and g.mode != "with_arm":
            joint = [g.joint or "gripper"]
            self._hand = _Channel(ForwardPosition(joint) if g.mode == "forward_position" else Trajectory(joint))
            self._listen(g.topic, self._hand)
        transport.subscribe(robot.reset_topic or RESET_TOPIC, Text, lambda m, _: self._requests.append(m.data), COMMAND)
        self.reset(config.first_seed)

    @property
    def rate_hz(self) -> float:
        """At which :meth:`tick` is to be called."""
        return self._plant.rate_hz

    @property
    def violations(self) -> Violations:
        """Of the limits, by the commands received."""
        return Violations() if self._watch is None else self._watch.violations

    def reset(self, seed: int) -> None:
        """Begin the episode of ``seed``: the arm at home, objects placed; commands on their way are forgotten."""
        self._plant.reset(seed)
        self.sensors.begin(seed)
        s = self.status
        self.status = TwinStatus(s.episode + 1, seed, commands=s.commands, refused=s.refused, refusal=s.refusal)
        self._mail.clear()
        q, opening = self._plant.measured()[0] + self.sensors.offset, self._plant.opening()
        self._arm.controller.reset(self._with_hand(q, opening))
        self._arm.inbox.clear()
        if self._hand is not None:
            self._hand.controller.reset(np.array([self._command_of(opening)]))
            self._hand.inbox.clear()
        if self._watch is not None:
            self._watch.reset()

    def tick(self) -> None:
        """One period: publish, obey, move."""
        now, stamp = self._transport.now_ns(), self._transport.stamp_ns()
        while self._requests:
            self.reset(_seed(self._requests.popleft(), self.status.seed))
        self._measure(now, stamp)
        self._mail.send(now)
        q, v = self._plant.measured()
        opening = self._plant.opening()
        position = self._with_hand(q + self.sensors.offset, opening)
        velocity = np.concatenate([v, np.zeros(len(position) - len(v))])
        self._obey(self._arm, now, stamp, position, velocity, watched=True)
        if self._hand is not None:
            hand = np.array([self._command_of(opening)])
            self._obey(self._hand, now, stamp, hand, np.zeros(1), watched=False)
        self._plant.command(*self._desired(now))
        self._plant.step()
        self._tick += 1

    def _measure(self, now: int, stamp: int) -> None:
        """Put what the sensors see on its way."""
        r, plant, sensors = self._robot, self._plant, self.sensors
        due = now + self._latency_ns
        if self._is_due(r.state.rate_hz) and not sensors.lost():
            q, v = plant.measured()
            late = round(r.state.latency_s * 1e9)
            message = sensors.joints(q, v, plant.opening(), stamp + late)
            self._mail.put(due + late, self._states, message)
        if self._values and self._is_due(self._config.values_hz):
            observed = plant.observed()
            for key, publisher in self._values.items():
                stream = r.values[key]
                late = round(stream.latency_s * 1e9)
                if not sensors.lost():
                    self._mail.put(due + late, publisher, sensors.value(stream, observed[key], stamp + late))
        shown = [k for k in self._cameras if self._is_due(r.cameras[k].rate_hz)]
        pictures = plant.pictures() if shown else {}
        for key in shown:
            late = round(r.cameras[key].latency_s * 1e9)
            if not sensors.lost():
                message_ = sensors.picture(r.cameras[key], key, pictures[key], stamp + late)
                self._mail.put(due + late, self._cameras[key], message_)
        if self._is_due(plant.fps):
            standing = plant.standing()
            s = self.status
            s.success, s.score, s.reached = standing.success, standing.score, s.reached or standing.success
            self._success.publish(Boolean(data=s.success))
        if self._is_due(_STATUS_HZ):
            self._told.publish(Text(data=json.dumps(self.document())))

    def document(self) -> dict[str, Any]:
        """JSON-ready: how it stands, and what it holds against the commands."""
        return {**vars(self.status), "violations": dict(self.violations.count)}

    def _obey(
        self, channel: _Channel, now: int, stamp: int, position: np.ndarray, velocity: np.ndarray, *, watched: bool
    ) -> None:  # fmt: skip
        while channel.inbox and channel.inbox[0][0] + self._delay_ns <= now:
            received, message = channel.inbox.popleft()
            before = channel.controller.sample(now).copy()
            why = channel.controller.receive(message, now, stamp, position, velocity)
            self.status.commands += 1
            if why:
                self.status.refused += 1
                self.status.refusal = why
            if watched and self._watch is not None:
                self._hold_against(self._watch, channel.controller, why, now, before, received)

    def _hold_against(
        self, watch: CommandWatch, controller: Controller, why: str, now: int, before: np.ndarray, received: int
    ) -> None:  # fmt: skip
        n = len(self._robot.joints)
        if why:
            watch.refused(why)
        elif isinstance(controller, Trajectory):
            watch.trajectory(controller.received(n), controller.sample(now)[:n], before[:n])
        elif isinstance(controller, ForwardPosition):
            watch.position(controller.desired[:n], received)  # the twin's own clock may have lost time
        elif isinstance(controller, ForwardVelocity):
            watch.velocity(controller.velocity)

    def _desired(self, now: int) -> tuple[np.ndarray, float]:
        """Joint positions in the model's sense, and the opening."""
        desired = self._arm.controller.sample(now)
        n, g = len(self._robot.joints), self._robot.gripper
        opening = 1.0
        if g is not None:
            value = desired[n] if self._hand is None else self._hand.controller.sample(now)[0]
            opening = opening_of(g, float(value))
        return desired[:n] - self.sensors.offset, opening

    def _with_hand(self, q: np.ndarray, opening: float) -> np.ndarray:
        """Positions of all joints that the arm's own command moves."""
        g = self._robot.gripper
        return q if g is None or g.mode != "with_arm" else np.concatenate([q, [self._command_of(opening)]])

    def _command_of(self, opening: float) -> float:
        g = self._robot.gripper
        return 0.0 if g is None else g.command_closed + opening * (g.command_opened - g.command_closed)

    def _is_due(self, rate_hz: float) -> bool:
        """Whether something that happens at ``rate_hz`` happens in this tick."""
        share = min(rate_hz / self.rate_hz, 1.0)
        return int(self._tick * share + 1e-9) != int((self._tick - 1) * share + 1e-9) or self._tick == 0

    def _advertise(self, observed: Sequence[str] | Any) -> None:
        t, r = self._transport, self._robot
        self._states: Publisher[Any] = t.advertise(r.state.topic, JointState, SENSOR)
        self._success = t.advertise(r.success_topic or SUCCESS_TOPIC, Boolean, COMMAND)
        self._told = t.advertise(STATUS_TOPIC, Text, COMMAND)
        self._values: dict[str, Publisher[Any]] = {
            k: t.advertise(s.topic, VALUE_MESSAGES[s.type], SENSOR) for k, s in r.values.items() if k in observed
        }
        self._cameras: dict[str, Publisher[Any]] = {
            k: t.advertise(r.cameras[k].topic, camera_message(r.cameras[k]), SENSOR) for k in self._config.cameras
        }

    def _listen(self, topic: str, channel: _Channel) -> None:
        callback: Callable[[Any, int], None] = channel.receive
        self._transport.subscribe(topic, channel.controller.message, callback, COMMAND)


def _controller(robot: RobotConfig, kinematics: Kinematics | None) -> Controller:
    """What takes the arm's commands."""
    c, g = robot.command, robot.gripper
    joints = [*robot.joints, *([g.joint] if g is not None and g.mode == "with_arm" else [])]
    if c.mode == "joint_trajectory":
        return Trajectory(joints)
    if c.mode == "forward_position":
        return ForwardPosition(joints)
    if c.mode == "joint_group":
        return JointGroup(joints, c.group)
    if c.mode == "forward_velocity":
        return ForwardVelocity(joints, c.timeout_s or 0.0)
    if kinematics is None:
        raise ConfigError(f"command.mode={c.mode} moves the hand, which takes a model of the arm: give robot.model=")
    return HandPose(joints, c, kinematics) if c.mode == "pose" else HandTwist(joints, c, kinematics)


def _seed(request: str, last: int) -> int:
    """What a reset asks for; whatever is no number is the next."""
    return int(request) if request.strip().isdigit() else last + 1
