"""Moving the journal into the Zarr arrays, in an order in which a kill at any instant loses nothing."""

from __future__ import annotations

import json
import os
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from visuomotor.data.chunk_files import ChunkFiles, Encoded, Submit, can_write
from visuomotor.data.chunks import chunk_rows
from visuomotor.data.durable import DurableStore, remove_tree
from visuomotor.data.journal import JournalEntry
from visuomotor.data.reader import StoreReader

__all__ = ["Compaction", "consolidate_again", "write_ends"]

_READ_BYTES = 16 << 20
_NICE = 10  # whoever records goes first


class Compaction:
    """The committed episodes of the journal, as they are now, on their way into the arrays.

    Rows first, then columns, then ``episode_ends``, each flushed before the next: until the ends are written, readers
    take the old number of episodes and the journal. Doing it again after a kill writes the same values. Memory: one
    chunk file of one array.

    :meth:`finish` does it, or if :meth:`start` was called, waits for it. It changes files only: the store that it was
    given goes on with its old view, journal included, until it takes over ``ends``; then the entries may go.

    Attributes:
        entries: the episodes of the journal that are moved.
        ends: int64 ``[E]``: all episode ends afterwards.
    """

    def __init__(self, store: StoreReader) -> None:
        files = store.root.group.store
        assert isinstance(files, DurableStore)
        self.entries: Sequence[JournalEntry] = store.journal
        self.ends = store.episode_ends
        self._files, self._root, self._ours = files, store.path, store.ours
        self._specs, self._arrays = dict(store.specs), dict(store.arrays)
        self._ends_array, self._first, self._start = store.ends_array, len(store.array_ends), store.n_array_steps
        self._columns = {name: (store.columns[name], values) for name, values in store.episode_columns.items()}
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin in a thread. Compression, checksums and the disk leave the interpreter to others meanwhile."""
        self._thread = threading.Thread(target=self._run_quietly, name="compaction", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """The thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> None:
        """Return when it is done.

        Raises:
            DataError: an entry of the journal is damaged.
            OSError: the disk is full; the store is as good as before.
        """
        if self._thread is None:
            self._run()
            return
        self.wait()
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Return when the thread, if there is one, has ended."""
        if self._thread is not None:
            self._thread.join()

    def remove_entries(self) -> threading.Thread:
        """Delete the entries, in a thread that is returned: the files of a long episode take a while."""
        remover = threading.Thread(target=self._remove_entries, name="journal-removal", daemon=True)
        remover.start()
        return remover

    def _remove_entries(self) -> None:
        for entry in self.entries:
            remove_tree(entry.path)

    def _run_quietly(self) -> None:
        try:
            _step_back()
            self._run()
        except BaseException as error:  # raised again by finish(), in the thread that wants to know
            self._error = error

    def _run(self) -> None:
        for key, array in self._arrays.items():
            write = self._write_rows if self._ours and can_write(array) else self._write_foreign_rows
            write(key, array)
        for column, values in self._columns.values():
            column.resize((len(self.ends),))
            column[self._first :] = values[self._first :]
        self._files.flush_directories()
        write_ends(self._ends_array, self.ends, self._first)
        self._files.flush_directories()
        consolidate_again(self._root, self._files)

    def _rows(self, key: str) -> Iterator[np.ndarray]:
        """Rows of all entries, a part of an entry at a time, checked on the way.

        Damage is noticed at the end of an entry, when its rows were written; without its episode end it does not count.
        """
        spec = self._specs[key]
        block = max(1, _READ_BYTES // (spec.size * np.dtype(spec.dtype).itemsize))
        for entry in self.entries:
            checksum = 0
            for start in range(entry.start, entry.stop, block):
                rows = entry.read(key, spec, start, min(start + block, entry.stop))
                checksum = zlib.crc32(rows.data.cast("B"), checksum)
                yield rows
            entry.check(key, checksum)

    def _write_rows(self, key: str, array: zarr.Array) -> None:
        """Write chunk files one by one; the first of them may hold rows that are in the array already."""
        begun = self._start // chunk_rows(array) * chunk_rows(array)
        with self._compressing() as submit:
            files = ChunkFiles(
                f"data/{key}", array, begun, submit, lambda path, chunks: self._write(files, path, chunks)
            )
            if begun < self._start:
                files.add(np.asarray(array[begun : self._start]))
            for rows in self._rows(key):
                files.add(rows)
            files.flush()
        array.resize((self.entries[-1].stop, *array.shape[1:]))

    def _write(self, files: ChunkFiles, path: str, chunks: list[Future[Encoded]]) -> None:
        self._files.set_parts(path, files.assemble([chunk.result() for chunk in chunks]))

    @contextmanager
    def _compressing(self) -> Iterator[Submit]:
        """All cores where somebody waits, else none but this thread: there are others to work on the other cores."""
        if self._thread is None:
            with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="compaction") as pool:
                yield pool.submit
        else:
            yield _at_once

    def _write_foreign_rows(self, key: str, array: zarr.Array) -> None:
        """Of a store that others made, or made anew, with chunks and codecs that only Zarr knows."""
        start, rows = self._start, chunk_rows(array)
        array.resize((self.entries[-1].stop, *array.shape[1:]))
        held: list[np.ndarray] = []
        for part in self._rows(key):
            held.append(part)
            n = sum(map(len, held))
            end = (start + n) // rows * rows  # whole chunk files
            if end > start:
                joined = np.concatenate(held)
                array[start:end], held, start = joined[: end - start], [joined[end - start :]], end
        if held and sum(map(len, held)):
            array[start:] = np.concatenate(held)


def _step_back() -> None:
    """Lower the priority of this thread, which on Linux is what setpriority(2) takes for a process."""
    me = threading.get_native_id()
    with suppress(OSError):  # where that is forbidden, it goes without
        if os.getpriority(os.PRIO_PROCESS, me) < _NICE:  # only root may raise it
            os.setpriority(os.PRIO_PROCESS, me, _NICE)


def _at_once(function: Callable[..., Encoded], *args: Any) -> Future[Encoded]:
    done: Future[Encoded] = Future()
    done.set_result(function(*args))
    return done


def consolidate_again(path: Path, files: DurableStore) -> None:
    """Refresh the copy of all metadata that other programs may keep in the root: they would see the old shapes."""
    root = path / "zarr.json"
    inline = root.exists() and json.loads(root.read_text()).get("consolidated_metadata") is not None
    if inline or (path / ".zmetadata").exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the journal folder is no Zarr node
            zarr.consolidate_metadata(files)


def write_ends(array: zarr.Array, ends: np.ndarray, first: int) -> None:
    rows = chunk_rows(array)
    array.resize((len(ends),))
    while first < len(ends):  # chunk by chunk in order, so that what is unwritten after a kill is always the end
        end = min(len(ends), (first // rows + 1) * rows)
        array[first:end] = ends[first:end]
        first = end
