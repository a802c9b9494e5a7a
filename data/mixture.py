"""Training on several stores at once: further robots, tasks or qualities beside the one that the policy is for.

The first store says what a policy observes and commands; its specs are the policy's. A further store gives arrays of
the same names, once renamed. Vectors with fewer components are filled up with the first store's mean, and the missing
components of its actions get no gradient; a store with more components than the first cannot be added. Statistics for
normalisation are joint: over the steps of all stores, in the units of the arrays.

A batch has a fixed number of windows of each store, by the weights, at places drawn by ``(seed, step)``; within a store
every window comes once before any comes again, or episodes that have weights of their own are drawn in proportion to
them. So a resumed run, and ranks, see what one uninterrupted process sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visuomotor.data.cache import TrainingCache
from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.reader import StoreReader
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowTable

__all__ = [
    "JoinedRows",
    "MixtureConfig",
    "MixtureOrder",
    "check_member",
    "join_caches",
    "slots",
    "step_weights",
]


@dataclass(kw_only=True, slots=True)
class MixtureConfig:
    """A further store.

    Attributes:
        path: the store.
        weight: share of its windows relative to the others; that of the first store is ``data.weight``.
        rename: ``{name in this store: name in the first}``, for arrays and columns.
        dims: ``{array: places}``: where the components of a narrower vector go; the first places where not given.
        texts: ``{column: text}`` for all episodes, where the store has no such column.
    """

    path: str = ""
    weight: float = 1.0
    rename: dict[str, str] = field(default_factory=dict)
    dims: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("data.mixture: an entry has no path")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ConfigError(f"data.mixture: weight {self.weight} of {self.path}: expected more than 0")


def slots(weights: Sequence[float], batch_size: int, names: Sequence[str]) -> NDArray[np.int64]:
    """Windows of each store in a batch: shares rounded by largest remainder.

    Raises:
        ConfigError: a store gets none.
    """
    share = np.asarray(weights, np.float64) / sum(weights) * batch_size
    count = np.floor(share).astype(np.int64)
    rest = np.argsort(-(share - count), kind="stable")[: batch_size - int(count.sum())]
    count[rest] += 1
    if not count.all():
        i = int(np.argmin(count))
        raise ConfigError(
            f"data.mixture: weight {weights[i]:g} of {names[i]} is {share[i]:.2f} of train.batch_size={batch_size} "
            "windows: expected at least 1; raise the weight or the batch size"
        )
    return count


class MixtureOrder:
    """Which windows make batch ``step``: ``order(step) -> int64 [batch_size]``, a function of ``(seed, step)``.

    Args:
        windows: indices of the windows of each store.
        count: windows of each store in a batch (:func:`slots`).
        seed: 0 or more.
        weights: of these windows, more than 0: a batch then has each as often, on average, as its weight is a share of
            the store's sum. The n draws of a batch are stratified, one from each n-th of the sum: what any run of
            windows, such as an episode, has in a batch is off by less than two. None: every window once before any
            again.
    """

    def __init__(
        self, windows: Sequence[NDArray[np.int64]], count: NDArray[np.int64], seed: int,
        weights: Sequence[NDArray[np.float64]] | None = None,
    ) -> None:  # fmt: skip
        self._windows, self._count, self._seed = list(windows), count, seed
        self._sums = None if weights is None else [np.cumsum(w) for w in weights]
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def __call__(self, step: int) -> NDArray[np.int64]:
        member = np.random.default_rng([self._seed, step, 5]).permutation(
            np.repeat(np.arange(len(self._count)), self._count)
        )
        out = np.empty(len(member), np.int64)
        for i, n in enumerate(self._count.tolist()):
            out[member == i] = self._of(i, step * n, n) if self._sums is None else self._drawn(i, step, n)
        return out

    def _drawn(self, member: int, step: int, n: int) -> NDArray[np.int64]:
        assert self._sums is not None
        rng, sums = np.random.default_rng([self._seed, step, 8, member]), self._sums[member]
        at = (rng.permutation(n) + rng.random(n)) / n * sums[-1]
        place = np.minimum(np.searchsorted(sums, at, side="right"), len(sums) - 1)  # rounding may reach the sum itself
        return self._windows[member][place]

    def _of(self, member: int, first: int, n: int) -> NDArray[np.int64]:
        size = len(self._windows[member])
        epoch, place = np.divmod(np.arange(first, first + n), size)
        needed = {int(e) for e in epoch}
        self._orders = {k: v for k, v in self._orders.items() if k[0] != member or k[1] in needed}
        out = np.empty(n, np.int64)
        for e in needed:
            if (member, e) not in self._orders:
                rng = np.random.default_rng([self._seed, e, 6, member])
                self._orders[member, e] = rng.permutation(self._windows[member])
            out[epoch == e] = self._orders[member, e][place[epoch == e]]
        return out

    @classmethod
    def of_table(
        cls, table: WindowTable, first_episode: Sequence[int], count: NDArray[np.int64], seed: int,
        names: Sequence[str], weights: NDArray[np.float64] | None = None, n_obs: int = 1,
    ) -> MixtureOrder:  # fmt: skip
        """The order over ``table``, where store ``i`` has the episodes from ``first_episode[i]`` on.

        ``weights [T]`` are those of the steps, 0 or more; a window has that of its present step, the last of its
        ``n_obs`` observed ones.

        Raises:
            DataError: a store has no window, or none of a weight above 0.
        """
        member = np.searchsorted(np.asarray(first_episode), table.episode, side="right") - 1
        windows = [np.flatnonzero(member == i) for i in range(len(first_episode))]
        for w, name in zip(windows, names, strict=True):
            if not len(w):
                raise DataError(f"{name}: no training episode is long enough for a window")
        if weights is None:
            return cls(windows, count, seed)
        present = np.clip(table.start + n_obs - 1, table.ep_start, table.ep_stop - 1)
        used = [w[weights[present[w]] > 0] for w in windows]
        for w, name in zip(used, names, strict=True):
            if not len(w):
                raise DataError(f"{name}: all training episodes that are long enough for a window have the weight 0")
        return cls(used, count, seed, [weights[present[w]] for w in used])


def step_weights(store: StoreReader, name: str) -> NDArray[np.float64]:
    """What a column, or an array of one number a step, says of how much each step counts: float64 ``[T]``.

    All steps of an episode have the weight of its column; true is 1, false 0.

    Raises:
        DataError: neither of that name, texts or vectors, or a value that is negative or not finite.
    """
    if name in store.specs and name not in store.column_types:
        return _array_weights(store, name)
    return np.repeat(_column_weights(store, name), np.diff(store.episode_ends, prepend=0))


def _array_weights(store: StoreReader, key: str) -> NDArray[np.float64]:
    if store.specs[key].size != 1:
        raise DataError(f"{store.path}: the array {key!r} has steps of shape {store.specs[key].shape}: expected ()")
    weights = store.read(key, 0, store.n_steps).astype(np.float64).reshape(-1)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        i = int(bad[0])
        raise DataError(f"{store.path}: the weight {key!r} of row {i} is {weights[i]:g}: expected 0 or more")
    return weights


def _column_weights(store: StoreReader, column: str) -> NDArray[np.float64]:
    columns = store.episode_columns
    if column not in columns:
        scalars = [k for k, s in store.specs.items() if s.size == 1]
        raise DataError(f"{store.path} has no column meta/{column}. {nearest(column, [*columns, *scalars])}")
    if columns[column].dtype.kind not in "biuf":
        raise DataError(f"{store.path}: the column {column!r} holds texts: weights are numbers, or true and false")
    weights = columns[column].astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        i = int(bad[0])
        raise DataError(f"{store.path}: the weight {column!r} of episode {i} is {weights[i]:g}: expected 0 or more")
    return weights


def check_member(first: Mapping[str, ArraySpec], other: Mapping[str, ArraySpec], config: MixtureConfig) -> None:
    """Refuse a store whose arrays cannot stand for those of the first one, both as policies see them.

    Raises:
        ConfigError: ``dims`` that do not fit.
        DataError: another shape of image, a longer vector, another unit, or other components.
    """
    for key, mine in first.items():
        theirs, where = other[key], f"{config.path}: {key!r}"
        if len(mine.shape) != 1 or len(theirs.shape) != 1:
            if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                raise DataError(
                    f"{where} has steps {theirs.dtype} {theirs.shape}, the first store {mine.dtype} {mine.shape}"
                )
            continue
        if theirs.size > mine.size:
            raise DataError(
                f"{where} has {theirs.size} components, the first store {mine.size}: make the store with the most "
                "components data.path, or take a part of it (data.parts)"
            )
        at = places(config, key, theirs.size)
        if len(at) != theirs.size or len(set(at)) < len(at) or not all(0 <= i < mine.size for i in at):
            raise ConfigError(
                f"data.mixture: dims.{key}={at} of {config.path}: expected {theirs.size} different places "
                f"of 0..{mine.size - 1}"
            )
        if mine.unit is not None and theirs.unit is not None and mine.unit != theirs.unit:
            raise DataError(f"{where} is in {theirs.unit}, in the first store in {mine.unit}: convert one of them")


def places(config: MixtureConfig | None, key: str, size: int) -> list[int]:
    """Where the ``size`` components of a vector go."""
    return list(config.dims.get(key, range(size))) if config is not None else list(range(size))


@dataclass(frozen=True)
class JoinedRows:
    """Large arrays of several stores end to end, gathered from where each lies."""

    parts: Sequence[Tensor]  # [T_i, *shape] each
    first: Tensor  # int64 [n], global row at which each part begins

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one step."""
        return tuple(self.parts[0].shape[1:])

    def take(self, rows: Tensor) -> Tensor:
        """Rows ``[n]`` as ``[n, *shape]``."""
        first = self.first.to(rows.device)
        part = torch.searchsorted(first, rows, right=True) - 1
        out = self.parts[0].new_empty((len(rows), *self.shape), device=rows.device)
        for i, array in enumerate(self.parts):
            here = torch.nonzero(part == i).reshape(-1)
            if len(here):
                chosen = torch.index_select(array, 0, (rows[here] - first[i]).to(array.device))
                out[here] = chosen.to(rows.device)
        return out


def join_caches(
    caches: Sequence[TrainingCache],
    specs: Mapping[str, ArraySpec],
    members: Sequence[MixtureConfig | None],
    action_key: str,
) -> tuple[TrainingCache, Tensor | None]:
    """All stores as one: episodes end to end, vectors as wide as in ``specs``.

    Args:
        caches: of each store, the first one first.
        specs: of the first store, by key.
        members: the settings of each store, None for the first.
        action_key: which array is the action.

    Returns:
        The joint cache, and which components of the action each episode has, bool ``[E, Da]``, None when all have all.
    """
    steps = [int(c.episode_ends[-1]) for c in caches]
    first = np.concatenate([[0], np.cumsum(steps)])
    arrays: dict[str, Tensor] = {}
    rows: dict[str, JoinedRows] = {}
    for key, spec in specs.items():
        parts = [c.arrays[key] for c in caches]
        if len(spec.shape) == 1:
            fill = parts[0].double().mean(0).float()
            at = [places(m, key, p.shape[1]) for m, p in zip(members, parts, strict=True)]
            arrays[key] = torch.cat([_widened(p, fill, a) for p, a in zip(parts, at, strict=True)])
        else:
            rows[key] = JoinedRows(parts, torch.from_numpy(first[:-1].copy()))
    ends = np.concatenate([c.episode_ends + s for c, s in zip(caches, first[:-1], strict=True)])
    mask = torch.zeros((len(ends), specs[action_key].size), dtype=torch.bool)
    begin = 0
    for cache, member in zip(caches, members, strict=True):
        stop = begin + len(cache.episode_ends)
        mask[begin:stop, places(member, action_key, cache.arrays[action_key].shape[1])] = True
        begin = stop
    placement = "+".join(dict.fromkeys(c.placement for c in caches))
    joint = TrainingCache(arrays, ends, placement, sum(c.nbytes for c in caches), caches[0].reason, rows)
    return joint, None if bool(mask.all()) else mask


def _widened(part: Tensor, fill: Tensor, at: list[int]) -> Tensor:
    if at == list(range(len(fill))):
        return part
    out = fill.to(part.device).expand(len(part), -1).clone()
    out[:, at] = part
    return out
