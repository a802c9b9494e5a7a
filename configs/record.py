"""``visuomotor record``: a person shows a task on the arm; demonstrations go straight into a store."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.console import Console

from visuomotor.configs.compose import parse_plain
from visuomotor.configs.robots import take_robot, transport_words
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.sim2real.page.server import LivePage
from visuomotor.sim2real.recording.layout import array_specs, open_store
from visuomotor.sim2real.recording.session import recorded_lines
from visuomotor.sim2real.recording.shown import ACTION_MODES, shown_spec
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.runtime.build import PolicyFacts, RuntimeConfig, Setup, check_policy, describe_arm
from visuomotor.sim2real.runtime.episodes import EpisodeConfig
from visuomotor.sim2real.runtime.keyboard import KEYS
from visuomotor.sim2real.runtime.session import Session
from visuomotor.sim2real.runtime.types import Request
from visuomotor.sim2real.safety.config import SafetyConfig
from visuomotor.sim2real.transports.choose import TransportConfig

__all__ = ["RecordConfig", "main", "record_setup"]

_A_DAY_S = 86_400.0


@dataclass(kw_only=True, slots=True)
class RecordConfig:
    """``visuomotor record robot=<name> store=<zarr>``: a person shows a task on the arm, which becomes demonstrations.

    The arm follows a teleoperating device (``robot.teleop_topic``) through the safety filter.

    Attributes:
        store: that the episodes go into, made or added to. One that exists decides what is recorded.
        bag: MCAP file, or folder of a ROS 2 bag, that all topics go into as well.
        task: what a person would say to ask for it; the column ``task``.
        action: what the actions are for a policy: ``joint_pos`` (positions), ``joint_delta`` (changes in a control
            step), ``joint_vel`` (rates), ``ee_delta`` (changes of the hand's pose) or ``ee_pose`` (its pose).
        fps: control steps per second.
        keys: observations that are recorded; empty: all that the robot has.
        picture: height and width of pictures.
        sizes: by observation: how many numbers a message of type ``numbers`` or ``joint_state`` brings.
        transport: how the robot is reached; short for its name: ``transport=dds``.
        episodes: end after so many; 0: when the operator ends it.
        minutes: the session ends after so long; null: when the operator ends it.
        home: go to the robot's home between episodes when it is asked for (key g).
        seed: recorded with the first episode; the next ones count up.
        page: serve the live page on this port of this machine (0: a free one); null: no page.
        safety: limits and monitors; see ``docs/safety.md``.
        runtime: timing.
        out: file for the summary, JSON.
    """

    store: str = MISSING
    bag: str | None = None
    task: str = ""
    action: str = "joint_pos"
    fps: float = 20.0
    keys: list[str] = field(default_factory=list)
    picture: list[int] = field(default_factory=lambda: [240, 320])
    sizes: dict[str, int] = field(default_factory=dict)
    transport: TransportConfig = field(default_factory=lambda: TransportConfig(node="visuomotor_bridge"))
    episodes: int = 0
    minutes: float | None = None
    home: bool = True
    seed: int = 0
    page: int | None = None
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    out: str | None = None

    def __post_init__(self) -> None:
        if self.action not in ACTION_MODES:
            raise ConfigError(f"unknown action {self.action!r}. {nearest(self.action, ACTION_MODES)}")
        if not 0 < self.fps < math.inf:
            raise ConfigError(f"fps={self.fps}: expected more than 0, and finite")
        if len(self.picture) != 2 or min(self.picture) < 8:
            raise ConfigError(f"picture={self.picture}: expected height and width, 8 or more each")
        if self.transport.name == "inproc":
            raise ConfigError("transport=inproc reaches nobody outside its own process: give transport=dds")
        self.conduct()

    def conduct(self) -> EpisodeConfig:
        """How the session goes: an episode ends when the operator says so, or the scene does."""
        return EpisodeConfig(
            count=self.episodes, seconds=_A_DAY_S, minutes=self.minutes, home=self.home, seed=self.seed
        )


def record_setup(config: RecordConfig, robot: RobotConfig) -> Setup:
    """What the bridge does: nothing but follow, and observe what is recorded.

    Raises:
        UserError: a robot that nobody can lead, observations that it does not have, or a store that does not fit.
    """
    if not robot.teleop_topic:
        raise ConfigError(
            f"robot {robot.name!r} has no teleoperating device to follow: give robot.teleop_topic=<topic of JointState>"
        )
    arm, _ = describe_arm(robot)
    path = Path(config.store).expanduser()
    spec = shown_spec(
        robot,
        arm,
        mode=config.action,
        fps=config.fps,
        picture=config.picture,
        keys=config.keys,
        sizes=config.sizes,
        store=path if path.exists() else None,
    )
    facts = PolicyFacts(spec=spec, fps=float(spec.fps or config.fps), acts=False)
    check_policy(facts, arm)
    open_store(
        path, array_specs(spec, tuple(robot.joints), gripper=robot.gripper is not None), facts.fps
    ).close()  # what does not fit is refused now
    return Setup(robot=robot, policy=facts, safety=config.safety, episodes=config.conduct(), runtime=config.runtime)


def main(words: Sequence[str]) -> int:
    """Record as ``words`` say (``key=value ...``); returns the exit status: 0, or 1 after a fault."""
    robot, rest = take_robot(words)
    config = parse_plain(RecordConfig, transport_words(rest))
    setup = record_setup(config, robot)
    console = Console()
    _tell(config, setup, console)
    with ExitStack() as stack:
        session = Session(setup, config.transport, keyboard=True, record=config.store, bag=config.bag, task=config.task)
        if config.page is not None:
            title = f"{robot.name}: {config.task or 'recording'}"
            page = LivePage(session.board, session.requests, port=config.page, title=title)
            stack.callback(page.close)
            console.print(f"live page: {page.url}", highlight=False, soft_wrap=True)
        result = session.run(None)
    return _finish(config, result, console)


def _tell(config: RecordConfig, setup: Setup, console: Console) -> None:
    assert setup.policy is not None
    spec, robot = setup.policy.spec, setup.robot
    lines = [
        f"{robot.name} follows {robot.teleop_topic}, by {config.transport.name}",
        f"  observes  {', '.join(spec.obs)} at {setup.policy.fps:g} Hz",
        f"  actions   {', '.join(spec.action.names or ())}",
        f"  into      {config.store}" + (f" and {config.bag}" if config.bag else ""),
        "  keys",
        *(f"    {text}" for request, text in KEYS.values() if request not in (Request.START, Request.HAND_BACK)),
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _finish(config: RecordConfig, result: Mapping[str, Any], console: Console) -> int:
    lines = [f"{len(result['episodes'])} episodes, {result['successes']} of them a success"]
    lines += [f"  fault: {fault}" for fault in result["faults"]]
    lines += recorded_lines(result["recorded"], config.store, config.bag)
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    if config.out is not None:
        out = Path(config.out).expanduser()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1))
    return 1 if result["faults"] else 0
