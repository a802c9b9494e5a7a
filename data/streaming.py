"""Training on more images than memory or disk hold: episodes pass through a bounded buffer, in shuffled order.

An epoch is a permutation of the training episodes, cut into groups that fill half of the buffer; the windows of a
group come in random order, and while one group is used a thread decodes the next. So every window comes once an epoch,
and batch ``step`` stays a function of ``(seed, step)``: a resumed run loads the group that the step lies in and goes on
exactly. With a buffer that holds all episodes there is one group, and the batches are those of
:class:`~visuomotor.data.batches.BatchSource`, bit for bit. With less, a batch mixes the episodes of one group only;
which episodes these are is drawn anew each epoch.

Only arrays with large steps (images, clouds) are streamed; the others, of which statistics are taken, are cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visuomotor.data.batches import Batch, BatchSource, concat
from visuomotor.data.errors import ConfigError
from visuomotor.data.ingest import ArrayPlan, image_gain, plan_array, read_rows
from visuomotor.data.store import DemoStore

__all__ = ["EpisodeStream", "StreamedRows", "StreamingSource", "is_streamed"]

_LARGE_STEP_BYTES = 4096


def is_streamed(plan: ArrayPlan) -> bool:
    """Whether the steps of an array are large enough that it is streamed rather than cached."""
    return plan.nbytes // plan.shape[0] >= _LARGE_STEP_BYTES


@dataclass(frozen=True)
class Group:
    """Decoded episodes: rows of episode ``episodes[i]`` begin at ``first[i]`` in the store, at ``at[i]`` here."""

    number: tuple[int, int]  # epoch, and group within it
    first: NDArray[np.int64]  # ascending
    at: NDArray[np.int64]
    stop: NDArray[np.int64]
    arrays: dict[str, Tensor]

    def local(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Where the global ``rows`` lie here; None unless all do."""
        i = np.searchsorted(self.first, rows, side="right") - 1
        if len(rows) and (i.min() < 0 or (rows >= self.stop[i]).any()):
            return None
        return rows - self.first[i] + self.at[i]


class EpisodeStream:
    """Reads episodes of a store into memory, a group at a time, and one ahead in the background.

    Args:
        store: an open store; it stays open as long as this is used.
        keys: the arrays to stream.
        buffer_bytes: memory for the group in use and the one that is being read, together.

    Raises:
        ConfigError: the buffer cannot hold two episodes.
    """

    def __init__(self, store: DemoStore, keys: Sequence[str], buffer_bytes: float) -> None:
        self.ends = np.asarray(store.episode_ends, np.int64)
        self.starts = np.concatenate([[0], self.ends[:-1]])
        self._store, self.keys = store, tuple(keys)
        self._plans = {k: plan_array(k, store.specs[k], store.n_steps) for k in keys}
        self._gain = {k: image_gain(store, k) if p.kind == "float_image" else 1 for k, p in self._plans.items()}
        self.row_bytes = sum(p.nbytes // p.shape[0] for p in self._plans.values())
        self.group_bytes = int(buffer_bytes // 2)
        longest = int((self.ends - self.starts).max()) * self.row_bytes
        if longest > self.group_bytes:
            raise ConfigError(
                f"data.cache.buffer_gb={buffer_bytes / 1e9:g}: the longest episode takes {longest / 1e9:.3f} GB, "
                f"and two must fit: expected at least {2 * longest / 1e9:.3f}"
            )
        self._current: Group | None = None
        self._coming: tuple[tuple[int, int], Future[Group]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="episodes")

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one step."""
        return self._plans[key].shape[1:]

    def enter(self, number: tuple[int, int], episodes: NDArray[np.int64]) -> None:
        """Make ``episodes`` the current group, unless group ``number`` already is."""
        if self._current is not None and self._current.number == number:
            return
        self._current = None  # its memory is the next one's
        if self._coming is not None:
            waiting, future = self._coming
            self._coming = None
            group = future.result()
            if waiting == number:
                self._current = group
                return
            del group, future
        self._current = self._load(number, episodes)

    def prefetch(self, number: tuple[int, int], episodes: NDArray[np.int64]) -> None:
        """Begin to read a group that will be entered next; the one before it must have been taken."""
        if self._coming is None:
            self._coming = number, self._thread.submit(self._load, number, episodes)

    def take(self, key: str, rows: Tensor) -> Tensor:
        """Rows ``[n]`` as ``[n, *shape]``: from the current group, else straight from the store (slow)."""
        wanted = rows.cpu().numpy()
        group = self._current
        local = None if group is None else group.local(wanted)
        if group is not None and local is not None:
            return torch.index_select(group.arrays[key], 0, torch.from_numpy(local))
        out = torch.empty((len(wanted), *self.shape(key)), dtype=_dtype(self._plans[key]))
        episode = np.searchsorted(self.ends, wanted, side="right")
        for e in np.unique(episode):
            here = np.flatnonzero(episode == e)
            start, stop = int(wanted[here].min()), int(wanted[here].max()) + 1
            block = torch.from_numpy(self._read(key, start, stop))
            out[torch.from_numpy(here)] = block[torch.from_numpy(wanted[here] - start)]
        return out

    def _read(self, key: str, start: int, stop: int) -> NDArray[Any]:
        return read_rows(self._store, self._plans[key], start, stop, self._gain[key])

    def _load(self, number: tuple[int, int], episodes: NDArray[np.int64]) -> Group:
        episodes = np.sort(episodes)
        first, stop = self.starts[episodes], self.ends[episodes]
        at = np.concatenate([[0], np.cumsum(stop - first)])
        arrays = {}
        for key, plan in self._plans.items():
            arrays[key] = np.empty((at[-1], *plan.shape[1:]), plan.dtype)
            for i in range(len(episodes)):
                arrays[key][at[i] : at[i + 1]] = self._read(key, int(first[i]), int(stop[i]))
        return Group(number, first, at[:-1], stop, {k: torch.from_numpy(a) for k, a in arrays.items()})


@dataclass(frozen=True)
class StreamedRows:
    """One array of a stream, as batches gather from it."""

    stream: EpisodeStream
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one step."""
        return self.stream.shape(self.key)

    def take(self, rows: Tensor) -> Tensor:
        """Rows ``[n]`` as ``[n, *shape]``."""
        return self.stream.take(self.key, rows)


def _dtype(plan: ArrayPlan) -> torch.dtype:
    return torch.uint8 if plan.dtype == "uint8" else torch.float32


class StreamingSource(BatchSource):
    """Batches whose large arrays pass through an :class:`EpisodeStream`; arguments as of the base class.

    Every process reads all episodes and slices the global batch: with ``n`` processes on a machine, ``n`` buffers.
    """

    def __init__(self, stream: EpisodeStream, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._stream = stream
        self._cuts: dict[int, _Epoch] = {}
        counted = np.bincount(self._window_episode, minlength=len(stream.ends))
        self._first_window = np.concatenate([[0], np.cumsum(counted)])  # windows are ordered by episode
        self._used = np.flatnonzero(counted)

    def groups(self, epoch: int) -> list[NDArray[np.int64]]:
        """Episodes of each group of an epoch."""
        return self._epoch(epoch).groups

    def batch(self, step: int) -> Batch:
        """This rank's part of global batch ``step`` (0 or more)."""
        index, fraction = self.window_indices(step), self._fraction(step)
        first = step * self._batch_size + self._first
        epoch = np.arange(first, first + self._local) // len(self)
        group = np.empty(self._local, np.int64)
        for e in np.unique(epoch):
            here = epoch == e
            group[here] = self._epoch(int(e)).group_of[self._window_episode[index[here]]]
        cut = np.flatnonzero((np.diff(epoch) != 0) | (np.diff(group) != 0)) + 1
        bounds = [0, *cut.tolist(), self._local]
        parts = []
        for a, b in pairwise(bounds):
            self._enter(int(epoch[a]), int(group[a]))
            parts.append(self.gather(index[a:b], None if fraction is None else fraction[a:b]))
        return concat(parts)

    def _enter(self, epoch: int, group: int) -> None:
        groups = self._epoch(epoch).groups
        self._stream.enter((epoch, group), groups[group])
        following = (epoch, group + 1) if group + 1 < len(groups) else (epoch + 1, 0)
        if len(groups) > 1:
            self._stream.prefetch(following, self._epoch(following[0]).groups[following[1]])

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._cuts:
            self._cuts = {e: c for e, c in self._cuts.items() if abs(e - epoch) <= 1}
            order = np.random.default_rng([self._seed, epoch, 3]).permutation(self._used)
            size = (self._stream.ends - self._stream.starts)[order] * self._stream.row_bytes
            self._cuts[epoch] = _Epoch.cut(order, size, self._stream.group_bytes, len(self._stream.ends))
        return self._cuts[epoch]

    def _permutation(self, epoch: int) -> np.ndarray:
        groups = self._epoch(epoch).groups
        if len(groups) == 1:
            return super()._permutation(epoch)
        w = self._first_window
        out = []
        for g, episodes in enumerate(groups):
            windows = np.concatenate([np.arange(w[e], w[e + 1]) for e in episodes])
            out.append(np.random.default_rng([self._seed, epoch, 4, g]).permutation(windows))
        return np.concatenate(out)


@dataclass(frozen=True)
class _Epoch:
    groups: list[NDArray[np.int64]]
    group_of: NDArray[np.int64]  # [E], -1 for episodes that are not trained on

    @classmethod
    def cut(cls, order: NDArray[np.int64], size: NDArray[np.int64], limit: int, n_episodes: int) -> _Epoch:
        """``order`` in runs whose sizes sum to at most ``limit`` each, as many in each run as fit."""
        groups: list[list[int]] = [[]]
        used = 0
        for episode, n in zip(order.tolist(), size.tolist(), strict=True):
            if groups[-1] and used + n > limit:
                groups.append([])
                used = 0
            groups[-1].append(episode)
            used += n
        group_of = np.full(n_episodes, -1, np.int64)
        for i, g in enumerate(groups):
            group_of[g] = i
        return cls([np.array(g, np.int64) for g in groups], group_of)
