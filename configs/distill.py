"""``visuomotor distill``: a student that sees only its sensors' history, from a teacher that saw more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import MISSING, OmegaConf
from rich.console import Console

from visuomotor.configs.build import LoadedPolicy, keep_freed_memory, load_policy, set_threads
from visuomotor.configs.compose import Composed, compose_train, parse_plain, restore_train, task_settings
from visuomotor.configs.distill_run import DistillRun
from visuomotor.configs.randomize import compose_randomization, plain_randomization, split_words, typed_randomization
from visuomotor.configs.rl_build import check_fits
from visuomotor.configs.run_folder import open_run
from visuomotor.data.errors import CheckpointError, ConfigError, nearest
from visuomotor.envs.base import VecEnv
from visuomotor.envs.registry import make_env
from visuomotor.policies.learn.checkpoint import Checkpoint, resolve_checkpoint
from visuomotor.policies.learn.distill import DistillConfig
from visuomotor.sim2real.randomization.build import build_events
from visuomotor.sim2real.randomization.config import RandomizationConfig

__all__ = ["DistillCommand", "compose_distill", "main"]

USAGE = """\
visuomotor distill: a student that sees only the history of its sensors, from a teacher that saw more (DAgger)

  visuomotor distill teacher=runs/<run>                          the teacher's task; everything else has a default
  visuomotor distill teacher=runs/<run> randomization=tabletop obs.keys=[joint_pos,tcp_pos,gripper,object]
  visuomotor distill teacher=runs/<run> policy=flow backbone=dit window.n_obs=16 window.horizon=24 window.n_exec=4
  visuomotor distill resume=runs/<run>                           go on with an interrupted run

All settings of visuomotor train are taken too (visuomotor train --help), but those of the data. Unless you say
otherwise: policy=regression window.n_obs=8 window.horizon=8 window.n_exec=1 obs.norm.mode=zscore data.val_fraction=0.

"""
_DEFAULTS = (
    "policy=regression", "window.n_obs=8", "window.horizon=8", "window.n_exec=1", "obs.norm.mode=zscore",
    "data.val_fraction=0",
)  # fmt: skip
_OWN = ("teacher=", "distill.", "env.", "env=")
_DECIDED = ("data=", "data.path=", "train.steps=", "resume=")
_FREE_ON_RESUME = ("eval.", "threads=")


@dataclass(kw_only=True, slots=True)
class DistillCommand:
    """Settings of ``visuomotor distill`` beside those of ``visuomotor train``.

    Attributes:
        teacher: run or checkpoint, of any command, whose policy is copied.
        env: settings of the task's worlds that differ from the teacher's.
        distill: how.
    """

    teacher: str = MISSING
    env: dict[str, Any] = field(default_factory=dict)
    distill: DistillConfig = field(default_factory=DistillConfig)


@dataclass(frozen=True, kw_only=True)
class ComposedDistill:
    """Everything that a run is made of. ``train.plain`` holds all of it, as it goes into checkpoints."""

    train: Composed
    command: DistillCommand
    randomization: RandomizationConfig
    teacher: LoadedPolicy


def main(words: Sequence[str]) -> int:
    """Distil as ``words`` say; returns the exit status."""
    if not words or any(w in ("-h", "--help", "help") for w in words):
        from visuomotor.configs.help import settings_help

        print(USAGE + settings_help(DistillCommand).partition("\n\n")[2], end="")
        return 0
    resume = [w.split("=", 1)[1] for w in words if w.startswith("resume=")]
    start: Checkpoint | None = None
    if resume:
        composed, start = _resumed(Path(resume[-1]).expanduser(), [w for w in words if not w.startswith("resume=")])
    else:
        composed = compose_distill(words)
    config = composed.train.config
    accelerator = Accelerator(cpu=config.device == "cpu" or not torch.cuda.is_available())
    if accelerator.num_processes > 1:
        raise ConfigError("distill runs in one process; start it without torchrun")
    threads = set_threads(config.threads)
    keep_freed_memory()
    n_parameters = sum(p.numel() for p in composed.teacher.policy.parameters())
    run_dir = open_run(
        config.run_dir, "distill", plain=composed.train.plain, command=["distill", *words], resumed=start is not None,
        n_parameters=n_parameters, accelerator=accelerator,
    )  # fmt: skip
    run = DistillRun(
        composed.train, composed.command.distill, composed.randomization, composed.teacher.policy,
        run_dir=run_dir, accelerator=accelerator, console=Console(), threads=threads,
    )  # fmt: skip
    return run.execute(start)


def compose_distill(words: Sequence[str]) -> ComposedDistill:
    """Settings of a new run.

    Raises:
        ConfigError: no teacher, settings that are decided here, observations that the task does not give, or such as
            only a simulator has.
        CheckpointError: the teacher observes or commands something else than the task has.
    """
    randomized, words = split_words(words)
    if decided := [w for w in words if w.startswith(_DECIDED)]:
        raise ConfigError(
            f"{decided[0]!r}: the student learns from what it makes itself. How much: distill.rounds, "
            "distill.episodes, distill.steps"
        )
    own = [w for w in words if w.startswith(_OWN)]
    rest = [w for w in words if w not in own]
    command = parse_plain(DistillCommand, own)
    teacher = load_policy(command.teacher)
    saved = teacher.checkpoint.document("config")["config"]
    asked = [w.split("=", 1)[1] for w in rest if w.startswith("task=")]
    task = asked[-1] if asked else saved["task"]
    if task is None:
        raise ConfigError("the teacher was trained without a task: give task=<name>")
    settings = task_settings(task, {**(saved["env"] if saved["task"] == task else {}), **command.env})
    randomization = OmegaConf.to_object(compose_randomization(randomized))
    assert isinstance(randomization, RandomizationConfig)
    run_dir = next((w.split("=", 1)[1] for w in reversed(rest) if w.startswith("run_dir=")), None)
    run_dir = run_dir or f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}_{task}_distill"
    d = command.distill
    decided = [f"data.path={Path(run_dir).expanduser() / 'labels.zarr'}", f"train.steps={d.rounds * d.steps}"]
    train = compose_train([f"task={task}", *_DEFAULTS, *rest, f"run_dir={run_dir}", *decided])
    env = make_env(settings, 1, build_events(randomization))
    try:
        check_fits(teacher.policy.spec, env, task)
        keys = _seen(train.config.obs.keys, any(w.startswith("obs.keys=") for w in rest), env, task)
    finally:
        env.close()
    if keys != train.config.obs.keys:
        train = compose_train(
            [f"task={task}", *_DEFAULTS, *rest, f"obs.keys=[{','.join(keys)}]", f"run_dir={run_dir}", *decided]
        )
    if constant := sorted(train.config.obs.constant_keys):
        raise ConfigError(f"{constant[0]} is a goal or text: the worlds in which a student learns give none")
    train.config.env, train.config.task = settings, task
    train.plain["config"] |= {"task": task, "env": OmegaConf.to_container(OmegaConf.structured(settings), resolve=True)}
    train.plain["command"] = "distill"
    train.plain["teacher"] = str(teacher.checkpoint.path.resolve())
    train.plain["distill"] = OmegaConf.to_container(OmegaConf.structured(d), resolve=True)
    train.plain["randomization"] = plain_randomization(randomization)
    return ComposedDistill(train=train, command=command, randomization=randomization, teacher=teacher)


def _seen(keys: list[str], asked: bool, env: VecEnv, task: str) -> list[str]:
    """What the student observes: what was asked for or the task's preset says, else all vectors that sensors give."""
    specs = env.obs_spec
    if not asked and not set(keys) <= set(specs):
        keys = [k for k, s in specs.items() if s.role != "privileged" and len(s.shape) == 1 and s.dtype != "uint8"]
    for key in keys:
        if key not in specs:
            raise ConfigError(f"obs.keys names {key!r}, which task {task!r} does not give. {nearest(key, specs)}")
        if specs[key].role == "privileged":
            raise ConfigError(f"obs.keys names {key!r}, which only a simulator knows: a student does without")
    return keys


def _resumed(target: Path, words: Sequence[str]) -> tuple[ComposedDistill, Checkpoint]:
    last = target / "checkpoints" / "last"
    checkpoint = Checkpoint.open(resolve_checkpoint(last if last.exists() else target))
    checkpoint.verify()
    run_dir = checkpoint.path.parent.parent
    plain = checkpoint.document("config")
    if plain.get("command") != "distill":
        raise CheckpointError(f"{run_dir} is a run of visuomotor {plain.get('command', 'train')}: resume it with that")
    if fixed := [w for w in words if not w.startswith(_FREE_ON_RESUME)]:
        raise ConfigError(
            f"{fixed[0]!r} cannot change when a run is resumed: it goes on exactly as it began. What may change: "
            "eval.*, threads. For other settings start a new run."
        )
    train = restore_train(plain, [*words, f"run_dir={run_dir}", f"data.path={run_dir / 'labels.zarr'}"])
    train.plain.update({k: plain[k] for k in ("command", "teacher", "distill", "randomization")})
    teacher = load_policy(plain["teacher"])
    command = DistillCommand(teacher=plain["teacher"], distill=DistillConfig(**plain["distill"]))
    randomization = OmegaConf.to_object(typed_randomization(plain["randomization"]))
    assert isinstance(randomization, RandomizationConfig)
    return ComposedDistill(train=train, command=command, randomization=randomization, teacher=teacher), checkpoint
