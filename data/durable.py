"""Writes that survive a kill: atomic replacement, flushing to disk, and the lock that keeps a store to one writer.

A file is written whole to a temporary name, flushed, and renamed over the old one, so that at every instant the name
holds either the old content or the new. Renames themselves are flushed by flushing their directory (fsync(2)).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from visuomotor.data.errors import DataError

__all__ = ["DurableStore", "WriterLock", "fsync_directory", "fsync_tree", "remove_tree"]


def fsync_directory(path: Path) -> None:
    """Flush the names in a directory to disk, so that a rename in it survives a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(root: Path) -> None:
    """Flush every file and directory under ``root``."""
    for folder, _, files in os.walk(root):
        for name in files:
            with open(os.path.join(folder, name), "rb") as f:
                os.fsync(f.fileno())
        fsync_directory(Path(folder))


def remove_tree(path: Path) -> None:
    """Delete a folder, or a file, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class DurableStore(LocalStore):
    """Zarr files on a local disk whose every write is atomic and flushed.

    zarr's own LocalStore is atomic but never flushes: after a power cut a renamed chunk may be empty. Temporary files
    lie in ``scratch``, so that cleaning after a crash lists one folder instead of every chunk of the store.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False, scratch: Path | None = None) -> None:
        super().__init__(root, read_only=read_only)
        self.scratch = self.root / "journal" if scratch is None else scratch
        self._touched: set[Path] = set()

    def with_read_only(self, read_only: bool = False) -> DurableStore:
        """The same files, opened for reading only or for writing."""
        return type(self)(self.root, read_only=read_only, scratch=self.scratch)

    async def set(self, key: str, value: Buffer) -> None:
        """Replace the content of ``key`` by ``value``."""
        if not self._is_open:
            await self._open()
        self._check_writable()
        await asyncio.to_thread(self._replace, self.root / key, [value.as_numpy_array()])

    def set_sync(self, key: str, value: Buffer) -> None:
        """Like :meth:`set`, for zarr's synchronous path."""
        self._ensure_open_sync()
        self._check_writable()
        self._replace(self.root / key, [value.as_numpy_array()])

    def set_parts(self, key: str, parts: Sequence[bytes]) -> None:
        """Replace the content of ``key`` by ``parts``, end to end; they are not copied."""
        self._ensure_open_sync()
        self._check_writable()
        self._replace(self.root / key, parts)

    def _replace(self, target: Path, parts: Sequence[np.ndarray | bytes]) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        partial = self.scratch / f".partial-{uuid.uuid4().hex}"
        try:
            with partial.open("wb") as f:
                for part in parts:
                    f.write(part if isinstance(part, bytes) else np.ascontiguousarray(part).data)
                f.flush()
                os.fsync(f.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        self._touched.add(target.parent)

    def flush_directories(self) -> None:
        """Flush the directories of all files replaced since the last call (and their parents, which may be new)."""
        touched, self._touched = self._touched, set()
        folders = {p for t in touched for p in (t, *t.parents) if p == self.root or self.root in p.parents}
        for folder in sorted(folders):
            if folder.is_dir():
                fsync_directory(folder)


class WriterLock:
    """Exclusive right to write a store, held while the process lives (flock(2): death releases it).

    Raises:
        DataError: another process, or another handle in this one, is writing.
    """

    def __init__(self, store_path: Path) -> None:
        self.folder = store_path / "journal"
        self.path = self.folder / ".lock"
        while True:
            self.folder.mkdir(exist_ok=True)
            try:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                continue  # a writer that was closing removed the folder between the two lines
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(self._fd)
                raise DataError(
                    f"{store_path} is being written by another writer (process {holder}). A store takes one writer at "
                    "a time: close that one first. Reading (mode='r') is possible meanwhile."
                ) from None
            if self._is_current():
                break
            os.close(self._fd)  # we locked a file that its last holder had just deleted
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def _is_current(self) -> bool:
        try:
            return os.stat(self.path).st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the right back and remove what marks it. Safe to call twice."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not empty
            self.folder.rmdir()
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()
