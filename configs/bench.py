"""``visuomotor bench <task>``: every head under the same budget, on the same seeds, as a table. Resumable."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from rich.console import Console

from visuomotor.configs.bench_table import Row, render, replace_block
from visuomotor.configs.build import load_policy, set_threads
from visuomotor.configs.compose import compose_train, groups, parse_plain
from visuomotor.configs.registry import backbones, heads
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.learn.checkpoint import resolve_checkpoint
from visuomotor.policies.policy import Policy

__all__ = ["BenchConfig", "chunk_latency", "main"]

_TRIAL_STEPS = 120
_STOPPED = 130
# What the bench sets.
_PLANNED = ("task", "policy", "run_dir", "resume", "data.path", "train.steps", "train.eval_every", "eval.episodes")


@dataclass(kw_only=True, slots=True)
class BenchConfig:
    """``visuomotor bench <task>``: train every head for the same time and test them on the same seeds.

    Any setting of ``visuomotor train`` may be given too, and holds for all.

    Attributes:
        data: the demonstrations.
        policies: heads, each as ``<head>`` or ``<head>/<backbone>``; empty for all that are registered.
        backbone: network of the heads that name none.
        minutes: training time of each [min]. A short trial measures the speed; the schedule then fits that time.
        episodes: test seeds, the same for all.
        seed: of every training.
        threads: CPU threads; null takes one a core.
        parallel: trainings side by side; give each its share of the cores by threads.
        out: folder of the runs; a bench that was stopped goes on from there. None: ``runs/bench_<task>``.
        table: Markdown file in which the table is kept up to date, between two comment lines that name the task.
    """

    data: str = MISSING
    policies: list[str] = field(default_factory=list)
    backbone: str = "mlp"
    minutes: float = 5.0
    episodes: int = 100
    seed: int = 0
    threads: int | None = None
    parallel: int = 1
    out: str | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        if not self.minutes > 0 or self.episodes < 1 or self.parallel < 1:
            raise ConfigError(
                f"minutes={self.minutes}, episodes={self.episodes}, parallel={self.parallel}: expected more than 0"
            )
        for entry in [*self.policies, f"/{self.backbone}"]:
            head, _, backbone = entry.partition("/")
            if head and head not in heads():
                raise ConfigError(f"unknown policy {head!r}. {nearest(head, heads())}")
            if backbone and backbone not in backbones():
                raise ConfigError(f"unknown backbone {backbone!r}. {nearest(backbone, backbones())}")

    def entries(self) -> list[tuple[str, str]]:
        """``(head, backbone)`` of every row, each once."""
        chosen = self.policies or sorted(heads())
        return list(dict.fromkeys((e.partition("/")[0], e.partition("/")[2] or self.backbone) for e in chosen))


def main(words: Sequence[str]) -> int:
    """Run the bench of the task ``words[0]`` with the settings ``words[1:]``; returns the exit status."""
    task, *rest = words
    tasks = [name for name in groups()["task"] if name != "none"]  # nothing is tested there
    if task not in tasks:
        raise ConfigError(f"unknown task {task!r}. {nearest(task, tasks)}")
    config, settings = _split(task, rest)
    if config.table is not None:
        replace_block(Path(config.table), task, None)  # refuses a file without the place, before hours of work
    out = Path(config.out or f"runs/bench_{task}").expanduser()
    _check_same_bench(out, task, config, settings)
    set_threads(config.threads)
    entries = [_Entry(task, head, backbone, config, settings, out) for head, backbone in config.entries()]
    finished = _train_all(entries, config.parallel)
    rows = [e.row() for e in entries if e.finished]  # latencies are measured when nothing trains beside them
    text = render(rows, minutes=config.minutes, episodes=config.episodes)
    (out / "table.md").write_text(text)
    (out / "table.json").write_text(json.dumps([r.to_dict() for r in rows], indent=1))
    if config.table is not None:
        replace_block(Path(config.table), task, text)
    console = Console()
    console.print(text, highlight=False, soft_wrap=True, markup=False)
    if not finished:
        console.print(f"stopped; the same command goes on in {out}", highlight=False, soft_wrap=True)
    return 0 if finished else _STOPPED


def _split(task: str, words: Sequence[str]) -> tuple[BenchConfig, list[str]]:
    """The bench's own settings, and those of ``visuomotor train``, which are tried out at once."""
    own = {f.name for f in fields(BenchConfig)}
    settings = [w for w in words if w.partition("=")[0] not in own]
    config = parse_plain(BenchConfig, [w for w in words if w not in settings])
    for word in settings:
        if word.partition("=")[0] in _PLANNED:
            raise ConfigError(f"{word}: the bench sets this itself, by {', '.join(sorted(own))}")
    compose_train([f"task={task}", f"data={config.data}", *settings])
    return config, settings


def _train_all(entries: Sequence[_Entry], parallel: int) -> bool:
    """Train what is not trained yet, ``parallel`` at a time; False if that was interrupted."""
    pool, stopped = ThreadPoolExecutor(parallel), threading.Event()

    def train(entry: _Entry) -> bool:
        if stopped.is_set() or not entry.train():
            stopped.set()  # a training that was told to stop speaks for all
            return False
        return True

    try:
        return all(list(pool.map(train, entries)))
    except KeyboardInterrupt:  # the trainings get it too, and leave checkpoints
        return False
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_same_bench(out: Path, task: str, config: BenchConfig, settings: list[str]) -> None:
    """A folder holds one bench: rows of other tasks, budgets or seeds must not be mixed."""
    names = ("data", "minutes", "episodes", "seed", "threads", "parallel")
    same = {"task": task, **{k: getattr(config, k) for k in names}, "settings": settings}
    saved = out / "bench.json"
    if saved.exists():
        before = {"task": task, **json.loads(saved.read_text())}  # an older bench did not write its task
        for name, value in same.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"{out} holds a bench with {name}={before.get(name)}, asked for is {name}={value}: choose another "
                    "out= folder, or the same settings to go on"
                )
    out.mkdir(parents=True, exist_ok=True)
    saved.write_text(json.dumps(same, indent=1))


class _Entry:
    """One row: trial, training, evaluation and latency, each done once and found again after an interruption."""

    def __init__(
        self, task: str, head: str, backbone: str, config: BenchConfig, settings: list[str], out: Path
    ) -> None:
        self._task, self._head, self._backbone = task, head, backbone
        self._config, self._settings = config, settings
        self._dir = out / f"{head}_{backbone}"
        self._run, self._refused = self._dir / "run", self._dir / "refused.txt"
        self._final = self._run / "eval" / "final.json"

    @property
    def finished(self) -> bool:
        """Whether there is a result or a refusal."""
        return self._final.exists() or self._refused.exists()

    def train(self) -> bool:
        """Train and test unless that is done; False if it was interrupted."""
        if self.finished:
            return True
        self._dir.mkdir(parents=True, exist_ok=True)
        if (self._run / "checkpoints" / "last").exists():
            status = self._visuomotor("train", f"resume={self._run}")
        else:
            steps = self._steps()
            if steps is None:
                return self.finished
            words = self._words(self._run, steps, save_every=max(1, steps // 8))
            status = self._visuomotor(*words, f"eval.episodes={self._config.episodes}", "eval.videos=0")
        if status > 0 and status != _STOPPED:
            self._refused.write_text(f"training ended with status {status}, see {self._run}")
        return self.finished

    def row(self) -> Row:
        """The finished row."""
        if self._refused.exists():
            return Row(self._head, self._backbone, refused=self._refused.read_text().strip())
        result = json.loads(self._final.read_text())
        return Row(
            self._head,
            self._backbone,
            score=result["score"],
            success=result["success"],
            scores=[e["score"] for e in result["episodes"]],
            minutes=_training_minutes(self._run),
            steps=int(json.loads((self._dir / "plan.json").read_text())["steps"]),
            **self._speed(),
        )

    def _steps(self) -> int | None:
        """Steps that fit the budget, from a short trial; None if it was interrupted or refused."""
        path, trial = self._dir / "plan.json", self._dir / "trial"
        if not path.exists():
            print(f"{self._head}/{self._backbone}: measuring the speed", flush=True)
            shutil.rmtree(trial, ignore_errors=True)
            words = self._words(trial, _TRIAL_STEPS, save_every=0)
            status = self._visuomotor(*words, "eval.episodes=0", "train.log_every=20")
            if status > 0 and status != _STOPPED:
                self._refused.write_text(f"visuomotor train ended with status {status}")
            if status:
                return None
            steps = max(1, round(_steps_per_s(trial) * 60 * self._config.minutes))
            path.write_text(json.dumps({"steps": steps}))
        return int(json.loads(path.read_text())["steps"])

    def _words(self, run: Path, steps: int, *, save_every: int) -> list[str]:
        c = self._config
        own = [] if c.threads is None else [f"threads={c.threads}"]
        return [
            "train", f"task={self._task}", f"policy={self._head}", f"backbone={self._backbone}", f"data={c.data}",
            f"run_dir={run}", f"seed={c.seed}", f"train.steps={steps}", "train.eval_every=0", "train.val_every=0",
            f"train.save_every={save_every}", *own, *self._settings,
        ]  # fmt: skip

    def _visuomotor(self, *words: str) -> int:
        """A process of its own: nothing that one training leaves behind changes the next.

        The status is negative where a signal ended it (out of memory, a second Ctrl-C): nothing that the policy is to
        blame for, so it is tried again by the same command.
        """
        return subprocess.run([sys.executable, "-m", "visuomotor.configs.cli", *words], check=False).returncode

    def _speed(self) -> dict[str, Any]:
        path = self._dir / "speed.json"
        if not path.exists():
            policy = load_policy(resolve_checkpoint(self._run)).policy
            count = sum(p.numel() for p in policy.parameters())
            path.write_text(json.dumps({"parameters": count, **chunk_latency(policy)}))
        speed: dict[str, Any] = json.loads(path.read_text())
        return speed


def _steps_per_s(trial: Path) -> float:
    lines = [json.loads(text) for text in (trial / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["samples_per_s"] for line in lines if "samples_per_s" in line][2:]  # the first ones warm up
    model = json.loads((trial / "checkpoints" / "last" / "config.json").read_text())
    batch_size: int = model["config"]["train"]["batch_size"]
    return statistics.median(speeds) / batch_size


def _training_minutes(run: Path) -> float:
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return max(float(line["time_s"]) for line in lines if "loss" in line) / 60


def chunk_latency(policy: Policy, *, calls: int = 200, warmup: int = 20) -> dict[str, float]:
    """Time of one chunk at batch 1, observations to raw actions: ``{"p50_ms", "p99_ms"}``."""
    spec, device = policy.spec, policy.device
    steps = {k: 1 if k in spec.constant_keys else spec.window.n_obs for k in spec.obs}
    obs = {k: torch.zeros(1, steps[k], *s.shape, device=device) for k, s in spec.obs.items()}
    obs = {k: v.byte() if spec.obs[k].dtype == "uint8" else v for k, v in obs.items()}
    noise = policy.draw_noise(1, torch.Generator().manual_seed(0))
    times = []
    for i in range(warmup + calls):
        start = time.perf_counter()
        policy.sample(obs, noise).cpu()
        if i >= warmup:
            times.append(1e3 * (time.perf_counter() - start))
    times.sort()
    return {"p50_ms": statistics.median(times), "p99_ms": times[min(len(times) - 1, round(0.99 * len(times)))]}
