"""Subscribers of the training loop: the log on disk, tensorboard, and the bar that says how long it will take."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from visuomotor.policies.learn.events import StepEvent

__all__ = ["MetricLog", "ProgressBar", "RunBar"]


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


class RunBar:
    """How far a run is, what it reports, and the time left: a bar in a terminal, elsewhere a line now and then.

    Args:
        title: what is being done.
        console: where to show it.
        done: share of the run that was done before (0..1).
        interval: between lines [s].
    """

    def __init__(self, title: str, console: Console, *, done: float = 0.0, interval: float = 15.0) -> None:
        self._console, self._interval, self._first = console, interval, done
        self._start = self._last = time.perf_counter()
        self._bar = Progress(
            TextColumn(title),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=1.0, state="")
        self._bar.update(self._task, completed=done)

    def __enter__(self) -> RunBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since the bar was made [s]."""
        return time.perf_counter() - self._start

    def show(self, share: float, state: Sequence[str]) -> None:
        """``share`` (0..1) of the run is done; ``state`` are words about it, the first of which is how far it is."""
        self._bar.update(self._task, completed=share, state="  ".join(state))
        now = time.perf_counter()
        if self._console.is_terminal or (now - self._last < self._interval and share < 1.0):
            return
        self._last = now
        left = (1.0 - share) * (now - self._start) / max(share - self._first, 1e-9)
        self._console.print("  ".join([*state, f"{left / 60:.1f} min left"]), highlight=False, soft_wrap=True)


class ProgressBar(RunBar):
    """Steps done, loss, samples/s and time left of a training."""

    def __init__(self, total: int, steps_done: int, console: Console, interval: float = 15.0) -> None:
        super().__init__("training", console, done=steps_done / total, interval=interval)
        self._total, self._steps_before = total, steps_done

    def __call__(self, event: StepEvent) -> None:
        """Show the state after ``event``."""
        rate = (event.step - self._steps_before) * event.batch_size / max(self.seconds, 1e-9)
        state = [f"step {event.step}/{self._total}", f"loss {float(event.loss):.4f}", f"{rate:,.0f} samples/s"]
        self.show(event.step / self._total, state)
