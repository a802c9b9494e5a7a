"""One run of distillation: rounds of collecting and training, then teacher and student on the same test seeds."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from visuomotor.configs.build import as_read, load_policy, model_document
from visuomotor.configs.compose import Composed
from visuomotor.configs.rollout import RolloutEvaluator, print_comparison, print_result
from visuomotor.configs.run_folder import INTERRUPTED
from visuomotor.configs.train import make_trainer
from visuomotor.configs.training_data import TrainingData, load_training_data
from visuomotor.data.errors import UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.envs.base import VecEnv
from visuomotor.envs.registry import make_env
from visuomotor.policies.draws import mix_seed
from visuomotor.policies.execution.build import make_actor
from visuomotor.policies.execution.config import ExecuteConfig
from visuomotor.policies.learn.callbacks import MetricLog, ProgressBar
from visuomotor.policies.learn.checkpoint import Checkpoint, CheckpointFolder, resolve_checkpoint
from visuomotor.policies.learn.distill import DistillConfig, collect_labels
from visuomotor.policies.learn.evaluate import compare
from visuomotor.policies.learn.events import GracefulStop, StepEvent, every
from visuomotor.policies.learn.imitation import Trainer
from visuomotor.policies.learn.report import write_report
from visuomotor.policies.policy import Policy
from visuomotor.sim2real.randomization.build import build_events
from visuomotor.sim2real.randomization.config import RandomizationConfig

__all__ = ["DistillRun"]

_COLUMNS = {"round": "int64", "seed": "int64", "success": "bool", "by_teacher": "float64"}


class DistillRun:
    """Collects into ``<run>/labels.zarr``, trains on all of it, and evaluates.

    Everything random is a function of the run's seed, the round and the step: a run that goes on at a checkpoint ends
    as if it had not been stopped.

    Args:
        composed: settings of the student's training.
        config: of the rounds.
        randomization: of the worlds, in collecting and in evaluating.
        teacher: in eval mode.
        run_dir: its folder, made.
        accelerator, console, threads: of the process.
    """

    def __init__(
        self, composed: Composed, config: DistillConfig, randomization: RandomizationConfig, teacher: Policy, *,
        run_dir: Path, accelerator: Accelerator, console: Console, threads: int,
    ) -> None:  # fmt: skip
        self._composed, self._train_config, self._config = composed, composed.config, config
        self._randomization, self._teacher = randomization, teacher.to(accelerator.device)
        self._dir, self._accelerator, self._console = run_dir, accelerator, console
        self._store = Path(composed.config.data.path)
        self._folder = CheckpointFolder(run_dir / "checkpoints")
        self._arithmetic = {"threads": threads, "device": accelerator.device.type}
        self._best: float | None = None

    def execute(self, start: Checkpoint | None = None) -> int:
        """Run to the end, or from ``start`` on; returns the exit status."""
        trainer: Trainer | None = None
        self._best = start.document("training")["best_score"] if start is not None else None
        done = 0 if start is None else start.step
        with GracefulStop() as stop:
            for number in range(done // self._config.steps, self._config.rounds):
                data = self._collected(number, trainer, start)
                trainer = self._trainer(trainer, start, data)
                self._describe(trainer.policy)
                if stop.requested or not self._train(trainer, data, (number + 1) * self._config.steps, stop):
                    return self._stopped(trainer)
                self._end_of_round(number, trainer, data)
        self._final()
        self._console.print(f"report: {write_report(self._dir).resolve()}", highlight=False, soft_wrap=True)
        return 0

    # ---- collecting

    def _collected(self, number: int, trainer: Trainer | None, start: Checkpoint | None) -> TrainingData:
        """The demonstrations of rounds 0 .. ``number``: those that are missing are made."""
        missing = (number + 1) * self._config.episodes - self._stored()
        if missing > 0:
            student = None
            if number:
                assert trainer is not None or start is not None
                student = load_policy(start.path).policy if trainer is None else trainer.ema.module  # type: ignore[union-attr]
            with closing(self._worlds()) as env:
                self._collect(env, number, student, missing)
        data = load_training_data(self._train_config, self._accelerator, self._console)
        (self._dir / "dataset.json").write_text(json.dumps(data.document, indent=1))
        return data

    def _stored(self) -> int:
        if not self._store.exists():
            return 0
        with DemoStore.open(self._store) as store:
            return store.n_episodes

    def _collect(self, env: VecEnv, number: int, student: Policy | None, missing: int) -> None:
        c, share = self._config, self._config.share(number)
        first = c.episodes - missing
        seeds = [mix_seed(self._train_config.seed, number, i) % 2**31 for i in range(first, c.episodes)]
        keys = self._train_config.obs.keys
        teacher = make_actor(self._teacher, num_envs=env.num_envs, config=ExecuteConfig(n_exec=1))
        acting = None
        if student is not None:
            acting = make_actor(student, num_envs=env.num_envs, config=self._train_config.eval.execute)
        labelled = collect_labels(
            env, acting, teacher, seeds, keys=keys, beta=share, stretch=c.stretch
        )  # fmt: skip
        count, good = 0, 0
        with self._open(env) as store:
            for e in labelled:
                columns = {"round": number, "seed": e.seed, "success": e.success, "by_teacher": e.by_teacher}
                store.append_episode({**e.obs, self._train_config.action.key: e.action}, columns)
                count, good = count + 1, good + e.success
        self._console.print(
            f"round {number}: {count} episodes, the teacher drives {share:.0%} of them, {good} succeed",
            highlight=False,
        )

    def _open(self, env: VecEnv) -> DemoStore:
        if self._store.exists():
            return DemoStore.open(self._store, "a")
        specs: dict[str, ArraySpec] = {k: as_read(env.obs_spec[k]) for k in self._train_config.obs.keys}
        specs[self._train_config.action.key] = as_read(env.action_spec)
        return DemoStore.create(self._store, specs, fps=env.fps, episode_columns=_COLUMNS)

    def _worlds(self) -> VecEnv:
        n = min(self._config.num_envs, self._config.episodes)
        return make_env(self._train_config.env, n, build_events(self._randomization))

    # ---- training

    def _describe(self, student: Policy) -> None:
        path = self._dir / "environment.json"
        known = json.loads(path.read_text()) | {"n_parameters": sum(p.numel() for p in student.parameters())}
        path.write_text(json.dumps(known, indent=1))

    def _trainer(self, before: Trainer | None, start: Checkpoint | None, data: TrainingData) -> Trainer:
        """The same weights and moments on what is there now; normalised as the first round was."""
        c = self._train_config
        if before is None and start is None:
            return make_trainer(c, data, self._accelerator)
        if before is not None:
            policy, state, steps = before.policy, before.state(), before.steps_done
        else:
            assert start is not None
            policy, steps = load_policy(start.path, weights="raw").policy, start.step
            state = {n: start.tensors(n) for n in ("policy", "policy_ema", "optimizer")}
        # copies: the new trainer's tensors take the place of those that the state refers to
        state = {k: {n: t.clone() for n, t in group.items()} for k, group in state.items()}
        trainer = Trainer(
            policy, data.source, config=c.train, optim=c.optim, ema=c.ema, accelerator=self._accelerator, seed=c.seed
        )
        trainer.load_state(state, steps)
        return trainer

    def _train(self, trainer: Trainer, data: TrainingData, end: int, stop: GracefulStop) -> bool:
        """Train until step ``end``; False if the run is to stop before."""
        if trainer.steps_done >= end:
            return True
        t = self._train_config.train
        log = MetricLog(self._dir, trainer.steps_done)
        bar = ProgressBar(t.steps, trainer.steps_done, self._console)

        def last_but_one(event: StepEvent) -> None:
            stop.requested = stop.requested or event.step == end - 1  # asked after the next step

        stop.requested = trainer.steps_done == end - 1
        logged = [every(t.log_every, f) for f in (_check, log, bar)]
        try:
            with bar:
                trainer.run([*logged, last_but_one], stop)
        finally:
            log.close()
        finished = trainer.steps_done == end
        stop.requested = stop.requested and not finished
        return finished

    def _end_of_round(self, number: int, trainer: Trainer, data: TrainingData) -> None:
        c, best, values = self._train_config, False, {}
        if c.eval.episodes > 0:
            with closing(self._evaluator(trainer.policy)) as evaluator:
                result = evaluator.select(trainer.ema.module)
            values = {"eval_score": result.score_mean, "eval_success": result.success_rate}
            quality = (result.score_mean + result.success_rate) / 2
            best = self._best is None or quality >= self._best
            self._best = quality if best else self._best
            self._console.print(
                f"after round {number}: score {result.score_mean:.3f}, success {result.success_rate:.0%} over "
                f"{len(result.episodes)} selection seeds",
                highlight=False,
            )
        log = MetricLog(self._dir, trainer.steps_done)
        log.write(trainer.steps_done, {"round": number, "labels": len(data.source), **values})
        log.close()
        self._save(trainer, data, best=best)

    def _save(self, trainer: Trainer, data: TrainingData, *, best: bool) -> None:
        document = data.document
        training = {
            "best_score": self._best,
            "arithmetic": {**self._arithmetic, "precision": trainer.precision},
            "seed": self._train_config.seed,
            "dataset": {k: document[k] for k in ("path", "n_episodes", "n_steps", "windows", "signature")},
        }
        documents = {
            "config": self._composed.plain, "model": model_document(self._train_config), "spec": data.spec.to_dict(),
            "normalizer": trainer.policy.normalizer.to_dict(), "training": training,
        }  # fmt: skip
        self._folder.save(trainer.steps_done, trainer.state(), documents, best=best)

    def _stopped(self, trainer: Trainer) -> int:
        self._console.print(
            f"stopped at step {trainer.steps_done}; go on, from the last whole round, with: visuomotor distill "
            f"resume={self._dir}",
            highlight=False,
            soft_wrap=True,
        )
        return INTERRUPTED

    # ---- evaluating

    def _evaluator(self, policy: Policy) -> RolloutEvaluator:
        c = self._train_config
        return RolloutEvaluator(
            str(c.task), c.env, c.eval, policy.spec, data=c.data, events=build_events(self._randomization)
        )

    def _final(self) -> None:
        """Student and teacher on the same test seeds."""
        if not self._train_config.eval.episodes:
            return
        chosen = resolve_checkpoint(self._dir)
        device = self._accelerator.device
        with closing(self._evaluator(load_policy(chosen).policy)) as evaluator:
            result, document = evaluator.final(chosen, self._dir, self._console, device)
        with closing(self._evaluator(self._teacher)) as evaluator:
            other = evaluator.test(self._teacher, None)
        print_result(other, self._console, "teacher")
        difference = compare(result, other)
        print_comparison(difference, self._console)
        teacher: dict[str, Any] = {"checkpoint": self._composed.plain["teacher"], **difference.to_dict()}
        teacher |= {"score": other.score_mean, "success": other.success_rate}
        document |= {"task": self._train_config.task, "teacher": teacher}
        (self._dir / "eval").mkdir(exist_ok=True)
        (self._dir / "eval" / "final.json").write_text(json.dumps(document, indent=1))


def _check(event: StepEvent) -> None:
    if not math.isfinite(float(event.loss)):
        raise UserError(
            f"training diverged: loss {float(event.loss):g} at step {event.step}; a lower optim.lr may help"
        )
