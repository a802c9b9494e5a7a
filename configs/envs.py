"""``visuomotor envs list | install | check | demos``: environments of other projects, and what any of them promises."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from rich.table import Table

from visuomotor.configs.compose import parse_plain
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.check import check_env
from visuomotor.envs.generate import Tally
from visuomotor.envs.registry import get_task, make_env, task_names
from visuomotor.envs.suites.client import suite_ids
from visuomotor.envs.suites.demos import SuiteDemos, write_demos
from visuomotor.envs.suites.install import FOLDER_VARIABLE, install, is_installed, suite_folder
from visuomotor.envs.suites.suites import get_suite, suite_names

__all__ = ["CheckConfig", "main"]

USAGE = f"""\
visuomotor envs list                    the suites, whether they are installed, and the tasks built in
visuomotor envs list <suite>            its environments, versions, cameras, and how success is read
visuomotor envs install <suite>         make its own Python environment (${FOLDER_VARIABLE}, by default ~/.cache)
visuomotor envs check <id>              types, seeds, speed and a picture; exit status 1 if a promise is broken
visuomotor envs demos <id> out=<zarr>   demonstrations by the suite's own experts (metaworld), successes only

An id is <suite>:<environment>, such as metaworld:reach-v3; check also takes a task's name. Settings of the environment
are given as env.<name>=<value>. visuomotor train and eval take them too: task=suite env.id=metaworld:reach-v3.
"""
_PIPED_WIDTH = 140


@dataclass(kw_only=True, slots=True)
class CheckConfig:
    """``visuomotor envs check``.

    Attributes:
        num_envs: worlds side by side, at least 2.
        steps: steps of each run.
        seed: of the episodes and the random actions.
        picture: PNG file for a picture of a world after the steps; null writes none.
    """

    num_envs: int = 2
    steps: int = 50
    seed: int = 0
    picture: str | None = None

    def __post_init__(self) -> None:
        if self.picture is None:
            return
        path = Path(self.picture).expanduser()
        if path.suffix != ".png" or not path.parent.is_dir():
            raise ConfigError(f"picture={path}: expected a .png file in a folder that exists")


def main(words: Sequence[str]) -> int:
    """Run one of the verbs; returns the exit status."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    verbs = {"list": _list, "install": _install, "check": _check, "demos": _demos}
    if words[0] not in verbs:
        raise ConfigError(f"unknown command 'envs {words[0]}'. {nearest(words[0], verbs)}")
    return verbs[words[0]](list(words[1:]))


def _list(words: list[str]) -> int:
    if len(words) > 1:
        raise ConfigError(f"envs list takes the name of one suite, got also {words[1]!r}")
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    if words:
        return _describe(words[0], console)
    table = Table("suite", "installed", "what it is", "command that installs it")
    for name in suite_names():
        suite, there = get_suite(name), is_installed(get_suite(name))
        table.add_row(name, "yes" if there else "no", suite.summary, "" if there else f"visuomotor envs install {name}")
    console.print(table)
    console.print(f"built in: {', '.join(n for n in task_names() if n != 'suite')}", highlight=False, soft_wrap=True)
    return 0


def _describe(name: str, console: Console) -> int:
    suite = get_suite(name)
    pins = ", ".join(w for words in suite.pip for w in words if not w.startswith("-"))
    low, high = suite.python
    rows = {"what it is": suite.summary, "observations": suite.observation, "cameras": suite.cameras,
            "outcome": suite.outcome, "versions": pins, "Python": f"3.{low} to 3.{high}", "folder": suite_folder(suite),
            "renders with": f"MUJOCO_GL={suite.gl}" if suite.gl else "its own drawing"}  # fmt: skip
    if suite.system:
        rows["needs to render"] = f"apt-get install {' '.join(suite.system)}"
    for label, value in rows.items():
        console.print(f"{label + ':':<17}{value}", highlight=False, soft_wrap=True)
    if not is_installed(suite):
        console.print(f"not installed:   visuomotor envs install {name}", highlight=False, soft_wrap=True)
        return 0
    for id in suite_ids(suite):
        print(id)
    return 0


def _install(words: list[str]) -> int:
    if len(words) != 1:
        raise ConfigError(f"envs install takes the name of one suite. {nearest(''.join(words[:1]), suite_names())}")
    suite = get_suite(words[0])
    install(suite, lambda command: print(command, flush=True))
    print(f"installed in {suite_folder(suite)}; try: visuomotor envs check {suite.name}:{suite.example}")
    if suite.system:
        print(f"to render it needs: apt-get install {' '.join(suite.system)}")
    return 0


def _check(words: list[str]) -> int:
    id, own, kinds = _split("check", words)
    config = parse_plain(CheckConfig, own)
    if ":" in id:
        settings: Any = parse_plain(get_task("suite").config_class, [f"id='{id}'", *kinds])
    else:
        settings = parse_plain(get_task(id).config_class, kinds)
    with closing(make_env(settings, config.num_envs)) as env:
        shape = f"action {list(env.action_spec.shape)}, {env.fps:g} Hz, at most {env.max_episode_steps} steps"
        print(f"{id}: {shape}")
        report = check_env(env, steps=config.steps, seed=config.seed)
    for f in report.findings:
        print(f"  {'ok  ' if f.kept else 'FAIL'} {f.what}: {f.seen}")
    print(f"  {report.steps_per_s:,.0f} steps/s of {config.num_envs} worlds together")
    if config.picture is not None and report.picture is not None:
        path = Path(config.picture).expanduser()
        cv2.imwrite(os.fspath(path), report.picture[..., ::-1])
        print(f"written: {path}")
    return 0 if all(f.kept for f in report.findings) else 1


def _demos(words: list[str]) -> int:
    id, own, kinds = _split("demos", words)
    config = parse_plain(SuiteDemos, [*own, f"env.id='{id}'", *(f"env.{w}" for w in kinds)])

    shown = False

    def show(tally: Tally) -> None:
        nonlocal shown
        shown = True
        print(f"\r{id}: {tally}", end="", flush=True)

    try:
        write_demos(config, show)
    finally:
        if shown:
            print()
    print(f"written: {config.out}; train on it with: visuomotor train task=suite env.id={id} data={config.out}")
    return 0


def _split(verb: str, words: list[str]) -> tuple[str, list[str], list[str]]:
    """The id, the words of the command itself, and those of the environment without ``env.``."""
    if not words or "=" in words[0]:
        raise ConfigError(f"envs {verb}: give an id, such as metaworld:reach-v3 (visuomotor envs list)")
    kinds = [w.removeprefix("env.") for w in words[1:] if w.startswith("env.")]
    return words[0], [w for w in words[1:] if not w.startswith("env.")], kinds
