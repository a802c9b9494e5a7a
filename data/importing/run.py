"""The import itself: episodes decoded in parallel, written in order, and gone on with after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visuomotor.data.errors import DataError, nearest
from visuomotor.data.importing.source import Source, SourceEpisode
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import Finding

__all__ = ["ImportReport", "Selection", "import_demos"]

ID_COLUMN = "source_episode"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which arrays and episodes are imported, and under which names.

    Attributes:
        keys: arrays to take, by the names that the source gives them; empty takes all.
        drop: arrays to leave out.
        rename: new names.
        episodes: indices to take; None takes all.
    """

    keys: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    episodes: tuple[int, ...] | None = None

    def names(self, specs: Mapping[str, ArraySpec]) -> dict[str, str]:
        """``{name in the source: name in the store}``.

        Raises:
            DataError: a name that the source does not have, or two arrays of one name.
        """
        for name in (*self.keys, *self.drop, *self.rename):
            if name not in specs:
                raise DataError(f"the source has no array {name!r}. {nearest(name, specs)}")
        kept = [k for k in specs if (not self.keys or k in self.keys) and k not in self.drop]
        names = {k: self.rename.get(k, k) for k in kept}
        if len(set(names.values())) < len(names):
            raise DataError(f"two arrays would have one name: {names}")
        return names


@dataclass
class ImportReport:
    """What an import did."""

    episodes: int = 0  # in the store now
    added: int = 0
    steps: int = 0  # in the store now
    skipped: dict[str, str] = field(default_factory=dict)  # {episode id: why}
    findings: list[Finding] = field(default_factory=list)


def import_demos(
    source: Source, path: str | Path, *, selection: Selection | None = None, options: Mapping[str, Any] | None = None,
    workers: int = 2, skip_damaged: bool = True, on_progress: Callable[[int, int], None] | None = None,
) -> ImportReport:  # fmt: skip
    """Write a source into the store ``path``, which is made, or gone on with if an import of the same was stopped.

    Args:
        source: what to read.
        path: the store.
        selection: which arrays and episodes.
        options: what the source was opened with, kept with the store.
        workers: threads that decode.
        skip_damaged: leave out episodes that cannot be read, and report them; else stop there.
        on_progress: called with (episodes done, episodes in all).

    Raises:
        DataError: nothing to import; a store of something else at ``path``; or a damaged episode.
    """
    selection = selection or Selection()
    names = selection.names(source.specs)
    wanted = _wanted(source, selection)
    if not names or not wanted:
        raise DataError(f"{source.path}: nothing to import ({len(names)} arrays, {len(wanted)} episodes)")
    origin = {
        "format": source.format,
        "source": source.path.name,
        "options": json.loads(json.dumps(dict(options or {}), default=str)),
        "names": names,
    }
    specs = {new: source.specs[old] for old, new in names.items()}
    report = ImportReport(findings=list(source.findings))
    with _open(Path(path).expanduser(), specs, source, origin) as store:
        done = set(store.episode_columns[ID_COLUMN].tolist())
        todo = [i for i in wanted if source.episodes[i].id not in done]
        for k, (index, result) in enumerate(_decoded(source, todo, workers), start=len(wanted) - len(todo) + 1):
            info = source.episodes[index]
            try:
                episode = result()
                report.findings += episode.findings
                arrays = {new: episode.arrays[old] for old, new in names.items()}
                store.append_episode(arrays, {**episode.columns, ID_COLUMN: info.id})
                report.added += 1
            except DataError as error:
                if not skip_damaged:
                    raise DataError(f"episode {info.id}: {error}") from None
                report.skipped[info.id] = str(error)
            if on_progress is not None:
                on_progress(k, len(wanted))
        report.episodes, report.steps = store.n_episodes, store.n_steps
    return report


def _wanted(source: Source, selection: Selection) -> list[int]:
    n = len(source.episodes)
    if selection.episodes is None:
        return list(range(n))
    for i in selection.episodes:
        if not 0 <= i < n:
            raise DataError(f"{source.path} has no episode {i}: it has {n}, from 0")
    return list(dict.fromkeys(selection.episodes))


def _open(path: Path, specs: dict[str, ArraySpec], source: Source, origin: dict[str, Any]) -> DemoStore:
    columns = {**source.columns, ID_COLUMN: "str"}
    if not path.exists():
        return DemoStore.create(path, specs, fps=source.fps, episode_columns=columns, origin=origin)
    store = DemoStore.open(path, "a")
    if store.origin != origin or store.specs != specs or store.fps != source.fps:
        store.close()
        raise DataError(
            f"{path} exists and is no import of {source.path.name} with these settings: it says {store.origin}, "
            f"this import {origin}. Give another path, or remove it"
        )
    return store


def _decoded(source: Source, todo: Sequence[int], workers: int) -> Iterator[tuple[int, Callable[[], SourceEpisode]]]:
    """Episodes in order, decoded a little ahead so that memory holds ``workers + 1`` of them at most."""
    if workers <= 1:
        for i in todo:
            yield i, lambda i=i: source.read(i)  # type: ignore[misc]
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: list[tuple[int, Future[SourceEpisode]]] = []
        rest = iter(todo)
        for i in rest:
            ahead.append((i, pool.submit(source.read, i)))
            if len(ahead) <= workers:
                continue
            index, future = ahead.pop(0)
            yield index, future.result
        for index, future in ahead:
            yield index, future.result
