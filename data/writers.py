"""Several processes write one store: each puts episodes on disk by itself, one of them makes them part of the store.

Checking, checksums and the disk then cost time in the processes that make the episodes, in parallel, and no array goes
through a pipe. Order and durability are decided in one place: an episode counts when the process that has the store
open commits it, by one rename, so the content depends neither on the number of processes nor on their speed. ::

    # in each process                             # in the one that has the store open
    writer = EpisodeWriter(path)
    pipe.send(writer.write(arrays))         ->    add_episode(store, pipe.recv(), columns)

A process that dies leaves a staging folder, which the next writer of the store deletes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.journal import StagedEpisode, StagedFiles, clean_staging
from visuomotor.data.rows import conform_columns, conform_episode
from visuomotor.data.store import DemoStore

__all__ = ["EpisodeWriter", "StagedFiles", "add_episode", "discard_staged"]


class EpisodeWriter:
    """Writes whole episodes beside a store that another process has open for append.

    Raises:
        DataError: no store is at ``path``.
    """

    def __init__(self, path: Path) -> None:
        with DemoStore.open(path) as store:
            self._path, self._specs, self._journal = store.path, store.specs, store.journal_path

    def write(self, arrays: Mapping[str, Any]) -> StagedFiles:
        """Put the episode ``{key: [L, *shape]}`` on disk for good, and return what :func:`add_episode` takes.

        Raises:
            DataError: as :meth:`DemoStore.append_episode`.
        """
        checked, length = conform_episode(arrays, self._specs)
        staged: StagedEpisode | None = None
        try:
            staged = StagedEpisode(self._journal, self._specs)
            staged.write(checked, length)
            return staged.seal()
        except OSError as error:
            if staged is not None:
                staged.discard()
            raise DataError(
                f"{self._path}: an episode could not be written: {error.strerror or error}. "
                "The episodes that are in the store are safe"
            ) from None


def add_episode(
    store: DemoStore, episode: Mapping[str, np.ndarray] | StagedFiles, columns: Mapping[str, Any] | None = None
) -> int:
    """Append an episode that an :class:`EpisodeWriter` has written, or one that is at hand; return its index.

    Raises:
        DataError: as :meth:`DemoStore.append_episode`; or what was written is not there any more.
    """
    if not isinstance(episode, StagedFiles):
        return store.append_episode(episode, columns)
    values = conform_columns(columns or {}, store.column_types)
    staged = StagedEpisode.sealed(store.journal_path, episode)
    try:
        return store.commit(staged, values, background=True)
    except OSError as error:
        staged.discard()
        raise DataError(
            f"{store.path}: an episode could not be added: {error.strerror or error}. "
            f"The store is unchanged, with {store.n_episodes} episodes"
        ) from None


def discard_staged(store: DemoStore) -> None:
    """Delete what was written but not added. No :class:`EpisodeWriter` may be at work any more."""
    clean_staging(store.journal_path)
