"""Subscribers of the training loop: the log on disk, tensorboard, and the bar that says how long it will take."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from visuomotor.policies.learn.events import StepEvent

__all__ = ["MetricLog", "ProgressBar"]


class MetricLog:
    """Appends to ``metrics.jsonl`` and to tensorboard. On resume, lines past the checkpoint are cut first.

    ``time_s`` goes on from the last line that is kept, so it is time spent training, whatever lay between.
    """

    def __init__(self, run_dir: Path, steps_done: int) -> None:
        self._path = run_dir / "metrics.jsonl"
        kept = _lines_up_to(self._path, steps_done)
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a")
        from torch.utils.tensorboard import SummaryWriter  # two seconds of import: only where a run is logged

        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=steps_done + 1)
        self._before = max((float(line["time_s"]) for line in kept if "time_s" in line), default=0.0)
        self._start = self._last_time = time.perf_counter()
        self._last_step = steps_done

    @property
    def seconds(self) -> float:
        """Time spent training so far, interruptions left out [s]."""
        return self._before + time.perf_counter() - self._start

    def __call__(self, event: StepEvent) -> None:
        """Log loss, learning rate, gradient norm and speed since the last call."""
        if event.step == self._last_step:
            return
        now = time.perf_counter()
        rate = (event.step - self._last_step) * event.batch_size / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = event.step, now
        self.write(
            event.step,
            {"loss": float(event.loss), "lr": event.lr, "grad_norm": float(event.grad_norm), "samples_per_s": rate},
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log ``values`` at ``step``."""
        self._file.write(json.dumps({"step": step, "time_s": self.seconds, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()


def _lines_up_to(path: Path, steps_done: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # a kill in mid-line
            continue
        if line.get("step", 0) <= steps_done:
            lines.append(line)
    return lines


class ProgressBar:
    """Steps done, loss, samples/s and time left. In a terminal a bar; elsewhere a line every ``interval`` seconds."""

    def __init__(self, total: int, steps_done: int, console: Console, interval: float = 15.0) -> None:
        self._console, self._interval, self._total = console, interval, total
        self._start = self._last = time.perf_counter()
        self._first = steps_done
        columns = ("{task.completed}/{task.total}", "loss {task.fields[loss]}", "{task.fields[rate]} samples/s")
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            *(TextColumn(c) for c in columns),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=total, completed=steps_done, loss="-", rate="-")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, event: StepEvent) -> None:
        """Show the state after ``event``."""
        now = time.perf_counter()
        done = event.step - self._first
        rate = done * event.batch_size / max(now - self._start, 1e-9)
        self._bar.update(self._task, completed=event.step, loss=f"{float(event.loss):.4f}", rate=f"{rate:,.0f}")
        if not self._console.is_terminal and (now - self._last >= self._interval or event.step == event.total):
            self._last = now
            left = (self._total - event.step) * (now - self._start) / max(done, 1)
            self._console.print(
                f"step {event.step}/{self._total}  loss {float(event.loss):.4f}  {rate:,.0f} samples/s  "
                f"{left / 60:.1f} min left",
                highlight=False,
            )
