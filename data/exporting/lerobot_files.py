"""Files of a LeRobot 3.0 dataset: video that spans episodes, the table of episodes, the table of tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.exporting.lerobot_stats import Stats
from visuomotor.data.parquet import ParquetWriter, write_table
from visuomotor.data.video import VideoWriter

__all__ = ["DATA_PATH", "VIDEO_PATH", "EpisodeTable", "Reel", "write_tasks"]

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_EPISODES_BYTES = 100 << 20
_ROWS = 64  # episodes a row group


class Reel:
    """Video of one camera, episodes one after the other; a new file is begun when one is full."""

    def __init__(
        self, root: Path, camera: str, fps: float, max_bytes: int, chunk_files: int, *, crf: int, preset: str,
        key_interval: int,
    ) -> None:  # fmt: skip
        self._root, self._camera, self._fps = root, camera, fps
        self._max_bytes, self._chunk_files, self._file = max_bytes, chunk_files, -1
        self._x264: dict[str, Any] = {"crf": crf, "preset": preset, "key_interval": key_interval}
        self._writer: VideoWriter | None = None

    def append(self, frames: np.ndarray) -> dict[str, Any]:
        """Write uint8 ``[L, H, W, 3]``; returns where: chunk_index, file_index, from_timestamp, to_timestamp [s]."""
        if self._writer is None or self._writer.n_bytes > self._max_bytes:
            self.close()
            self._file += 1
            self._writer = VideoWriter(self._root / self._path(), self._fps, **self._x264)
        start = self._writer.n_frames
        for frame in frames:
            self._writer.add(frame)
        chunk, file = divmod(self._file, self._chunk_files)
        return {
            "chunk_index": chunk,
            "file_index": file,
            "from_timestamp": start / self._fps,
            "to_timestamp": self._writer.n_frames / self._fps,
        }

    def close(self) -> None:
        """Finish the present file."""
        if self._writer is not None:
            self._writer.__exit__(None, None, None)

    def _path(self) -> str:
        chunk, file = divmod(self._file, self._chunk_files)
        return VIDEO_PATH.format(video_key=self._camera, chunk_index=chunk, file_index=file)


class EpisodeTable:
    """``meta/episodes``: a row for each episode, with its statistics."""

    def __init__(self, root: Path, chunk_files: int) -> None:
        self._root, self._chunk_files, self._file = root, chunk_files, 0
        self._rows: list[dict[str, Any]] = []
        self._writer = self._open()

    def append(self, row: Mapping[str, Any], stats: Mapping[str, Stats]) -> None:
        """Add an episode."""
        if self._writer.n_bytes > _EPISODES_BYTES and not self._rows:
            self._writer.close()
            self._file += 1
            self._writer = self._open()
        chunk, file = divmod(self._file, self._chunk_files)
        told = {f"stats/{name}/{k}": v.tolist() for name, s in stats.items() for k, v in s.items()}
        place = {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        self._rows.append({**row, **told, **place})
        if len(self._rows) >= _ROWS:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write({name: [r[name] for r in self._rows] for name in self._rows[0]})
            self._rows = []

    def _open(self) -> ParquetWriter:
        chunk, file = divmod(self._file, self._chunk_files)
        return ParquetWriter(self._root / _EPISODES_PATH.format(chunk_index=chunk, file_index=file))


def write_tasks(path: Path, tasks: Mapping[str, int]) -> None:
    """``meta/tasks.parquet``. LeRobot reads it by pandas and expects the texts as the index, so it is declared as such.

    The declaration: "Storing pandas DataFrame objects in Apache Parquet" of the pandas developer documentation.
    """
    index = "__index_level_0__"
    text = {"pandas_type": "unicode", "numpy_type": "object"}
    number = {"pandas_type": "int64", "numpy_type": "int64"}
    declared = {
        "index_columns": [index],
        "column_indexes": [{"name": None, "field_name": None, **text, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **number, "metadata": None},
            {"name": None, "field_name": index, **text, "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": "16.0.0"},
        "pandas_version": "2.2.0",
    }  # fmt: skip
    columns = {"task_index": np.array(list(tasks.values()), np.int64), index: list(tasks)}
    write_table(path, columns, {"pandas": json.dumps(declared)})
