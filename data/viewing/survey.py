"""Figures over a whole store with bounded memory: distributions, where positions lie, what each episode amounts to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.chunks import chunk_rows
from visuomotor.data.errors import DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.viewing.pictures import picture_kind

__all__ = ["BINS", "GRID", "Coverage", "Distribution", "Survey", "component_names", "position_pairs", "survey"]

BINS = 40  # of a histogram
GRID = 64  # cells of a coverage plot, each way
_LOW_DIM = 256  # values in a step up to which an array is looked at by component
_COMPONENTS = 48  # shown of one array
_PAIRS = 6  # coverage plots
_STARTS = 400  # first positions drawn in a coverage plot
_BLOCK_BYTES = 32 << 20
_PLACES = ("pos", "tcp", "eef", "ee_", "xyz", "agent", "state")  # in names of arrays that begin with a position


@dataclass(frozen=True)
class Distribution:
    """One component over all steps; ``counts`` are of ``BINS`` equal parts of ``[low, high]``."""

    key: str
    name: str
    unit: str | None
    role: str
    low: float
    high: float
    mean: float
    std: float
    n_nonfinite: int
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Coverage:
    """How often positions lie where: ``counts [GRID (y), GRID (x)]`` over a square of side ``side`` from ``origin``."""

    key: str
    names: tuple[str, str]
    unit: str | None
    guessed: bool
    origin: tuple[float, float]
    side: float
    counts: NDArray[np.int64]
    starts: NDArray[np.float64]  # [n, 2] first positions of episodes


@dataclass
class Survey:
    """What one look at all low-dimensional arrays gives.

    Attributes:
        distributions: by array.
        coverages: planes of positions.
        returns: sum of the reward of each episode ``[E]``, or None without a scalar reward.
        left_out: arrays or parts of them that are not in the figures, with the reason.
    """

    distributions: dict[str, list[Distribution]] = field(default_factory=dict)
    coverages: list[Coverage] = field(default_factory=list)
    returns: NDArray[np.float64] | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def survey(store: DemoStore) -> Survey:
    """Read every array of few values a step twice, block by block: ranges first, then histograms."""
    out = Survey()
    pairs = position_pairs(store.specs)
    for key, spec in store.specs.items():
        if picture_kind(key, spec) or np.dtype(spec.dtype).kind not in "fiub" or not store.n_steps:
            continue
        if spec.size > _LOW_DIM:
            out.left_out[key] = f"{spec.size} values a step: only arrays of up to {_LOW_DIM} are shown by component"
        else:
            _look_at(store, key, pairs.get(key, ()), out)
    return out


def _look_at(store: DemoStore, key: str, pairs: Sequence[tuple[tuple[int, int], bool]], out: Survey) -> None:
    """Add the figures of one array to ``out``."""
    spec, lost = store.specs[key], list[str]()
    stats = _Ranges(spec.size)
    for _, block in _blocks(store, key, lost):
        stats.add(block)
    shown = min(spec.size, _COMPONENTS)
    histogram = _Histogram(stats, shown)
    planes = [_Plane(stats, dims) for dims, _ in pairs]
    ends = store.episode_ends
    starts = np.concatenate([[0], ends[:-1]])
    returns = np.zeros(len(ends)) if spec.role == "reward" and spec.size == 1 else None
    for first, block in _blocks(store, key, []):
        histogram.add(block)
        for plane in planes:
            plane.add(first, block, starts)
        if returns is not None:
            owner = np.searchsorted(ends, first + np.arange(len(block)), side="right")
            np.add.at(returns, owner, np.nan_to_num(block[:, 0]))
    names = component_names(spec)
    out.distributions[key] = histogram.result(key, spec)
    for plane, ((x, y), guessed) in zip(planes, pairs, strict=True):
        out.coverages.append(plane.result(key, (names[x], names[y]), spec.unit, guessed))
    if returns is not None and out.returns is None:
        out.returns = returns
    if spec.size > shown:
        out.left_out[key] = f"{spec.size} components, of which the first {shown} are shown"
    if lost:
        out.left_out[key] = f"{len(lost)} chunk(s) cannot be read and are not in the figures: {lost[0]}"


def component_names(spec: ArraySpec) -> list[str]:
    """A name for each of the ``spec.size`` values of a step: the spec's own, else indices (``3``, ``2,0``)."""
    if spec.names is not None and len(spec.names) == spec.size:
        return list(spec.names)
    if not spec.shape:
        return ["value"]
    index = np.ndindex(*spec.shape)
    if spec.names is not None:
        return [",".join([spec.names[i[0]], *map(str, i[1:])]) for i in index]
    return [",".join(map(str, i)) for i in index]


def position_pairs(specs: Mapping[str, ArraySpec]) -> dict[str, list[tuple[tuple[int, int], bool]]]:
    """Components that are a position in a plane, ``{key: [((x, y), guessed)]}``, at most six.

    By names: two neighbours that differ in one letter, x then y (``tcp_x, tcp_y``; ``agent x, agent y``), of
    observations and actions. An array without names is taken for a position at its beginning if it has two or three
    components, or a name that says so (``pos``, ``tcp``, ``eef``, ``state``); that is marked as guessed.
    """
    named: list[tuple[str, tuple[int, int], bool]] = []
    guessed: list[tuple[str, tuple[int, int], bool]] = []
    for key, spec in specs.items():
        if spec.role not in ("observation", "action", "privileged") or len(spec.shape) != 1 or spec.size < 2:
            continue
        if spec.unit in ("rad", "deg", "rad/s", "m/s", "N", "Nm"):
            continue
        if spec.names is not None:
            pairs = zip(spec.names, spec.names[1:], strict=False)
            named += [(key, (i, i + 1), False) for i, (a, b) in enumerate(pairs) if _is_xy(a.lower(), b.lower())]
        elif spec.size <= 3 or any(word in key.lower() for word in _PLACES):
            guessed.append((key, (0, 1), True))
    out: dict[str, list[tuple[tuple[int, int], bool]]] = {}
    for key, dims, unsure in [*named, *guessed][:_PAIRS]:
        out.setdefault(key, []).append((dims, unsure))
    return out


def _is_xy(a: str, b: str) -> bool:
    if len(a) != len(b) or a.startswith(("q", "r")) or any(w in a for w in ("quat", "rot", "vel", "force", "ang")):
        return False
    differ = [(p, q) for p, q in zip(a, b, strict=True) if p != q]
    return differ == [("x", "y")]


def _blocks(store: DemoStore, key: str, lost: list[str]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """(first step, values ``[n, size]``) of what can be read; the reasons for what cannot go to ``lost``."""
    spec, rows = store.specs[key], chunk_rows(store.arrays[key])
    row_bytes = max(1, spec.size * 8)
    block = rows * max(1, _BLOCK_BYTES // (rows * row_bytes))
    for start in range(0, store.n_steps, block):
        stop = min(start + block, store.n_steps)
        try:
            parts = [(start, store.read(key, start, stop))]
        except DataError:
            parts = []
            for first in range(start, stop, rows):
                try:
                    parts.append((first, store.read(key, first, min(first + rows, stop))))
                except DataError as error:
                    lost.append(str(error))
        for first, values in parts:
            yield first, values.reshape(len(values), spec.size).astype(np.float64)


class _Ranges:
    """Range, mean and spread of each component, block by block (Chan et al. 1979, update of mean and squares)."""

    def __init__(self, size: int) -> None:
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)
        self.n, self.mean, self.squares = np.zeros(size), np.zeros(size), np.zeros(size)
        self.lost = np.zeros(size, np.int64)

    def add(self, x: NDArray[np.float64]) -> None:
        finite = np.isfinite(x)
        m = finite.sum(axis=0)
        self.lost += len(x) - m
        self.low = np.minimum(self.low, np.where(finite, x, np.inf).min(axis=0, initial=np.inf))
        self.high = np.maximum(self.high, np.where(finite, x, -np.inf).max(axis=0, initial=-np.inf))
        mean = np.where(finite, x, 0).sum(axis=0) / np.maximum(m, 1)
        shift, total = mean - self.mean, np.maximum(self.n + m, 1)
        self.squares += np.where(finite, (x - mean) ** 2, 0).sum(axis=0) + shift**2 * self.n * m / total
        self.mean += shift * m / total
        self.n += m


class _Histogram:
    def __init__(self, stats: _Ranges, shown: int) -> None:
        self._stats, self._shown = stats, shown
        self._counts = np.zeros((shown, BINS), np.int64)

    def add(self, x: NDArray[np.float64]) -> None:
        for i in range(self._shown):
            low, high = self._stats.low[i], self._stats.high[i]
            column = x[:, i][np.isfinite(x[:, i])]
            if low < high:
                part = np.clip(((column - low) / (high - low) * BINS).astype(int), 0, BINS - 1)
                self._counts[i] += np.bincount(part, minlength=BINS)
            else:
                self._counts[i, BINS // 2] += len(column)

    def result(self, key: str, spec: ArraySpec) -> list[Distribution]:
        s, names = self._stats, component_names(spec)
        std = np.sqrt(s.squares / np.maximum(s.n, 1))
        return [
            Distribution(
                key, names[i], spec.unit, spec.role, float(s.low[i]), float(s.high[i]), float(s.mean[i]), float(std[i]),
                int(s.lost[i]), self._counts[i],
            )
            for i in range(self._shown)
        ]  # fmt: skip


class _Plane:
    def __init__(self, stats: _Ranges, dims: tuple[int, int]) -> None:
        self._dims = list(dims)
        low, high = stats.low[self._dims], stats.high[self._dims]
        known = bool(np.isfinite([*low, *high]).all())
        self._side = max(float((high - low).max()) * 1.04, 1e-9) if known else 1.0
        self._origin = (low + high) / 2 - self._side / 2 if known else np.zeros(2)
        self._counts = np.zeros((GRID, GRID), np.int64)
        self._starts: list[NDArray[np.float64]] = []

    def add(self, first: int, x: NDArray[np.float64], starts: NDArray[np.int64]) -> None:
        xy = x[:, self._dims]
        good = np.atleast_1d(np.isfinite(xy).all(axis=1))
        cell = np.clip(((xy[good] - self._origin) / self._side * GRID).astype(int), 0, GRID - 1)
        np.add.at(self._counts, (cell[:, 1], cell[:, 0]), 1)
        chosen = starts[:: max(1, len(starts) // _STARTS)]
        here = chosen[(chosen >= first) & (chosen < first + len(x))] - first
        self._starts.append(xy[here[good[here]]])

    def result(self, key: str, names: tuple[str, str], unit: str | None, guessed: bool) -> Coverage:
        starts = np.concatenate(self._starts) if self._starts else np.zeros((0, 2))
        origin = (float(self._origin[0]), float(self._origin[1]))
        return Coverage(key, names, unit, guessed, origin, self._side, self._counts, starts)
