"""Demonstrations under edit: what they are now, and how an episode of them is read. Nothing is computed before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.checks.vectors import Vectors, low_dim
from visuomotor.data.editing.view import StoreView
from visuomotor.data.errors import DataError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

__all__ = ["Demos", "Source", "take", "trimmed"]

Reader = Callable[[int, Sequence[str]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Source:
    """Where episodes come from unchanged: what a view can be made of.

    Attributes:
        path: the store.
        spans: episode, first step and the step after the last one within it, of every episode: int64 ``[E, 3]``.
        columns: names of columns that are as in the store.
    """

    path: Path
    spans: NDArray[np.int64]
    columns: frozenset[str]


@dataclass(frozen=True)
class Demos:
    """Episodes in order, each read when asked for. An operation takes one of these and returns another.

    Attributes:
        specs: the arrays.
        fps: steps per second [Hz], or None.
        lengths: steps of every episode, int64 ``[E]``.
        column_types: type of every per-episode column.
        columns: its values ``[E]``.
        reader: ``(episode, keys) -> {key: [L, ...]}``.
        source: set as long as the arrays are those of one store and episodes are only chosen and cut.
        origin: what the (first) store says of how it was made.
        history: what was done, in order, each in plain JSON types.
    """

    specs: dict[str, ArraySpec]
    fps: float | None
    lengths: NDArray[np.int64]
    column_types: dict[str, str]
    columns: dict[str, np.ndarray]
    reader: Reader
    source: Source | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def n_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.lengths.sum())

    @classmethod
    def of(cls, store: DemoStore) -> Demos:
        """All of an open store, which must stay open while episodes are read."""
        ends = store.episode_ends
        lengths = np.diff(ends, prepend=0)

        def read(episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
            span = store.episode_slice(episode)
            return {k: store.read(k, span.start, span.stop) for k in keys}

        path, changed = store.path, frozenset[str]()
        spans = np.stack([np.arange(len(ends)), np.zeros(len(ends), np.int64), lengths], axis=1)
        if isinstance(store, StoreView):  # a view of a view is one of the store
            path, spans, changed = store.whole.path, store.spans, frozenset(store.own_columns)
        origin = dict(store.origin)
        history = origin.pop("history", [])
        return cls(
            specs=dict(store.specs),
            fps=store.fps,
            lengths=lengths,
            column_types=dict(store.column_types),
            columns=store.episode_columns,
            reader=read,
            source=Source(path, spans, frozenset(store.column_types) - changed),
            origin=origin,
            history=tuple(history) if isinstance(history, list) else (),
        )

    def read(self, episode: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """``{key: [L, ...]}`` of one episode, of all arrays or of ``keys``.

        Raises:
            DataError: a chunk is damaged.
        """
        return self.reader(episode, list(self.specs) if keys is None else list(keys))

    def row(self, episode: int) -> dict[str, Any]:
        """Per-episode values of one episode, in plain types."""
        return {k: v[episode].item() if isinstance(v[episode], np.generic) else v[episode] for k, v in
                self.columns.items()}  # fmt: skip

    def require(self, keys: Sequence[str]) -> None:
        """Raise DataError, with the nearest names, unless all are arrays of these."""
        for key in keys:
            if key not in self.specs:
                raise DataError(f"there is no array {key!r}. {nearest(key, self.specs)}")

    def vectors(self, skip: frozenset[int] = frozenset()) -> Vectors:
        """Observations and actions that are vectors, for the checks."""
        keys = low_dim(self.specs)

        def passes(names: Sequence[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
            return ((e, self.read(e, names)) for e in range(len(self)) if e not in skip)

        return Vectors({k: self.specs[k] for k in keys}, self.fps, self.lengths, passes, skip)

    def mapped(
        self, specs: Mapping[str, ArraySpec], change: Callable[[int, dict[str, np.ndarray]], dict[str, np.ndarray]],
        needs: Callable[[Sequence[str]], Sequence[str]] | None = None,
    ) -> Demos:  # fmt: skip
        """Other arrays of the same steps.

        Args:
            specs: all arrays of the result.
            change: (episode, arrays before) to arrays after, of at least the keys asked for.
            needs: keys of the result to keys that ``change`` needs for them; None: the same.
        """

        def read(episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
            before = self.reader(episode, list(needs(keys) if needs else keys))
            after = change(episode, before)
            return {k: after[k] for k in keys}

        return replace(self, specs=dict(specs), reader=read, source=None)

    def with_column(self, name: str, kind: str, values: np.ndarray) -> Demos:
        """With a column, new or in place of the one of that name."""
        source = self.source and replace(self.source, columns=self.source.columns - {name})
        return replace(
            self,
            column_types={**self.column_types, name: kind},
            columns={**self.columns, name: values},
            source=source,
        )


def take(demos: Demos, episodes: Sequence[int] | NDArray[np.int64]) -> Demos:
    """Only these episodes, in this order."""
    index = np.asarray(episodes, np.int64)
    source = demos.source and replace(demos.source, spans=demos.source.spans[index])
    return replace(
        demos,
        lengths=demos.lengths[index],
        columns={k: v[index] for k, v in demos.columns.items()},
        reader=lambda episode, keys: demos.reader(int(index[episode]), keys),
        source=source,
    )


def trimmed(demos: Demos, start: NDArray[np.int64], stop: NDArray[np.int64]) -> Demos:
    """Of every episode the steps ``[start, stop)`` within it, each ``[E]``; at least one step each."""
    source = demos.source
    if source is not None:
        episode, first = source.spans[:, 0], source.spans[:, 1]
        source = replace(source, spans=np.stack([episode, first + start, first + stop], axis=1))

    def read(episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        rows = slice(int(start[episode]), int(stop[episode]))
        return {k: v[rows] for k, v in demos.reader(episode, keys).items()}

    return replace(demos, lengths=stop - start, reader=read, source=source)
