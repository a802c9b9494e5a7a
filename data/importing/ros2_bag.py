"""ROS 2 bags: SQLite files (.db3), folders with metadata.yaml; and which kind of recording a path is."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from visuomotor.data.errors import DataError
from visuomotor.data.importing.mcap_file import MAGIC as MCAP_MAGIC
from visuomotor.data.importing.mcap_file import McapFile
from visuomotor.data.importing.recording import Message, Recording, Topic, decompress, ros_type
from visuomotor.data.importing.ros1_bag import MAGIC as ROS1_MAGIC
from visuomotor.data.importing.ros1_bag import Ros1Bag

__all__ = ["FolderBag", "SqliteBag", "find_recordings", "open_recording"]

_SQLITE_MAGIC = b"SQLite format 3\0"
_MAX_METADATA = 16 << 20


class SqliteBag(Recording):
    """One ``.db3`` file, read-only; nothing that its schema defines beyond plain tables is used.

    Raises:
        DataError: it is none, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.unreadable, self.notes, self.topics = path, {}, [], {}
        self._ids: dict[int, str] = {}
        try:
            with closing(self._connect()) as db:
                texts = self._definitions(db)
                counts = dict(db.execute("SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id").fetchall())
                rows = db.execute("SELECT id, name, type, serialization_format FROM topics").fetchall()
                for number, name, kind, encoding in rows:
                    self._add(int(number), str(name), ros_type(str(kind)), str(encoding), counts, texts)
        except sqlite3.Error as error:
            raise DataError(f"{path} cannot be read as a ROS 2 bag (SQLite): {error}") from None

    def _add(self, number: int, name: str, kind: str, encoding: str, counts: dict[Any, Any], texts: Any) -> None:
        if encoding != "cdr":
            self.unreadable[name] = f"messages in {encoding}"
            return
        self._ids[number] = name
        n = int(counts.get(number, 0)) + (self.topics[name].count if name in self.topics else 0)
        form, text = texts.get(kind, ("msg", None))
        self.topics[name] = Topic(name=name, msgtype=kind, count=n, definition=text, encoding=form)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        db.text_factory = lambda b: b.decode("utf-8", "replace")
        # No value can be longer than the file, and no view or generated column can make one up.
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(1 << 20, min(self.path.stat().st_size, 2**31 - 1)))
        db.execute("PRAGMA trusted_schema=OFF")
        tables = {n for (n,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        missing = {"topics", "messages"} - tables
        if missing:
            db.close()
            raise DataError(f"{self.path} has no table {' and '.join(sorted(missing))}: no ROS 2 bag")
        return db

    def _definitions(self, db: sqlite3.Connection) -> dict[str, tuple[str, str]]:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE type='table' AND name='message_definitions'").fetchall():
            return {}
        rows = db.execute("SELECT topic_type, encoding, encoded_message_definition FROM message_definitions")
        forms = {"ros2msg": "msg", "ros2idl": "idl"}
        return {ros_type(str(t)): (forms[e], str(text)) for t, e, text in rows.fetchall() if e in forms and text}

    def messages(self, topics: Collection[str], start: int | None = None, stop: int | None = None) -> Iterator[Message]:
        """See :meth:`Recording.messages`."""
        ids = [number for number, name in self._ids.items() if name in topics]
        marks = ",".join("?" * len(ids))
        query = f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({marks})"
        span: tuple[int, ...] = ()
        if start is not None or stop is not None:  # by the index of times; ordering by id would sort the blobs
            query += " AND timestamp >= ? AND timestamp <= ?"
            span = (start if start is not None else -(2**63), stop if stop is not None else 2**63 - 1)
        try:
            with closing(self._connect()) as db:
                for number, time, data in db.execute(query, (*ids, *span)):
                    if not isinstance(data, bytes) or not isinstance(time, int):
                        raise DataError(f"{self.path}: a message at time {time!r} is no bytes")
                    yield self._ids[number], time, memoryview(data)
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: its messages cannot be read: {error}") from None


class FolderBag(Recording):
    """A ROS 2 bag folder: the files that its metadata.yaml names, one after the other.

    Raises:
        DataError: damaged, files that are absent, or compressed as whole files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        info = _metadata(path)
        names = info.get("relative_file_paths")
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise DataError(f"{path / 'metadata.yaml'} names no files")
        files = [path / PurePosixPath(n).name for n in names]  # never outside of the folder
        mode = str(info.get("compression_mode") or "").lower()
        if mode == "file":
            raise DataError(f"{path} is compressed file by file: unpack it first, by zstd -d, or ros2 bag convert")
        absent = [f.name for f in files if not f.is_file()]
        if len(absent) == len(files):
            raise DataError(f"{path}: its files are absent: {', '.join(absent[:5])}")
        self._compressed = mode == "message"
        self.notes = [f"{name} is named in metadata.yaml and absent" for name in absent]
        self._files = [_open_file(f) for f in files if f.name not in absent]
        self.topics, self.unreadable, self.mapping = {}, {}, self._files[0].mapping
        for part in self._files:
            self.unreadable.update(part.unreadable)
            self.notes += [f"{part.path.name}: {note}" for note in part.notes]
            for name, topic in part.topics.items():
                before = self.topics.get(name)
                count = topic.count + (before.count if before else 0)
                self.topics[name] = Topic(**{**topic.__dict__, "count": count})

    def messages(self, topics: Collection[str], start: int | None = None, stop: int | None = None) -> Iterator[Message]:
        """See :meth:`Recording.messages`."""
        for part in self._files:
            for name, time, data in part.messages(topics, start, stop):
                yield name, time, memoryview(decompress("zstd", data, None)) if self._compressed else data


def _metadata(path: Path) -> dict[str, Any]:
    file = path / "metadata.yaml"
    try:
        if file.stat().st_size > _MAX_METADATA:
            raise DataError(f"{file} has {file.stat().st_size} bytes: more than {_MAX_METADATA}")
        info = yaml.safe_load(file.read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} cannot be read: {type(error).__name__}") from None
    if not isinstance(info, dict):
        raise DataError(f"{file} describes no bag")
    return info


def _open_file(path: Path) -> Recording:
    try:
        with path.open("rb") as file:
            begin = file.read(16)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    kinds: tuple[tuple[bytes, Callable[[Path], Recording]], ...] = (
        (ROS1_MAGIC, Ros1Bag),
        (MCAP_MAGIC, McapFile),
        (_SQLITE_MAGIC, SqliteBag),
    )
    for magic, make in kinds:
        if begin.startswith(magic):
            return make(path)
    raise DataError(f"{path} begins as no bag does: neither ROS 1, nor MCAP, nor SQLite")


def open_recording(path: Path) -> Recording:
    """Open a bag: a ``.bag``, ``.mcap`` or ``.db3`` file, or the folder of a ROS 2 bag.

    Raises:
        DataError: it is none of them, or damaged.
    """
    return FolderBag(path) if path.is_dir() else _open_file(path)


def _is_folder_bag(path: Path) -> bool:
    file = path / "metadata.yaml"
    return file.is_file() and b"rosbag2_bagfile_information" in file.open("rb").read(4096)


def find_recordings(path: Path) -> list[Path]:
    """The bags at ``path``: itself, or those inside the folder in order of their names. Empty if there is none."""
    if path.is_file():
        begin = path.open("rb").read(16)
        named = path.suffix == ".db3" or not begin.startswith(_SQLITE_MAGIC)  # SQLite files are of many kinds
        return [path] if named and begin.startswith((ROS1_MAGIC, MCAP_MAGIC, _SQLITE_MAGIC)) else []
    if _is_folder_bag(path):
        return [path]
    inside = sorted(path.iterdir())
    files = [p for p in inside if p.is_file() and p.suffix in (".bag", ".mcap", ".db3")]
    return sorted([*files, *(p for p in inside if p.is_dir() and _is_folder_bag(p))])
