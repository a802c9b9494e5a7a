"""Moving the journal into the Zarr arrays, in an order in which a kill at any instant loses nothing."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import zarr

from visuomotor.data.chunks import chunk_rows
from visuomotor.data.durable import DurableStore
from visuomotor.data.reader import StoreReader

__all__ = ["compact"]


def compact(store: StoreReader) -> np.ndarray:
    """Write the committed episodes of the journal into the arrays and return the new episode ends, int64 ``[E]``.

    Rows first, then columns, then ``episode_ends``, each flushed before the next: until the ends are written, readers
    take the old number of episodes and the journal. Doing it again after a kill writes the same values. Memory: one
    chunk file of one array.

    Raises:
        DataError: an entry of the journal is damaged.
        OSError: the disk is full; the store is as good as before.
    """
    files = store.root.group.store
    assert isinstance(files, DurableStore)
    for entry in store.journal:
        for key in store.specs:
            entry.check(key)
    ends, first = store.episode_ends, len(store.array_ends)
    for key, array in store.arrays.items():
        _write_rows(store, key, array)
    columns = store.episode_columns
    for name, column in store.columns.items():
        column.resize((len(ends),))
        column[first:] = columns[name][first:]
    files.flush_directories()
    _write_ends(store.ends_array, ends, first)
    files.flush_directories()
    _consolidate_again(store.path, files)
    return ends


def _consolidate_again(path: Path, files: DurableStore) -> None:
    """Refresh the copy of all metadata that other programs may keep in the root: they would see the old shapes."""
    root = path / "zarr.json"
    inline = root.exists() and json.loads(root.read_text()).get("consolidated_metadata") is not None
    if inline or (path / ".zmetadata").exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the journal folder is no Zarr node
            zarr.consolidate_metadata(files)


def _write_rows(store: StoreReader, key: str, array: zarr.Array) -> None:
    start, stop, rows = store.n_array_steps, store.n_steps, chunk_rows(array)
    array.resize((stop, *array.shape[1:]))
    while start < stop:
        end = min(stop, (start // rows + 1) * rows)
        array[start:end] = store.read_journal(key, start, end)
        start = end


def _write_ends(array: zarr.Array, ends: np.ndarray, first: int) -> None:
    rows = chunk_rows(array)
    array.resize((len(ends),))
    while first < len(ends):  # chunk by chunk in order, so that what is unwritten after a kill is always the end
        end = min(len(ends), (first // rows + 1) * rows)
        array[first:end] = ends[first:end]
        first = end
