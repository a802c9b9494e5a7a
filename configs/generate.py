"""``visuomotor data generate``: demonstrations of a task, by its scripted expert or re-targeted from recorded ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from visuomotor.configs.compose import compose_train
from visuomotor.configs.randomize import parse_randomized, plain_randomization
from visuomotor.data.errors import ConfigError
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import validate
from visuomotor.envs.demonstrate import DemoPlan
from visuomotor.envs.generate import Tally, generate
from visuomotor.sim2real.randomization.build import build_events
from visuomotor.sim2real.randomization.config import RandomizationConfig

__all__ = ["GenerateConfig", "main"]

_EVERY = 10.0  # seconds between lines where there is no terminal


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """``visuomotor data generate``; settings of the environment follow as ``env.<setting>=``.

    Attributes:
        task: what is demonstrated.
        episodes: successful demonstrations that the store shall hold; more than it holds goes on.
        out: the store; null is ``<task>.zarr``.
        cameras: short for ``env.cameras.names``: observed as pictures.
        source: given as ``from=<zarr>``: re-target the demonstrations of this store instead of asking the expert.
        diversity: 0..1: how much the ways of the expert vary, and how strongly it is disturbed.
        noise: disturbances at diversity 1: standard deviation as a share of the largest motion in one step. They are
            added to what is executed, not to what is recorded (DART).
        slips: probability at diversity 1 that for eight steps a gripper does the opposite of what it is told.
        hold: steps that are recorded after the goal is reached.
        seed: other seeds give other demonstrations.
        workers: processes; -1 takes one a core, 0 none but this one. The result is the same.
        text: what a person would say to ask for it; null is the name of the task.
        states: also record the state of the simulator, so that episodes of fine-tuning can begin in it.
        randomization: what differs from episode to episode; given as ``randomization=<name or file>``.
    """

    task: str = MISSING
    episodes: int = 200
    out: str | None = None
    cameras: list[str] | None = None
    source: str | None = None
    diversity: float = 0.5
    noise: float = 0.3
    slips: float = 0.1
    hold: int = 10
    seed: int = 0
    workers: int = -1
    text: str | None = None
    states: bool = False
    randomization: RandomizationConfig = field(default_factory=RandomizationConfig)

    def __post_init__(self) -> None:
        for name, low in (("episodes", 1), ("hold", 0), ("seed", 0), ("workers", -1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least {low}")
        for name in ("diversity", "noise", "slips"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a number from 0 to 1")


def main(words: Sequence[str]) -> int:
    """Generate as ``words`` say (``key=value ...``); returns the exit status."""
    env_words = [w for w in words if w.startswith("env.")]
    config = parse_randomized(GenerateConfig, [_plain(w) for w in words if w not in env_words])
    if config.cameras is not None:
        env_words.append(f"env.cameras.names=[{','.join(config.cameras)}]")
    trained = compose_train([f"task={config.task}", "data.path=generated", *env_words]).config
    if trained.task is None:
        raise ConfigError(f"task={config.task} has no environment to generate demonstrations in")
    out = Path(config.out or f"{config.task}.zarr").expanduser()
    source = None if config.source is None else Path(config.source).expanduser()
    plan = DemoPlan(
        env=trained.env, diversity=config.diversity, noise=config.noise, slips=config.slips, hold=config.hold,
        source=source, states=config.states, events=tuple(build_events(config.randomization)),
        randomization=plain_randomization(config.randomization),
    )  # fmt: skip
    console = Console()
    start = time.monotonic()
    with _shown(console, config.episodes) as on_progress:
        tally = generate(
            out,
            plan,
            task=trained.task,
            text=config.text or trained.task.replace("_", " "),
            episodes=config.episodes,
            seed=config.seed,
            workers=config.workers,
            on_progress=on_progress,
        )
    return _finish(out, tally, time.monotonic() - start, console)


def _plain(word: str) -> str:
    """``from`` cannot be the name of a Python attribute."""
    if word.startswith("from="):
        value = word.removeprefix("from=").replace("'", "\\'")
        return f"source='{value}'"
    return word


def _finish(out: Path, tally: Tally, seconds: float, console: Console) -> int:
    """Read the store as a whole, and say what is in it."""
    with DemoStore.open(out) as store:
        findings = validate(store)
        for finding in findings:
            console.print(str(finding), highlight=False, soft_wrap=True)
        console.print(
            f"{out}: {tally}; {store.n_episodes} episodes, {store.n_steps} steps, {len(findings)} finding(s), "
            f"{seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
    return 1 if any(f.severity == "error" for f in findings) else 0


@contextmanager
def _shown(console: Console, episodes: int) -> Iterator[Callable[[Tally], None]]:
    """A bar on a terminal, a line now and then elsewhere."""
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, said = bar.add_task("starting", total=episodes), time.monotonic()

        def show(tally: Tally) -> None:
            nonlocal said
            bar.update(task, completed=tally.kept, description=f"{tally} of {episodes} wanted")
            if not console.is_terminal and time.monotonic() - said > _EVERY:
                said = time.monotonic()
                console.print(f"{tally}; {episodes} wanted", highlight=False)

        yield show
