"""What the bridge knows of a robot: its topics, joints, limits and cameras. Presets are YAML files of these classes.

Everything is validated when it is made; how the parts fit together is checked in :class:`RobotConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from visuomotor.data.errors import ConfigError, nearest

__all__ = [
    "COMMAND_MODES",
    "FIELD_SIZES",
    "GRIPPER_MODES",
    "VALUE_TYPES",
    "CameraStream",
    "CommandConfig",
    "GripperConfig",
    "JointLimits",
    "RobotConfig",
    "StateStream",
    "ValueStream",
]

COMMAND_MODES = ("joint_trajectory", "forward_position", "forward_velocity", "joint_group", "pose", "twist")
GRIPPER_MODES = ("forward_position", "joint_trajectory", "with_arm")
_POSE = ("position", "q_wxyz", "q_xyzw", "rot6d")
VALUE_TYPES = {
    "pose": _POSE,
    "transform": _POSE,
    "twist": ("linear", "angular"),
    "wrench": ("force", "torque"),
    "numbers": ("data",),
    "joint_state": ("position", "velocity", "effort"),
}
"""Types of a :class:`ValueStream`, and the fields that each has."""
FIELD_SIZES = {"position": 3, "q_wxyz": 4, "q_xyzw": 4, "rot6d": 6} | dict.fromkeys(
    ("linear", "angular", "force", "torque"), 3
)
"""Numbers in a field of a pose, twist or wrench."""
_MOVES_ON = ("forward_velocity", "twist")  # an arm that is told velocities goes on without further commands


@dataclass(kw_only=True, slots=True)
class JointLimits:
    """Limits of one joint. Null positions and velocities are what the model says, and one of both must be there.

    Attributes:
        low, high: position [rad or m].
        velocity: [rad/s or m/s].
        acceleration: [rad/s^2 or m/s^2]; null: full speed is reached in 0.5 s.
        jerk: [rad/s^3 or m/s^3]; null: full acceleration is reached in 0.1 s.
    """

    low: float | None = None
    high: float | None = None
    velocity: float | None = None
    acceleration: float | None = None
    jerk: float | None = None

    def __post_init__(self) -> None:
        for name in ("velocity", "acceleration", "jerk"):
            value = getattr(self, name)
            if value is not None:
                _positive(f"limits: {name}", value)
        if any(v is not None and math.isnan(v) for v in (self.low, self.high)):
            raise ConfigError(f"limits: low={self.low}, high={self.high}: expected numbers")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ConfigError(f"limits: low={self.low:g}, high={self.high:g}: expected low below high")


@dataclass(kw_only=True, slots=True)
class StateStream:
    """Where measured joint states come from.

    Attributes:
        topic: of sensor_msgs/JointState; several joints may come in any order and with others between them.
        rate_hz: that the driver publishes at.
        max_age_s: without a message for so long, the stream counts as lost.
        latency_s: from the measurement to the stamp in the header.
    """

    topic: str = "/joint_states"
    rate_hz: float = 100.0
    max_age_s: float = 0.1
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        _topic("state.topic", self.topic)
        _stream("state", self.rate_hz, self.max_age_s, self.latency_s)


@dataclass(kw_only=True, slots=True)
class CommandConfig:
    """How commands reach the arm.

    Attributes:
        mode: one of ``COMMAND_MODES``.
        topic: of that mode's message.
        rate_hz: of commands; in ``joint_trajectory`` of trajectories, which are replaced before they end.
        group: name of the group in ``joint_group``; also the frame of ``pose`` and ``twist``.
        timeout_s: after which the driver itself stops without commands; ``forward_velocity`` and ``twist`` are refused
            without: an arm whose bridge dies would go on moving.
        latency_s: from sending a command to the arm being there (``visuomotor calibrate-latency`` measures it);
            commands are sent that much earlier.
    """

    mode: str = "joint_trajectory"
    topic: str = "/joint_trajectory_controller/joint_trajectory"
    rate_hz: float = 125.0
    group: str = ""
    timeout_s: float | None = None
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in COMMAND_MODES:
            raise ConfigError(f"unknown command.mode {self.mode!r}. {nearest(self.mode, COMMAND_MODES)}")
        _topic("command.topic", self.topic)
        _positive("command.rate_hz", self.rate_hz)
        _not_negative("command.latency_s", self.latency_s)
        if self.timeout_s is not None:
            _positive("command.timeout_s", self.timeout_s)
        elif self.mode in _MOVES_ON:
            raise ConfigError(
                f"command.mode={self.mode} without command.timeout_s: an arm whose bridge dies would go on moving; "
                "give the time after which the driver itself stops without commands, or use another mode"
            )
        if self.mode in ("joint_group", "pose", "twist") and not self.group:
            what = "the group's name" if self.mode == "joint_group" else "the frame that poses are given in"
            raise ConfigError(f"command.mode={self.mode} without command.group: give {what}")


@dataclass(kw_only=True, slots=True)
class GripperConfig:
    """A gripper that opens and closes by one number: 0 closed, 1 open.

    Attributes:
        joint: its joint in the state stream; empty: not measured, the command counts as the measurement.
        opened, closed: position of that joint when open and closed [rad or m].
        mode: ``forward_position`` (Float64MultiArray), ``joint_trajectory``, or ``with_arm`` (last value of the arm's
            own command).
        topic: of the command.
        command_opened, command_closed: values commanded when open and closed.
        speed: largest change of the opening [1/s].
    """

    joint: str = ""
    opened: float = 1.0
    closed: float = 0.0
    mode: str = "forward_position"
    topic: str = ""
    command_opened: float = 1.0
    command_closed: float = 0.0
    speed: float = 2.0

    def __post_init__(self) -> None:
        if self.mode not in GRIPPER_MODES:
            raise ConfigError(f"unknown gripper.mode {self.mode!r}. {nearest(self.mode, GRIPPER_MODES)}")
        if self.mode != "with_arm":
            _topic("gripper.topic", self.topic)
        if self.mode != "forward_position" and not self.joint:
            raise ConfigError(f"gripper.mode={self.mode} without gripper.joint: give the joint's name")
        for a, b in (("opened", "closed"), ("command_opened", "command_closed")):
            values = [getattr(self, a), getattr(self, b)]
            if not all(map(math.isfinite, values)) or values[0] == values[1]:
                raise ConfigError(f"gripper.{a}={values[0]:g}, gripper.{b}={values[1]:g}: expected two numbers")
        _positive("gripper.speed", self.speed)


@dataclass(kw_only=True, slots=True)
class CameraStream:
    """A camera.

    Attributes:
        topic: of sensor_msgs/Image or, with ``compressed``, CompressedImage.
        compressed: which of both.
        rate_hz: that it publishes at.
        max_age_s: without a frame for so long, the stream counts as lost.
        frozen_s: the same picture, bit for bit, for so long counts as lost too; null: never.
        latency_s: from exposure to the stamp in the header.
        crop: left, top, width and height [px] of the part that the policy is shown; empty: the largest centred part
            that has the proportions of the policy's pictures.
    """

    topic: str = ""
    compressed: bool = False
    rate_hz: float = 30.0
    max_age_s: float = 0.5
    frozen_s: float | None = 1.0
    latency_s: float = 0.0
    crop: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        _topic("cameras.<key>.topic", self.topic)
        _stream(f"camera {self.topic}", self.rate_hz, self.max_age_s, self.latency_s)
        if self.crop and (len(self.crop) != 4 or min(self.crop[:2]) < 0 or min(self.crop[2:]) < 1):
            raise ConfigError(f"camera {self.topic}: crop={self.crop}: expected left, top, width, height [px]")
        if self.frozen_s is not None:
            _positive(f"camera {self.topic}: frozen_s", self.frozen_s)


@dataclass(kw_only=True, slots=True)
class ValueStream:
    """Any other observation: an object's pose from an estimator, a wrench, numbers.

    Attributes:
        topic: where it comes from.
        type: one of ``VALUE_TYPES``: ``pose``, ``twist``, ``wrench``, ``numbers`` (Float64MultiArray), ``transform``
            (``/tf``) or ``joint_state``.
        fields: what of the message makes the observation, end to end: ``position``, ``q_wxyz``, ``q_xyzw``, ``rot6d``,
            ``linear``, ``angular``, ``force``, ``torque``, ``data``.
        frame: that it has to be given in (``frame_id``); of ``transform`` the parent.
        child: of ``transform``: the child frame.
        max_age_s: without a message for so long, the stream counts as lost.
        latency_s: from the event to the stamp in the header.
    """

    topic: str = ""
    type: str = "numbers"
    fields: list[str] = field(default_factory=lambda: ["data"])
    frame: str = ""
    child: str = ""
    max_age_s: float = 0.5
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        _topic("values.<key>.topic", self.topic)
        if self.type not in VALUE_TYPES:
            raise ConfigError(f"{self.topic}: unknown type {self.type!r}. {nearest(self.type, VALUE_TYPES)}")
        known = VALUE_TYPES[self.type]
        if not self.fields:
            raise ConfigError(f"{self.topic}: no fields; a {self.type} has {', '.join(known)}")
        for name in self.fields:
            if name not in known:
                raise ConfigError(f"{self.topic}: a {self.type} has no field {name!r}. {nearest(name, known)}")
        if self.type == "transform" and not (self.frame and self.child):
            raise ConfigError(f"{self.topic}: a transform needs frame (the parent) and child")
        _stream(self.topic, 1.0, self.max_age_s, self.latency_s)


@dataclass(kw_only=True, slots=True)
class RobotConfig:
    """One arm as its ROS driver presents it. Presets: ``robot=ur5e``; every value can be set in the command.

    Attributes:
        name: of the preset.
        joints: the driver's names, in the order of the policy's joints.
        limits: by the names of ``joints``; what is not there comes from ``model``.
        model: for kinematics: a registered robot (``ur5e``, ``panda``, ``so100``) or a URDF or MJCF file.
        model_joints: joints of that model, in the same order; empty: the registered robot's own, or for a file the
            names of ``joints``.
        tcp: site or body of the model that is the hand; empty: the registered robot's own.
        home: joint positions [rad] to begin at; empty: the registered robot's own.
        state: measured joints.
        command: commands.
        gripper: null for an arm without.
        cameras: by observation key.
        values: other observations, by observation key.
        stop_topic: std_msgs/Bool that stops the arm when true; empty: none.
        teleop_topic: JointState of a teleoperating device whose positions the arm follows in takeover; empty: none.
        success_topic: std_msgs/Bool that is true while the goal holds (the twin has one); empty: an operator judges.
        reset_topic: std_msgs/String that asks for a new episode (the twin has one): the text is its seed, or empty for
            the next; empty: an operator resets the scene.
    """

    name: str = ""
    joints: list[str] = field(default_factory=list)
    limits: dict[str, JointLimits] = field(default_factory=dict)
    model: str = ""
    model_joints: list[str] = field(default_factory=list)
    tcp: str = ""
    home: list[float] = field(default_factory=list)
    state: StateStream = field(default_factory=StateStream)
    command: CommandConfig = field(default_factory=CommandConfig)
    gripper: GripperConfig | None = None
    cameras: dict[str, CameraStream] = field(default_factory=dict)
    values: dict[str, ValueStream] = field(default_factory=dict)
    stop_topic: str = "/visuomotor/stop"
    teleop_topic: str = ""
    success_topic: str = ""
    reset_topic: str = ""

    def __post_init__(self) -> None:
        _names("joints", self.joints)
        _names("model_joints", self.model_joints)
        for name, values in (("model_joints", self.model_joints), ("home", self.home)):
            if values and len(values) != len(self.joints):
                raise ConfigError(f"{name} has {len(values)} entries; expected {len(self.joints)}, one a joint")
        if not all(map(math.isfinite, self.home)):
            raise ConfigError(f"home={self.home}: expected finite numbers")
        for joint in self.limits:
            if joint not in self.joints:
                raise ConfigError(f"limits of {joint!r}, which is no joint. {nearest(joint, self.joints)}")
        if self.gripper is not None and self.gripper.joint in self.joints:
            raise ConfigError(f"gripper.joint={self.gripper.joint!r} is also a joint of the arm")
        if both := sorted(self.cameras.keys() & self.values.keys()):
            raise ConfigError(f"observation {both[0]!r} is both a camera and a value")
        for name in ("stop_topic", "teleop_topic", "success_topic", "reset_topic"):
            if getattr(self, name):
                _topic(name, getattr(self, name))

    def check_ready(self) -> None:
        """Refuse a configuration that is not yet one of a whole arm.

        Raises:
            ConfigError: no joints: the generic preset as it is.
        """
        if not self.joints:
            raise ConfigError(
                f"robot {self.name or '(unnamed)'!r} has no joints: give robot.model=/path/of/arm.urdf, or "
                "robot.joints=[...] as the driver names them"
            )


def _positive(name: str, value: Any) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={value:g}: expected more than 0, and finite")


def _not_negative(name: str, value: Any) -> None:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name}={value:g}: expected 0 or more, and finite")


def _stream(name: str, rate_hz: float, max_age_s: float, latency_s: float) -> None:
    _positive(f"{name}: rate_hz", rate_hz)
    _positive(f"{name}: max_age_s", max_age_s)
    _not_negative(f"{name}: latency_s", latency_s)


def _topic(name: str, topic: str) -> None:
    """Absolute ROS names only: nothing here has a namespace to resolve others in."""
    if not topic:
        raise ConfigError(f"{name} is missing: give a topic, such as /joint_states")
    parts = topic.split("/")
    if parts[0] or len(parts) < 2 or not all(p and p.replace("_", "a").isalnum() and p.isascii() for p in parts[1:]):
        raise ConfigError(
            f"{name}={topic!r} is no absolute topic: expected names of letters, digits and _ after a / each"
        )


def _names(what: str, names: Sequence[str]) -> None:
    if "" in names:
        raise ConfigError(f"{what}={list(names)}: a name is empty")
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ConfigError(f"{what} names {twice[0]!r} twice")
