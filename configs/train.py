"""``visuomotor train``: read settings, build the parts, run, evaluate, report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from visuomotor.configs.build import build_policy, keep_freed_memory, model_document, set_threads
from visuomotor.configs.compose import Composed, compose_train, restore_train
from visuomotor.configs.rollout import RolloutEvaluator
from visuomotor.configs.run_folder import INTERRUPTED, open_run
from visuomotor.configs.schema import TrainConfig
from visuomotor.configs.training_data import TrainingData, load_training_data
from visuomotor.data.errors import CheckpointError, ConfigError, UserError
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.learn.callbacks import MetricLog, ProgressBar
from visuomotor.policies.learn.checkpoint import Checkpoint, CheckpointFolder, resolve_checkpoint
from visuomotor.policies.learn.events import GracefulStop, StepEvent, every
from visuomotor.policies.learn.fitting import fit_head, fit_normalizer
from visuomotor.policies.learn.imitation import Trainer
from visuomotor.policies.learn.report import write_report

__all__ = ["main", "make_trainer"]

_FREE_ON_RESUME = ("data=", "data.path=", "data.cache.", "env.", "eval.", "threads=")
_SAME_DATA = ("n_episodes", "n_steps", "windows", "signature")


def main(words: Sequence[str]) -> int:
    """Train as ``words`` say (``key=value ...``); returns the exit status."""
    composed, start = _settings(words)
    config = composed.config
    accelerator = Accelerator(cpu=config.device == "cpu" or not torch.cuda.is_available())
    if config.device == "cuda" and accelerator.device.type != "cuda":
        raise ConfigError("device=cuda, but torch sees no GPU here (visuomotor info). Use device=cpu or device=auto.")
    console = Console(quiet=not accelerator.is_main_process)
    threads = set_threads(config.threads)
    keep_freed_memory()
    data = load_training_data(config, accelerator, console)
    trainer = make_trainer(config, data, accelerator)
    arithmetic = {
        "threads": threads,
        "precision": trainer.precision,
        "compile": config.train.compile,
        "device": accelerator.device.type,
        "world_size": accelerator.num_processes,
    }
    best = None if start is None else _resume(trainer, start, arithmetic, data.document, console)
    n_parameters = sum(p.numel() for p in trainer.policy.parameters())
    what = config.task or Path(config.data.path).name.split(".")[0]
    run_dir = open_run(
        config.run_dir, f"{what}_{composed.plain['choices']['policy']}", plain=composed.plain,
        command=["train", *words], resumed=start is not None, n_parameters=n_parameters, accelerator=accelerator,
        documents={"dataset.json": data.document},
    )  # fmt: skip
    run = _Run(composed, data, trainer, run_dir, arithmetic, accelerator, console, best)
    return run.execute()


def _settings(words: Sequence[str]) -> tuple[Composed, Checkpoint | None]:
    resume = [w for w in words if w.startswith("resume=") and w not in ("resume=", "resume=null")]
    if not resume:
        return compose_train(words), None
    target = Path(resume[-1].split("=", 1)[1]).expanduser()
    last = target / "checkpoints" / "last"
    checkpoint = Checkpoint.open(resolve_checkpoint(last if last.exists() else target))
    checkpoint.verify()
    rest = [w for w in words if w not in resume]
    fixed = [w for w in rest if not w.startswith(_FREE_ON_RESUME)]
    if fixed:
        raise ConfigError(
            f"{fixed[0]!r} cannot change when a run is resumed: it goes on exactly as it began. What may change: "
            "data.path, data.cache.*, env.*, eval.*, threads. For other settings start a new run."
        )
    saved = checkpoint.document("config")
    run_dir = checkpoint.path.parent.parent  # <run>/checkpoints/step_...
    if command := saved.get("command"):
        raise CheckpointError(f"{run_dir} is a run of visuomotor {command}: go on with visuomotor {command} resume=...")
    return restore_train(saved, [*rest, f"run_dir={run_dir}"]), checkpoint


def make_trainer(config: TrainConfig, data: TrainingData, accelerator: Accelerator) -> Trainer:
    normalizer = fit_normalizer(
        data.spec, encoder=ObservationEncoder(config.obs, data.spec.obs), cache=data.cache, source=data.source,
        episodes=data.train_episodes, action_norm=config.action.norm,
    )  # fmt: skip
    torch.manual_seed(config.seed)
    policy = build_policy(
        data.spec, obs=config.obs, head=config.policy, backbone=config.backbone, normalizer=normalizer,
        loss=config.loss,
    )  # fmt: skip
    fit_head(policy, data.source)
    return Trainer(
        policy, data.source, config=config.train, optim=config.optim, ema=config.ema, accelerator=accelerator,
        seed=config.seed,
    )  # fmt: skip


def _resume(
    trainer: Trainer, checkpoint: Checkpoint, arithmetic: dict[str, Any], dataset: dict[str, Any], console: Console
) -> float | None:
    """Put the trainer where the checkpoint left it; returns the best score so far."""
    saved = checkpoint.document("training")
    for name in _SAME_DATA:
        if saved["dataset"][name] != dataset[name]:
            raise CheckpointError(
                f"the run was trained with {name} = {saved['dataset'][name]}, the dataset now gives {dataset[name]}: "
                "a resumed run must see the same data"
            )
    for name, value in saved["arithmetic"].items():
        if value != arithmetic[name]:
            console.print(
                f"[yellow]resuming with {name}={arithmetic[name]}, the run began with {value}: "
                "the result will not be the same bit for bit[/yellow]"
            )
    names = ("policy", "policy_ema", "optimizer")
    trainer.load_state({n: checkpoint.tensors(n) for n in names}, checkpoint.step)
    console.print(f"resuming from step {checkpoint.step} ({checkpoint.path})", highlight=False)
    best: float | None = saved["best_score"]
    return best


class _Run:
    """One run: the loop with its subscribers, then the evaluation of the best checkpoint and the report."""

    def __init__(
        self, composed: Composed, data: TrainingData, trainer: Trainer, run_dir: Path, arithmetic: dict[str, Any],
        accelerator: Accelerator, console: Console, best_score: float | None,
    ) -> None:  # fmt: skip
        self._composed, self._config, self._data, self._trainer = composed, composed.config, data, trainer
        self._dir, self._arithmetic, self._accelerator, self._console = run_dir, arithmetic, accelerator, console
        self._folder = CheckpointFolder(run_dir / "checkpoints")
        self._best_score, self._saved_step = best_score, trainer.steps_done
        self._evaluator = (
            RolloutEvaluator(
                str(self._config.task), self._config.env, self._config.eval, data.spec, data=self._config.data
            )
            if self._config.env is not None and self._config.eval.episodes > 0 and accelerator.is_main_process
            else None
        )
        if self._evaluator is not None:
            trainer.ema.module.guidance_scale = self._config.eval.guidance_scale
            self._evaluator.check(trainer.ema.module)

    def execute(self) -> int:
        """Train, evaluate, report; returns the exit status."""
        try:
            stopped = self._train()
            if not self._accelerator.is_main_process:
                return 0
            if stopped:
                self._console.print(
                    f"stopped at step {self._trainer.steps_done}; go on with: visuomotor train resume={self._dir}",
                    highlight=False,
                )
            elif self._evaluator is not None:
                self._final_evaluation()
            self._console.print(f"report: {write_report(self._dir).resolve()}", highlight=False, soft_wrap=True)
            return INTERRUPTED if stopped else 0
        finally:
            if self._evaluator is not None:
                self._evaluator.close()

    def _train(self) -> bool:
        if not self._accelerator.is_main_process:
            with GracefulStop() as stop:
                self._trainer.run([], stop)
            return self._trainer.steps_done < self._config.train.steps
        log = MetricLog(self._dir, self._trainer.steps_done)
        bar = ProgressBar(self._config.train.steps, self._trainer.steps_done, self._console)
        with GracefulStop() as stop, bar:
            self._trainer.run(self._subscribers(log, bar), stop)
        log.close()
        return self._trainer.steps_done < self._config.train.steps

    def _subscribers(self, log: MetricLog, bar: ProgressBar) -> list[Callable[[StepEvent], None]]:
        t = self._config.train
        out = [every(t.log_every, self._check_finite), every(t.log_every, log), every(t.log_every, bar)]
        if self._data.validation is not None:
            out.append(every(t.val_every, lambda e: self._validate(e, log), on_stop=False))
        if self._evaluator is not None and t.eval_every:
            out.append(every(t.eval_every, lambda e: self._evaluate(e, log), on_stop=False))
        out.append(every(t.save_every, self._save))
        return out

    def _check_finite(self, event: StepEvent) -> None:
        """Before anything is logged or saved: weights that are not numbers must not take the place of good ones."""
        loss, norm = float(event.loss), float(event.grad_norm)
        if not math.isfinite(loss) or not math.isfinite(norm):
            last = self._dir / "checkpoints" / "last"
            kept = f"the checkpoint of step {self._saved_step} is intact" if last.exists() else "there is no checkpoint"
            raise UserError(
                f"training diverged: loss {loss:g} and gradient norm {norm:g} at step {event.step}; {kept}. A lower "
                "optim.lr or a longer optim.warmup_steps may help"
            )

    def _validate(self, event: StepEvent, log: MetricLog) -> None:
        assert self._data.validation is not None
        log.write(event.step, {"val_loss": self._trainer.validation_loss(self._data.validation)})

    def _evaluate(self, event: StepEvent, log: MetricLog) -> None:
        """Score the averaged weights on the selection seeds; the best so far is kept."""
        assert self._evaluator is not None
        result = self._evaluator.select(self._trainer.ema.module)
        log.write(event.step, {"eval_score": result.score_mean, "eval_success": result.success_rate})
        self._console.print(
            f"step {event.step}: score {result.score_mean:.3f}, success {result.success_rate:.0%} "
            f"over {len(result.episodes)} selection seeds",
            highlight=False,
        )
        folder = self._dir / "eval"
        folder.mkdir(exist_ok=True)
        (folder / f"step_{event.step:08d}.json").write_text(json.dumps(result.to_dict(), indent=1))
        # Either alone is too coarse: the score saturates before the last millimetres, success counts nothing else.
        quality = (result.score_mean + result.success_rate) / 2
        if self._best_score is None or quality >= self._best_score:
            self._best_score = quality
            self._save(event, best=True)

    def _save(self, event: StepEvent, *, best: bool = False) -> None:
        step = event.step
        if step == self._saved_step:  # saved as the best a moment ago
            return
        self._check_finite(event)
        training = {
            "best_score": self._best_score,
            "arithmetic": self._arithmetic,
            "seed": self._config.seed,
            "dataset": {k: self._data.document[k] for k in ("path", *_SAME_DATA)},
        }
        documents = {
            "config": self._composed.plain,
            "model": model_document(self._config),
            "spec": self._data.spec.to_dict(),
            "normalizer": self._trainer.policy.normalizer.to_dict(),
            "training": training,
        }
        self._folder.save(step, self._trainer.state(), documents, best=best)
        self._saved_step = step

    def _final_evaluation(self) -> None:
        """Score the chosen checkpoint on test seeds that nothing was selected by."""
        assert self._evaluator is not None
        chosen = resolve_checkpoint(self._dir)
        result, document = self._evaluator.final(chosen, self._dir, self._console, self._accelerator.device)
        (self._dir / "eval").mkdir(exist_ok=True)
        document["task"] = self._config.task
        (self._dir / "eval" / "final.json").write_text(json.dumps(document, indent=1))
        for warning in result.warnings:
            self._console.print(f"[yellow]{warning}[/yellow]")
