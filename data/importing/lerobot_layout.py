"""Where the episodes of a LeRobot dataset lie: a file each (2.0, 2.1), or several in one file (3.0)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visuomotor.data.errors import DataError
from visuomotor.data.importing.lerobot_meta import Info, expand, ranges, read_json_lines
from visuomotor.data.parquet import ParquetFile
from visuomotor.data.validate import Finding

__all__ = ["Clip", "Entry", "read_layout"]

_STANDARD = {
    "data": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}


@dataclass(frozen=True)
class Clip:
    """The part of a video file that belongs to an episode, in the file's own time [s]; ``stop`` None: to its end."""

    path: Path
    start: float = 0.0
    stop: float | None = None


@dataclass(frozen=True)
class Entry:
    """One episode whose data file is there. ``clips``: of the cameras whose file is there, too."""

    index: int
    length: int | None
    data: Path
    tasks: tuple[str, ...]
    clips: Mapping[str, Clip]
    columns: Mapping[str, Any]


def read_layout(info: Info) -> tuple[list[Entry], dict[int, str], list[Finding]]:
    """Episodes that have data, the text of each task index, and what is missing.

    Raises:
        DataError: the description of the episodes is damaged.
    """
    findings: list[Finding] = []
    try:
        if info.version == "v3.0":
            entries, absent, tasks = _layout_3(info)
        else:
            entries, absent, tasks = _layout_2(info, findings)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{info.root}/meta is damaged: {type(error).__name__}: {error}") from None
    if absent:
        n = len(entries) + len(absent)
        message = f"{len(absent)} of {n} episodes have no data file ({ranges(absent)}): left out"
        findings.append(Finding(severity="warning", message=message))
    if info.n_episodes != len(entries) + len(absent):
        message = f"meta/info.json says {info.n_episodes} episodes, meta/episodes {len(entries) + len(absent)}"
        findings.append(Finding(severity="warning", message=message))
    return entries, tasks, findings


def _layout_2(info: Info, findings: list[Finding]) -> tuple[list[Entry], list[int], dict[int, str]]:
    rows = {int(r["episode_index"]): r for r in read_json_lines(info.root / "meta" / "episodes.jsonl")}
    if not rows:
        raise DataError(f"{info.root / 'meta' / 'episodes.jsonl'} is missing or empty: expected a line an episode")
    tasks = {int(r["task_index"]): str(r["task"]) for r in read_json_lines(info.root / "meta" / "tasks.jsonl")}
    data_path = _template(info, "data", info.data_path, rows, "", findings)
    videos = {
        f.name: _template(info, "video", info.video_path, rows, f.name, findings) for f in info.cameras
    }  # GR00T's datasets declare paths that no file has
    entries, absent = [], []
    for i in sorted(rows):
        data = info.root / expand(data_path, _fields(info, i))
        if not data.exists():
            absent.append(i)
            continue
        paths = {name: info.root / expand(t, _fields(info, i, name)) for name, t in videos.items()}
        clips = {name: Clip(p) for name, p in paths.items() if p.exists()}
        length = rows[i].get("length")
        told = tuple(str(t) for t in rows[i].get("tasks") or ())
        entries.append(Entry(i, None if length is None else int(length), data, told, clips, {}))
    return entries, absent, tasks


def _fields(info: Info, index: int, camera: str = "") -> dict[str, Any]:
    if "/" in camera or camera in (".", ".."):
        raise DataError(f"{info.root / 'meta' / 'info.json'}: {camera!r} is no name for a camera")
    return {"episode_index": index, "episode_chunk": index // info.chunks_size, "video_key": camera}


def _template(
    info: Info, what: str, declared: str, rows: Mapping[int, Any], camera: str, findings: list[Finding]
) -> str:
    """The declared template, or the standard one if files have only that name."""

    def count(template: str) -> int:
        return sum((info.root / expand(template, _fields(info, i, camera))).exists() for i in rows)

    standard = _STANDARD[what]
    if not declared or (declared != standard and count(standard) > count(declared)):
        if declared and what == "data":
            message = f"data_path of meta/info.json ({declared}) is not where the files are: {standard} is used"
            findings.append(Finding(severity="warning", message=message))
        return standard
    return declared


def _layout_3(info: Info) -> tuple[list[Entry], list[int], dict[int, str]]:
    entries: list[Entry] = []
    absent: list[int] = []
    files = sorted((info.root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise DataError(f"{info.root / 'meta' / 'episodes'} holds no parquet file: expected the list of episodes")
    for path in files:
        file = ParquetFile(path)
        table = file.read_plain([c for c in file.columns if not c.startswith("stats/")])
        file.close()
        for i in range(file.n_rows):
            row = {name: column[i] for name, column in table.items()}
            entry = _entry_3(info, row)
            if entry is None:
                absent.append(int(row["episode_index"]))
            else:
                entries.append(entry)
    entries.sort(key=lambda e: e.index)
    return entries, absent, _tasks_3(info)


def _entry_3(info: Info, row: Mapping[str, Any]) -> Entry | None:
    place = {"chunk_index": int(row["data/chunk_index"]), "file_index": int(row["data/file_index"])}
    data = info.root / expand(info.data_path, place)
    if not data.exists():
        return None
    clips = {}
    for camera in info.cameras:
        told = [row.get(f"videos/{camera.name}/{n}") for n in ("chunk_index", "file_index", "from_timestamp")]
        if any(v is None for v in told):
            continue
        _fields(info, 0, camera.name)
        fields = {"chunk_index": int(told[0]), "file_index": int(told[1]), "video_key": camera.name}  # type: ignore[arg-type]
        path = info.root / expand(info.video_path, fields)
        stop = row.get(f"videos/{camera.name}/to_timestamp")
        if path.exists():
            clips[camera.name] = Clip(path, float(told[2]), None if stop is None else float(stop))  # type: ignore[arg-type]
    columns = {c: row.get(f"columns/{c}") for c in info.columns}
    tasks = tuple(str(t) for t in row.get("tasks") or ())
    return Entry(int(row["episode_index"]), int(row["length"]), data, tasks, clips, columns)


def _tasks_3(info: Info) -> dict[int, str]:
    path = info.root / "meta" / "tasks.parquet"
    if not path.exists():
        return {}
    file = ParquetFile(path)
    text = [c for c in file.text if c != "task_index"]
    if not text:
        raise DataError(f"{path} has no column of text: expected the tasks")
    table = file.read_plain(["task_index", text[0]])
    file.close()
    return {int(i): str(t) for i, t in zip(table["task_index"], table[text[0]], strict=True)}
