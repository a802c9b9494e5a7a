"""The limits and the kinematics of a robot, from its settings and its model."""

from __future__ import annotations

import numpy as np

from visuomotor.data.errors import ConfigError
from visuomotor.envs.robots.registry import robot_names
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.robots.config import JointLimits, RobotConfig
from visuomotor.sim2real.safety.config import ArmLimits

__all__ = ["arm_limits", "load_kinematics"]

# Where neither the manufacturer nor the user says more. Arms of this size are specified to reach full speed in 0.1 to
# 0.3 s; nobody minds one that takes a little longer.
_TO_SPEED_S = 0.5
_TO_ACCELERATION_S = 0.1


def load_kinematics(config: RobotConfig) -> Kinematics | None:
    """Of ``config.model``, in the order of ``config.joints``; None without a model.

    Raises:
        ConfigError: no such model, or joints and tcp that it does not have.
    """
    if not config.model:
        return None
    own = config.model_joints or ([] if config.model in robot_names() else config.joints)
    kinematics = Kinematics.load(config.model, own, config.tcp)
    if kinematics.n != len(config.joints):
        raise ConfigError(
            f"robot {config.name!r} has {len(config.joints)} joints, its model {config.model!r} {kinematics.n}: "
            f"{', '.join(kinematics.joints)}"
        )
    return kinematics


def arm_limits(config: RobotConfig, kinematics: Kinematics | None) -> ArmLimits:
    """Limits of every joint, in the order of ``config.joints``.

    Stated ones first, then those of the model. Where no acceleration is stated the joint reaches full speed in 0.5 s,
    and where no jerk is, full acceleration in 0.1 s.

    Raises:
        ConfigError: a joint whose position or velocity is limited nowhere.
    """
    rows = [_joint(config, kinematics, i) for i in range(len(config.joints))]
    low, high, velocity, acceleration, jerk = (np.array(column) for column in zip(*rows, strict=True))
    return ArmLimits(
        low=low, high=high, velocity=velocity, acceleration=acceleration, jerk=jerk, names=tuple(config.joints)
    )


def _joint(config: RobotConfig, kinematics: Kinematics | None, i: int) -> tuple[float, float, float, float, float]:
    name = config.joints[i]
    stated = config.limits.get(name, JointLimits())
    low, high, velocity = stated.low, stated.high, stated.velocity
    if kinematics is not None:
        low = float(kinematics.low[i]) if low is None else low
        high = float(kinematics.high[i]) if high is None else high
        found = float(kinematics.velocity[i])
        velocity = found if velocity is None and np.isfinite(found) else velocity
    if low is None or high is None:
        raise ConfigError(
            f"nobody says how far joint {name!r} may turn: give robot.model=<urdf>, or robot.limits.{name}.low= and "
            ".high= [rad] (.inf where it turns without end)"
        )
    if velocity is None:
        raise ConfigError(
            f"nobody says how fast joint {name!r} may be: give robot.limits.{name}.velocity= [rad/s]"
            + ("" if config.model else ", or robot.model=<urdf>")
        )
    acceleration = velocity / _TO_SPEED_S if stated.acceleration is None else stated.acceleration
    return low, high, velocity, acceleration, acceleration / _TO_ACCELERATION_S if stated.jerk is None else stated.jerk
