"""``visuomotor eval``: a checkpoint in its task, or against held-out demonstrations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from visuomotor.configs.build import LoadedPolicy, load_policy, pick_device, set_threads
from visuomotor.configs.compose import task_settings
from visuomotor.configs.demonstrations import read_demonstrations
from visuomotor.configs.execution import Execution, compose, load_execution, search_weights
from visuomotor.configs.randomize import parse_randomized, plain_randomization
from visuomotor.configs.rollout import RolloutEvaluator, print_comparison, print_result, result_document
from visuomotor.configs.schema import DataConfig, EvalConfig, RolloutConfig
from visuomotor.configs.training_data import make_source
from visuomotor.data.errors import ConfigError
from visuomotor.data.parts import PartConfig
from visuomotor.data.windows import split_episodes, window_table
from visuomotor.policies.execution.planner import ChunkPolicy
from visuomotor.policies.learn.evaluate import EvalResult, compare
from visuomotor.policies.learn.open_loop import open_loop_error
from visuomotor.policies.policy import Policy
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.randomization.build import build_events

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Evaluate as ``words`` say (``key=value ...``); returns the exit status."""
    config = parse_randomized(EvalConfig, words)
    set_threads(config.threads)
    loaded = _load(config, config.checkpoint)
    console = Console()
    document = _open_loop(config, loaded, console) if config.data is not None else _roll_out(config, loaded, console)
    out = _out(config, loaded)
    out.mkdir(parents=True, exist_ok=True)
    (out / "eval.json").write_text(json.dumps(document, indent=1))
    console.print(f"written: {out / 'eval.json'}", highlight=False, soft_wrap=True)
    return 0


def _load(config: EvalConfig, checkpoint: str) -> LoadedPolicy:
    loaded = load_policy(
        checkpoint,
        weights=config.weights,
        device=pick_device(config.device),
        solver=config.solver,
        sample_steps=config.sample_steps,
    )
    loaded.policy.guidance_scale = config.guidance_scale
    return loaded


def _judge(config: EvalConfig, checkpoint: str) -> Policy:
    """A policy that only rates chunks: solver, steps and guidance are of those that act."""
    return load_policy(checkpoint, weights=config.weights, device=pick_device(config.device)).policy


def _out(config: EvalConfig, loaded: LoadedPolicy) -> Path:
    """``<run>/eval/<checkpoint>-<what>``, or the folder that was asked for."""
    if config.out is not None:
        return Path(config.out).expanduser()
    checkpoint = loaded.checkpoint.path
    parent = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    what = "open-loop" if config.data else config.task or "task"
    return parent / "eval" / f"{checkpoint.name}-{what}{'-randomized' if config.randomization.terms else ''}"


def _roll_out(config: EvalConfig, loaded: LoadedPolicy, console: Console) -> dict[str, Any]:
    saved = loaded.checkpoint.document("config")["config"]
    task = config.task or saved["task"]
    if task is None:
        raise ConfigError("this policy was trained without a task: give task=<name> to roll out, or data=<zarr>")
    env = task_settings(task, {**(saved["env"] if saved["task"] == task else {}), **config.env})
    out, data = _out(config, loaded), _demonstrations(loaded)
    execution = load_execution(config, lambda path: _judge(config, path))
    others = [_load(config, path) for path in config.compose]
    policies = [loaded.policy, *(o.policy for o in others)]
    document: dict[str, Any] = {"task": task, "checkpoint": str(loaded.checkpoint.path)}
    if config.randomization.terms:
        document["randomization"] = plain_randomization(config.randomization)
    acting = compose(policies, config)
    other = None if config.against is None else _load(config, config.against)
    if other is not None:
        execution.actor(other.policy, 1)  # what it cannot do is refused before anything is run
    with closing(_evaluator(config, task, env, acting.spec, execution, data)) as evaluator:
        if other is not None:
            evaluator.check_source(other.policy.spec)
        if others:
            weights = config.compose_weights or [1.0 / len(policies)] * len(policies)
            if config.search_weights:
                weights, document["weight_search"] = search_weights(policies, config, evaluator.select, console)
            acting = compose(policies, config, weights)
            document["compose"] = {"checkpoints": [str(o.checkpoint.path) for o in others], "weights": weights}
        result = _test(evaluator, config, loaded, acting, out / "videos", console)
        document |= {**result_document(result, out), **evaluator.document()}
    if other is not None:
        document["against"] = {"checkpoint": str(other.checkpoint.path)}
        with closing(_evaluator(config, task, env, other.policy.spec, execution, data)) as evaluator:
            difference = compare(result, _test(evaluator, config, other, other.policy, None, console))
        document["against"] |= difference.to_dict()
        print_comparison(difference, console)
    return document


def _demonstrations(loaded: LoadedPolicy) -> DataConfig:
    """What the policy was trained on."""
    saved = loaded.checkpoint.document("config")["config"]["data"]
    path = loaded.checkpoint.document("training")["dataset"]["path"]
    return DataConfig(path=path, parts={k: PartConfig(**v) for k, v in saved.get("parts", {}).items()})


def _evaluator(
    config: EvalConfig, task: str, env: Any, spec: PolicySpec, execution: Execution, data: DataConfig
) -> RolloutEvaluator:
    rollout = RolloutConfig(
        episodes=config.episodes,
        selection_episodes=config.search_episodes if config.search_weights else 1,
        num_envs=config.num_envs,
        videos=config.videos,
        goal=config.goal,
        text=config.text,
        guidance_scale=config.guidance_scale,
    )
    events = build_events(config.randomization)
    return RolloutEvaluator(task, env, rollout, spec, data=data, execution=execution, events=events)


def _test(
    evaluator: RolloutEvaluator, config: EvalConfig, loaded: LoadedPolicy, policy: ChunkPolicy, video_dir: Path | None,
    console: Console,
) -> EvalResult:  # fmt: skip
    """Roll out on the test seeds and print the result."""
    result = evaluator.test(policy, video_dir)
    run = loaded.checkpoint.path.parent.parent.name
    others = "" if policy is loaded.policy else f" with {len(config.compose)} more"
    print_result(result, console, f"{run}/{loaded.checkpoint.path.name}{others} ({config.weights} weights)")
    for warning in result.warnings:
        console.print(f"[yellow]{warning}[/yellow]")
    return result


def _open_loop(config: EvalConfig, loaded: LoadedPolicy, console: Console) -> dict[str, Any]:
    spec, obs = loaded.policy.spec, loaded.policy.encoder.config
    assert config.data is not None
    demos = read_demonstrations(config.data, loaded.policy, _demonstrations(loaded).parts)
    cache, texts = demos.cache, demos.texts
    episodes, which = _held_out(loaded, cache.episode_ends, config.data)
    table = window_table(cache.episode_ends, spec.window, episodes.tolist())
    source = make_source(obs, spec, cache, texts, table, batch_size=256, seed=0)
    error = open_loop_error(loaded.policy, source)
    unit = f" {spec.action.unit}" if spec.action.unit else ""
    console.print(f"open-loop error over {error.n_windows} windows of {which}:", highlight=False, soft_wrap=True)
    names = spec.action.names or [f"action {i}" for i in range(spec.action.size)]
    for name, mae, rmse in zip(names, error.mae.tolist(), error.rmse.tolist(), strict=True):
        console.print(f"  {name}: mean absolute error {mae:.4g}{unit}, RMSE {rmse:.4g}{unit}", highlight=False)
    return {
        "data": config.data,
        "checkpoint": str(loaded.checkpoint.path),
        "episodes": episodes.tolist(),
        **error.to_dict(),
    }


def _held_out(loaded: LoadedPolicy, episode_ends: np.ndarray, path: str) -> tuple[np.ndarray, str]:
    """The episodes that training held out; of another dataset, all."""
    saved = loaded.checkpoint.document("config")["config"]
    trained_on = loaded.checkpoint.document("training")["dataset"]
    n = len(episode_ends)
    if (trained_on["n_episodes"], trained_on["n_steps"]) != (n, int(episode_ends[-1])):
        return np.arange(n), f"all {n} episodes of {path} (the policy was trained on another dataset)"
    # A fine-tuned policy has the split of the demonstrations that it came from, beside a seed of its own.
    split = trained_on.get("split") or {"val_fraction": saved["data"]["val_fraction"], "seed": saved["seed"]}
    held_out = split_episodes(n, split["val_fraction"], split["seed"])[1]
    if not len(held_out):
        raise ConfigError("this policy was trained on all episodes (data.val_fraction=0): none is held out")
    return held_out, f"{len(held_out)} held-out episodes"
