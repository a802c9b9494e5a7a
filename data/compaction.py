"""Moving the journal into the Zarr arrays, in an order in which a kill at any instant loses nothing."""

from __future__ import annotations

import json
import threading
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zarr

from visuomotor.data.chunks import chunk_rows
from visuomotor.data.durable import DurableStore, remove_tree
from visuomotor.data.journal import JournalEntry
from visuomotor.data.reader import StoreReader

__all__ = ["Compaction", "write_ends"]


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
        self._files, self._root = files, store.path
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
        self._thread.join()
        if self._error is not None:
            raise self._error

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
            self._run()
        except BaseException as error:  # raised again by finish(), in the thread that wants to know
            self._error = error

    def _run(self) -> None:
        for key, array in self._arrays.items():
            self._write_rows(key, array)
        for column, values in self._columns.values():
            column.resize((len(self.ends),))
            column[self._first :] = values[self._first :]
        self._files.flush_directories()
        write_ends(self._ends_array, self.ends, self._first)
        self._files.flush_directories()
        _consolidate_again(self._root, self._files)

    def _write_rows(self, key: str, array: zarr.Array) -> None:
        """Write the rows of all entries, chunk file by chunk file, and check them on the way.

        What is damaged is noticed after it was written; without its episode end it does not count.
        """
        rows, stop, spec = chunk_rows(array), self.entries[-1].stop, self._specs[key]
        checksums = [0] * len(self.entries)
        array.resize((stop, *array.shape[1:]))
        start = self._start
        while start < stop:
            end = min(stop, (start // rows + 1) * rows)
            parts = []
            for i, entry in enumerate(self.entries):
                if entry.start < end and entry.stop > start:
                    parts.append(entry.read(key, spec, max(start, entry.start), min(end, entry.stop)))
                    checksums[i] = zlib.crc32(parts[-1].data.cast("B"), checksums[i])
                    if entry.stop <= end:
                        entry.check(key, checksums[i])
            array[start:end] = parts[0] if len(parts) == 1 else np.concatenate(parts)
            start = end


def _consolidate_again(path: Path, files: DurableStore) -> None:
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
