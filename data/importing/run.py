"""The import itself: episodes decoded in parallel, written in order, and gone on with after a stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.bulk import COMMIT_SECONDS, BulkError, BulkWriter
from visuomotor.data.errors import DataError, UserError
from visuomotor.data.importing.resume import ID_COLUMN, open_or_create
from visuomotor.data.importing.selection import Selection
from visuomotor.data.importing.source import Source, SourceEpisode
from visuomotor.data.memory import free_ram
from visuomotor.data.spec import ArraySpec
from visuomotor.data.validate import Finding

__all__ = ["ImportReport", "Selection", "import_demos"]


@dataclass
class ImportReport:
    """What an import did. Skipped episodes and findings are those of this call, not of one that it goes on with."""

    episodes: int = 0  # in the store now
    added: int = 0
    steps: int = 0  # in the store now
    skipped: dict[str, str] = field(default_factory=dict)  # {episode id: why}
    findings: list[Finding] = field(default_factory=list)


def import_demos(
    source: Source, path: str | Path, *, selection: Selection | None = None, options: Mapping[str, Any] | None = None,
    workers: int = 2, skip_damaged: bool = True, on_progress: Callable[[int, int], None] | None = None,
    commit_seconds: float = COMMIT_SECONDS,
) -> ImportReport:  # fmt: skip
    """Write a source into the store ``path``, which is made, or gone on with if an import of the same was stopped.

    Args:
        source: what to read.
        path: the store.
        selection: which arrays and episodes.
        options: what the source was opened with, kept with the store.
        workers: threads that decode and compress, fewer where the memory would not suffice.
        skip_damaged: leave out episodes that cannot be read, and report them; else stop there.
        on_progress: called with (episodes done, episodes in all).
        commit_seconds: the least time between commits [s]: what a kill may cost.

    Raises:
        DataError: nothing to import; a store of something else at ``path``; an episode larger than the memory; or a
            damaged episode.
    """
    selection = selection or Selection()
    specs = selection.specs(source.specs)
    names = selection.names(source.specs)
    wanted = selection.wanted(source.path, len(source.episodes))
    if not names or not wanted:
        raise DataError(f"{source.path}: nothing to import ({len(names)} arrays, {len(wanted)} episodes)")
    source.wanted = frozenset(names)
    workers = _affordable(source, specs, wanted, workers)
    source.threads = max(1, len(os.sched_getaffinity(0)) // workers)  # more would only wait for each other
    report = ImportReport(findings=list(source.findings))
    with open_or_create(Path(path).expanduser(), source, specs, names, selection.rate(source), options or {}) as store:
        done = set(store.episode_columns[ID_COLUMN].tolist())
        todo = [i for i in wanted if source.episodes[i].id not in done]
        with (
            _pool(workers) as pool,
            BulkWriter(store, pool, commit_seconds=commit_seconds) as writer,
            closing(_decoded(source, todo, pool, workers)) as decoded,
        ):
            for k, (index, result) in enumerate(decoded, start=len(wanted) - len(todo) + 1):
                name = source.episodes[index].id
                try:
                    report.findings += _append(writer, names, name, result)
                    report.added += 1
                except BulkError:
                    raise
                except DataError as error:
                    if not skip_damaged:
                        raise DataError(f"episode {name}: {error}") from error.__cause__
                    report.skipped[name] = str(error)
                del result  # its arrays are in the writer
                if on_progress is not None:
                    on_progress(k, len(wanted))
        report.episodes, report.steps = store.n_episodes, store.n_steps
    return report


def _pool(workers: int) -> AbstractContextManager[ThreadPoolExecutor | None]:
    """Threads that decode and compress; none for a single worker, which does it in turn and so takes least memory."""
    return nullcontext() if workers <= 1 else ThreadPoolExecutor(workers, thread_name_prefix="import")


def _append(
    writer: BulkWriter, names: Mapping[str, str], name: str, result: Callable[[], SourceEpisode]
) -> tuple[Finding, ...]:
    """Write one episode; what its reader raises, whatever it is, becomes one DataError."""
    try:
        episode = result()
        arrays = {new: episode.arrays[old] for old, new in names.items()}
        columns = {column: _text(value) for column, value in episode.columns.items()}
    except UserError as error:
        raise DataError(str(error)) from error.__cause__
    except MemoryError:
        raise DataError("reading it takes more memory than there is") from None
    except Exception as error:  # decoders of other packages raise types of their own for damaged files
        raise DataError(f"it cannot be read: {type(error).__name__}: {error}") from error
    writer.append(arrays, {**columns, ID_COLUMN: name})
    return episode.findings


def _text(value: Any) -> Any:
    """Text as it can be stored: what is no Unicode (half a surrogate pair from a damaged file) becomes '?'."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _affordable(source: Source, specs: Mapping[str, ArraySpec], wanted: Sequence[int], workers: int) -> int:
    """Threads whose episodes fit into half of the free memory.

    Raises:
        DataError: not even one episode fits.
    """
    step = sum(spec.size * np.dtype(spec.dtype).itemsize for spec in specs.values())
    longest = max(wanted, key=lambda i: source.episodes[i].length or 0)
    need, free = step * (source.episodes[longest].length or 0), free_ram()
    if need > free:
        raise DataError(
            f"{source.path}: episode {source.episodes[longest].id} with {source.episodes[longest].length} steps takes "
            f"{need / 1e9:.3g} GB, but {free / 1e9:.3g} GB of memory are free. Take fewer arrays (keys=, drop=)"
        )
    return max(1, min(workers, int(free / 2 / max(need, 1)) - 1))


def _decoded(
    source: Source, todo: Sequence[int], pool: ThreadPoolExecutor | None, workers: int
) -> Generator[tuple[int, Callable[[], SourceEpisode]], None, None]:
    """Episodes in order, decoded a little ahead so that ``workers + 1`` of them at most wait to be written."""
    if pool is None:
        for i in todo:
            yield i, lambda i=i: source.read(i)  # type: ignore[misc]
        return
    ahead: list[tuple[int, Future[SourceEpisode]]] = []
    rest = list(reversed(todo))
    try:
        while ahead or rest:
            while rest and len(ahead) <= workers:
                i = rest.pop()
                ahead.append((i, pool.submit(source.read, i)))
            index, future = ahead.pop(0)
            yield index, future.result
            del future  # its arrays are in the store
    finally:
        for _, future in ahead:  # stopped by Ctrl-C: nothing more is decoded
            future.cancel()
