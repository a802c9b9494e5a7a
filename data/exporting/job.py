"""What every exporter gets: the store, what of it is wanted, and where to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.reader import StoreReader
from visuomotor.data.spec import ArraySpec

__all__ = ["ExportJob", "Exporter", "check_options"]

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """One export.

    Attributes:
        store: what to write.
        path: file or folder to make; nothing is there. It takes its final name when the exporter has returned.
        keys: arrays to write.
        episodes: indices of the episodes to write, in order.
        options: settings of the format.
        on_progress: called with (episodes done, episodes in all).
    """

    store: StoreReader
    path: Path
    keys: tuple[str, ...]
    episodes: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    on_progress: Callable[[int, int], None] | None = None

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """What each wanted array is."""
        return {key: self.store.specs[key] for key in self.keys}

    @property
    def n_steps(self) -> int:
        """Steps of the wanted episodes together."""
        return sum(s.stop - s.start for s in map(self.store.episode_slice, self.episodes))

    def read(self, key: str, episode: int) -> np.ndarray:
        """Rows ``[L, *shape]`` of one array of the episode with this index in the store."""
        span = self.store.episode_slice(episode)
        return self.store.read(key, span.start, span.stop)

    def iter_episodes(self) -> Iterator[tuple[int, dict[str, np.ndarray], dict[str, Any]]]:
        """``(index in the store, {key: [L, *shape]}, {column: value})`` one by one; tells the progress."""
        columns, ends, done = self.store.episode_columns, self.store.episode_ends, 0
        for run in self._runs():
            start = self.store.episode_slice(run[0]).start
            block = {key: self.store.read(key, start, int(ends[run[-1]])) for key in self.keys}
            for episode in run:
                values = {name: _plain(column[episode]) for name, column in columns.items()}
                stop = int(ends[episode]) - start
                first = (int(ends[episode - 1]) if episode else 0) - start
                yield episode, {key: rows[first:stop] for key, rows in block.items()}, values
                done += 1
                if self.on_progress is not None:
                    self.on_progress(done, len(self.episodes))

    def _runs(self) -> Iterator[list[int]]:
        """Adjacent episodes that are read at once: small reads of a Zarr store are slow."""
        row_bytes = sum(s.size * np.dtype(s.dtype).itemsize for s in self.specs.values())
        run: list[int] = []
        size = 0
        for episode in self.episodes:
            span = self.store.episode_slice(episode)
            more = (span.stop - span.start) * row_bytes
            if run and (episode != run[-1] + 1 or size + more > _BLOCK_BYTES):
                yield run
                run, size = [], 0
            run.append(episode)
            size += more
        yield run

    def fps(self) -> float:
        """Steps per second [Hz]: the option ``fps``, else what the store says.

        Raises:
            ConfigError: neither says it.
        """
        fps = self.options.get("fps", self.store.fps)
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
            raise ConfigError(
                f"{self.store.path} does not say its rate (fps {fps!r}): give options.fps=<steps a second>"
            )
        return float(fps)


Exporter = Callable[[ExportJob], list[str]]  # writes ``job.path``; returns what the user should know, one sentence each


def check_options(options: Mapping[str, Any], known: Mapping[str, Any], format: str) -> dict[str, Any]:
    """Options with defaults; ``known`` maps every name to its default.

    Raises:
        ConfigError: an unknown name.
    """
    for name in options:
        if name not in known:
            raise ConfigError(f"{format} has no option {name!r}. {nearest(name, known)}")
    return {**known, **options}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, str | bool | int | float):
        raise DataError(f"episode column holds {value!r}: expected text or a number")
    return value
