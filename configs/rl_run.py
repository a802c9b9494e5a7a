"""One run of PPO with everything around it: evaluations, checkpoints, log, progress, report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from torch import Tensor

from visuomotor.configs.build import load_policy
from visuomotor.configs.rl_build import Start, model_of
from visuomotor.configs.rl_compose import ComposedRun
from visuomotor.configs.rollout import RolloutEvaluator, print_comparison, print_result, result_document
from visuomotor.configs.run_folder import INTERRUPTED
from visuomotor.configs.schema import DataConfig
from visuomotor.data.errors import UserError
from visuomotor.policies.learn.callbacks import MetricLog, RunBar
from visuomotor.policies.learn.checkpoint import CheckpointFolder, resolve_checkpoint
from visuomotor.policies.learn.evaluate import EvalResult, compare
from visuomotor.policies.learn.events import GracefulStop
from visuomotor.policies.learn.report import write_report
from visuomotor.policies.ppo.trainer import PPOTrainer, UpdateEvent
from visuomotor.sim2real.randomization.build import build_events

__all__ = ["RLRun", "split_state", "whole_state"]

_EVALUATIONS = 5  # over a run, where none are asked for
_OF_THE_PROCESS = ("worlds", "collector", "reward_scale", "rollouts")  # the rest is the same in all processes


class RLRun:
    """The loop with its subscribers, between an evaluation of what it begins with and one of what it chose.

    Args:
        composed: the settings.
        start: what the run began with.
        trainer: ready to run.
        run_dir: its folder, made.
        arithmetic: what decides the last bits of its numbers.
        accelerator: the processes.
        console: where to print.
        saved: ``training.json`` of the checkpoint that the trainer goes on from; None where the run begins.
    """

    def __init__(
        self, composed: ComposedRun, start: Start, trainer: PPOTrainer, *, run_dir: Path, arithmetic: dict[str, Any],
        accelerator: Accelerator, console: Console, saved: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._composed, self._config, self._start, self._trainer = composed, composed.config, start, trainer
        self._dir, self._arithmetic, self._accelerator, self._console = run_dir, arithmetic, accelerator, console
        self._folder = CheckpointFolder(run_dir / "checkpoints")
        self._resumed, self._share = saved is not None, trainer.share_done
        self._best: list[float] | None = None if saved is None else saved["best_score"]
        self._owed = bool(saved and saved.get("owed"))  # an evaluation that was left out because the run was stopped
        self._saved: int | None = trainer.updates_done if self._resumed else None  # update of the last checkpoint
        self._log: MetricLog | None = None
        self._policy = trainer.likelihood.policy
        self._evaluator = self._make_evaluator() if accelerator.is_main_process else None

    def execute(self) -> int:
        """Evaluate, train, evaluate, report; returns the exit status."""
        try:
            if self._accelerator.is_main_process:
                self._log = MetricLog(self._dir, self._trainer.updates_done)
            if not self._resumed:
                self._begin()
            elif self._owed and self._accelerator.is_main_process and self._select(self._now()):
                self._folder.choose(self._trainer.updates_done)
            stopped = self._train()
            if not self._accelerator.is_main_process:
                return 0
            if stopped:
                command = self._composed.plain["command"]
                self._console.print(
                    f"stopped after {self._trainer.env_steps:,} steps; go on with: visuomotor {command} "
                    f"resume={self._dir}",
                    highlight=False,
                    soft_wrap=True,
                )
            elif self._evaluator is not None:
                self._finish(self._evaluator)
            self._console.print(f"report: {write_report(self._dir).resolve()}", highlight=False, soft_wrap=True)
            return INTERRUPTED if stopped else 0
        finally:
            if self._log is not None:
                self._log.close()
            if self._evaluator is not None:
                self._evaluator.close()

    def _make_evaluator(self) -> RolloutEvaluator | None:
        c = self._config
        if not c.eval.episodes:
            return None
        evaluator = RolloutEvaluator(
            c.task, c.env, c.eval.rollout(), self._policy.spec, data=DataConfig(), events=build_events(c.randomization)
        )  # all ranges, whatever the curriculum: a checkpoint that is good in narrow ones alone is not chosen
        evaluator.check(self._policy)
        return evaluator

    def _begin(self) -> None:
        """Measure what the run begins with: the result to beat, and the first that can be chosen."""
        if self._evaluator is not None:
            result = self._evaluator.test(self._policy, self._dir / "videos" / "before")
            print_result(result, self._console, "before")
            self._write("before", result_document(result, self._dir))
        event = self._now()
        state = whole_state(self._trainer, self._accelerator)
        if self._accelerator.is_main_process:
            self._save(event, state, best=self._select(event))

    def _now(self) -> UpdateEvent:
        """Where the trainer is, between two updates."""
        t = self._trainer
        return UpdateEvent(t.updates_done, t.env_steps, t.share_done, {}, done=False, stopping=False)

    def _train(self) -> bool:
        """Run until the budget is spent; whether it was stopped before."""
        if not self._accelerator.is_main_process:
            with GracefulStop() as stop:
                self._trainer.run([self._keep], stop)
            return self._trainer.share_done < 1.0
        with GracefulStop() as stop, RunBar("training", self._console, done=self._share) as bar:
            self._trainer.run([self._check_finite, self._write_metrics, self._shown(bar), self._keep], stop)
        return self._trainer.share_done < 1.0

    def _write_metrics(self, event: UpdateEvent) -> None:
        assert self._log is not None
        self._log.write(event.update, {**event.metrics, "train_s": self._trainer.seconds})

    def _shown(self, bar: RunBar) -> Callable[[UpdateEvent], None]:
        """Return and success of the last episodes, divergence, speed."""
        budget, last = self._config.budget, dict[str, float]()

        def show(event: UpdateEvent) -> None:
            m = event.metrics
            last.update({k: m[k] for k in ("return", "success") if k in m})
            of = "" if budget.env_steps is None else f"/{budget.env_steps:,}"
            state = [f"{event.env_steps:,}{of} steps"]
            state += [f"return {last['return']:.4g}", f"success {last['success']:.0%}"] if last else []
            state += [f"kl {m['kl']:.4f}"] if "kl" in m else []
            bar.show(event.share, [*state, f"{m['steps_per_s']:,.0f} steps/s"])

        return show

    def _check_finite(self, event: UpdateEvent) -> None:
        """Before anything is logged or saved: weights that are not numbers must not take the place of good ones."""
        weights = [p.detach() for m in (self._trainer.likelihood, self._trainer.critic) for p in m.parameters()]
        finite = bool(torch.isfinite(torch.stack([w.sum() for w in weights])).all())
        loss = event.metrics.get("value_loss", 0.0)
        if not finite or not math.isfinite(loss):
            there = self._saved is not None
            kept = f"the checkpoint of update {self._saved} is intact" if there else "there is no checkpoint"
            raise UserError(
                f"training diverged at update {event.update}: value loss {loss:g}, weights "
                f"{'finite' if finite else 'not finite'}; {kept}. A lower ppo.lr or ppo.critic_lr, or a smaller "
                "ppo.grad_clip, may help"
            )

    def _keep(self, event: UpdateEvent) -> None:
        """Evaluate and save where it is time for it. Every process takes part: each holds worlds of its own."""
        due = self._is_due(event)
        evaluate = due and (event.done or not event.stopping)
        self._owed = due and not evaluate
        n = self._config.save_every
        self._share = event.share
        if not (evaluate or event.done or event.stopping or (n and event.update % n == 0)):
            return
        state = whole_state(self._trainer, self._accelerator)
        if self._accelerator.is_main_process:
            self._save(event, state, best=evaluate and self._select(event))

    def _is_due(self, event: UpdateEvent) -> bool:
        """Whether an evaluation is."""
        if self._config.eval.episodes == 0:
            return False
        n = self._config.eval_every
        if n is None:
            return event.done or int(event.share * _EVALUATIONS) > int(self._share * _EVALUATIONS)
        return event.done or (n > 0 and event.update % n == 0)

    def _select(self, event: UpdateEvent) -> bool:
        """Score the policy of now on the selection seeds; whether it is the best so far."""
        if self._evaluator is None:
            return False
        result = self._evaluator.select(self._policy)
        mean_return = sum(e.episode_return for e in result.episodes) / len(result.episodes)
        scores = {"eval_score": result.score_mean, "eval_success": result.success_rate, "eval_return": mean_return}
        if self._log is not None:
            self._log.write(event.update, {"env_steps": event.env_steps, **scores})
        self._console.print(
            f"update {event.update}, {event.env_steps:,} steps: score {result.score_mean:.3f}, success "
            f"{result.success_rate:.0%}, return {mean_return:.4g} over {len(result.episodes)} selection seeds",
            highlight=False,
            soft_wrap=True,
        )
        self._write(f"update_{event.update:08d}", {**result.to_dict(), "env_steps": event.env_steps})
        # Score and success saturate; of equals the one that does it faster or better is wanted.
        quality = [round((result.score_mean + result.success_rate) / 2, 6), mean_return]
        if self._best is not None and quality < self._best:
            return False
        self._best = quality
        return True

    def _save(self, event: UpdateEvent, state: dict[str, dict[str, Tensor]], *, best: bool) -> None:
        self._check_finite(event)
        training = {
            "best_score": self._best,
            "owed": self._owed,
            "arithmetic": self._arithmetic,
            "seed": self._config.seed,
            "env_steps": event.env_steps,
            "dataset": self._start.dataset,
        }
        plain = self._composed.plain
        documents = {
            "config": {**plain, "config": {**plain["config"], "data": self._start.data}},
            "model": model_of(self._start, self._policy),
            "spec": self._policy.spec.to_dict(),
            "normalizer": self._policy.normalizer.to_dict(),
            "training": training,
        }
        self._folder.save(event.update, {**state, "policy_ema": state["policy"]}, documents, best=best)
        self._saved = event.update

    def _finish(self, evaluator: RolloutEvaluator) -> None:
        """Score the chosen checkpoint on test seeds that nothing was selected by, against what the run began with."""
        loaded = load_policy(resolve_checkpoint(self._dir), device=self._accelerator.device)
        name = loaded.checkpoint.path.name
        result = evaluator.test(loaded.policy, self._dir / "videos" / "after")
        print_result(result, self._console, f"after ({name})")
        document = {**result_document(result, self._dir), **evaluator.document()}
        document |= {"checkpoint": name, "task": self._config.task}
        first = self._dir / "eval" / "before.json"
        if first.exists():  # not where evaluation was switched on in a resumed run
            before = json.loads(first.read_text())
            difference = compare(result, EvalResult.from_dict(before))
            print_comparison(difference, self._console)
            document |= {"before": before, "difference": difference.to_dict()}
        self._write("final", document)
        for warning in result.warnings:
            self._console.print(f"[yellow]{warning}[/yellow]")

    def _write(self, name: str, document: dict[str, Any]) -> None:
        folder = self._dir / "eval"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(document, indent=1))


def whole_state(trainer: PPOTrainer, accelerator: Accelerator) -> dict[str, dict[str, Tensor]]:
    """The state of a run in all processes: what belongs to the worlds of process 3 is named ``worlds.3``.

    Every process has to call it.
    """
    state = trainer.state()
    if accelerator.num_processes == 1:
        return state
    own = {k: {n: v.cpu() for n, v in state[k].items()} for k in _OF_THE_PROCESS if k in state}
    for rank, groups in enumerate(gather_object([own])):
        state |= {f"{k}.{rank}" if rank else k: v for k, v in groups.items()}
    return state


def split_state(state: dict[str, dict[str, Tensor]], rank: int) -> dict[str, dict[str, Tensor]]:
    """What process ``rank`` needs of a :func:`whole_state`."""
    common = {k: v for k, v in state.items() if "." not in k and k not in _OF_THE_PROCESS}
    mine = {k: f"{k}.{rank}" if rank else k for k in _OF_THE_PROCESS}
    return common | {k: state[name] for k, name in mine.items() if name in state}
