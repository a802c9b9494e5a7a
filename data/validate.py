"""Deep check of a demonstration store: every chunk decoded, every value looked at, each fault located."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from visuomotor.data.chunks import (
    Region,
    array_files,
    chunk_rows,
    chunks_between,
    episodes_at,
    find_damage,
    lost_chunks,
)
from visuomotor.data.errors import DataError
from visuomotor.data.rows import component, first_nonfinite
from visuomotor.data.store import DemoStore

__all__ = ["Finding", "validate"]

_MAX_EPISODES = 10  # located faults of one kind in one array; the rest is counted


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault. ``error``: the data cannot be used as it is. ``warning``: it can, but look at it.

    Attributes:
        severity: ``"error"`` or ``"warning"``.
        message: what was found, what was expected.
        array: name of the array, or None.
        episode: index of the (first) episode, or None.
        row: step within that episode, or None.
    """

    severity: str
    message: str
    array: str | None = None
    episode: int | None = None
    row: int | None = None

    def __str__(self) -> str:
        place = [
            f"{k} {v}"
            for k, v in (("array", self.array), ("episode", self.episode), ("row", self.row))
            if v is not None
        ]
        return f"{self.severity}: {', '.join(place)}{': ' if place else ''}{self.message}"


def validate(store: DemoStore, *, values: bool = True) -> list[Finding]:
    """Check a store that could be opened; opening itself refuses wrong episode ends and arrays that are too short.

    Args:
        store: an open store.
        values: decode all data and look for NaN and infinity, damaged chunks and time that runs backwards. Without it
            only names, shapes, lengths and file sizes are checked, which is quick for any size.

    Returns:
        The findings, errors first; empty for a store without fault.
    """
    findings = [*_structure(store)]
    for key in store.keys:
        if not store.ours:  # zarr writers leave out chunks that equal the fill value; we never do
            findings += _missing_chunks(store, key)
        findings += _values(store, key) if values else _short_chunks(store, key)
    if values:
        findings += _journal(store)
        for key, spec in store.specs.items():
            if spec.role == "timestamp" and not any(f.array == key for f in findings):
                findings += _time(store, key)
    return sorted(findings, key=lambda f: f.severity)


def _structure(store: DemoStore) -> Iterator[Finding]:
    for key, reason in store.unusable.items():
        yield Finding(severity="error", array=key, message=reason)
    if store.n_episodes == 0:
        yield Finding(severity="error", message="the store is empty: 0 episodes")
    ends = store.episode_ends
    short = np.flatnonzero(np.diff(ends, prepend=0) == 1)
    if len(short):
        which = ", ".join(map(str, short[:_MAX_EPISODES])) + (", ..." if len(short) > _MAX_EPISODES else "")
        yield Finding(
            severity="warning",
            episode=int(short[0]),
            message=f"{len(short)} episodes of one step (episodes {which}): no motion to learn",
        )
    for key, array in store.arrays.items():
        surplus = array.shape[0] - store.n_array_steps
        if surplus:
            yield Finding(
                severity="warning",
                array=key,
                message=f"{surplus} rows after the last episode end ({store.n_array_steps}): never read",
            )


def _missing_chunks(store: DemoStore, key: str) -> Iterator[Finding]:
    name, array = f"data/{key}", store.arrays[key]
    files, ends = array_files(store.root, name), store.episode_ends
    for path, region in chunks_between(array, name, 0, store.n_array_steps):
        hit = episodes_at(ends, region[0].start, region[0].stop)
        first = int(np.searchsorted(ends, region[0].start, side="right"))
        if path not in files:
            message = f"chunk file {path} is missing: it reads as {array.fill_value}, or it is lost; it holds {hit}"
            yield Finding(severity="warning", array=key, episode=first, message=message)


def _short_chunks(store: DemoStore, key: str) -> Iterator[Finding]:
    for path, region, reason in lost_chunks(
        store.root, store.arrays[key], f"data/{key}", 0, store.n_array_steps, complete=store.ours
    ):
        yield _damage(store, key, path, region, reason)


def _damage(store: DemoStore, key: str, path: str, region: Region, reason: str) -> Finding:
    hit = episodes_at(store.episode_ends, region[0].start, region[0].stop)
    first = int(np.searchsorted(store.episode_ends, region[0].start, side="right"))
    message = f"chunk file {path} is damaged ({reason}); it holds {hit}"
    return Finding(severity="error", array=key, episode=first, message=message)


def _values(store: DemoStore, key: str) -> Iterator[Finding]:
    ends, spec = store.episode_ends, store.specs[key]
    array, step = store.arrays[key], chunk_rows(store.arrays[key])
    bad: dict[int, tuple[int, str, int]] = {}  # episode -> (first row, what, number of values)
    for start in range(0, store.n_steps, step):
        stop = min(start + step, store.n_steps)
        try:
            rows = store.read(key, start, stop)
        except DataError:
            last = min(stop, store.n_array_steps)
            for path, region, reason in find_damage(store.root, array, f"data/{key}", start, last, complete=store.ours):
                yield _damage(store, key, path, region, reason)
            continue
        if first_nonfinite(rows) is None:
            continue
        wrong = ~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        owner = np.searchsorted(ends, start + np.flatnonzero(wrong), side="right")
        for episode in np.unique(owner):
            inside = start + np.flatnonzero(wrong)[owner == episode]
            local, index = first_nonfinite(rows[inside - start]) or (0, ())
            begin = int(ends[episode - 1]) if episode else 0
            what = f"value is {rows[(int(inside[local]) - start, *index)]}{component(index, spec)}"
            row, told, n = bad.get(int(episode), (int(inside[local]) - begin, what, 0))
            bad[int(episode)] = (row, told, n + len(inside))
    yield from _located(key, bad)


def _located(key: str, bad: dict[int, tuple[int, str, int]]) -> Iterator[Finding]:
    for episode, (row, what, n) in list(bad.items())[:_MAX_EPISODES]:
        more = f" ({n} such rows in this episode)" if n > 1 else ""
        yield Finding(
            severity="error", array=key, episode=episode, row=row, message=f"{what}: every value must be finite{more}"
        )
    if len(bad) > _MAX_EPISODES:
        message = f"NaN or infinity in {len(bad) - _MAX_EPISODES} more episodes"
        yield Finding(severity="error", array=key, message=message)


def _journal(store: DemoStore) -> Iterator[Finding]:
    for entry in store.journal:
        for key in store.keys:
            try:
                entry.check(key)
            except DataError as error:
                yield Finding(severity="error", array=key, episode=entry.index, message=str(error))
            except FileNotFoundError:  # a writer, which checks it too, has just moved it into the arrays
                continue


def _time(store: DemoStore, key: str) -> Iterator[Finding]:
    ends = store.episode_ends
    stamps = store.read(key, 0, store.n_steps).reshape(store.n_steps, -1)[:, 0]
    back = np.flatnonzero(np.diff(stamps) <= 0) + 1
    back = back[~np.isin(back, ends)]  # the step to the next episode may go anywhere
    if len(back):
        episode = int(np.searchsorted(ends, back[0], side="right"))
        row = int(back[0]) - (int(ends[episode - 1]) if episode else 0)
        message = (
            f"time does not increase: {stamps[back[0]]} follows {stamps[back[0] - 1]} ({len(back)} such steps in all)"
        )
        yield Finding(severity="warning", array=key, episode=episode, row=row, message=message)
