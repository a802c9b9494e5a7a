"""``visuomotor rl`` and ``visuomotor finetune``: read settings, build the parts, run, report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from visuomotor.configs.build import LoadedPolicy, keep_freed_memory, load_policy, set_threads
from visuomotor.configs.rl_build import (
    Start,
    action_reach,
    loaded_start,
    make_accelerator,
    make_trainer,
    make_worlds,
    scratch_start,
)
from visuomotor.configs.rl_compose import ComposedRun, compose_finetune, compose_rl, restore_run, word
from visuomotor.configs.rl_run import RLRun, split_state
from visuomotor.configs.rl_schema import RLConfig
from visuomotor.configs.run_folder import open_run
from visuomotor.data.errors import CheckpointError, ConfigError
from visuomotor.envs.base import VecEnv
from visuomotor.policies.learn.checkpoint import Checkpoint
from visuomotor.policies.ppo.trainer import PPOTrainer

__all__ = ["main"]


def main(command: str, words: Sequence[str]) -> int:
    """Train as ``words`` say (``key=value ...``); ``command`` is ``rl`` or ``finetune``. Returns the exit status."""
    target = word(words, "resume")
    loaded: LoadedPolicy | None = None
    if target is not None:
        composed, loaded = _resumed(Path(target).expanduser(), [w for w in words if not w.startswith("resume=")])
    elif command == "finetune":
        composed, loaded = _from_checkpoint(words)
    else:
        composed = compose_rl(words)
    config = composed.config
    accelerator = make_accelerator(config)
    console = Console(quiet=not accelerator.is_main_process)
    threads = set_threads(config.threads)
    keep_freed_memory()
    with closing(make_worlds(config, accelerator)) as env:
        if loaded is None:
            assert isinstance(config, RLConfig)
            start = scratch_start(config, env)
        else:
            start = loaded_start(loaded)
        trainer = make_trainer(config, env, start, accelerator)
        arithmetic = {
            "threads": threads,
            "device": accelerator.device.type,
            "world_size": accelerator.num_processes,
        }
        resumed = loaded.checkpoint if loaded is not None and target is not None else None
        saved = None if resumed is None else _resume(trainer, env, resumed, arithmetic, accelerator, console)
        _say(console, config.task, env, trainer, start, composed)
        run_dir = open_run(
            config.run_dir, f"{config.task}_{command}", plain=composed.plain, command=[command, *words],
            resumed=resumed is not None, n_parameters=sum(p.numel() for p in start.policy.parameters()),
            accelerator=accelerator,
        )  # fmt: skip
        run = RLRun(
            composed, start, trainer, run_dir=run_dir, arithmetic=arithmetic, accelerator=accelerator, console=console,
            saved=saved,
        )  # fmt: skip
        return run.execute()


def _from_checkpoint(words: Sequence[str]) -> tuple[ComposedRun, LoadedPolicy]:
    checkpoint = word(words, "checkpoint")
    if checkpoint is None:
        raise ConfigError("checkpoint is missing: give checkpoint=<run or checkpoint to go on from>")
    loaded = load_policy(checkpoint)
    saved = loaded.checkpoint.document("config")["config"]
    reach = action_reach(loaded.policy)
    return compose_finetune(words, head=type(loaded.policy.head), saved=saved, reach=reach), loaded


def _resumed(target: Path, words: Sequence[str]) -> tuple[ComposedRun, LoadedPolicy]:
    """Settings and policy of the last checkpoint of a run."""
    last = target / "checkpoints" / "last"
    loaded = load_policy(last if last.exists() else target, weights="raw")
    loaded.checkpoint.verify()
    run_dir = loaded.checkpoint.path.parent.parent  # <run>/checkpoints/step_...
    return restore_run(loaded.checkpoint.document("config"), words, run_dir), loaded


def _resume(
    trainer: PPOTrainer, env: VecEnv, checkpoint: Checkpoint, arithmetic: dict[str, Any], accelerator: Accelerator,
    console: Console,
) -> dict[str, Any]:  # fmt: skip
    """Put the trainer where the checkpoint left it; returns what else the run was at."""
    saved: dict[str, Any] = checkpoint.document("training")
    for name, value in saved["arithmetic"].items():
        if name == "world_size" and value != arithmetic[name]:
            raise CheckpointError(
                f"the run has the worlds of {value} processes, these are {arithmetic[name]}: resume it with {value}"
            )
        if value != arithmetic[name]:
            console.print(
                f"[yellow]resuming with {name}={arithmetic[name]}, the run began with {value}: "
                "the result will not be the same bit for bit[/yellow]"
            )
    groups = [n.removesuffix(".safetensors") for n in checkpoint.manifest["files"] if n.endswith(".safetensors")]
    state = split_state({n: checkpoint.tensors(n) for n in groups}, accelerator.process_index)
    trainer.load_state(state)
    if "worlds" not in state:
        console.print(
            "[yellow]these worlds cannot be saved: they begin new episodes, and the result will not be the same bit "
            "for bit[/yellow]"
        )
    console.print(f"resuming from update {checkpoint.step} ({checkpoint.path})", highlight=False, soft_wrap=True)
    return saved


def _say(
    console: Console, task: str, env: VecEnv, trainer: PPOTrainer, start: Start, composed: ComposedRun
) -> None:  # fmt: skip
    """What is trained, in one line."""
    c = composed.config
    policy = trainer.likelihood.policy
    n = sum(p.numel() for p in policy.parameters())
    w = policy.spec.window
    console.print(
        f"task {task}: {c.ppo.num_envs} worlds, {c.ppo.decisions} decisions of {w.n_exec} steps an update; "
        f"{start.model['head']['name']} on {start.model['backbone']['name']}, {n:,} parameters, likelihood "
        f"{composed.plain['choices']['likelihood']}; observed: {', '.join(policy.spec.obs)}",
        highlight=False,
        soft_wrap=True,
    )
