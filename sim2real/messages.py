"""The ROS messages that the bridge speaks, as plain dataclasses of numpy arrays: the same for every transport.

Units are those of ROS (REP 103): metres, radians, seconds, newtons; quaternions are ``q_xyzw``. Times are whole
nanoseconds of the sender's clock. A transport turns these into bytes and back; nothing else knows a middleware's types.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = [
    "ROS_NAMES",
    "Boolean",
    "CompressedImage",
    "FloatArray",
    "Image",
    "JointCommand",
    "JointState",
    "JointTrajectory",
    "Message",
    "Pose",
    "Text",
    "TrajectoryPoint",
    "Transforms",
    "Twist",
    "Wrench",
]


def _none() -> np.ndarray:
    return np.zeros(0)


@dataclass(kw_only=True, slots=True)
class Message:
    """Something sent on a topic. ``stamp_ns`` and ``frame_id`` are of the header, where the ROS type has one."""

    stamp_ns: int = 0
    frame_id: str = ""


@dataclass(kw_only=True, slots=True)
class JointState(Message):
    """sensor_msgs/JointState. Arrays are float64 ``[n]`` in the order of ``name``, or empty where not known."""

    name: tuple[str, ...]
    position: np.ndarray = field(default_factory=_none)  # rad or m
    velocity: np.ndarray = field(default_factory=_none)  # rad/s or m/s
    effort: np.ndarray = field(default_factory=_none)  # N m or N

    def __post_init__(self) -> None:
        for values in (self.position, self.velocity, self.effort):
            if len(values) not in (0, len(self.name)):
                raise ValueError(f"a JointState of {len(self.name)} joints with {len(values)} values")


@dataclass(kw_only=True, slots=True)
class Image(Message):
    """sensor_msgs/Image: ``data`` uint8 ``[height * step]`` as it came; ``encoding`` names the pixels' layout."""

    height: int
    width: int
    encoding: str
    step: int
    data: np.ndarray
    is_bigendian: bool = False

    def __post_init__(self) -> None:
        if len(self.data) != self.height * self.step:
            raise ValueError(f"an Image of {self.height} rows of {self.step} bytes with {len(self.data)} bytes")


@dataclass(kw_only=True, slots=True)
class CompressedImage(Message):
    """sensor_msgs/CompressedImage: ``data`` uint8 ``[size]``, a whole JPEG or PNG file; ``format`` as it came."""

    format: str
    data: np.ndarray


@dataclass(kw_only=True, slots=True)
class Pose(Message):
    """geometry_msgs/PoseStamped: ``position [3]`` m, ``q_xyzw [4]``, in the frame ``frame_id``."""

    position: np.ndarray
    q_xyzw: np.ndarray


@dataclass(kw_only=True, slots=True)
class Twist(Message):
    """geometry_msgs/TwistStamped: ``linear [3]`` m/s, ``angular [3]`` rad/s, in the frame ``frame_id``."""

    linear: np.ndarray
    angular: np.ndarray


@dataclass(kw_only=True, slots=True)
class Wrench(Message):
    """geometry_msgs/WrenchStamped: ``force [3]`` N, ``torque [3]`` N m."""

    force: np.ndarray
    torque: np.ndarray


@dataclass(kw_only=True, slots=True)
class FloatArray(Message):
    """std_msgs/Float64MultiArray without a layout: ``data`` float64 ``[n]``."""

    data: np.ndarray


@dataclass(kw_only=True, slots=True)
class Boolean(Message):
    """std_msgs/Bool."""

    data: bool


@dataclass(kw_only=True, slots=True)
class Text(Message):
    """std_msgs/String."""

    data: str


@dataclass(kw_only=True, slots=True)
class TrajectoryPoint:
    """One point of a trajectory: float64 ``[n]`` each, or empty where not given."""

    time_from_start_ns: int
    positions: np.ndarray
    velocities: np.ndarray = field(default_factory=_none)
    accelerations: np.ndarray = field(default_factory=_none)


@dataclass(kw_only=True, slots=True)
class JointTrajectory(Message):
    """trajectory_msgs/JointTrajectory. ``stamp_ns`` 0: it starts when it arrives."""

    joint_names: tuple[str, ...]
    points: tuple[TrajectoryPoint, ...]


@dataclass(kw_only=True, slots=True)
class JointCommand(Message):
    """interbotix_xs_msgs/JointGroupCommand: float32 ``command [n]`` for the group ``name``."""

    name: str
    command: np.ndarray


@dataclass(kw_only=True, slots=True)
class Transforms(Message):
    """tf2_msgs/TFMessage: poses of child frames in the frames that their headers name."""

    poses: tuple[Pose, ...]
    children: tuple[str, ...]


ROS_NAMES: dict[type[Message], str] = {
    JointState: "sensor_msgs/msg/JointState",
    Image: "sensor_msgs/msg/Image",
    CompressedImage: "sensor_msgs/msg/CompressedImage",
    Pose: "geometry_msgs/msg/PoseStamped",
    Twist: "geometry_msgs/msg/TwistStamped",
    Wrench: "geometry_msgs/msg/WrenchStamped",
    FloatArray: "std_msgs/msg/Float64MultiArray",
    Boolean: "std_msgs/msg/Bool",
    Text: "std_msgs/msg/String",
    JointTrajectory: "trajectory_msgs/msg/JointTrajectory",
    JointCommand: "interbotix_xs_msgs/msg/JointGroupCommand",
    Transforms: "tf2_msgs/msg/TFMessage",
}
"""The ROS 2 name of each type; ROS 1 has no ``msg/``."""
