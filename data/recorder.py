"""Recording of episodes step by step, shared by simulation, teleoperation and the robot. Imports without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from visuomotor.data.errors import DataError, nearest
from visuomotor.data.journal import StagedEpisode
from visuomotor.data.rows import check_keys, conform, conform_columns
from visuomotor.data.store import DemoStore

__all__ = ["EpisodeRecorder"]


class EpisodeRecorder:
    """Stream the steps of one episode at a time into a store.

    Steps go to a staging folder as they come, so memory stays constant and a killed recording loses its own episode
    only. :meth:`end` makes the episode part of the store; it is then on disk for good. When the journal is full (see
    ``journal_bytes`` of :meth:`DemoStore.open`) it also compresses what has gathered there, which takes seconds. ::

        with EpisodeRecorder("demos.zarr") as recorder:
            recorder.start({"task": "push the block"})
            while ...:
                recorder.step({"state": state, "action": action})
            recorder.end({"success": True})

    Args:
        store: a store open for append, which stays open; or a path, opened here and closed by :meth:`close`.

    Raises:
        DataError: the path is no store, or another writer has it.
    """

    def __init__(self, store: DemoStore | str | Path) -> None:
        self._owned = not isinstance(store, DemoStore)
        self.store = store if isinstance(store, DemoStore) else DemoStore.open(store, "a")
        self._staged: StagedEpisode | None = None
        self._columns: dict[str, Any] = {}

    @property
    def recording(self) -> bool:
        """True between :meth:`start` and :meth:`end` or :meth:`discard`."""
        return self._staged is not None

    @property
    def n_steps(self) -> int:
        """Steps of the episode being recorded."""
        return 0 if self._staged is None else self._staged.length

    def start(self, columns: Mapping[str, Any] | None = None) -> None:
        """Begin an episode, with the per-episode values that are known already.

        Raises:
            DataError: an episode is being recorded, or the store has no such column.
        """
        if self._staged is not None:
            raise DataError(f"an episode of {self.n_steps} steps is being recorded: end() or discard() it first")
        given = dict(columns or {})
        self._check_columns(given)
        try:
            self._staged = self.store.stage()
        except OSError as error:
            raise DataError(f"{self.store.path}: recording cannot start: {error.strerror or error}") from None
        self._columns = given

    def step(self, data: Mapping[str, Any]) -> None:
        """Add one step: ``{key: value}`` with every key of the store, each of its spec's shape.

        Raises:
            DataError: no episode was started; a key, shape, type or value is wrong (the step is then not recorded); or
                the disk is full (the episode is then lost, the store unchanged).
        """
        staged = self._running()
        specs = self.store.specs
        check_keys(data, specs, what="array")
        rows = {key: conform(key, data[key], spec, batched=False)[None] for key, spec in specs.items()}
        try:
            staged.write(rows, 1)
        except OSError as error:
            raise self._lost(error) from None

    def end(self, columns: Mapping[str, Any] | None = None) -> int:
        """Commit the episode, with the remaining per-episode values, and return its index.

        Raises:
            DataError: nothing was recorded, or a column is missing or wrong (the recording then goes on); or the disk
                is full.
        """
        staged = self._running()
        if staged.length == 0:
            raise DataError("the episode has no steps: record at least one, or discard() it")
        values = conform_columns({**self._columns, **(columns or {})}, self.store.column_types)
        try:
            index = self.store.commit(staged, values)
        except OSError as error:
            raise self._lost(error) from None
        finally:
            if staged.committed:
                self._staged = None
        return index

    def discard(self) -> None:
        """Drop the episode being recorded, if there is one."""
        staged, self._staged = self._staged, None
        if staged is not None:
            staged.discard()

    def close(self) -> None:
        """Drop an unfinished episode; close the store if it was opened here."""
        self.discard()
        if self._owned:
            self.store.close()

    def _running(self) -> StagedEpisode:
        if self._staged is None:
            raise DataError("no episode is being recorded: call start() first")
        return self._staged

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
