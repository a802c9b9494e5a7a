"""Is everything there: arrays, chunk files, journal entries."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from visuomotor.data.checks.finding import Finding, listed
from visuomotor.data.chunks import Region, array_files, chunks_between, episodes_at, find_damage, lost_chunks
from visuomotor.data.errors import DataError
from visuomotor.data.store import DemoStore

__all__ = ["check_journal", "check_structure", "damaged_chunks", "missing_chunks", "short_chunks"]


def check_structure(store: DemoStore) -> Iterator[Finding]:
    """Arrays that cannot be used, no episodes, episodes of one step, rows that nobody reads."""
    for key, reason in store.unusable.items():
        yield Finding(severity="error", array=key, message=reason)
    if store.n_episodes == 0:
        yield Finding(severity="error", message="the store is empty: 0 episodes")
    short = np.flatnonzero(np.diff(store.episode_ends, prepend=0) == 1)
    if len(short):
        message = f"{len(short)} episodes of one step (episodes {listed(short)}): no motion to learn"
        yield Finding(severity="warning", episode=int(short[0]), message=message, fix="filter 'length>1'")
    for key, array in store.arrays.items():
        surplus = array.shape[0] - store.n_array_steps
        if surplus:
            message = f"{surplus} rows after the last episode end ({store.n_array_steps}): never read"
            yield Finding(severity="warning", array=key, message=message)


def missing_chunks(store: DemoStore, key: str) -> Iterator[Finding]:
    """Chunk files that are absent from a store of another program, which may leave out chunks of fill values."""
    name, array = f"data/{key}", store.arrays[key]
    files, ends = array_files(store.root, name), store.episode_ends
    for path, region in chunks_between(array, name, 0, store.n_array_steps):
        hit = episodes_at(ends, region[0].start, region[0].stop)
        first = int(np.searchsorted(ends, region[0].start, side="right"))
        if path not in files:
            message = f"chunk file {path} is missing: it reads as {array.fill_value}, or it is lost; it holds {hit}"
            yield Finding(severity="warning", array=key, episode=first, message=message)


def short_chunks(store: DemoStore, key: str) -> Iterator[Finding]:
    """Chunk files that are absent or cut short, found by their sizes."""
    for path, region, reason in lost_chunks(
        store.root, store.arrays[key], f"data/{key}", 0, store.n_array_steps, complete=store.ours
    ):
        yield _damage(store, key, path, region, reason)


def damaged_chunks(store: DemoStore, key: str, start: int, stop: int) -> Iterator[Finding]:
    """Chunk files with the steps ``[start, stop)`` that cannot be decoded."""
    stop = min(stop, store.n_array_steps)
    for path, region, reason in find_damage(
        store.root, store.arrays[key], f"data/{key}", start, stop, complete=store.ours
    ):
        yield _damage(store, key, path, region, reason)


def _damage(store: DemoStore, key: str, path: str, region: Region, reason: str) -> Finding:
    hit = episodes_at(store.episode_ends, region[0].start, region[0].stop)
    first = int(np.searchsorted(store.episode_ends, region[0].start, side="right"))
    message = f"chunk file {path} is damaged ({reason}); it holds {hit}"
    return Finding(severity="error", array=key, episode=first, message=message, fix="drop faulty")


def check_journal(store: DemoStore) -> Iterator[Finding]:
    """Episodes that are not in the arrays yet, against their checksums."""
    for entry in store.journal:
        for key in store.arrays:
            try:
                entry.check_file(key)
            except DataError as error:
                yield Finding(severity="error", array=key, episode=entry.index, message=str(error))
            except FileNotFoundError:  # a writer, which checks it too, has just moved it into the arrays
                continue
