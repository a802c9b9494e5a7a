"""Settings of ``visuomotor deploy``."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.execution.config import MODES, ExecuteConfig
from visuomotor.sim2real.runtime.build import RuntimeConfig
from visuomotor.sim2real.runtime.episodes import EpisodeConfig
from visuomotor.sim2real.safety.config import SafetyConfig
from visuomotor.sim2real.transports.choose import TransportConfig

__all__ = ["DeployConfig", "ExecuteOnArm", "has_operator"]

_STARTS = ("key", "auto")


@dataclass(kw_only=True, slots=True)
class ExecuteOnArm:
    """How chunks become commands; see ``docs/execution.md``.

    Attributes:
        mode: ``receding``, ``ensemble``, ``rtc``, ``rtc_guided`` or ``warm``.
        n_exec: control steps between two chunks; null takes the policy's own, and in ``ensemble`` every step.
        delay: control steps that a chunk takes, in ``rtc`` and ``rtc_guided``; null: what the last ones took.
        beta, decay, warm_steps: as in ``visuomotor eval``.
    """

    mode: str = "receding"
    n_exec: int | None = None
    delay: int | None = None
    beta: float = 5.0
    decay: float = 0.01
    warm_steps: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"unknown execute.mode {self.mode!r}. {nearest(self.mode, MODES)}")
        self.config()

    def config(self) -> ExecuteConfig:
        """The same for a source of chunks, which is told the delay with every request."""
        delay = self.delay if self.delay is not None else int(self.mode == "rtc")
        return ExecuteConfig(
            mode=self.mode,
            n_exec=self.n_exec,
            delay=delay,
            beta=self.beta,
            decay=self.decay,
            warm_steps=self.warm_steps,
        )


@dataclass(kw_only=True, slots=True)
class DeployConfig:
    """``visuomotor deploy checkpoint=<run> robot=<name>``: a trained policy on an arm, over ROS or without it.

    Attributes:
        checkpoint: a checkpoint folder, or a run.
        url: instead of a checkpoint: a policy server (``visuomotor serve``), ``ws://host:port``.
        token: that the server asks for.
        tls_ca: authority that signed the server's certificate.
        jpeg: quality of pictures sent to the server; null: as they are.
        transport: how the robot is reached; short for its name: ``transport=dds``.
        episodes: end after so many; 0: when the operator ends it.
        seconds: an episode without success ends after so long.
        minutes: the session ends after so long; null: when the operator ends it.
        start: ``key`` (the operator begins each episode) or ``auto``.
        home: go to the robot's home, with an open gripper, before each episode.
        seed: of the first episode.
        record: store that the episodes are recorded into.
        bag: MCAP file that the robot's topics are recorded into.
        task: text that is recorded with the episodes; null: the task of the checkpoint.
        dry_run: everything but commands: the arm does not move.
        page: serve the live page on this port of this machine (0: a free one); null: no page.
        execute: how chunks become commands.
        fps: control steps per second; null: the policy's own.
        action_names: of the policy's actions, where the checkpoint does not say: names of joints, then gripper.
        observe: for observations that the robot does not have by name: the keys that make them, end to end, as in
            ``observe.state=[joint_pos,gripper]``.
        text: what is asked of a policy that reads a text.
        goal: where a goal-conditioned policy gets its goal: a store, or an npz file.
        weights: ``ema`` (the moving average) or ``raw``.
        solver, sample_steps: another solver or number of denoising steps than in training.
        device: ``auto``, ``cuda`` or ``cpu``.
        threads: of torch on the CPU.
        safety: limits and monitors; see ``docs/safety.md``.
        runtime: timing.
        out: file for the summary, JSON.
    """

    checkpoint: str | None = None
    url: str | None = None
    token: str | None = None
    tls_ca: str | None = None
    jpeg: int | None = None
    transport: TransportConfig = field(default_factory=lambda: TransportConfig(node="visuomotor_bridge"))
    episodes: int = 0
    seconds: float = 60.0
    minutes: float | None = None
    start: str = "key"
    home: bool = True
    seed: int = 0
    record: str | None = None
    bag: str | None = None
    task: str | None = None
    dry_run: bool = False
    page: int | None = None
    execute: ExecuteOnArm = field(default_factory=ExecuteOnArm)
    fps: float | None = None
    action_names: list[str] = field(default_factory=list)
    observe: dict[str, list[str]] = field(default_factory=dict)
    text: str | None = None
    goal: str | None = None
    weights: str = "ema"
    solver: str | None = None
    sample_steps: int | None = None
    device: str = "auto"
    threads: int | None = None
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    out: str | None = None

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.url is None):
            raise ConfigError("give checkpoint=<run>, or url=ws://<host>:<port> of a policy server")
        if self.start not in _STARTS:
            raise ConfigError(f"unknown start {self.start!r}. {nearest(self.start, _STARTS)}")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ConfigError(f"fps={self.fps}: expected more than 0, and finite")
        if self.transport.name == "inproc":
            raise ConfigError("transport=inproc reaches nobody outside its own process: give transport=dds")
        self.conduct()

    def conduct(self) -> EpisodeConfig:
        """How the session goes."""
        return EpisodeConfig(
            count=self.episodes,
            seconds=self.seconds,
            minutes=self.minutes,
            auto=self.start == "auto",
            home=self.home,
            seed=self.seed,
            end_on_fault=self.start == "auto" and not has_operator(),
        )


def has_operator() -> bool:
    """Whether somebody sits at a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()
