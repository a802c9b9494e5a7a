"""Episodes of the bridge into a store: a listener that only hands over, and a thread that writes.

Torch-free, in the bridge's process. What a tick costs is a few references and small copies; what the disk costs is the
thread's. Where the disk does not keep up the episode is cut off, and that is counted and said: the arm does not wait.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.errors import UserError
from visuomotor.data.recorder import EpisodeRecorder
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.recording.layout import INTERVENTION, array_specs, open_store
from visuomotor.sim2real.runtime.actions import ActionMap
from visuomotor.sim2real.runtime.types import State, Tick

__all__ = ["EpisodeTape", "TapeCounts"]

_BYTES = 256 << 20  # of steps that wait for the thread
_PATIENCE_S = 1.0  # of the thread, for the disk


@dataclass
class TapeCounts:
    """What was recorded. ``dropped``: steps that nothing was left of, because the disk did not keep up."""

    episodes: int = 0
    steps: int = 0
    interventions: int = 0
    dropped: int = 0
    trouble: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dict(vars(self))


@dataclass
class _Row:
    """One control step, from its observation to the next."""

    number: int  # counts every step, those that are dropped as well
    values: dict[str, np.ndarray]
    episode: int
    seed: int
    human: bool
    action: np.ndarray | None
    before: np.ndarray | None  # commanded at its beginning
    extra: dict[str, Any]
    after: np.ndarray | None = None  # commanded at its end
    opening: float = 0.0


@dataclass
class _Text:
    text: str


@dataclass
class _End:
    success: bool
    rows: int  # that were made until then


@dataclass
class _Episode:
    number: int
    next_row: int
    interventions: int = 0
    acted: bool = False  # a person, in the step before
    target: np.ndarray | None = None  # where a person's actions have led to
    cut: bool = False
    events: list[str] = field(default_factory=list)


class EpisodeTape:
    """A :data:`~visuomotor.sim2real.runtime.types.Listener` that records.

    A row holds the observation of a control step and the action that was in force from it on. While a person commands,
    the action is the one that would have commanded the same motion, in the policy's own terms: so episodes with
    interventions train as they are. Recorded beside it: what was sent after the safety filter at the end of the step,
    what was measured, and ``is_intervention``.

    Args:
        path: the store; one that exists is added to.
        policy: its observations and action.
        fps: control steps per second.
        joints: as the driver names them.
        actions: of this tape alone (its kinematics are used in another thread).
        gripper: whether the robot has one.
        task: text of the column ``task``.

    Attributes:
        counts: what was recorded so far.

    Raises:
        DataError: a store that cannot take it.
    """

    def __init__(
        self, path: Path, policy: PolicySpec, fps: float, joints: tuple[str, ...], actions: ActionMap, *,
        gripper: bool, task: str,
    ) -> None:  # fmt: skip
        specs = array_specs(policy, joints, gripper=gripper)
        self._store = open_store(path, specs, fps)
        self._recorder = EpisodeRecorder(self._store, max_wait_s=_PATIENCE_S)
        self._actions, self._task, self._action_key = actions, task, policy.action_key
        size = sum(s.size * np.dtype(s.dtype).itemsize for s in specs.values())
        self._items: queue.SimpleQueue[_Row | _Text | _End | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(max(16, min(4096, _BYTES // max(1, size))))  # for steps
        self._pending: _Row | None = None
        self._rows = 0
        self._now: _Episode | None = None
        self.counts = TapeCounts()
        self._thread = threading.Thread(target=self._write, name="tape", daemon=True)
        self._thread.start()

    # ---- in the bridge's thread

    def __call__(self, tick: Tick) -> None:
        if tick.episode < 0:
            self._pending = None
            return
        moves = tick.state in (State.RUN, State.HUMAN)
        row = self._pending
        if row is not None and (tick.observed is not None or not moves or tick.outcome is not None):
            row.after, row.opening = _copy(tick.sent), tick.sent_opening
            self._pending = None
            if self._room.acquire(blocking=False):
                self._items.put(row)
            else:
                self.counts.dropped += 1
        elif row is not None and row.action is None and not row.human:
            row.action = _copy(tick.action)
        for text in tick.events:
            self._items.put(_Text(f"{tick.stamp_ns * 1e-9:.3f} {text}"))
        if tick.outcome is not None:
            self._items.put(_End(tick.outcome, self._rows))
        elif tick.observed is not None and moves:
            self._pending = self._row(tick)

    def _row(self, tick: Tick) -> _Row:
        assert tick.observed is not None
        human = tick.state is State.HUMAN
        self._rows += 1
        return _Row(
            number=self._rows,
            values=dict(tick.observed.values),
            episode=tick.episode,
            seed=tick.observed.seed,
            human=human,
            action=None if human else _copy(tick.action),
            before=_copy(tick.sent),
            extra={
                "measured_joints": tick.measured.copy(),
                "measured_velocity": tick.velocity.copy(),
                "measured_gripper": np.array([tick.opening]),
                "stamp": tick.stamp_ns * 1e-9,
                INTERVENTION: human,
            },
        )

    def close(self) -> TapeCounts:
        """Write what is waiting, drop an episode that has no end, and close the store."""
        self._items.put(None)
        self._thread.join()
        try:
            self._recorder.close()
            self._store.close()
        except UserError as error:  # what else the session has to tell is not lost for it
            self._tell(error)
        return self.counts

    # ---- in the tape's thread

    def _write(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                self._take(item)
            except Exception as error:  # a full disk, a value that the store does not take: later episodes go on
                self._tell(error)
                if self._now is not None:
                    self._now.cut = True

    def _tell(self, error: Exception) -> None:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self.counts.trouble = self.counts.trouble or text

    def _take(self, item: _Row | _Text | _End) -> None:
        if isinstance(item, _Row):
            try:
                self._step(item)
            finally:
                self._room.release()
        elif isinstance(item, _Text):
            if self._now is not None:
                self._now.events.append(item.text)
        else:
            self._end(item)

    def _step(self, row: _Row) -> None:
        now = self._now
        if now is None or now.number != row.episode:
            self._recorder.discard()
            now = self._now = _Episode(row.episode, row.number)
            self._start(row.seed)
        now.cut = now.cut or row.number != now.next_row
        now.next_row = row.number + 1
        if now.cut or not self._recorder.recording:
            self.counts.dropped += 1
            return
        data = {**row.values, **row.extra, self._action_key: self._action(row, now)}
        data["sent"] = row.extra["measured_joints"] if row.after is None else row.after
        data["sent_gripper"] = np.array([row.opening])
        self._recorder.step({key: data[key] for key in self._store.specs})
        self.counts.steps += 1
        now.interventions += row.human and not now.acted
        now.acted = row.human

    def _action(self, row: _Row, now: _Episode) -> np.ndarray:
        """The action of a step: the policy's, or the one that commands the motion that was commanded."""
        if row.action is not None:
            now.target = None
            return row.action
        measured = row.extra["measured_joints"]
        before = now.target if now.target is not None and row.human else row.before
        before = measured if before is None else before
        action = self._actions.inverse(before, before if row.after is None else row.after, row.opening)
        # bounded actions may fall behind a quick hand: the next ones make up for it
        now.target = self._actions.apply(before, row.opening, action)[0] if row.human else None
        return action

    def _start(self, seed: int) -> None:
        known = {"seed": seed, "task": self._task}
        self._recorder.start({k: v for k, v in known.items() if k in self._store.column_types})

    def _end(self, end: _End) -> None:
        now, self._now = self._now, None
        if now is None or not self._recorder.recording:
            return
        now.cut = now.cut or now.next_row != end.rows + 1
        if self._recorder.n_steps == 0:
            self._recorder.discard()
            return
        columns = {
            "success": end.success and not now.cut,
            "interventions": now.interventions,
            "complete": not now.cut,
            "events": "\n".join(now.events),
        }
        self._recorder.end({k: v for k, v in columns.items() if k in self._store.column_types})
        self.counts.episodes += 1
        self.counts.interventions += now.interventions


def _copy(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else np.array(values, np.float64)
