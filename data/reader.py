"""The reading half of a demonstration store: one consistent view of its arrays and its journal."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import zarr

from visuomotor.data.chunks import Region, chunk_rows, episodes_at, find_damage, list_files, lost_chunks
from visuomotor.data.errors import DataError, nearest
from visuomotor.data.journal import JournalEntry, read_journal
from visuomotor.data.layout import ENDS, Root, infer_spec, open_array, open_root, read_attributes, read_origin
from visuomotor.data.parts import PartConfig, part_spec
from visuomotor.data.spec import ArraySpec

__all__ = ["StoreReader"]

_BLOCK_BYTES = 64 << 20
_PATIENCE = 100  # looks, 10 ms apart, to get a consistent view while a writer moves the journal into the arrays


class StoreReader:
    """Committed episodes of a store as they were when it was opened, also while another process appends.

    Attributes:
        path: where the store is.
        ours: the store carries our attributes; every chunk file of it must be there.
        fps: steps per second [Hz], or None when the store does not say.
        origin: how its demonstrations were made (settings, versions), empty when it does not say.
        specs: what each usable array is; keys in sorted order.
        unusable: arrays that cannot serve as data, each with the reason (text arrays, scalars).
        arrays: the open Zarr array of each key; it may have rows that are not committed.
        columns: the open Zarr array of each per-episode column.
        ends_array: the open Zarr array ``meta/episode_ends``.
        array_ends: int64, the ends of those episodes that are in the arrays; the later ones lie in the journal.
        n_array_steps: committed steps that are in the arrays.
    """

    def __init__(self, root: Root) -> None:
        self.root, self.path = root, root.path
        self._closed = False
        self.fps, declared = read_attributes(root)
        self.origin = read_origin(root)
        self.ours = bool(declared)
        self.specs: dict[str, ArraySpec] = {}
        self._parts: dict[str, PartConfig] = {}
        self.unusable: dict[str, str] = {}
        self._read_specs(declared)
        for _ in range(_PATIENCE):
            try:
                self._load()
                return
            except FileNotFoundError as error:  # an entry went into the arrays between our two looks
                reason = error
                time.sleep(0.01)
        raise DataError(f"{self.path}: {reason}")

    def _read_specs(self, declared: Mapping[str, ArraySpec]) -> None:
        present = self.root.arrays("data")
        lost = [key for key in declared if key not in present]
        if lost:
            raise DataError(f"{self.path} declares data/{lost[0]}, which is missing. It has: {', '.join(present)}")
        for key in present:
            try:
                array = open_array(self.root.group, f"data/{key}")
                spec = infer_spec(key, array)
            except DataError as error:
                if key in declared:
                    raise
                self.unusable[key] = str(error)
                continue
            told = declared.get(key, spec)
            if (told.shape, told.dtype) != (spec.shape, spec.dtype):
                raise DataError(
                    f"{self.path} declares data/{key} as {told.dtype} {list(told.shape)}, "
                    f"but the array is {spec.dtype} {list(spec.shape)}"
                )
            self.specs[key] = told

    def _load(self) -> None:
        """Take the committed state: the arrays up to the last episode end, then the journal.

        Raises:
            FileNotFoundError: a writer moved the journal, or a part of it, into the arrays meanwhile: look again.
        """
        self.ends_array = open_array(self.root.group, f"meta/{ENDS}")
        self.array_ends = _read_ends(self.ends_array, self.path)
        self.arrays = {key: open_array(self.root.group, f"data/{key}") for key in self.specs}
        self.n_array_steps = int(self.array_ends[-1]) if len(self.array_ends) else 0
        self._check_lengths()
        self.columns = self._open_columns()
        self._journal = read_journal(self.journal_path, self.specs, len(self.array_ends), self.n_array_steps)
        # Entries that are gone leave no gap if they were the last ones. Their ends were written before they went.
        if len(_read_ends(open_array(self.root.group, f"meta/{ENDS}"), self.path)) != len(self.array_ends):
            raise FileNotFoundError("episodes keep moving from the journal into the arrays")

    def _check_lengths(self) -> None:
        lengths = {key: int(array.shape[0]) for key, array in self.arrays.items()}
        short = {key: n for key, n in lengths.items() if n < self.n_array_steps}
        if not short:
            return
        if len(set(lengths.values())) > 1:
            all_lengths = ", ".join(f"{key} {n}" for key, n in lengths.items())
            raise DataError(
                f"{self.path}: arrays of different length: {all_lengths} rows; "
                f"meta/{ENDS} needs {self.n_array_steps} in each"
            )
        n = next(iter(lengths.values()))
        raise DataError(
            f"{self.path}: meta/{ENDS} ends at step {self.n_array_steps}, but the arrays have {n} rows: "
            f"{self.n_array_steps - n} too many"
        )

    def _open_columns(self) -> dict[str, zarr.Array]:
        columns = {}
        for name in self.root.arrays("meta"):
            if name != ENDS:
                array = open_array(self.root.group, f"meta/{name}")
                if array.ndim == 1 and array.shape[0] >= len(self.array_ends):
                    columns[name] = array
        return columns

    # ---------------------------------------------------------------- what is in it

    @property
    def journal_path(self) -> Path:
        """Folder of the episodes that are not in the arrays yet."""
        return self.path / "journal"

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the usable arrays."""
        return tuple(self.specs)

    @property
    def episode_ends(self) -> np.ndarray:
        """int64 ``[E]``: the global step after the last one of each episode."""
        return np.concatenate([self.array_ends, np.array([e.stop for e in self._journal], np.int64)])

    @property
    def n_episodes(self) -> int:
        """Number of committed episodes, ``E``."""
        return len(self.array_ends) + len(self._journal)

    @property
    def n_steps(self) -> int:
        """Number of committed steps, ``T``."""
        return self._journal[-1].stop if self._journal else self.n_array_steps

    @property
    def journal(self) -> tuple[JournalEntry, ...]:
        """Committed episodes that are not in the arrays yet."""
        return tuple(self._journal)

    @property
    def column_types(self) -> dict[str, str]:
        """Type of each per-episode column: ``"str"``, ``"bool"``, ``"int64"`` or ``"float64"``."""
        kinds = {"b": "bool", "i": "int64", "u": "int64", "f": "float64"}
        return {name: kinds.get(getattr(array.dtype, "kind", "T"), "str") for name, array in self.columns.items()}

    @property
    def episode_columns(self) -> dict[str, np.ndarray]:
        """Per-episode values ``[E]``; text as an object array of str."""
        n, out = len(self.array_ends), {}
        for name, kind in self.column_types.items():
            values = list(np.asarray(self.columns[name][:n]).tolist()) + [e.columns[name] for e in self._journal]
            out[name] = np.array(values, dtype=object if kind == "str" else kind)
        return out

    def require(self, keys: Iterable[str]) -> None:
        """Raise DataError, with the nearest names, unless every key is a usable array of this store."""
        for key in keys:
            if key in self.unusable:
                raise DataError(f"{self.path}: {self.unusable[key]}")
            if key not in self.specs:
                raise DataError(f"{self.path} has no array {key!r}. {nearest(key, self.specs)}")

    def add_part(self, name: str, part: PartConfig) -> None:
        """Read components of another array as the array ``name``; one that the store has itself is left alone."""
        if name not in self.specs:
            self.specs[name] = part_spec(name, part, self.specs)
            self._parts[name] = part

    def add_name(self, name: str, key: str) -> None:
        """Read the array ``key`` as ``name`` as well; DataError where there is no such array, or the name is taken."""
        self.require([key])
        if name in self.specs:
            raise DataError(f"{self.path}: {key!r} cannot be renamed to {name!r}: there is an array of that name")
        self.specs[name], self._parts[name] = self.specs[key], PartConfig(key=key)

    def fingerprint(self, keys: Iterable[str]) -> str:
        """Hash of what the store holds for ``keys``: specs, episode ends, and path, size and mtime of every chunk file.

        It reads no data, so it is quick for any size; it changes whenever a chunk file is written.

        Raises:
            DataError: a key is missing, or a chunk file has zero bytes (what a power cut leaves of an unflushed file).
        """
        keys = sorted(set(keys))
        self.require(keys)
        digest = hashlib.sha256()
        header = {
            "fps": self.fps,
            "specs": {k: self.specs[k].to_dict() for k in keys},
            "ends": self.episode_ends.tolist(),
        }
        digest.update(json.dumps(header, sort_keys=True).encode())
        for key in set(keys) & set(self._parts):
            digest.update(f"{key}\0{self._parts[key].key}\0{self._parts[key].dims}\n".encode())
        keys = sorted({self._parts[k].key if k in self._parts else k for k in keys})
        for name in (*(f"data/{k}" for k in keys), f"meta/{ENDS}"):
            for file in list_files(self.root, name):
                if file.size == 0:
                    raise DataError(
                        f"{self.path}: chunk file {file.name} has 0 bytes: its data is lost. Restore it from a copy"
                    )
                digest.update(f"{file.name}\0{file.size}\0{file.stamp}\n".encode())
        for entry in self._journal:
            digest.update(json.dumps([entry.index, {k: entry.checksums[k] for k in keys}]).encode())
        return digest.hexdigest()

    # ---------------------------------------------------------------- reading

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows of the global steps ``[start, stop)`` of one array: ``[stop - start, *shape]``, in the spec's type.

        Meant for large slices: hundreds of steps. Training reads the cache that is built from them.

        Raises:
            DataError: unknown key, a range outside ``[0, n_steps]``, or a damaged chunk (named with its episodes).
        """
        self.require([key])
        self._check_open()
        if not 0 <= start <= stop <= self.n_steps:
            raise DataError(f"steps {start} to {stop} of {key!r}: expected a range within 0 to {self.n_steps}")
        if key in self._parts:
            rows, dims = self.read(self._parts[key].key, start, stop), self._parts[key].dims
            return np.ascontiguousarray(rows[:, dims]) if dims else rows
        split = min(max(start, self.n_array_steps), stop)
        parts = [np.empty((0, *self.specs[key].shape), self.specs[key].dtype)] if start == stop else []
        if start < split:
            parts.append(self._read_array(key, start, split))
        if split < stop:
            try:
                parts.append(self.read_journal(key, split, stop))
            except FileNotFoundError:  # its writer has moved the entry into the arrays: same rows, other place
                self._follow_writer()
                return self.read(key, start, stop)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _read_array(self, key: str, start: int, stop: int) -> np.ndarray:
        array, name = self.arrays[key], f"data/{key}"
        for path, region, reason in lost_chunks(self.root, array, name, start, stop, complete=self.ours):
            raise self._damage(key, path, region, reason)
        for _ in range(_PATIENCE):
            try:
                return np.asarray(array[start:stop]).astype(self.specs[key].dtype, copy=False)
            except (MemoryError, DataError):
                raise
            except Exception as error:  # every decompressor raises a type of its own
                for path, region, why in find_damage(self.root, array, name, start, stop, complete=self.ours):
                    raise self._damage(key, path, region, why) from None
                failure = error  # each chunk is sound: a writer replaced one while we read it, so read again
        raise DataError(f"{self.path}: array {key!r}: steps {start} to {stop} cannot be read: {failure}")

    def _damage(self, key: str, path: str, region: Region, reason: str) -> DataError:
        hit = episodes_at(self.episode_ends, region[0].start, region[0].stop)
        return DataError(f"{self.path}: array {key!r}: chunk file {path} is damaged ({reason}); it holds {hit}")

    def read_journal(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows ``[start, stop)``, all of which lie in the journal."""
        spec = self.specs[key]
        hit = [e for e in self._journal if e.start < stop and e.stop > start]
        parts = [e.read(key, spec, max(start, e.start), min(stop, e.stop)) for e in hit]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _follow_writer(self) -> None:
        n_episodes, root = self.n_episodes, open_root(self.path, "r")
        ends = _read_ends(open_array(root.group, f"meta/{ENDS}"), self.path)[:n_episodes]
        if len(ends) <= len(self.array_ends):
            raise DataError(
                f"{self.path}: episode {len(self.array_ends)} was removed from the journal while it was read"
            )
        self.root = root
        self.arrays = {key: open_array(root.group, f"data/{key}") for key in self.specs}
        self.columns = {name: open_array(root.group, f"meta/{name}") for name in self.columns}
        self.array_ends, self.n_array_steps = ends, int(ends[-1])
        self._journal = [e for e in self._journal if e.index >= len(ends)]

    def episode_slice(self, index: int) -> slice:
        """Global steps of episode ``index``; negative numbers count from the last."""
        n = self.n_episodes
        if not -n <= index < n:
            raise DataError(f"{self.path} has no episode {index}: it has {n}" + (f" (0 to {n - 1})" if n else ""))
        ends, index = self.episode_ends, index % n
        return slice(int(ends[index - 1]) if index else 0, int(ends[index]))

    def episode(self, index: int) -> dict[str, np.ndarray]:
        """All arrays of one episode: ``{key: [L, *shape]}``."""
        span = self.episode_slice(index)
        return {key: self.read(key, span.start, span.stop) for key in self.specs}

    def iter_blocks(
        self, key: str, block_bytes: int = _BLOCK_BYTES, first: int = 0
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first global step, rows) over the array from the step ``first`` on, in order.

        A block is a whole number of chunk files, at most ``block_bytes`` unless one chunk is larger: each chunk is
        decoded once.
        """
        self.require([key])
        whole = self._parts[key].key if key in self._parts else key
        spec, rows = self.specs[whole], chunk_rows(self.arrays[whole])
        row_bytes = max(1, spec.size * np.dtype(spec.dtype).itemsize)
        rows *= max(1, block_bytes // (rows * row_bytes))
        for start in range(first, self.n_steps, rows):
            yield start, self.read(key, start, min(start + rows, self.n_steps))

    def _check_open(self) -> None:
        if self._closed:
            raise DataError(f"{self.path} was closed: open it again")


def _read_ends(array: zarr.Array, path: Path) -> np.ndarray:
    """Committed episode ends, int64 ``[E]``: trailing fill values are entries that a writer has not written yet."""
    name = f"{path}: meta/{ENDS}"
    if array.ndim != 1 or getattr(array.dtype, "kind", "O") not in "iu":
        raise DataError(f"{name} is {array.dtype} of rank {array.ndim}: expected whole numbers of rank 1")
    try:
        ends = np.asarray(array[:]).astype(np.int64)
    except Exception as error:  # every decompressor raises a type of its own
        raise error if isinstance(error, DataError) else DataError(f"{name} is damaged: {error}") from None
    fill = int(array.fill_value) if array.fill_value is not None else 0
    written = np.flatnonzero(ends != min(fill, 0))
    ends = ends[: int(written[-1]) + 1 if len(written) else 0]
    bad = np.flatnonzero(np.diff(ends, prepend=0) <= 0)
    if len(bad):
        i = int(bad[0])
        before = f"{ends[i - 1]} at index {i - 1}" if i else "0, the start"
        raise DataError(
            f"{name} is not increasing: {ends[i]} at index {i} follows {before}. Each episode has at least 1 step"
        )
    return ends
