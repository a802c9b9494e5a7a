"""What the bridge knows of a robot: its topics, joints, limits and cameras. Presets are YAML files of these classes."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "COMMAND_MODES",
    "CameraStream",
    "CommandConfig",
    "GripperConfig",
    "JointLimits",
    "RobotConfig",
    "StateStream",
    "ValueStream",
]

COMMAND_MODES = ("joint_trajectory", "forward_position", "forward_velocity", "joint_group", "pose", "twist")


@dataclass(kw_only=True, slots=True)
class JointLimits:
    """Limits of one joint; null takes what the URDF or MJCF of ``model`` says, and there must be one of both.

    Attributes:
        low, high: position [rad or m].
        velocity: [rad/s or m/s].
        acceleration: [rad/s^2 or m/s^2].
        jerk: [rad/s^3 or m/s^3].
    """

    low: float | None = None
    high: float | None = None
    velocity: float | None = None
    acceleration: float | None = None
    jerk: float | None = None


@dataclass(kw_only=True, slots=True)
class StateStream:
    """Where measured joint states come from.

    Attributes:
        topic: of sensor_msgs/JointState; several joints may come in any order and with others between them.
        rate_hz: that the driver publishes at.
        max_age_s: without a message for so long, the stream counts as lost.
    """

    topic: str = "/joint_states"
    rate_hz: float = 100.0
    max_age_s: float = 0.1


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
    """

    mode: str = "joint_trajectory"
    topic: str = "/joint_trajectory_controller/joint_trajectory"
    rate_hz: float = 125.0
    group: str = ""
    timeout_s: float | None = None


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
    """

    topic: str = ""
    compressed: bool = False
    rate_hz: float = 30.0
    max_age_s: float = 0.5
    frozen_s: float | None = 1.0
    latency_s: float = 0.0


@dataclass(kw_only=True, slots=True)
class ValueStream:
    """Any other observation: an object's pose from an estimator, a wrench, numbers.

    Attributes:
        topic: where it comes from.
        type: ``pose``, ``twist``, ``wrench``, ``numbers`` (Float64MultiArray), ``transform`` (``/tf``) or
            ``joint_state``.
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


@dataclass(kw_only=True, slots=True)
class RobotConfig:
    """One arm as its ROS driver presents it. Presets: ``robot=ur5e``; every value can be set in the command.

    Attributes:
        name: of the preset.
        joints: the driver's names, in the order of the policy's joints.
        limits: by joint, in the order of ``joints``; empty: all from ``model``.
        model: for kinematics: a registered robot (``ur5e``, ``panda``, ``so100``) or a URDF or MJCF file.
        model_joints: joints of that model, in the same order; empty: the names of ``joints``.
        tcp: site or body of the model that is the hand; empty: the registered robot's own.
        home: joint positions [rad] to begin at; empty: the registered robot's own.
        state: measured joints.
        command: commands.
        gripper: null for an arm without.
        cameras: by observation key.
        values: other observations, by observation key.
        stop_topic: std_msgs/Bool that stops the arm when true; empty: none.
        teleop_topic: JointState of a teleoperating device whose positions the arm follows in takeover; empty: none.
    """

    name: str = ""
    joints: list[str] = field(default_factory=list)
    limits: list[JointLimits] = field(default_factory=list)
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
