"""Robots by name: what a config chooses from, and what other packages add to (entry points ``visuomotor.robots``)."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.robots.model import RobotModel
from visuomotor.envs.robots.panda import PANDA
from visuomotor.envs.robots.so100 import SO100
from visuomotor.envs.robots.ur5e import UR5E

__all__ = ["get_robot", "robot_names"]

_GROUP = "visuomotor.robots"
_ROBOTS: dict[str, RobotModel] = {robot.name: robot for robot in (PANDA, UR5E, SO100)}


def robot_names() -> list[str]:
    """Names of all robots, those of other packages included; ``custom`` goes beside them."""
    return sorted({**_outside(), **_ROBOTS})


def get_robot(name: str, model: str | None = None) -> RobotModel:
    """The robot of that name; ``custom`` is the MJCF or URDF file ``model``.

    Raises:
        ConfigError: no such robot, or a file that is no single arm.
    """
    if name == "custom":
        if model is None:
            raise ConfigError("robot=custom needs model=/path/of/arm.xml (MJCF or URDF)")
        from visuomotor.envs.robots.custom import load_robot

        return load_robot(model)
    if model is not None:
        raise ConfigError(f"model={model} goes with robot=custom, not with robot={name}")
    if name in _ROBOTS:
        return _ROBOTS[name]
    if name not in _outside():
        raise ConfigError(f"unknown robot {name!r}. {nearest(name, [*robot_names(), 'custom'])}")
    try:
        robot = _outside()[name].load()
    except Exception as error:  # whatever a package of others raises when it is imported
        raise ConfigError(f"the entry point {name!r} of group {_GROUP} cannot be loaded: {error}") from error
    if not isinstance(robot, RobotModel):
        raise ConfigError(f"the entry point {name!r} of group {_GROUP} is {robot!r}; expected a RobotModel")
    return robot


@cache
def _outside() -> dict[str, EntryPoint]:
    """Not loaded: a package that is broken must not break the other robots."""
    return {point.name: point for point in entry_points(group=_GROUP)}
