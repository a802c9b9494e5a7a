"""Evaluation of a policy in its task, as training and ``visuomotor eval`` do it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from visuomotor.configs.build import load_policy
from visuomotor.configs.execution import Execution
from visuomotor.configs.schema import DataConfig, RolloutConfig
from visuomotor.data.batches import is_goal
from visuomotor.data.errors import ConfigError
from visuomotor.envs.registry import make_env
from visuomotor.envs.sim.events import Event
from visuomotor.policies.execution.ensemble import TemporalEnsemble
from visuomotor.policies.execution.planner import ChunkPolicy
from visuomotor.policies.execution.receding import RecedingHorizon
from visuomotor.policies.goals import GoalEnv, load_goals
from visuomotor.policies.learn.evaluate import Comparison, EvalResult, evaluate, selection_seeds, test_seeds
from visuomotor.policies.spec import PolicySpec

__all__ = ["RolloutEvaluator", "print_comparison", "print_result", "result_document"]


class RolloutEvaluator:
    """Worlds of one task, kept open over a run.

    Args:
        task: its name.
        env: its settings.
        config: how many episodes on which seeds.
        spec: what the policy observes and commands.
        execution: how chunks are executed; None: as ``config`` says.
        data: the demonstrations that the policy was trained on, for goals and texts.
        events: what happens in the worlds besides.

    Attributes:
        executed: of the last :meth:`test`: steps executed of each chunk, and how far commands jumped between chunks.

    Raises:
        CheckpointError: the task gives other observations or actions than the policy has.
        DataError: no goals where they should be.
    """

    def __init__(
        self, task: str, env: Any, config: RolloutConfig, spec: PolicySpec, *, data: DataConfig,
        execution: Execution | None = None, events: Sequence[Event] = (),
    ) -> None:  # fmt: skip
        self._config, self._execution = config, execution or Execution(config=config.execute)
        self.executed: dict[str, Any] = {}
        self._task = task
        n = min(config.num_envs, max(config.episodes, config.selection_episodes))
        self._worlds = make_env(env, n, events)
        self._env = self._worlds  # with goals and texts, if the policy reads some that the task does not give
        try:
            self.check_source(spec)
            if not spec.constant_keys <= set(self._worlds.obs_spec):
                goals = load_goals(spec, config.goal or data.path, config.text, data.parts)
                self._env = self._worlds if goals is None else GoalEnv(self._worlds, goals, spec)
        except BaseException:
            self._worlds.close()
            raise

    def check_source(self, spec: PolicySpec) -> None:
        """Refuse a policy that observes or commands something else than the task has, or a goal or text it cannot use.

        Raises:
            CheckpointError: naming what differs.
            ConfigError: a goal or text that would be ignored.
        """
        e, c = self._worlds, self._config
        spec.check_source(e.obs_spec, e.action_spec, e.fps, source=f"task {self._task!r}")
        texts = {k for k in spec.constant_keys if not is_goal(k)}
        for name, value, keys in (("goal", c.goal, spec.constant_keys), ("text", c.text, texts)):
            if value is not None and not keys:
                reads = "neither a goal nor a text" if name == "goal" else "no text"
                raise ConfigError(f"{name}={value}: the policy reads {reads}")
            if value is not None and keys <= set(e.obs_spec):
                raise ConfigError(f"{name}={value}: task {self._task!r} itself gives {sorted(keys)}")

    def check(self, policy: ChunkPolicy) -> None:
        """Refuse, before anything is run, a policy that cannot be executed as the settings say.

        Raises:
            ConfigError: with the reason.
        """
        try:
            self._actor(policy)
        except BaseException:
            self.close()
            raise

    def select(self, policy: ChunkPolicy) -> EvalResult:
        """Evaluate on the selection seeds, without films."""
        return evaluate(self._env, self._actor(policy), selection_seeds(self._config.selection_episodes))

    def test(self, policy: ChunkPolicy, video_dir: Path | None) -> EvalResult:
        """Evaluate on the test seeds and, given a folder, film the worst and the best episodes."""
        n, seeds, actor = self._config.videos, test_seeds(self._config.episodes), self._actor(policy)

        def note(done: int, total: int) -> None:
            if done == total:  # before anything is run again for the films
                self.executed = {"n_exec": actor.n_exec, "seams": actor.seams.to_dict()}

        return evaluate(
            self._env,
            actor,
            seeds,
            video_worst=n,
            video_best=n,
            video_dir=video_dir if n else None,
            on_progress=note,
        )

    def document(self) -> dict[str, Any]:
        """JSON-ready: how chunks were executed in the last :meth:`test`, and under what conditions."""
        c = self._config
        conditions = {"goal": c.goal, "text": c.text, "guidance_scale": c.guidance_scale}
        return {"execution": {**self._execution.to_dict(), **self.executed}, "conditions": conditions}

    def final(
        self, checkpoint: Path, run_dir: Path, console: Console, device: torch.device
    ) -> tuple[EvalResult, dict[str, Any]]:
        """Test the averaged weights of ``checkpoint``; the returned document has paths relative to ``run_dir``."""
        loaded = load_policy(checkpoint, device=device)
        loaded.policy.guidance_scale = self._config.guidance_scale
        result = self.test(loaded.policy, run_dir / "videos")
        print_result(result, console, f"{loaded.checkpoint.path.name} (EMA weights)")
        document = result_document(result, run_dir) | self.document()
        return result, document | {"checkpoint": loaded.checkpoint.path.name}

    def close(self) -> None:
        """End the worlds."""
        self._env.close()

    def _actor(self, policy: ChunkPolicy) -> RecedingHorizon | TemporalEnsemble:
        return self._execution.actor(policy, self._env.num_envs)


def result_document(result: EvalResult, folder: Path) -> dict[str, Any]:
    """JSON-ready result with the films' paths relative to ``folder``."""
    document = result.to_dict()
    for video in document["videos"]:
        video["path"] = os.path.relpath(video["path"], folder)
    return document


def print_result(result: EvalResult, console: Console, what: str) -> None:
    """Score and success with their intervals."""
    low, high = result.score_interval
    s_low, s_high = result.success_interval
    console.print(
        f"{what}: mean score {result.score_mean:.3f} [{low:.3f}, {high:.3f}], success {result.success_rate:.0%} "
        f"[{s_low:.0%}, {s_high:.0%}] over {len(result.episodes)} test seeds "
        f"({result.seconds:.0f} s, {result.steps_per_s:,.0f} steps/s)",
        highlight=False,
        soft_wrap=True,
    )


def print_comparison(difference: Comparison, console: Console) -> None:
    """Paired differences with their intervals."""
    d = difference
    console.print(
        f"difference over {d.n} paired seeds: score {d.score_difference:+.3f} "
        f"[{d.score_interval[0]:+.3f}, {d.score_interval[1]:+.3f}], success {d.success_difference:+.0%} "
        f"[{d.success_interval[0]:+.0%}, {d.success_interval[1]:+.0%}] (only the first succeeds: {d.only_a}, only the "
        f"second: {d.only_b}; McNemar p = {d.p_value:.3f})",
        highlight=False,
        soft_wrap=True,
    )
