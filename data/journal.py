"""Episodes that are safe on disk but not yet in the Zarr arrays.

Rewriting a Zarr shard for every episode would be slow, and a kill in the middle could leave arrays of different
length. So an episode is first written as raw files into a staging folder, flushed, and committed by ONE rename::

    <store>/journal/.staging-<id>/   being written; a leftover of a kill is deleted by the next writer
    <store>/journal/00000207/        committed: episode 207; manifest.json and one file of raw rows per array

An entry whose number is below the count in ``meta/episode_ends`` is already in the arrays: a leftover, ignored.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from visuomotor.data.durable import fsync_directory, remove_tree
from visuomotor.data.errors import DataError
from visuomotor.data.spec import ArraySpec

__all__ = ["JournalEntry", "StagedEpisode", "StagedFiles", "clean_journal", "clean_staging", "read_journal"]

_COMMITTED = re.compile(r"\d{8}")
_STAGING = ".staging-"
_CHECK_BYTES = 8 << 20
_SYNC_BYTES = 64 << 20  # a disk takes these in the time that a full buffer of steps bridges


@dataclass(frozen=True)
class JournalEntry:
    """One committed episode of ``length`` steps that begins at global step ``start``."""

    path: Path
    index: int
    start: int
    length: int
    checksums: Mapping[str, int]
    columns: Mapping[str, Any]

    @property
    def stop(self) -> int:
        """Global step after the last one."""
        return self.start + self.length

    @property
    def n_bytes(self) -> int:
        """Bytes of the raw rows."""
        return sum((self.path / f"{key}.bin").stat().st_size for key in self.checksums)

    def read(self, key: str, spec: ArraySpec, start: int, stop: int) -> np.ndarray:
        """Rows of global steps ``[start, stop)``, which must lie in this entry: ``[stop - start, *spec.shape]``."""
        dtype = np.dtype(spec.dtype)
        offset = (start - self.start) * spec.size * dtype.itemsize
        rows = np.fromfile(self.path / f"{key}.bin", dtype, (stop - start) * spec.size, offset=offset)
        return rows.reshape(stop - start, *spec.shape)

    def check_file(self, key: str) -> None:
        """Raise DataError unless the rows of ``key`` are the ones that were written."""
        checksum = 0
        with (self.path / f"{key}.bin").open("rb") as f:
            while block := f.read(_CHECK_BYTES):
                checksum = zlib.crc32(block, checksum)
        self.check(key, checksum)

    def check(self, key: str, checksum: int) -> None:
        """Raise DataError unless ``checksum``, the CRC-32 of all rows of ``key``, is that of the rows written."""
        if checksum != self.checksums[key]:
            raise DataError(
                f"episode {self.index} is damaged on disk: {key!r} in {self.path / f'{key}.bin'} has another checksum "
                f"than when it was written. Remove the folder {self.path} (and any later one beside it) to give it up."
            )


def _load(path: Path, start: int, specs: Mapping[str, ArraySpec]) -> JournalEntry:
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        length, checksums = int(manifest["length"]), {k: int(v) for k, v in manifest["checksums"].items()}
        columns = dict(manifest["columns"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"journal entry {path} has a damaged manifest.json ({error}): remove the folder") from None
    for key, spec in specs.items():
        size = (path / f"{key}.bin").stat().st_size
        expected = length * spec.size * np.dtype(spec.dtype).itemsize
        if size != expected or key not in checksums:
            raise DataError(
                f"journal entry {path} is damaged: {key}.bin has {size} bytes, expected {expected} for {length} steps"
            )
    return JournalEntry(path, int(path.name), start, length, checksums, columns)


def _committed(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _COMMITTED.fullmatch(p.name))


def read_journal(folder: Path, specs: Mapping[str, ArraySpec], n_episodes: int, n_steps: int) -> list[JournalEntry]:
    """Committed entries that follow the ``n_episodes`` episodes (``n_steps`` steps) of the arrays, in order.

    Raises:
        DataError: an entry is damaged.
        FileNotFoundError: an entry is missing: as a rule a writer moved it into the arrays while we looked, so read
            ``episode_ends`` again; if it stays so, somebody removed it.
    """
    entries: list[JournalEntry] = []
    for path in _committed(folder):
        if int(path.name) < n_episodes:
            continue
        expected = n_episodes + len(entries)
        if int(path.name) != expected:
            raise FileNotFoundError(
                f"episode {expected} is neither in the arrays nor in {folder}, which has {path.name}"
            )
        entries.append(_load(path, entries[-1].stop if entries else n_steps, specs))
    return entries


def clean_journal(folder: Path, n_episodes: int) -> None:
    """Delete what a killed writer left: staging folders, partial files, and entries that are in the arrays already."""
    for path in list(folder.iterdir()):
        in_arrays = bool(_COMMITTED.fullmatch(path.name)) and int(path.name) < n_episodes
        if in_arrays or path.name.startswith((_STAGING, ".partial-")):
            remove_tree(path)


def clean_staging(folder: Path) -> None:
    """Delete episodes that were staged and will not be committed; nobody may be writing one."""
    for path in list(folder.glob(f"{_STAGING}*")):
        remove_tree(path)


@dataclass(frozen=True)
class StagedFiles:
    """What another process must know to commit an episode that is staged: the name of its folder, and its rows."""

    name: str
    length: int
    checksums: Mapping[str, int]


class StagedEpisode:
    """An episode being written. Rows go to disk as they come: nothing is kept in memory.

    Args:
        folder: the journal.
        keys: the arrays.
        steady: flush to disk all along, not only at the end, which then does not take long.
    """

    def __init__(self, folder: Path, keys: Iterable[str], *, steady: bool = False) -> None:
        self.path = folder / f"{_STAGING}{uuid.uuid4().hex}"
        self.path.mkdir()
        self.length = 0
        self.committed = False
        self._steady, self._unsynced = steady, 0
        self._checksums = dict.fromkeys(keys, 0)
        self._files: dict[str, BinaryIO] = {}
        try:
            for key in self._checksums:
                self._files[key] = (self.path / f"{key}.bin").open("wb", buffering=1 << 16)
        except OSError:
            self.discard()
            raise

    @classmethod
    def sealed(cls, folder: Path, files: StagedFiles) -> StagedEpisode:
        """The episode that another process has written into the journal ``folder`` and sealed."""
        episode = cls.__new__(cls)
        episode.path, episode.length, episode.committed = folder / files.name, files.length, False
        episode._steady, episode._unsynced = False, 0
        episode._files, episode._checksums = {}, dict(files.checksums)
        return episode

    def write(self, rows: Mapping[str, np.ndarray], n: int) -> None:
        """Add ``n`` steps: for every key a contiguous array of ``n`` rows, already checked."""
        for key, f in self._files.items():
            view = rows[key].data.cast("B")
            f.write(view)
            self._checksums[key] = zlib.crc32(view, self._checksums[key])
            self._unsynced += len(view)
        self.length += n
        if self._steady and self._unsynced >= _SYNC_BYTES:
            self._unsynced = 0
            for f in self._files.values():
                f.flush()
                os.fdatasync(f.fileno())

    def seal(self) -> StagedFiles:
        """Flush the rows to disk; no more can be added."""
        files, self._files = self._files, {}
        try:
            for f in files.values():
                f.flush()
                os.fsync(f.fileno())
        finally:
            _close(files.values())
        return StagedFiles(self.path.name, self.length, dict(self._checksums))

    def commit(self, index: int, start: int, columns: Mapping[str, Any]) -> JournalEntry:
        """Flush everything, then make it episode ``index``, from global step ``start`` on, by one rename."""
        self.seal()
        manifest = {"length": self.length, "checksums": self._checksums, "columns": dict(columns)}
        with (self.path / "manifest.json").open("w") as m:
            json.dump(manifest, m)
            m.flush()
            os.fsync(m.fileno())
        fsync_directory(self.path)
        # assigned at once, so that discard() finds it if the next line fails
        self.path = self.path.rename(self.path.parent / f"{index:08d}")
        fsync_directory(self.path.parent)
        self.committed = True
        return JournalEntry(self.path, index, start, self.length, dict(self._checksums), dict(columns))

    def discard(self) -> None:
        """Delete what was written."""
        files, self._files = self._files, {}
        _close(files.values())
        remove_tree(self.path)


def _close(files: Iterable[BinaryIO]) -> None:
    for f in files:
        with contextlib.suppress(OSError):  # a full disk: what is still buffered is not wanted either
            f.close()
