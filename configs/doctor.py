"""``visuomotor doctor``: what is wrong between a robot, its preset and a checkpoint, before anything moves."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from visuomotor.configs.compose import parse_plain
from visuomotor.configs.randomize import trained_with_delays
from visuomotor.configs.robots import take_robot, transport_words
from visuomotor.data.errors import CheckpointError, ConfigError
from visuomotor.policies.learn.checkpoint import Checkpoint, resolve_checkpoint
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.doctor import Finding, examine
from visuomotor.sim2real.runtime.build import PolicyFacts
from visuomotor.sim2real.transports.choose import TransportConfig, make_transport

__all__ = ["DoctorConfig", "main", "policy_facts", "show"]

_COLOURS = {"ok": "green", "note": "yellow", "bad": "bold red"}


@dataclass(kw_only=True, slots=True)
class DoctorConfig:
    """``visuomotor doctor robot=<name>``: is the robot there, and as its preset and the policy expect it?

    Exit status 0: nothing stands in the way; 1: something does, in plain sentences.

    Attributes:
        checkpoint: of the policy that is to run: a checkpoint folder, or a run; null: the robot alone.
        transport: how to reach the robot; short for its name: ``transport=dds``.
        seconds: of listening.
    """

    checkpoint: str | None = None
    transport: TransportConfig = field(default_factory=lambda: TransportConfig(node="visuomotor_doctor"))
    seconds: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"seconds={self.seconds:g}: expected more than 0, and finite")
        if self.transport.name == "inproc":
            raise ConfigError("transport=inproc reaches nobody outside its own process: give transport=dds")


def main(words: Sequence[str]) -> int:
    """Examine as ``words`` say (``key=value ...``); returns the exit status."""
    robot, rest = take_robot(words)
    config = parse_plain(DoctorConfig, transport_words(rest))
    policy = None if config.checkpoint is None else policy_facts(config.checkpoint)
    console = Console()
    transport = make_transport(config.transport)
    try:
        console.print(f"{robot.name} over {transport.name}, listening for {config.seconds:g} s", highlight=False)
        findings = examine(robot, transport, config.seconds, time.sleep, policy=policy)
    finally:
        transport.close()
    return show(findings, console)


def show(findings: Sequence[Finding], console: Console) -> int:
    """Print what was found, the worst last; returns the exit status."""
    for kind in ("ok", "note", "bad"):
        for finding in findings:
            if finding.kind == kind:
                console.print(str(finding), style=_COLOURS[kind], highlight=False, markup=False, soft_wrap=True)
    bad = sum(f.kind == "bad" for f in findings)
    console.print(f"{bad} thing(s) stand in the way" if bad else "nothing stands in the way", highlight=False)
    return 1 if bad else 0


def policy_facts(checkpoint: str) -> PolicyFacts:
    """What a checkpoint's policy observes and commands, without its weights.

    Raises:
        CheckpointError: no checkpoint, or one that does not say how fast it acts.
    """
    opened = Checkpoint.open(resolve_checkpoint(checkpoint))
    spec = PolicySpec.from_dict(opened.document("spec"))
    if spec.fps is None:
        raise CheckpointError(f"{opened.path} does not say how many actions it gives a second: train with data.fps=")
    saved = opened.document("config")["config"]
    control = (saved.get("env") or {}).get("control")
    return PolicyFacts(spec=spec, fps=spec.fps, saved_control=control, knows_delays=trained_with_delays(saved))
