"""The store of an import: made, or recognised as what an import with the same settings was stopped in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.importing.source import Source
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

__all__ = ["ID_COLUMN", "open_or_create"]

ID_COLUMN = "source_episode"


def open_or_create(
    path: Path, source: Source, specs: Mapping[str, ArraySpec], names: Mapping[str, str], fps: float | None,
    options: Mapping[str, Any],
) -> DemoStore:  # fmt: skip
    """Store at ``path`` for an import of ``source``, open for append.

    Args:
        path: the store.
        source: what is imported.
        specs: what each array of the store is.
        names: ``{name in the source: name in the store}``.
        fps: steps per second [Hz].
        options: what the source was opened with.

    Raises:
        DataError: two episodes of the source have one id; or what is at ``path`` was not imported from this source with
            these settings: the message says what differs.
    """
    ids = [e.id for e in source.episodes]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise DataError(f"{source.path}: two episodes are called {twice!r}")
    for name in ids:
        if not name.isprintable():  # a damaged or hostile name; nothing that could be shown or stored
            raise DataError(f"{source.path}: {name!r} is no name of an episode")
    origin = {
        "format": source.format,
        "source": source.path.name,
        "options": json.loads(json.dumps(dict(options), default=str)),
        "names": dict(names),
    }
    columns = {**source.columns, ID_COLUMN: "str"}
    if not path.exists():
        return DemoStore.create(path, specs, fps=fps, episode_columns=columns, origin=origin)
    store = DemoStore.open(path, "a")
    differing = [
        *_differences({k: store.origin.get(k) for k in origin}, origin, ""),
        *_differences(_described(store.specs), _described(specs), "array "),
        *_differences(store.column_types, columns, "column "),
        *_differences({"fps": store.fps}, {"fps": fps}, ""),
        *_changed(store, source),
    ]
    if differing:
        store.close()
        raise DataError(
            f"{path} exists and is not what an import of {source.path} with these settings makes. "
            f"{'; '.join(differing)}. Give another path, or remove it"
        )
    return store


def _described(specs: Mapping[str, ArraySpec]) -> dict[str, str]:
    return {k: ", ".join(f"{n} {v}" for n, v in s.to_dict().items() if v is not None) for k, s in specs.items()}


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], what: str) -> list[str]:
    """One sentence for each entry that differs; entries of entries are looked into."""
    found = []
    for name in sorted({*there, *here}):
        a, b = there.get(name), here.get(name)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{name} ")
        else:
            found.append(f"{what}{name}: the store has {_shown(a)}, this import {_shown(b)}")
    return found


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _changed(store: DemoStore, source: Source) -> list[str]:
    """What of the episodes in the store the source does not have, or has with another length: it was changed since."""
    if ID_COLUMN not in store.column_types:
        return []
    lengths = {e.id: e.length for e in source.episodes}
    steps = np.diff(store.episode_ends, prepend=0).tolist()
    for name, n in zip(store.episode_columns[ID_COLUMN].tolist(), steps, strict=True):
        if name not in lengths:
            return [f"it holds episode {name}, which the source does not have"]
        if lengths[name] not in (None, n):
            return [f"its episode {name} has {n} steps, the source's {lengths[name]}"]
    return []
