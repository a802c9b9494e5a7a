"""Recording of episodes step by step, shared by simulation, teleoperation and the robot. Imports without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from visuomotor.data.buffering import BlockPool, BufferedEpisode, RecorderLoad
from visuomotor.data.errors import DataError, nearest
from visuomotor.data.rows import check_keys, conform, conform_columns
from visuomotor.data.store import DemoStore

__all__ = ["EpisodeRecorder"]


class EpisodeRecorder:
    """Stream the steps of one episode at a time into a store.

    :meth:`step` checks and copies a step into a buffer; a thread writes the buffer to a staging folder. So memory stays
    constant, and a killed recording loses its own episode only. :meth:`end` makes the episode part of the store; it is
    then on disk for good. When the journal is full (see ``journal_bytes`` of :meth:`DemoStore.open`), what has gathered
    there is compressed into the arrays in the background while the next episode is recorded. ::

        with EpisodeRecorder("demos.zarr") as recorder:
            recorder.start({"task": "push the block"})
            while ...:
                recorder.step({"state": state, "action": action})
            recorder.end({"success": True})

    No step is ever dropped unsaid. Where the disk does not keep up and the buffer is full, :meth:`step` waits for room,
    at most ``max_wait_s``; then it raises, and so does every later step of the episode, since an episode with a hole is
    none. What was recorded until then can be kept by :meth:`end`. :attr:`load` counts both.

    Args:
        store: a store open for append, which stays open; or a path, opened here and closed by :meth:`close`.
        buffer_bytes: memory for steps that are not on disk yet. Three cameras of 640 x 480 at 30 Hz are 83 MB a second.
        max_wait_s: how long a step may wait for room in it [s]; 0 for a control loop that must not wait.

    Raises:
        DataError: the path is no store, or another writer has it.
    """

    def __init__(
        self, store: DemoStore | str | Path, *, buffer_bytes: int = 256 << 20, max_wait_s: float = 1.0
    ) -> None:
        self._owned = not isinstance(store, DemoStore)
        self.store = store if isinstance(store, DemoStore) else DemoStore.open(store, "a")
        self.load = RecorderLoad()
        self._pool, self._max_wait_s = BlockPool(self.store.specs, buffer_bytes), max_wait_s
        self._episode: BufferedEpisode | None = None
        self._columns: dict[str, Any] = {}

    @property
    def recording(self) -> bool:
        """True between :meth:`start` and :meth:`end` or :meth:`discard`."""
        return self._episode is not None

    @property
    def n_steps(self) -> int:
        """Steps of the episode being recorded."""
        return 0 if self._episode is None else self._episode.length

    def start(self, columns: Mapping[str, Any] | None = None) -> None:
        """Begin an episode, with the per-episode values that are known already.

        Raises:
            DataError: an episode is being recorded, or the store has no such column.
        """
        if self._episode is not None:
            raise DataError(f"an episode of {self.n_steps} steps is being recorded: end() or discard() it first")
        given = dict(columns or {})
        self._check_columns(given)
        try:
            staged = self.store.stage(steady=True)
        except OSError as error:
            raise DataError(f"{self.store.path}: recording cannot start: {error.strerror or error}") from None
        self._episode, self._columns = BufferedEpisode(staged, self._pool, self.load, self._max_wait_s), given

    def step(self, data: Mapping[str, Any]) -> None:
        """Add one step: ``{key: value}`` with every key of the store, each of its spec's shape. It is copied.

        Raises:
            DataError: no episode was started; a key, shape, type or value is wrong (the step is then not recorded); the
                disk does not keep up (see the class); or the disk is full (the episode is then lost, the store
                unchanged).
        """
        episode = self._running()
        specs = self.store.specs
        check_keys(data, specs, what="array")
        rows = {key: conform(key, data[key], spec, batched=False) for key, spec in specs.items()}
        try:
            taken = episode.add(rows)
        except OSError as error:
            raise self._lost(error) from None
        if not taken:
            raise DataError(
                f"{self.store.path}: the disk does not keep up: the buffer stayed full for {self._max_wait_s:g} s, so "
                f"step {episode.length} was refused, and later ones are. end() keeps the steps before it. Give more "
                "buffer_bytes or max_wait_s, record less (frame rate, picture size), or take a faster disk"
            )

    def end(self, columns: Mapping[str, Any] | None = None) -> int:
        """Commit the episode, with the remaining per-episode values, and return its index.

        Raises:
            DataError: nothing was recorded, or a column is missing or wrong (the recording then goes on); or the disk
                is full.
        """
        episode = self._running()
        if episode.length == 0:
            raise DataError("the episode has no steps: record at least one, or discard() it")
        values = conform_columns({**self._columns, **(columns or {})}, self.store.column_types)
        try:
            episode.finish()
            index = self.store.commit(episode.staged, values, background=True)
        except OSError as error:
            raise self._lost(error) from None
        finally:
            if episode.staged.committed:
                self._episode = None
        return index

    def discard(self) -> None:
        """Drop the episode being recorded, if there is one."""
        episode, self._episode = self._episode, None
        if episode is not None:
            episode.abandon()
            episode.staged.discard()

    def close(self) -> None:
        """Drop an unfinished episode; close the store if it was opened here."""
        self.discard()
        if self._owned:
            self.store.close()

    def _running(self) -> BufferedEpisode:
        if self._episode is None:
            raise DataError("no episode is being recorded: call start() first")
        return self._episode

    def _check_columns(self, given: Mapping[str, Any]) -> None:
        kinds = self.store.column_types
        for name in given:
            if name not in kinds:
                raise DataError(f"unknown episode column {name!r}. {nearest(name, kinds)}")
        conform_columns(given, {name: kinds[name] for name in given})

    def _lost(self, error: OSError) -> DataError:
        n = self.n_steps
        self.discard()
        return DataError(
            f"{self.store.path}: the recording was lost after {n} steps: {error.strerror or error}. "
            f"The store is unchanged, with {self.store.n_episodes} episodes"
        )

    def __enter__(self) -> EpisodeRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
