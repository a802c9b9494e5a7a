"""``visuomotor deploy``: a checkpoint on an arm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from visuomotor.configs.build import set_threads
from visuomotor.configs.compose import parse_plain
from visuomotor.configs.deploy_config import DeployConfig, has_operator
from visuomotor.configs.deploy_model import as_trained
from visuomotor.configs.deploy_policy import Chosen, choose, constants_of, loader
from visuomotor.configs.robots import take_robot, transport_words
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.page.server import LivePage
from visuomotor.sim2real.recording.session import recorded_lines
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.runtime.board import RequestBox, StatusBoard
from visuomotor.sim2real.runtime.build import PolicyFacts, Setup, make_bridge
from visuomotor.sim2real.runtime.keyboard import KEYS
from visuomotor.sim2real.runtime.session import Session
from visuomotor.sim2real.transports.inproc import Bus

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Deploy as ``words`` say (``key=value ...``); returns the exit status: 0, or 1 after a fault."""
    robot, rest = take_robot(words)
    config = parse_plain(DeployConfig, transport_words(rest))
    set_threads(config.threads)
    console = Console()
    with ExitStack() as stack:
        chosen = choose(config)
        stack.callback(chosen.source.close)
        robot = as_trained(robot, chosen.about, Path(stack.enter_context(TemporaryDirectory())))
        setup = _setup(config, robot, chosen)
        constants = constants_of(config, chosen)
        _rehearse(setup)
        _tell(config, setup, chosen, console)
        task = config.task or chosen.about.get("task") or ""
        session = Session(
            setup, config.transport, keyboard=has_operator(), record=config.record, bag=config.bag, task=task
        )
        if config.page is not None:
            page = LivePage(session.board, session.requests, port=config.page, title=f"{robot.name}: {task}")
            stack.callback(page.close)
            console.print(f"live page: {page.url}", highlight=False, soft_wrap=True)
        result = session.run(loader(config, setup, chosen, constants, console))
    return _finish(config, result, console)


def _setup(config: DeployConfig, robot: RobotConfig, chosen: Chosen) -> Setup:
    spec = chosen.source.spec
    if config.action_names:
        spec = _named(spec, config.action_names)
    fps = config.fps or spec.fps
    if fps is None:
        raise ConfigError("nobody says at what rate the policy acts: give fps=<control steps per second>")
    for key in config.observe:
        if key not in spec.obs:
            raise ConfigError(f"observe.{key}: the policy does not observe {key!r}. {nearest(key, spec.obs)}")
    about = chosen.about
    facts = PolicyFacts(
        spec=spec,
        fps=fps,
        saved_control=about.get("control"),
        sources=config.observe,
        knows_delays=bool(about.get("delays")),
    )
    runtime = replace(config.runtime, dry_run=config.dry_run or config.runtime.dry_run)
    return Setup(robot=robot, policy=facts, safety=config.safety, episodes=config.conduct(), runtime=runtime)


def _named(spec: PolicySpec, names: Sequence[str]) -> PolicySpec:
    if len(names) != spec.action.size:
        raise ConfigError(f"action_names has {len(names)} names; the policy's action has {spec.action.size} components")
    if spec.action.names is not None:
        raise ConfigError(f"the checkpoint says what its actions are: {', '.join(spec.action.names)}")
    return replace(spec, action=replace(spec.action, names=tuple(names)))


def _rehearse(setup: Setup) -> None:
    """Build everything once where no robot is: what does not go together is refused before anything is started."""
    quiet = replace(setup, runtime=replace(setup.runtime, decode_threads=False))
    board, box = StatusBoard(), RequestBox()
    make_bridge(quiet, Bus().node("rehearsal"), link=None, board=board, requests=box)
    board.close()
    box.close()


def _tell(config: DeployConfig, setup: Setup, chosen: Chosen, console: Console) -> None:
    robot, policy = setup.robot, setup.policy
    assert policy is not None
    c, what = robot.command, chosen.about.get("checkpoint", config.url)
    dry = ": a dry run, nothing is commanded" if setup.runtime.dry_run else ""
    lines = [
        f"{what} on {robot.name}, by {config.transport.name}{dry}",
        f"  observes  {', '.join(policy.spec.obs)} at {policy.fps:g} Hz",
        f"  commands  {c.topic} ({c.mode}) at {c.rate_hz:g} Hz"
        + (f", gripper {robot.gripper.topic or 'with the arm'}" if robot.gripper else ""),
        f"  episodes  {config.episodes or 'until you end it'}, up to {config.seconds:g} s each, start={config.start}",
    ]
    if has_operator():
        lines += ["  keys", *(f"    {text}" for _, text in KEYS.values())]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _finish(config: DeployConfig, result: Mapping[str, Any], console: Console) -> int:
    """Print the summary, and write it where that was asked for."""
    n, k = len(result["episodes"]), result["successes"]
    lines = [f"{k} of {n} episodes succeeded, {result['interventions']} interventions, {len(result['faults'])} faults"]
    lines += [f"  fault: {fault}" for fault in result["faults"]]
    for name, values in result["latencies"].items():
        lines.append(
            f"  {name.replace('_', ' ')}: {values['p50_ms']:.1f} ms (median), {values['p95_ms']:.1f} ms (95 %)"
        )
    counts = result["counts"]
    lines.append(
        f"  {counts['commands']} commands, {counts['chunks']} chunks, {counts['chunks_refused']} refused, "
        f"{counts['starved_ticks']} ticks without an action, {result['overruns']} late"
    )
    lines += recorded_lines(result["recorded"], config.record, config.bag)
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    if config.out is not None:
        out = Path(config.out).expanduser()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1))
    return 1 if result["faults"] else 0
