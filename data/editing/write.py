"""Writing edited demonstrations as a store that is there as a whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from visuomotor.data.durable import fsync_directory, remove_tree
from visuomotor.data.editing.demos import Demos
from visuomotor.data.errors import DataError
from visuomotor.data.store import DemoStore

__all__ = ["write_store"]


def write_store(demos: Demos, path: Path, on_progress: Callable[[int, int], None] | None = None) -> None:
    """Read every episode and write it into the new store ``path``. Memory: one episode, and the store's journal.

    It is built beside ``path``, as ``.<name>.unfinished``, and renamed at the end; what a kill left there is replaced.

    Raises:
        DataError: something is at ``path``, there are no episodes, an episode cannot be read, or the disk is full.
    """
    if path.exists():
        raise DataError(f"{path} exists already: remove it, or give another path")
    if not len(demos):
        raise DataError(f"{path}: no episodes are left")
    unfinished = path.parent / f".{path.name}.unfinished"
    if unfinished.exists() and not (unfinished / "zarr.json").exists():
        raise DataError(f"{unfinished} is in the way: remove it")
    store = DemoStore.create(
        unfinished,
        demos.specs,
        fps=demos.fps,
        episode_columns=demos.column_types,
        origin={**demos.origin, "history": list(demos.history)},
        overwrite=True,
    )
    done = False
    try:
        with store:
            for episode in range(len(demos)):
                try:
                    store.append_episode(demos.read(episode), demos.row(episode))
                except DataError as error:
                    raise DataError(f"episode {episode}: {error}") from None
                if on_progress is not None:
                    on_progress(episode + 1, len(demos))
        unfinished.rename(path)
        fsync_directory(path.parent)
        done = True
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        if not done:
            remove_tree(unfinished)
