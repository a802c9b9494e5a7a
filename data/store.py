"""The demonstration store: all episodes of a task, end to end, in one Zarr group.

Layout (the replay buffer that the field uses; a Diffusion Policy dataset opens unchanged)::

    data/<key>           [T, ...]  the steps of all episodes, one array per sensor, action, ...
    meta/episode_ends    [E]       int64, the step after the last one of each episode
    meta/<column>        [E]       optional values per episode: task text, success, operator
    journal/                       episodes that are committed but not yet in the arrays (visuomotor.data.journal)

Root attribute ``visuomotor``: format version, fps, the :class:`ArraySpec` of each key, and optionally the origin.

Order of a write: rows, flushed; columns, flushed; ``episode_ends``; then the journal entry is removed. A kill at any
instant leaves the store as it was before the episode or as it is after.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Literal

from zarr.storage import ZipStore

from visuomotor.data.compaction import Compaction
from visuomotor.data.durable import WriterLock, fsync_directory, fsync_tree, remove_tree
from visuomotor.data.errors import DataError
from visuomotor.data.journal import StagedEpisode, clean_journal
from visuomotor.data.layout import Root, create_layout, open_root
from visuomotor.data.reader import StoreReader
from visuomotor.data.remote import UrlPath, as_path
from visuomotor.data.rows import conform_columns, conform_episode
from visuomotor.data.spec import ArraySpec

__all__ = ["DemoStore"]

_JOURNAL_BYTES = 1 << 30
_JOURNAL_EPISODES = 256
_LOCAL_ONLY = (
    "{path} cannot be written: crash-safe appending needs renames and flushes, which object stores lack. Write a "
    "local store, then copy the closed folder (aws s3 cp --recursive, gcloud storage cp -r)"
)


class DemoStore(StoreReader):
    """One store, to read and append to. Use :meth:`open` or :meth:`create`; what can be read is in the base class."""

    def __init__(self, root: Root, mode: Literal["r", "a"], lock: WriterLock | None, journal_bytes: int) -> None:
        super().__init__(root)
        self.mode = mode
        self._lock, self._journal_bytes = lock, journal_bytes
        self._moving: Compaction | None = None
        self._removing: Thread | None = None

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "a"] = "r", *, journal_bytes: int = _JOURNAL_BYTES) -> DemoStore:
        """Open a Zarr group (version 2 or 3; folder, or ``.zarr.zip`` for reading).

        Args:
            path: the store; for reading also a URL (see :mod:`visuomotor.data.remote`), or a view of a store
                (``.json``, see :mod:`visuomotor.data.editing.view`).
            mode: ``"r"`` reads, ``"a"`` also appends; one writer at a time.
            journal_bytes: with ``"a"``, committed episodes are moved into the arrays when they exceed this many bytes,
                and at :meth:`close`.

        Raises:
            DataError: no store is there, it is damaged in its structure, or it cannot be written as asked.
        """
        path = as_path(path)
        if mode not in ("r", "a"):
            raise DataError(f"unknown mode {mode!r}: expected 'r' (read) or 'a' (read and append)")
        if mode == "a" and isinstance(path, UrlPath):
            raise DataError(_LOCAL_ONLY.format(path=path))
        if path.suffix == ".json":
            return _open_view(path, mode)
        try:
            root = open_root(path, "r")
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        if mode == "r":
            return cls(root, "r", None, journal_bytes)
        if isinstance(root.files, ZipStore):
            raise DataError(
                f"{path} is a zip archive, which cannot be appended to safely: "
                "unpack it into a folder and open that with mode 'a'"
            )
        try:
            lock = WriterLock(path)
        except OSError as error:
            raise DataError(f"{path} cannot be opened for append: {error.strerror or error}") from None
        try:
            store = cls(open_root(path, "a"), "a", lock, journal_bytes)
            if store.unusable:
                raise DataError(f"{path} cannot be appended to: {'; '.join(store.unusable.values())}")
            clean_journal(store.journal_path, len(store.array_ends))
        except BaseException:
            lock.release()
            raise
        return store

    @classmethod
    def create(
        cls,
        path: str | Path,
        specs: Mapping[str, ArraySpec],
        *,
        fps: float | None = None,
        episode_columns: Mapping[str, str] | None = None,
        origin: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        journal_bytes: int = _JOURNAL_BYTES,
    ) -> DemoStore:
        """Make an empty store and open it for append.

        Args:
            path: the folder to make.
            specs: what each array is.
            fps: steps per second [Hz], None when unknown.
            episode_columns: name to type (``"str"``, ``"bool"``, ``"int64"``, ``"float64"``) of per-episode values.
            origin: how the demonstrations are made, in plain JSON types (see :attr:`origin`).
            overwrite: replace a store that is there; never anything else.
            journal_bytes: as for :meth:`open`.

        Raises:
            DataError: something is at ``path`` already, or a spec or column cannot be stored.
        """
        path = as_path(path)
        if isinstance(path, UrlPath):
            raise DataError(_LOCAL_ONLY.format(path=path))
        if path.suffix == ".zip":
            raise DataError(f"{path}: a store is created as a folder; zip the finished folder if one file is wanted")
        if path.exists() and not overwrite:
            raise DataError(
                f"{path} exists already: open it with mode 'a' to append, or pass overwrite=True to replace it"
            )
        fresh, old = path.parent / f".{path.name}.new-{os.getpid()}", path.parent / f".{path.name}.old-{os.getpid()}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            create_layout(fresh, specs, fps, episode_columns or {}, origin)
            remove_tree(fresh / "journal")
            fsync_tree(fresh)
            if path.exists():
                open_root(path, "r")  # refuses to replace what is no store
                with WriterLock(path):
                    path.rename(old)
            fresh.rename(path)
            fsync_directory(path.parent)
            remove_tree(old)
        except OSError as error:
            if old.exists() and not path.exists():
                old.rename(path)
            raise DataError(f"cannot create a store at {path}: {error.strerror or error}") from None
        finally:
            remove_tree(fresh)
        return cls.open(path, "a", journal_bytes=journal_bytes)

    def append_episode(self, arrays: Mapping[str, Any], columns: Mapping[str, Any] | None = None) -> int:
        """Add one episode ``{key: [L, *shape]}``; it is on disk for good when this returns. Returns its index.

        Raises:
            DataError: a key too many or too few, wrong shape or type, lengths that differ, a NaN; or the disk is full.
                The store then holds the episodes that it held before.
        """
        self._check_writable()
        checked, length = conform_episode(arrays, self.specs)
        values = conform_columns(columns or {}, self.column_types)
        staged: StagedEpisode | None = None
        try:
            staged = self.stage()
            staged.write(checked, length)
            return self.commit(staged, values)
        except OSError as error:
            if staged is not None:
                staged.discard()
            raise self._write_error(error) from None

    def stage(self, *, steady: bool = False) -> StagedEpisode:
        """Begin an episode whose steps come one by one; see :class:`visuomotor.data.recorder.EpisodeRecorder`."""
        self._check_writable()
        return StagedEpisode(self.journal_path, self.specs, steady=steady)

    def commit(self, staged: StagedEpisode, columns: Mapping[str, Any], *, background: bool = False) -> int:
        """Make a staged episode part of the store and return its index. ``columns`` are already checked.

        When the journal is full it is then compacted, with ``background`` in a thread while the caller goes on.
        """
        self._check_writable()
        n_steps, index = self.n_steps, self.n_episodes
        self._journal.append(staged.commit(index, n_steps, columns))
        if background and self._moving is not None and self._moving.running:
            return index
        self._take_over()
        if len(self._journal) >= _JOURNAL_EPISODES or sum(e.n_bytes for e in self._journal) > self._journal_bytes:
            if background:
                self._moving = Compaction(self)
                self._moving.start()
            else:
                self.compact()
        return index

    def compact(self) -> None:
        """Move the journal into the Zarr arrays. Called by itself; safe to be killed in.

        Raises:
            DataError: the disk is full, or a journal entry is damaged. No committed episode is lost.
        """
        self._check_writable()
        self._take_over()
        if self._journal:
            self._moving = Compaction(self)
            self._take_over()
        if self._removing is not None:
            self._removing.join()

    def _take_over(self) -> None:
        """Finish the compaction that was begun, if any, and go on with what it has made."""
        moving = self._moving
        if moving is None:
            return
        try:
            moving.finish()
        except OSError as error:
            raise DataError(
                f"{self.path}: episodes {moving.entries[0].index} to {moving.entries[-1].index} are safe in the "
                f"journal but could not be moved into the arrays: {error.strerror or error}. "
                "Free some space, then open the store with mode 'a' and close it"
            ) from None
        finally:
            if not moving.running:  # unless Ctrl-C ended the wait for it
                self._moving = None
        self._journal = self._journal[len(moving.entries) :]
        self.array_ends, self.n_array_steps = moving.ends, int(moving.ends[-1])
        if self._removing is not None:
            self._removing.join()
        self._removing = moving.remove_entries()

    def _write_error(self, error: OSError) -> DataError:
        return DataError(
            f"{self.path}: the episode could not be written: {error.strerror or error}. "
            f"The store is unchanged, with {self.n_episodes} episodes"
        )

    def _check_writable(self) -> None:
        self._check_open()
        if self.mode != "a":
            raise DataError(f"{self.path} was opened for reading (mode 'r'): open it with mode 'a' to append")

    def close(self) -> None:
        """Move the journal into the arrays and give the writer's lock back. Safe to call twice."""
        if self._closed:
            return
        try:
            if self.mode == "a":
                self.compact()
        finally:
            self._closed = True
            if self._moving is not None:  # Ctrl-C ended the wait for it, and it goes on writing
                Thread(target=self._release, name="unlock", daemon=True).start()
            else:
                self._release()
            if isinstance(self.root.files, ZipStore):
                self.root.files.close()

    def _release(self) -> None:
        """Give the lock back when nothing of this writer writes any more."""
        if self._moving is not None:
            self._moving.wait()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> DemoStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        keys = ", ".join(self.specs)
        return f"DemoStore({str(self.path)!r}, {self.n_episodes} episodes, {self.n_steps} steps of {keys})"


def _open_view(path: Path, mode: str) -> DemoStore:
    from visuomotor.data.editing.view import open_view  # a view is a store itself

    if mode != "r":
        raise DataError(f"{path} is a view, which is read only: append to the store that it is of")
    return open_view(path)
