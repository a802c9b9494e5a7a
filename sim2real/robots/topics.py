"""Which message goes over which topic of a robot."""

from __future__ import annotations

from visuomotor.sim2real.messages import (
    CompressedImage,
    FloatArray,
    Image,
    JointCommand,
    JointState,
    JointTrajectory,
    Message,
    Pose,
    Transforms,
    Twist,
    Wrench,
)
from visuomotor.sim2real.robots.config import CameraStream, RobotConfig

__all__ = ["COMMAND_MESSAGES", "VALUE_MESSAGES", "camera_message", "commanded_topics", "sensor_topics"]

COMMAND_MESSAGES: dict[str, type[Message]] = {
    "joint_trajectory": JointTrajectory,
    "forward_position": FloatArray,
    "forward_velocity": FloatArray,
    "joint_group": JointCommand,
    "pose": Pose,
    "twist": Twist,
}
VALUE_MESSAGES: dict[str, type[Message]] = {
    "pose": Pose,
    "transform": Transforms,
    "twist": Twist,
    "wrench": Wrench,
    "numbers": FloatArray,
    "joint_state": JointState,
}


def camera_message(stream: CameraStream) -> type[Message]:
    """What a camera publishes."""
    return CompressedImage if stream.compressed else Image


def sensor_topics(robot: RobotConfig) -> dict[str, tuple[str, type[Message]]]:
    """Topic and message by stream: ``state``, then cameras and values by their keys."""
    streams: dict[str, tuple[str, type[Message]]] = {"state": (robot.state.topic, JointState)}
    streams |= {k: (c.topic, camera_message(c)) for k, c in robot.cameras.items()}
    return streams | {k: (v.topic, VALUE_MESSAGES[v.type]) for k, v in robot.values.items()}


def commanded_topics(robot: RobotConfig) -> dict[str, tuple[str, type[Message]]]:
    """Topic and message of the commands: ``arm``, and ``gripper`` where it has one of its own."""
    g = robot.gripper
    topics = {"arm": (robot.command.topic, COMMAND_MESSAGES[robot.command.mode])}
    if g is not None and g.mode != "with_arm":
        topics["gripper"] = (g.topic, COMMAND_MESSAGES[g.mode])
    return topics
