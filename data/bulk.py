"""Many whole episodes into a store at once, without the journal: imports.

Rows go straight into chunk files, compressed by several threads; only the last file of each array, as long as it is not
full, is written more than once. Episodes are committed from time to time, so that a kill loses seconds of work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from visuomotor.data.chunk_files import ChunkFiles, Encoded
from visuomotor.data.chunks import array_files, chunk_rows, chunks_between
from visuomotor.data.compaction import consolidate_again, write_ends
from visuomotor.data.durable import DurableStore
from visuomotor.data.errors import DataError
from visuomotor.data.rows import conform_columns, conform_episode
from visuomotor.data.store import DemoStore

__all__ = ["COMMIT_SECONDS", "BulkError", "BulkWriter"]

COMMIT_SECONDS = 5.0  # what a kill may cost
_COMMIT_SHARE = 20  # commits take a twentieth of the time at most, unless the least time between them is 0
_FILES_WAITING = 2  # chunk files that wait for the disk


class BulkError(DataError):
    """The store cannot be written; nothing more will be."""


class BulkWriter:
    """Context manager that appends episodes to a store, which nobody else may append to meanwhile.

    Order of a commit: rows, flushed; columns, flushed; ``episode_ends``. Readers see committed episodes only. What was
    appended is committed at the end, also of a block that an exception leaves (Ctrl-C). The files do not depend on when
    commits were made: a store that was written with interruptions is the same, byte for byte.

    Args:
        store: open for append.
        pool: compresses; None does it in the calling thread. It takes tasks in order, so whoever also reads episodes
            in it has no more of them in memory than he has asked for, and one.
        commit_seconds: the least time between commits [s].

    Raises:
        BulkError: the disk is full.
    """

    def __init__(
        self, store: DemoStore, pool: Executor | None = None, *, commit_seconds: float = COMMIT_SECONDS
    ) -> None:
        files = store.root.group.store
        assert isinstance(files, DurableStore)
        self._store, self._files, self._pool = store, files, pool
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="disk")  # the others compress while it waits
        self._writes: list[Future[None]] = []
        self._failed = False
        self._ends: list[int] = []  # of the episodes that are not committed yet
        self._values: list[Mapping[str, Any]] = []
        self._least, self._pause, self._since = commit_seconds, commit_seconds, time.monotonic()
        store.compact()
        self._arrays = {key: self._open(key) for key in store.specs}

    def _open(self, key: str) -> ChunkFiles:
        """The files of one array from the one on that is not full; what a killed writer left behind it goes."""
        store, name = self._store, f"data/{key}"
        array, stop = store.arrays[key], store.n_steps
        expected = {path for path, _ in chunks_between(array, name, 0, stop)}
        for path in array_files(store.root, name):
            if path not in expected:
                (store.path / path).unlink()
        begun = stop // chunk_rows(array) * chunk_rows(array)
        files = ChunkFiles(name, array, begun, self._submit, lambda path, chunks: self._write(path, chunks, files))
        if begun < stop:
            files.add(store.read(key, begun, stop))
        return files

    def append(self, arrays: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        """Add one episode ``{key: [L, *shape]}``; the arrays must not change from now on.

        Raises:
            BulkError: the disk is full.
            DataError: a key too many or too few, wrong shape or type, lengths that differ, a NaN: the episode is not
                added.
        """
        checked, length = conform_episode(arrays, self._store.specs)
        values = conform_columns(columns, self._store.column_types)
        with self._writing(halfway=False):
            self._wait(_FILES_WAITING)
        with self._writing():
            for key, files in self._arrays.items():
                files.add(checked[key])
            self._ends.append(length + (self._ends[-1] if self._ends else self._store.n_steps))
            self._values.append(values)
        if time.monotonic() - self._since > self._pause:
            self.commit()

    def commit(self) -> None:
        """Make all episodes that were appended part of the store.

        Raises:
            BulkError: the disk is full; the store is as good as before.
        """
        if not self._ends:
            return
        begun = time.monotonic()
        with self._writing():
            for files in self._arrays.values():
                files.flush()
            self._wait(0)
            self._publish()
        self._since = time.monotonic()
        self._pause = max(self._least, _COMMIT_SHARE * (self._since - begun)) if self._least else 0.0

    def _publish(self) -> None:
        store, first = self._store, self._store.n_episodes
        ends = np.concatenate([store.episode_ends, np.array(self._ends, np.int64)])
        for array in store.arrays.values():
            array.resize((int(ends[-1]), *array.shape[1:]))
        kinds = store.column_types
        for name, column in store.columns.items():
            column.resize((len(ends),))
            column[first:] = np.array([v[name] for v in self._values], object if kinds[name] == "str" else kinds[name])
        self._files.flush_directories()
        write_ends(store.ends_array, ends, first)
        self._files.flush_directories()
        consolidate_again(store.path, self._files)
        store.array_ends, store.n_array_steps = ends, int(ends[-1])
        self._ends, self._values = [], []

    def _submit(self, function: Callable[..., Encoded], *args: Any) -> Future[Encoded]:
        if self._pool is not None:
            return self._pool.submit(function, *args)
        done: Future[Encoded] = Future()
        done.set_result(function(*args))
        return done

    def _write(self, path: str, chunks: list[Future[Encoded]], files: ChunkFiles) -> None:
        def write() -> None:
            self._files.set_parts(path, files.assemble([c.result() for c in chunks]))

        self._writes.append(self._disk.submit(write))

    def _wait(self, left: int) -> None:
        while len(self._writes) > left:
            self._writes[0].result()
            del self._writes[0]

    @contextmanager
    def _writing(self, *, halfway: bool = True) -> Iterator[None]:
        """Within it, an error is the end of this writer, ``halfway`` also Ctrl-C; what the disk says is a sentence."""
        if self._failed:
            raise BulkError(f"{self._store.path}: writing failed before")
        self._failed = halfway
        try:
            yield
        except Exception as error:
            self._failed = True
            if not isinstance(error, OSError):
                raise
            raise BulkError(
                f"{self._store.path} cannot be written: {error.strerror or error}. It holds the "
                f"{self._store.n_episodes} episodes that were committed before"
            ) from None
        self._failed = False

    def __enter__(self) -> BulkWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if not self._failed:
                self.commit()
        finally:
            self._disk.shutdown(wait=True, cancel_futures=True)
