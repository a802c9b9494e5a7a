"""NumPy archives: a folder with one ``.npz`` an episode, or one file, with ``episode_ends`` where it holds several.

Format: numpy.lib.format (NPY 1.0 and 2.0) within zip. Pickled objects are refused.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

import numpy as np

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.importing.archive import Archive
from visuomotor.data.importing.npy import NpyEntry, read_entry
from visuomotor.data.importing.roles import infer_role
from visuomotor.data.importing.source import EpisodeInfo, Source, SourceEpisode
from visuomotor.data.layout import check_fps
from visuomotor.data.spec import ArraySpec
from visuomotor.data.validate import Finding

__all__ = ["ATTRIBUTES", "NpzSource"]

ATTRIBUTES = "visuomotor"  # entry that our exporter adds: fps and what each array is, as JSON
_ENDS = ("meta/episode_ends", "episode_ends")
_COLUMN_KINDS = {"U": "str", "b": "bool", "i": "int64", "u": "int64", "f": "float64"}
_PREFIXES = re.compile(r"^(data/|observations?[./]images[./]|observations?[./]|obs[./])")


class NpzSource(Source):
    """``.npz`` files that are read without unpickling anything.

    One file with ``episode_ends`` (or ``meta/episode_ends``) ``[E]``, the step after the last one of each episode,
    holds several episodes: arrays ``[T, ...]`` are steps, arrays ``[E]`` are values per episode. Without it a file is
    one episode: arrays ``[L, ...]`` are steps, single values and texts belong to the episode.
    """

    format = "npz"

    @classmethod
    def recognises(cls, path: Path) -> str | None:
        """See :meth:`Source.recognises`."""
        if path.is_file() and path.suffix == ".npz":
            return "NumPy archive (.npz)"
        if path.is_dir() and (n := len(list(path.glob("*.npz")))):
            return f"folder of {n} NumPy archives (*.npz)"
        return None

    def __init__(self, path: Path, options: Mapping[str, Any] | None = None) -> None:
        if options:
            raise ConfigError(f"format npz has no option {next(iter(options))!r}. It has none")
        self.path, self.findings = path, []
        files = [path] if path.is_file() else sorted(path.glob("*.npz"), key=_natural)
        if not files:
            raise DataError(f"{path} holds no .npz file")
        self._archives: list[Archive] = []
        self._files = files
        self._lock = threading.Lock()
        self._mapped: dict[str, np.ndarray] = {}
        self._ends: np.ndarray | None = None
        try:
            self._open(files)
        except BaseException:
            self.close()
            raise

    def _open(self, files: list[Path]) -> None:
        entries = [self._look(file) for file in files]
        good = next((k for k, e in enumerate(entries) if isinstance(e, dict)), None)
        if good is None:
            raise DataError(str(entries[0]))
        first = entries[good]
        assert isinstance(first, dict)
        ends = next((first[n] for n in _ENDS if n in first), None) if len(files) == 1 else None
        if ends is not None:
            self._ends = _read_ends(ends)
        arrays, columns = self._sort(first, files[good])
        self._arrays = {key: entry.key for key, entry in arrays.items()}
        self._columns = {name: entry.key for name, entry in columns.items()}
        self.columns = {name: _COLUMN_KINDS[entry.dtype.kind] for name, entry in columns.items()}
        self.fps, self.specs = _specs(first, arrays)
        self._entries = entries
        if self._ends is not None:
            lengths = np.diff(self._ends, prepend=0).tolist()
            self.episodes = [EpisodeInfo(id=str(i), length=int(n)) for i, n in enumerate(lengths)]
            self._values = {c: read_entry(first[n]).tolist() for c, n in self._columns.items()}
            self._whole = {key: first[n] for key, n in self._arrays.items()}
            return
        key = next(iter(self._arrays.values()))
        self.episodes = [
            EpisodeInfo(
                id=file.stem, length=e[key].shape[0] if isinstance(e, dict) and key in e and e[key].shape else None
            )
            for file, e in zip(files, entries, strict=True)
        ]

    def _look(self, file: Path) -> dict[str, NpyEntry] | DataError:
        """Entries of a file, or what is wrong with it: an episode to be left out."""
        try:
            self._archives.append(Archive(file))
            return _entries(self._archives[-1])
        except DataError as error:
            return error

    def _sort(self, entries: dict[str, NpyEntry], file: Path) -> tuple[dict[str, NpyEntry], dict[str, NpyEntry]]:
        """Entries that hold steps, and entries that hold values of an episode, by the names that they will have."""
        data = {n: e for n, e in entries.items() if n not in (*_ENDS, ATTRIBUTES)}
        if self._ends is not None:
            n_steps, n_values = int(self._ends[-1]), len(self._ends)
        else:
            numeric = [e for e in data.values() if e.shape and e.dtype.kind != "U"]
            lengths = Counter(e.shape[0] for e in numeric)
            acting = next((e.shape[0] for e in numeric if _short(e.key) == "action"), None)
            n_steps = acting if acting is not None else lengths.most_common(1)[0][0] if lengths else 0
            n_values = None
        arrays: dict[str, NpyEntry] = {}
        columns: dict[str, NpyEntry] = {}
        for name, entry in data.items():
            per_episode = entry.shape == (() if n_values is None else (n_values,))
            step = bool(entry.shape) and entry.shape[0] == n_steps and entry.dtype.kind in "biuf"
            if n_values == n_steps and name.startswith("meta/"):
                step = False
            if step and not name.startswith("meta/"):
                key, where = _short(name), arrays
            elif per_episode and entry.dtype.kind in _COLUMN_KINDS:
                key, where = _short(name.removeprefix("meta/")), columns
            else:
                message = (
                    f"left out: {entry.dtype} {list(entry.shape)} is neither [{n_steps}, ...] nor a value an episode"
                )
                self.findings.append(Finding(severity="warning", array=name, message=message))
                continue
            if key in where:
                raise DataError(f"{file}: entries {where[key].key!r} and {name!r} would have one name, {key!r}")
            where[key] = entry
        if not arrays or n_steps < 1:
            raise DataError(f"{file} holds no array of steps. It has: {', '.join(sorted(entries)) or 'nothing'}")
        return arrays, columns

    # ---------------------------------------------------------------- reading

    def read(self, index: int) -> SourceEpisode:
        """See :meth:`Source.read`."""
        keys = [k for k in self.specs if self.wanted is None or k in self.wanted]
        if self._ends is not None:
            start, stop = (int(self._ends[index - 1]) if index else 0), int(self._ends[index])
            arrays = {key: np.array(self._rows(key)[start:stop]) for key in keys}
            return SourceEpisode(arrays=arrays, columns={name: v[index] for name, v in self._values.items()})
        entries, path = self._entries[index], self._files[index]
        if isinstance(entries, DataError):
            raise DataError(str(entries))
        for name in (*(self._arrays[k] for k in keys), *self._columns.values()):
            if name not in entries:
                raise DataError(f"{path} has no {name!r}: the first file has. It has: {', '.join(sorted(entries))}")
        values = {name: read_entry(entries[entry]) for name, entry in self._columns.items()}
        for name, value in values.items():
            if value.shape != () or value.dtype.kind not in _COLUMN_KINDS:
                raise DataError(f"{path}: {name!r} is {value.dtype} {list(value.shape)}: expected one value")
        return SourceEpisode(
            arrays={key: read_entry(entries[self._arrays[key]]) for key in keys},
            columns={name: value.item() for name, value in values.items()},
        )

    def _rows(self, key: str) -> np.ndarray:
        """Array ``[T, ...]`` mapped from the file, or from an unpacked copy of it, after a look at its checksum."""
        with self._lock:
            if key not in self._mapped:
                self._mapped[key] = _map(self._whole[key])
            return self._mapped[key]

    def close(self) -> None:
        """Close the files."""
        self._mapped.clear()
        for archive in self._archives:
            archive.close()


def _entries(archive: Archive) -> dict[str, NpyEntry]:
    return {n.removesuffix(".npy"): NpyEntry.open(archive, n) for n in archive.names if n.endswith(".npy")}


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order in which ``episode_10`` follows ``episode_9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.stem)]


def _short(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", _PREFIXES.sub("", name))


def _read_ends(entry: NpyEntry) -> np.ndarray:
    if len(entry.shape) != 1 or entry.dtype.kind not in "iu" or not entry.shape[0]:
        raise DataError(f"{entry.where} is {entry.dtype} {list(entry.shape)}: expected whole numbers [E], E at least 1")
    ends = read_entry(entry).astype(np.int64)
    if (np.diff(ends, prepend=0) <= 0).any():
        raise DataError(f"{entry.where} is not increasing from above 0: each episode has at least 1 step")
    return ends


def _specs(entries: dict[str, NpyEntry], arrays: dict[str, NpyEntry]) -> tuple[float | None, dict[str, ArraySpec]]:
    inferred = {
        key: ArraySpec(shape=e.shape[1:], dtype=e.dtype.newbyteorder("=").name, role=infer_role(key), source=e.key)
        for key, e in arrays.items()
    }
    if ATTRIBUTES not in entries:
        return None, inferred
    try:
        told = json.loads(str(read_entry(entries[ATTRIBUTES])))
        fps = None if told["fps"] is None else check_fps(told["fps"])
        declared = {k: ArraySpec.from_dict(d) for k, d in told["keys"].items()}
        same = {k: d for k, d in declared.items() if k in inferred and _alike(d, inferred[k])}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{entries[ATTRIBUTES].where} is damaged: {type(error).__name__}: {error}") from None
    return fps, {**inferred, **same}


def _alike(a: ArraySpec, b: ArraySpec) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype)


def _map(entry: NpyEntry) -> np.ndarray:
    order: Any = "F" if entry.fortran else "C"
    offset = entry.archive.offset(entry.name)
    if offset is not None:
        entry.archive.copy(entry.name, None)
        return np.memmap(entry.archive.path, entry.dtype, "r", offset + entry.header_bytes, entry.shape, order)
    copy = cast(BinaryIO, TemporaryFile())  # noqa: SIM115  (no name: nothing is left behind, whatever happens)
    entry.archive.copy(entry.name, copy)
    copy.flush()
    return np.memmap(copy, entry.dtype, "r", entry.header_bytes, entry.shape, order)
