"""LeRobot 3.0 datasets: parquet tables, mp4 video (H.264) or PNG pictures in the tables, and what describes them.

The format is that of huggingface/lerobot 0.4 (``lerobot/datasets/lerobot_dataset.py``). What it cannot say of an array
(role, unit, source, scalar shape) goes under the name ``visuomotor`` into ``meta/info.json``, which LeRobot ignores, so
that an import gives the store back.

Settings (``options``):

* ``images``: ``video`` (default) or ``png``, which is exact and larger.
* ``crf``, ``preset``, ``key_interval``: of x264. The interval is 2 by default, as in LeRobot: its loader seeks.
* ``names``: ``{array: feature}`` where other names are wanted than the derived ones.
* ``task``: text of episodes that the store has no ``task`` for.
* ``fps``: steps per second [Hz] where the store does not say.
* ``robot_type``: as text.
* ``file_mb``, ``video_mb``: size at which the next file is begun.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.exporting.job import ExportJob, check_options
from visuomotor.data.exporting.lerobot_features import Feature, declare, plan_features
from visuomotor.data.exporting.lerobot_files import DATA_PATH, VIDEO_PATH, EpisodeTable, Reel, write_tasks
from visuomotor.data.exporting.lerobot_stats import Stats, array_stats, merge_stats, picture_stats
from visuomotor.data.parquet import ParquetWriter

__all__ = ["export_lerobot"]

_OPTIONS = {
    "images": "video", "crf": 18, "preset": "veryfast", "key_interval": 2, "names": {}, "task": "", "fps": None,
    "robot_type": None, "file_mb": 100, "video_mb": 200,
}  # fmt: skip
_CHUNK_FILES = 1000
_MAX_STATS = 4096  # statistics of a larger array (a depth picture) have no use and would fill the description
_KEPT_ELSEWHERE = ("task", "source_episode")  # columns: the first has its own table, the second an import makes anew


def export_lerobot(job: ExportJob) -> list[str]:
    """Write ``job`` as a LeRobot 3.0 dataset folder."""
    options = check_options({k: v for k, v in job.options.items() if v is not None}, _OPTIONS, "lerobot")
    _check(options)
    fps = job.fps()
    features, notes = plan_features(job, options["names"], as_video=options["images"] == "video", fps=fps)
    writer = _Writer(job, features, fps, options)
    for _, arrays, columns in job.iter_episodes():
        writer.add(arrays, columns)
    writer.finish()
    return notes


def _check(options: Mapping[str, Any]) -> None:
    if options["images"] not in ("video", "png"):
        raise ConfigError(f"option images is {options['images']!r}: expected video or png")
    if not isinstance(options["names"], Mapping):
        raise ConfigError(f"option names is {options['names']!r}: expected {{array: feature}}")
    for name, low in (("crf", 0), ("key_interval", 1), ("file_mb", 1), ("video_mb", 1)):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(f"option {name} is {value!r}: expected a whole number from {low}")


class _Writer:
    """The dataset while it grows, episode by episode."""

    def __init__(self, job: ExportJob, features: list[Feature], fps: float, options: Mapping[str, Any]) -> None:
        self._root, self._features, self._fps, self._options = job.path, features, fps, options
        self._columns = {c: t for c, t in job.store.column_types.items() if c not in _KEPT_ELSEWHERE}
        self._tasks: dict[str, int] = {}
        self._n_episodes = self._n_steps = 0
        self._stats: dict[str, Stats] = {}
        self._episodes = EpisodeTable(self._root, _CHUNK_FILES)
        self._reels = {
            f.key: Reel(
                self._root, f.name, fps, options["video_mb"] << 20, _CHUNK_FILES,
                crf=options["crf"], preset=str(options["preset"]), key_interval=options["key_interval"],
            )
            for f in features
            if f.kind == "video"
        }  # fmt: skip
        self._file = 0
        self._table = self._open_table()

    def add(self, arrays: Mapping[str, np.ndarray], columns: Mapping[str, Any]) -> None:
        """Append one episode."""
        n = len(next(iter(arrays.values())))
        task = str(columns.get("task") or self._options["task"])
        if self._table.n_bytes > self._options["file_mb"] << 20:
            self._table.close()
            self._file += 1
            self._table = self._open_table()
        cells = self._bookkeeping(n, self._tasks.setdefault(task, len(self._tasks)))
        stats = {name: array_stats(values) for name, values in cells.items()}
        chunk, file = divmod(self._file, _CHUNK_FILES)
        row: dict[str, Any] = {
            "episode_index": self._n_episodes,
            "tasks": [task],
            "length": n,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self._n_steps,
            "dataset_to_index": self._n_steps + n,
        }
        for f in self._features:
            values = f.convert(arrays[f.key])
            if f.kind == "video":
                row |= {f"videos/{f.name}/{k}": v for k, v in self._reels[f.key].append(values).items()}
                stats[f.name] = picture_stats(values)
            elif f.kind == "image":
                cells[f.name] = _pngs(values)
                stats[f.name] = picture_stats(values)
            else:
                cells[f.name] = values
                if f.spec.size <= _MAX_STATS:
                    stats[f.name] = array_stats(values)
        self._table.write(cells)
        row |= {f"columns/{c}": columns[c] for c in self._columns}
        self._episodes.append(row, stats)
        for name, told in stats.items():
            self._stats[name] = merge_stats(self._stats.get(name), told)
        self._n_episodes, self._n_steps = self._n_episodes + 1, self._n_steps + n

    def finish(self) -> None:
        """Close the files and write what describes them."""
        self._table.close()
        for reel in self._reels.values():
            reel.close()
        self._episodes.close()
        write_tasks(self._root / "meta" / "tasks.parquet", self._tasks)
        stats = {name: {k: v.tolist() for k, v in s.items()} for name, s in self._stats.items()}
        _write_json(self._root / "meta" / "stats.json", stats)
        _write_json(self._root / "meta" / "info.json", self._info())

    def _open_table(self) -> ParquetWriter:
        chunk, file = divmod(self._file, _CHUNK_FILES)
        return ParquetWriter(self._root / DATA_PATH.format(chunk_index=chunk, file_index=file))

    def _bookkeeping(self, n: int, task_index: int) -> dict[str, Any]:
        return {
            "timestamp": (np.arange(n) / self._fps).astype(np.float32),
            "frame_index": np.arange(n),
            "episode_index": np.full(n, self._n_episodes),
            "index": np.arange(self._n_steps, self._n_steps + n),
            "task_index": np.full(n, task_index),
        }

    def _info(self) -> dict[str, Any]:
        options = self._options
        return {
            "codebase_version": "v3.0",
            "robot_type": options["robot_type"],
            "total_episodes": self._n_episodes,
            "total_frames": self._n_steps,
            "total_tasks": len(self._tasks),
            "chunks_size": _CHUNK_FILES,
            "data_files_size_in_mb": options["file_mb"],
            "video_files_size_in_mb": options["video_mb"],
            "fps": int(self._fps) if self._fps == int(self._fps) else self._fps,
            "splits": {"train": f"0:{self._n_episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._reels else None,
            "features": declare(self._features, self._fps),
            "visuomotor": {"columns": self._columns},
        }


def _pngs(frames: np.ndarray) -> list[dict[str, Any]]:
    cells = []
    for i, frame in enumerate(frames):
        ok, data = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        if not ok:
            raise DataError(f"frame {i} of shape {list(frame.shape)} cannot be written as PNG")
        cells.append({"bytes": data.tobytes(), "path": f"frame-{i:06d}.png"})
    return cells


def _write_json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=4) + "\n", encoding="utf-8")
