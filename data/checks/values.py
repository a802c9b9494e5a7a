"""One pass over an array: NaN and infinity located, and what cannot be decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from visuomotor.data.checks.files import damaged_chunks
from visuomotor.data.checks.finding import Finding, located
from visuomotor.data.chunks import chunk_rows
from visuomotor.data.errors import DataError
from visuomotor.data.rows import component, first_nonfinite
from visuomotor.data.store import DemoStore

__all__ = ["check_values"]


def check_values(
    store: DemoStore, key: str, also: Callable[[int, np.ndarray], None] | None = None, *, own_files: bool = True
) -> Iterator[Finding]:
    """Decode all of ``key``, a block at a time, and look at every value. ``also`` is given (first step, rows) of each.
    ``own_files``: the rows of the store are those of its chunk files, which is not so for a view.

    Chunks that cannot be decoded are named with their episodes, and passed over.
    """
    spec, bad = store.specs[key], dict[int, tuple[int, str, int]]()  # episode -> (first row, what, number of rows)
    for start, stop in _spans(store, key):
        try:
            rows = store.read(key, start, stop)
        except DataError as error:
            found = list(damaged_chunks(store, key, start, stop)) if own_files else []
            yield from found or [Finding(severity="error", array=key, message=str(error), fix="drop faulty")]
            continue
        if also is not None:
            also(start, rows)
        if first_nonfinite(rows) is None:
            continue
        wrong = ~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        owner = np.searchsorted(store.episode_ends, start + np.flatnonzero(wrong), side="right")
        for episode in np.unique(owner):
            inside = start + np.flatnonzero(wrong)[owner == episode]
            local, index = first_nonfinite(rows[inside - start]) or (0, ())
            begin = int(store.episode_ends[episode - 1]) if episode else 0
            what = f"value is {rows[(int(inside[local]) - start, *index)]}{component(index, spec)}"
            row, told, n = bad.get(int(episode), (int(inside[local]) - begin, what, 0))
            bad[int(episode)] = (row, told, n + len(inside))
    told_of = {
        episode: (row, f"{what}: every value must be finite" + (f" ({n} such rows in this episode)" if n > 1 else ""))
        for episode, (row, what, n) in bad.items()
    }
    yield from located(told_of, severity="error", array=key, what="NaN or infinity", fix="drop faulty")


def _spans(store: DemoStore, key: str) -> Iterator[tuple[int, int]]:
    """Whole chunk files, so that each is decoded once, in order."""
    rows = chunk_rows(store.arrays[key])
    for start in range(0, store.n_steps, rows):
        yield start, min(start + rows, store.n_steps)
