"""LeRobot datasets 2.0, 2.1 and 3.0: parquet tables with mp4 video or embedded pictures.

Settings (``options``):

* ``missing_video``: ``leave_out`` (default) leaves out episodes that lack the video of a camera which others have;
  ``drop_camera`` leaves out such cameras and takes the episodes.
* ``pairing``: ``time`` (default) gives each row the frame nearest to its timestamp, by the container's times; ``order``
  gives row i frame i, for datasets whose timestamps are wrong.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.importing.lerobot_frames import read_clip, read_pictures
from visuomotor.data.importing.lerobot_layout import Clip, Entry, read_layout
from visuomotor.data.importing.lerobot_meta import BOOKKEEPING, Feature, ranges, read_info, read_json
from visuomotor.data.importing.source import EpisodeInfo, Source, SourceEpisode
from visuomotor.data.memory import free_ram
from visuomotor.data.parquet import ParquetFile, column_to_numpy
from visuomotor.data.recycling import Recycler
from visuomotor.data.spec import ArraySpec
from visuomotor.data.validate import Finding
from visuomotor.data.video import VideoIndex

__all__ = ["LeRobotSource"]

_OPTIONS = {"missing_video": ("leave_out", "drop_camera"), "pairing": ("time", "order")}
_SUCCESS = "next.success"
_FREE_BYTES, _BYTES_PER_BYTE = 256 << 20, 1000  # numbers in a table: at most so many times the size of its file
_SPARE_BYTES = 2 << 30  # memory of decoded frames that is kept for more
T = TypeVar("T")


class LeRobotSource(Source):
    """A dataset folder (``meta/``, ``data/``, ``videos/``)."""

    format = "lerobot"

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self.path, self._options = path, _check(options)
        if not (path / "meta" / "info.json").is_file():
            raise DataError(f"{path} is no LeRobot dataset: it has no meta/info.json")
        self._info = read_info(path)
        self.fps = self._info.fps
        self._entries, self._tasks, self.findings = read_layout(self._info)
        if not self._entries:
            raise DataError(f"{path} has the data of no episode")
        self._lock = threading.Lock()
        self._memory = Recycler(min(_SPARE_BYTES, free_ram() / 8))
        self._rows: dict[Path, dict[int, tuple[int, int]]] = {}
        self._indices: dict[Path, VideoIndex] = {}
        self._features = self._usable(self._present(self._info.features))
        self.specs = {f.key: f.spec for f in self._features if f.kind != "text"}
        texts = {f.key: "str" for f in self._features if f.kind == "text"}
        self.columns = {"task": "str", **texts, **self._info.columns}
        if any(f.name == _SUCCESS for f in self._features):
            self.columns["success"] = "bool"
        self.episodes = [EpisodeInfo(id=str(e.index), length=e.length) for e in self._entries]

    @classmethod
    def recognises(cls, path: Path) -> str | None:
        """By ``meta/info.json`` with a ``codebase_version``."""
        if not (path / "meta" / "info.json").is_file():
            return None
        try:
            info = read_json(path / "meta" / "info.json")
        except DataError:
            return None
        version = info.get("codebase_version") if isinstance(info, dict) else None
        return f"LeRobot {version} (meta/info.json)" if isinstance(version, str) else None

    # ---------------------------------------------------------------- what is there

    def _present(self, features: tuple[Feature, ...]) -> list[Feature]:
        """Features that have a column or a file somewhere; the others are reported."""
        first = ParquetFile(self._entries[0].data)
        first.close()
        kept = []
        for f in features:
            have = any(f.name in e.clips for e in self._entries) if f.kind == "video" else f.name in first.columns
            if have:
                kept.append(f)
            else:
                where = "no episode has its video" if f.kind == "video" else "the tables have no such column"
                self._report(f"{f.name} is declared in meta/info.json, but {where}: not imported", f.key)
        declared = {*BOOKKEEPING, *(f.name for f in features)}
        if not self._info.columns and (more := [c for c in first.columns if c not in declared]):
            self._report(f"columns that meta/info.json does not declare: {', '.join(more)}: not imported")
        return kept

    def _usable(self, features: list[Feature]) -> list[Feature]:
        """Cameras with the size of their files; episodes or cameras left out where videos are missing."""
        gone: set[str] = set()
        for f in features:
            missing = [e.index for e in self._entries if f.kind == "video" and f.name not in e.clips]
            if not missing:
                continue
            what = f"{len(missing)} of {len(self._entries)} episodes have no video of {f.name} ({ranges(missing)})"
            if self._options["missing_video"] == "drop_camera":
                gone.add(f.name)
                self._report(f"{what}: imported without this camera", f.key)
            else:
                self._report(f"{what}: left out; options.missing_video=drop_camera takes them without it", f.key)
        kept = [f for f in features if f.name not in gone]
        cameras = [f.name for f in kept if f.kind == "video"]
        self._entries = [e for e in self._entries if all(c in e.clips for c in cameras)]
        if not self._entries:
            raise DataError(
                f"{self.path}: no episode has the video of every camera ({', '.join(cameras)}): "
                "options.missing_video=drop_camera imports without them"
            )
        return [self._sized(f) if f.kind == "video" else f for f in kept]

    def _sized(self, feature: Feature) -> Feature:
        index = self._index(self._entries[0].clips[feature.name])
        shape = (index.height, index.width, 3)
        if shape != feature.spec.shape:
            self._report(
                f"{feature.name} is declared as {list(feature.spec.shape)}, its video is {list(shape)}", feature.key
            )
        spec = ArraySpec(shape=shape, dtype="uint8", role="observation", source=feature.name)
        return replace(feature, spec=spec if shape != feature.spec.shape else feature.spec)

    def _report(self, message: str, array: str | None = None) -> None:
        self.findings.append(Finding(severity="warning", array=array, message=message))

    # ---------------------------------------------------------------- reading

    def read(self, index: int) -> SourceEpisode:
        """Decode one episode."""
        entry, notes = self._entries[index], list[str]()
        table = ParquetFile(entry.data)
        try:
            start, stop = self._span(entry, table)
            self._check_size(entry, table, stop - start)
            names = [f.name for f in self._features if f.kind != "video"]
            book = [c for c in ("frame_index", "task_index", "timestamp") if c in table.columns and c not in names]
            cells = table.read([*names, *book], start, stop)
        finally:
            table.close()
        arrays: dict[str, np.ndarray] = {}
        columns: dict[str, Any] = dict(entry.columns)
        for f in self._features:
            what = f"{entry.data}: episode {entry.index}: column {f.name!r}"
            if f.kind == "array":
                arrays[f.key] = column_to_numpy(cells[f.name], f.spec.dtype, f.spec.shape, what)
            elif f.kind == "image":
                arrays[f.key] = read_pictures(self.path, cells[f.name], f.spec.shape, what)
            elif f.kind == "text":
                columns[f.key] = _one_text(cells[f.name].to_pylist(), what, notes)
        self._add_videos(entry, cells, arrays, stop - start, notes)
        columns.setdefault("task", self._task(entry, cells, notes))
        if "success" in self.columns and "success" not in columns:
            columns["success"] = bool(column_to_numpy(cells[_SUCCESS], "bool", (), _SUCCESS).any())
        self._check_rows(entry, cells, stop - start, notes)
        findings = (Finding(severity="warning", episode=entry.index, message=note) for note in notes)
        return SourceEpisode(arrays=arrays, columns=columns, findings=tuple(findings))

    def _add_videos(
        self, entry: Entry, cells: Mapping[str, Any], arrays: dict[str, np.ndarray], n: int, notes: list[str]
    ) -> None:
        cameras = [f for f in self._features if f.kind == "video"]
        if not cameras:
            return
        if "timestamp" in cells:
            times = column_to_numpy(cells["timestamp"], "float64", (), f"{entry.data}: column 'timestamp'")
        else:
            times = np.arange(n) / self._info.fps
            notes.append("the table has no timestamps: frames are taken as evenly spaced")
        for f in cameras:
            clip = entry.clips[f.name]
            arrays[f.key], told = read_clip(
                self._index(clip),
                clip,
                times,
                self._info.fps,
                f.spec.shape,
                self._options["pairing"] == "order",
                self._memory,
                self.threads,
            )
            notes += [f"{f.name}: {t}" for t in told]

    def _span(self, entry: Entry, table: ParquetFile) -> tuple[int, int]:
        """First row of the episode in its file, and the one after its last."""
        if "episode_index" not in table.columns:
            return 0, table.n_rows
        spans = self._cached(self._rows, entry.data, lambda: _episode_spans(table))
        if entry.index not in spans:
            raise DataError(f"{entry.data} has no row of episode {entry.index}: it has {ranges(spans)}")
        return spans[entry.index]

    def _index(self, clip: Clip) -> VideoIndex:
        return self._cached(self._indices, clip.path, lambda: VideoIndex.read(clip.path))

    def _cached(self, cache: dict[Path, T], path: Path, make: Callable[[], T]) -> T:
        with self._lock:
            if path not in cache:
                cache[path] = make()
            return cache[path]

    def _check_size(self, entry: Entry, table: ParquetFile, n: int) -> None:
        """Refuse what would not fit, before any of it is read."""
        sizes = {f.name: n * f.spec.size * np.dtype(f.spec.dtype).itemsize for f in self._features if f.kind != "text"}
        numbers = sum(sizes[f.name] for f in self._features if f.kind == "array")
        limit = _FREE_BYTES + _BYTES_PER_BYTE * table.path.stat().st_size
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        total = sum(sizes.values())
        if numbers > limit or total > memory:
            raise DataError(
                f"{entry.data}: episode {entry.index} declares {n} rows, {total / 1e9:.1f} GB when decoded: "
                f"more than its file can hold, or than half of this machine's memory ({memory / 1e9:.1f} GB)"
            )

    def _task(self, entry: Entry, cells: Mapping[str, Any], notes: list[str]) -> str:
        if "task_index" in cells and self._tasks:
            indices = column_to_numpy(cells["task_index"], "int64", (), f"{entry.data}: column 'task_index'")
            if change := np.flatnonzero(indices != indices[0]).tolist():
                later = self._tasks.get(int(indices[change[0]]), "unknown")
                notes.append(f"the task changes at row {change[0]} to {later!r}: the first is kept")
            if (text := self._tasks.get(int(indices[0]))) is not None:
                return text
            notes.append(f"task {int(indices[0])} has no text")
        return entry.tasks[0] if entry.tasks else ""

    def _check_rows(self, entry: Entry, cells: Mapping[str, Any], n: int, notes: list[str]) -> None:
        if entry.length is not None and entry.length != n:
            notes.append(f"meta/ says {entry.length} steps, the table has {n}")
        if "frame_index" in cells:
            frames = column_to_numpy(cells["frame_index"], "int64", (), f"{entry.data}: column 'frame_index'")
            wrong = np.flatnonzero(frames != np.arange(n))
            if len(wrong):
                row = int(wrong[0])
                notes.append(f"frame_index is {frames[row]} at row {row}: rows are taken in the order of the table")


def _check(options: Mapping[str, Any]) -> dict[str, str]:
    for name, value in options.items():
        if name not in _OPTIONS:
            raise ConfigError(f"lerobot has no option {name!r}. {nearest(name, _OPTIONS)}")
        if value not in _OPTIONS[name]:
            raise ConfigError(f"option {name} is {value!r}: expected {' or '.join(_OPTIONS[name])}")
    return {name: str(options.get(name, values[0])) for name, values in _OPTIONS.items()}


def _episode_spans(table: ParquetFile) -> dict[int, tuple[int, int]]:
    what = f"{table.path}: column 'episode_index'"
    column = column_to_numpy(table.read(["episode_index"])["episode_index"], "int64", (), what)
    starts = np.flatnonzero(np.diff(column, prepend=column[:1] - 1))
    spans = {int(column[a]): (int(a), int(b)) for a, b in zip(starts, [*starts[1:], len(column)], strict=True)}
    if len(spans) < len(starts):
        raise DataError(f"{table.path}: the rows of an episode are not together")
    return spans


def _one_text(values: list[Any], what: str, notes: list[str]) -> str:
    if any(v != values[0] for v in values):
        notes.append(f"{what} changes within the episode: the first text is kept")
    return str(values[0] if values and values[0] is not None else "")
