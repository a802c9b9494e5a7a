"""Writing edited demonstrations, as a store or a view: it is there as a whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from visuomotor.data.durable import fsync_directory, remove_tree
from visuomotor.data.editing.demos import Demos
from visuomotor.data.editing.view import FORMAT, VERSION, episodes_hash
from visuomotor.data.errors import DataError
from visuomotor.data.store import DemoStore

__all__ = ["write_store", "write_view"]


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


def write_view(demos: Demos, path: Path) -> None:
    """Write the view ``path`` (``.json``), whole or not at all.

    Raises:
        DataError: something is at ``path``, there are no episodes, or arrays were changed, which needs a new store.
    """
    source = demos.source
    if source is None:
        raise DataError(f"{path} would be a view, which changes no array: give a path that ends with .zarr for a store")
    if path.exists():
        raise DataError(f"{path} exists already: remove it, or give another path")
    if not len(demos):
        raise DataError(f"{path}: no episodes are left")
    own = {n: [k, [demos.row(e)[n] for e in range(len(demos))]] for n, k in demos.column_types.items() if n not in
           source.columns}  # fmt: skip
    with DemoStore.open(source.path) as whole:
        document = {
            "format": FORMAT,
            "version": VERSION,
            "source": _relative(source.path, path),
            "episodes_hash": episodes_hash(whole, source.spans),
            "spans": source.spans.tolist(),
            "columns": own,
            "history": list(demos.history),
        }
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as f:
            json.dump(document, f)
            f.flush()
            os.fsync(f.fileno())
        os.rename(partial, path)
        fsync_directory(path.parent)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _relative(source: Path, view: Path) -> str:
    """Seen from the view, so that both can be moved together; a URL as it is."""
    if "://" in str(source):
        return str(source)
    return os.path.relpath(source.resolve(), view.parent.resolve())
