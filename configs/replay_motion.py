"""``visuomotor replay``: a recorded motion on an arm or its twin, through the safety filter."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from visuomotor.configs.compose import parse_plain
from visuomotor.configs.deploy_config import has_operator
from visuomotor.configs.robots import take_robot, transport_words
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.sim2real.recording.motion import Motion, MotionSource, read_bag, read_store
from visuomotor.sim2real.recording.session import recorded_lines
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.runtime.build import PolicyFacts, RuntimeConfig, Setup, check_policy, describe_arm, make_rhythm
from visuomotor.sim2real.runtime.episodes import EpisodeConfig
from visuomotor.sim2real.runtime.keyboard import KEYS
from visuomotor.sim2real.runtime.pilot import Pilot
from visuomotor.sim2real.runtime.session import Session
from visuomotor.sim2real.safety.config import SafetyConfig
from visuomotor.sim2real.transports.choose import TransportConfig

__all__ = ["ReplayConfig", "main", "replay_setup"]

_STARTS = ("key", "auto")
_AFTER_S = 1.0  # standing at the end


@dataclass(kw_only=True, slots=True)
class ReplayConfig:
    """``visuomotor replay store=<zarr> robot=<name>``: a recorded motion on an arm, through the safety filter.

    The arm first goes slowly to where the motion begins.

    Attributes:
        store: demonstrations.
        bag: instead of a store: a bag of ROS 1 or ROS 2, whose measured joint positions are followed.
        episode: of the store.
        key: array of the store; null: the commands that were sent (``sent``), else the actions.
        topic: of the bag; null: the robot's own topic of joint states.
        fps: steps per second that a bag is read at.
        speed: of the motion, as a factor; the safety filter's limits stay what they are.
        repeat: how many times.
        start: ``key`` (the operator begins) or ``auto``.
        transport: how the robot is reached; short for its name: ``transport=dds``.
        record: store that what happens is recorded into.
        dry_run: everything but commands: the arm does not move.
        safety: limits and monitors; see ``docs/safety.md``.
        out: file for the summary, JSON.
    """

    store: str | None = None
    bag: str | None = None
    episode: int = 0
    key: str | None = None
    topic: str | None = None
    fps: float = 50.0
    speed: float = 1.0
    repeat: int = 1
    start: str = "key"
    transport: TransportConfig = field(default_factory=lambda: TransportConfig(node="visuomotor_bridge"))
    record: str | None = None
    dry_run: bool = False
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    out: str | None = None

    def __post_init__(self) -> None:
        if (self.store is None) == (self.bag is None):
            raise ConfigError("give store=<zarr> or bag=<file or folder>")
        for name in ("fps", "speed"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: expected more than 0, and finite")
        if self.repeat < 1:
            raise ConfigError(f"repeat={self.repeat}: expected 1 or more")
        if self.start not in _STARTS:
            raise ConfigError(f"unknown start {self.start!r}. {nearest(self.start, _STARTS)}")
        if self.transport.name == "inproc":
            raise ConfigError("transport=inproc reaches nobody outside its own process: give transport=dds")


def replay_setup(config: ReplayConfig, robot: RobotConfig) -> tuple[Setup, MotionSource]:
    """What the bridge does, and what it is told to do.

    Raises:
        UserError: a recording that cannot be read, or of another arm.
    """
    motion = _read(config, robot).faster(config.speed)
    source = MotionSource(motion)
    facts = PolicyFacts(spec=source.spec, fps=motion.fps)
    arm, _ = describe_arm(robot)
    check_policy(facts, arm)
    runtime = RuntimeConfig(action_time=motion.action_time, dry_run=config.dry_run)
    seconds = len(motion.actions) / motion.fps + _AFTER_S
    # the motion's end is no stall of a policy: its last action is held until the episode's time is over
    auto = config.start == "auto"
    episodes = EpisodeConfig(
        count=config.repeat, seconds=seconds, auto=auto, end_on_fault=auto and not has_operator(), home=True
    )
    begin = _begin(motion, robot, arm.joints)
    setup = Setup(
        robot=replace(robot, home=begin), policy=facts, safety=config.safety, episodes=episodes, runtime=runtime
    )
    return setup, source


def _read(config: ReplayConfig, robot: RobotConfig) -> Motion:
    if config.store is not None:
        return read_store(Path(config.store).expanduser(), config.episode, config.key)
    assert config.bag is not None
    topic = config.topic or robot.state.topic
    return read_bag(Path(config.bag).expanduser(), topic, robot.joints, config.fps)


def _begin(motion: Motion, robot: RobotConfig, model_joints: Sequence[str]) -> list[float]:
    """Joint positions to begin at, in the robot's order."""
    for names in (robot.joints, list(model_joints)):
        if set(names) <= set(motion.begin):
            return [motion.begin[name] for name in names]
    raise ConfigError(
        "nobody knows where the motion begins: the recording has positions of "
        f"{', '.join(motion.begin) or 'no joint'}; the robot's joints are {', '.join(robot.joints)}"
    )


def main(words: Sequence[str]) -> int:
    """Replay as ``words`` say (``key=value ...``); returns the exit status: 0, or 1 after a fault."""
    robot, rest = take_robot(words)
    config = parse_plain(ReplayConfig, transport_words(rest))
    setup, source = replay_setup(config, robot)
    console = Console()
    _tell(config, setup, source, console)
    session = Session(
        setup,
        config.transport,
        keyboard=has_operator(),
        record=config.record,
        task=f"replay of {Path(config.store or config.bag or '').name}",
    )
    horizon = source.spec.window.horizon
    rhythm = make_rhythm(setup, n_exec=horizon, delay=0, ensemble=False, decay=0.0)
    return _finish(config, session.run(lambda: Pilot(source, rhythm)), console)


def _tell(config: ReplayConfig, setup: Setup, source: MotionSource, console: Console) -> None:
    spec = source.spec
    seconds = spec.window.horizon / float(spec.fps or 1.0)
    dry = ": a dry run, nothing is commanded" if config.dry_run else ""
    lines = [
        f"{config.store or config.bag} on {setup.robot.name}, by {config.transport.name}{dry}",
        f"  motion    {seconds:.1f} s of {', '.join(spec.action.names or ())}, {config.repeat} times",
        f"  begins at {', '.join(f'{q:.3f}' for q in setup.robot.home)}, where the arm goes slowly first",
    ]
    if has_operator():
        lines += ["  keys", *(f"    {text}" for _, text in KEYS.values())]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _finish(config: ReplayConfig, result: Mapping[str, Any], console: Console) -> int:
    lines = [f"{len(result['episodes'])} of {config.repeat} shown, {len(result['faults'])} faults"]
    lines += [f"  fault: {fault}" for fault in result["faults"]]
    lines += recorded_lines(result["recorded"], config.record, None)
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    if config.out is not None:
        out = Path(config.out).expanduser()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1))
    return 1 if result["faults"] else 0
