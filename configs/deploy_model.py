"""The arm's model as the policy's simulation had it, for a bridge that cannot build it: that takes torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from visuomotor.envs.robots.registry import get_robot, robot_names
from visuomotor.sim2real.kinematics import Kinematics, urdf_velocity
from visuomotor.sim2real.robots.config import RobotConfig

__all__ = ["as_trained"]


def as_trained(robot: RobotConfig, about: Mapping[str, Any], folder: Path) -> RobotConfig:
    """For a policy trained in simulation with ``robot=custom``: its kinematics, written to ``folder``, as the model.

    The simulator turns the model of an own arm so that it faces +x, and finds its hand, where nobody states them; what
    the policy has learnt is in those frames. Other robots stay as they are.

    Raises:
        ConfigError: a file that is no single arm, or joints that it does not have.
    """
    if about.get("robot") != "custom" or not robot.model or robot.model in robot_names():
        return robot
    own = get_robot("custom", model=robot.model)
    joints = robot.model_joints or list(own.joints)
    velocity = urdf_velocity(Path(robot.model).expanduser(), joints)
    path = folder / "arm.npz"
    Kinematics.of(own, joints, robot.tcp, velocity).save(path)
    return replace(robot, model=str(path), model_joints=joints)
