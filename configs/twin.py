"""``visuomotor twin``: a simulated arm that speaks a robot's ROS interface, to rehearse a deployment on."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from visuomotor.configs.compose import parse_plain, task_settings
from visuomotor.configs.robots import take_robot, transport_words
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.registry import get_task, make_env
from visuomotor.envs.robots.registry import robot_names
from visuomotor.envs.sim.cameras import CameraConfig
from visuomotor.envs.tasks.tabletop import TabletopConfig
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.robots.limits import arm_limits, load_kinematics
from visuomotor.sim2real.transports.base import Transport
from visuomotor.sim2real.transports.choose import TransportConfig, make_transport
from visuomotor.sim2real.twin.config import TwinConfig
from visuomotor.sim2real.twin.node import Twin
from visuomotor.sim2real.twin.plant import Plant
from visuomotor.sim2real.twin.run import run_twin

__all__ = ["TwinCommand", "build_twin", "main"]

_TELL_S = 10


@dataclass(kw_only=True, slots=True)
class TwinCommand(TwinConfig):
    """``visuomotor twin robot=<name> task=<name>``: a simulated arm with the ROS interface of the robot.

    Attributes:
        task: whose scene it stands in; it says when its goal is reached, and begins anew when it is asked to.
        env: settings of the task's environment that differ from their defaults.
        transport: what it speaks on; short for its name: ``transport=dds``.
        minutes: to run; 0: until it is stopped.
    """

    task: str = "lift"
    env: dict[str, Any] = field(default_factory=dict)
    transport: TransportConfig = field(default_factory=lambda: TransportConfig(node="visuomotor_twin"))
    minutes: float = 0.0

    def __post_init__(self) -> None:
        TwinConfig.__post_init__(self)
        if not 0 <= self.minutes < math.inf:
            raise ConfigError(f"minutes={self.minutes:g}: expected 0 or more, and finite")
        if self.transport.name == "inproc":
            raise ConfigError("transport=inproc reaches nobody outside its own process: give transport=dds")


def main(words: Sequence[str]) -> int:
    """Run the twin as ``words`` say (``key=value ...``); returns the exit status."""
    robot, rest = take_robot(words)
    config = parse_plain(TwinCommand, transport_words(rest))
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it lets the topics go
    transport = make_transport(config.transport)
    try:
        twin, plant = build_twin(robot, config, transport)
        try:
            _introduce(robot, config, twin, plant, transport, console)
            seconds = 60 * config.minutes if config.minutes else math.inf
            run_twin(twin, seconds, lambda second, late: _tell(twin, second, late, console))
        except KeyboardInterrupt:
            pass
        finally:
            plant.close()
    finally:
        transport.close()
    s = twin.status
    console.print(
        f"{s.episode + 1} episodes, {s.commands} commands, {s.refused} refused{': ' + s.refusal if s.refusal else ''}; "
        f"limits: {twin.violations}",
        highlight=False,
    )
    return 0


def build_twin(robot: RobotConfig, config: TwinCommand, transport: Transport) -> tuple[Twin, Plant]:
    """The twin and its physics, which the caller closes.

    Raises:
        ConfigError: a robot without a model, or a task, camera or value that does not go with it.
    """
    settings = _scene(robot, config)
    for camera in config.cameras:
        if camera not in robot.cameras:
            raise ConfigError(f"cameras: the robot has no camera {camera!r}. {nearest(camera, robot.cameras)}")
    drawn = CameraConfig(names=config.cameras, height=config.height, width=config.width)
    env = make_env(settings, 1)
    try:
        plant = Plant(env, config.rate_hz, drawn)
        kinematics = load_kinematics(robot)
        limits = arm_limits(robot, kinematics)
        return Twin(plant, robot, config, transport, limits=limits, kinematics=kinematics), plant
    except BaseException:
        env.close()
        raise


def _scene(robot: RobotConfig, config: TwinCommand) -> TabletopConfig:
    """Settings of the task with the robot's own arm in it."""
    if not robot.model:
        raise ConfigError(f"robot {robot.name!r} has no model to simulate: give robot.model=<urdf or mjcf file>")
    if not issubclass(get_task(config.task).config_class, TabletopConfig):
        raise ConfigError(f"task {config.task!r} has no arm; the twin needs one, such as lift")
    own = {"robot": robot.model} if robot.model in robot_names() else {"robot": "custom", "model": robot.model}
    settings = task_settings(config.task, {**own, "engine": {"threads": 1}, **config.env})
    assert isinstance(settings, TabletopConfig)
    return settings


def _introduce(
    robot: RobotConfig, config: TwinCommand, twin: Twin, plant: Plant, transport: Transport, console: Console
) -> None:
    c = robot.command
    lines = [
        f"{robot.name} on {transport.name}, task {config.task}: physics and controllers at {twin.rate_hz:g} Hz",
        f"  states    {robot.state.topic} at {min(robot.state.rate_hz, twin.rate_hz):g} Hz",
        f"  commands  {c.topic} ({c.mode})" + (f", gripper {robot.gripper.topic}" if robot.gripper else ""),
        *(f"  {key:<9} {robot.values[key].topic}" for key in plant.observed() if key in robot.values),
        *(f"  {key:<9} {robot.cameras[key].topic}" for key in config.cameras),
    ]
    lines += [
        f"  not published: the task's {key!r}; robot.values.{key}.topic=/... would publish it"
        for key in plant.observed()
        if key not in robot.values
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _tell(twin: Twin, second: int, late: float, console: Console) -> None:
    if second % _TELL_S:
        return
    s = twin.status
    behind = f", {late:.1f} s behind real time" if late else ""
    console.print(
        f"{second:>6} s  episode {s.episode} (seed {s.seed}), {'reached' if s.reached else 'not reached'}, "
        f"{s.commands} commands, limits: {twin.violations}{behind}",
        highlight=False,
        soft_wrap=True,
    )
