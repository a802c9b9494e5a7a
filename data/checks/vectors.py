"""Low-dimensional observations and actions, an episode at a time, all components side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

__all__ = ["Component", "Vectors", "iter_episodes", "low_dim", "runs"]

FloatArray = NDArray[np.float64]
Episodes = Iterator[tuple[int, dict[str, np.ndarray]]]

_BLOCK_BYTES = 32 << 20
_MOST_VALUES = 256


@dataclass(frozen=True)
class Component:
    """One number of each step."""

    key: str
    index: int
    name: str | None
    role: str
    unit: str | None

    def __str__(self) -> str:
        return f"component {self.index}" + (f" ({self.name})" if self.name else "")


def low_dim(specs: Mapping[str, ArraySpec], roles: Sequence[str] = ("observation", "action")) -> list[str]:
    """Keys of arrays that are vectors of these roles: no pictures, no clouds."""
    return [
        key
        for key, spec in specs.items()
        if spec.role in roles and spec.size <= _MOST_VALUES and not (spec.is_image or spec.is_depth)
    ]


def iter_episodes(store: DemoStore, keys: Sequence[str], block_bytes: int = _BLOCK_BYTES) -> Episodes:
    """Episode by episode ``{key: [L, ...]}``, read in groups of whole episodes: at most ``block_bytes`` or one episode.

    Raises:
        DataError: a chunk is damaged.
    """
    ends = store.episode_ends
    row_bytes = max(1, sum(store.specs[k].size * np.dtype(store.specs[k].dtype).itemsize for k in keys))
    first, rows = 0, max(1, block_bytes // row_bytes)
    while first < len(ends):
        start = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, start + rows, side="right")))
        block = {k: store.read(k, start, int(ends[last - 1])) for k in keys}
        for episode in range(first, last):
            begin = (int(ends[episode - 1]) if episode else 0) - start
            yield episode, {k: v[begin : int(ends[episode]) - start] for k, v in block.items()}
        first = last


@dataclass(frozen=True)
class Vectors:
    """What the checks of numbers read: a pass over all episodes, as often as they like.

    Attributes:
        specs: the arrays that are read.
        fps: steps per second [Hz], or None.
        lengths: steps of every episode, ``[E]``.
        iterate: makes a pass over the episodes of these keys.
        skip: episodes that no statistics are made of, because values are missing in them.
    """

    specs: Mapping[str, ArraySpec]
    fps: float | None
    lengths: NDArray[np.int64]
    iterate: Callable[[Sequence[str]], Episodes]
    skip: frozenset[int] = frozenset()
    components: tuple[Component, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = []
        for key, spec in self.specs.items():
            for i in range(spec.size):
                name = spec.names[i] if spec.names is not None and len(spec.shape) == 1 else None
                found.append(Component(key, i, name, spec.role, spec.unit))
        object.__setattr__(self, "components", tuple(found))

    @classmethod
    def of(cls, store: DemoStore, keys: Sequence[str] | None = None, skip: frozenset[int] = frozenset()) -> Vectors:
        """The vectors of a store; ``keys``: only these."""
        chosen = low_dim(store.specs) if keys is None else list(keys)
        lengths = np.diff(store.episode_ends, prepend=0)
        specs = {k: store.specs[k] for k in chosen}
        return cls(specs, store.fps, lengths, lambda names: iter_episodes(store, names), skip)

    @property
    def n_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.lengths.sum())

    def episodes(self) -> Iterator[tuple[int, FloatArray]]:
        """Every episode that is not skipped, as ``[L, C]`` in the order of :attr:`components`."""
        keys = list(self.specs)
        if not keys:
            return
        for episode, rows in self.iterate(keys):
            if episode in self.skip:
                continue
            flat = [np.asarray(rows[k], np.float64).reshape(len(rows[k]), -1) for k in keys]
            yield episode, np.concatenate(flat, axis=1)

    def columns(self, keys: Sequence[str]) -> list[int]:
        """Positions of the components of these keys."""
        return [i for i, c in enumerate(self.components) if c.key in keys]


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """``[start, stop)`` of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
