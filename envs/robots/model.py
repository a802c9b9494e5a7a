"""What a robot arm is to the framework: its MJCF, which joints are the arm, where its hand is, and its gripper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mujoco

__all__ = ["GripperModel", "RobotModel"]


@dataclass(frozen=True, kw_only=True)
class GripperModel:
    """A gripper that opens and closes by one number.

    Attributes:
        joints: finger joints, whose mean position measures the opening.
        actuators: what moves them.
        opened, closed: actuator inputs when open and closed, one each.
        joint_opened, joint_closed: position of the finger joints when open and closed, one each [m or rad].
        width: distance between the open fingers [m].
    """

    joints: tuple[str, ...]
    actuators: tuple[str, ...]
    opened: tuple[float, ...]
    closed: tuple[float, ...]
    joint_opened: tuple[float, ...]
    joint_closed: tuple[float, ...]
    width: float


@dataclass(frozen=True, kw_only=True)
class RobotModel:
    """One arm. Names are those in its own MJCF; a scene attaches it with a prefix.

    Attributes:
        name: of the robot.
        spec: builds its MJCF: one tree that hangs on the world body, position servos for every arm joint, no ground,
            no lights; its base stands at the origin and faces +x.
        joints: arm joints from base to hand.
        actuators: their position servos, in the same order; the input is a joint position [rad].
        home: joint positions [rad] at the beginning of an episode.
        tcp: site between the fingertips: z points out of the hand, y along the closing direction of the fingers.
        gripper: None for an arm without.
        reach: how far from its base the arm works comfortably [m].
        rotation_weight: weight of a rotation error [1/rad] against a position error [1/m] in inverse kinematics; small
            for arms with fewer than six joints, which cannot satisfy both.
        solver_iterations: limit of the contact solver's iterations that its grasps need: more where a finger touches
            with many geoms, or dozens of redundant contacts end unsolved and push the object out of the hand.
    """

    name: str
    spec: Callable[[], mujoco.MjSpec]
    joints: tuple[str, ...]
    actuators: tuple[str, ...]
    home: tuple[float, ...]
    tcp: str
    gripper: GripperModel | None
    reach: float
    rotation_weight: float = 0.3
    solver_iterations: int = 20
