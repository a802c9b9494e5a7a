"""What a LeRobot dataset says of itself: ``meta/info.json``, read without trust.

Source of the format: huggingface/lerobot, ``lerobot/datasets/utils.py`` and ``lerobot_dataset.py`` of the versions
that wrote 2.0, 2.1 and 3.0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.spec import ArraySpec

__all__ = ["BOOKKEEPING", "Feature", "Info", "expand", "ranges", "read_info", "read_json", "read_json_lines"]

BOOKKEEPING = ("index", "episode_index", "frame_index", "task_index")  # columns that only say which row it is
OURS = "visuomotor"  # what our export adds, so that a store comes back as it was
_VERSIONS = ("v2.0", "v2.1", "v3.0")
_JSON_BYTES = 256 << 20
_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")
_CAMERAS = ("video", "image")


@dataclass(frozen=True)
class Feature:
    """One declared feature. ``kind``: ``"array"``, ``"video"``, ``"image"`` or ``"text"``.

    ``spec`` of a camera is what was declared; its files may differ, and they decide.
    """

    name: str
    key: str
    kind: str
    spec: ArraySpec


@dataclass(frozen=True)
class Info:
    """``meta/info.json``, checked."""

    root: Path
    version: str
    fps: float
    features: tuple[Feature, ...]
    data_path: str
    video_path: str
    chunks_size: int
    n_episodes: int
    columns: Mapping[str, str]  # per-episode columns that our export added

    @property
    def cameras(self) -> list[Feature]:
        """Features whose pictures lie in video files."""
        return [f for f in self.features if f.kind == "video"]


def read_info(root: Path) -> Info:
    """Read and check ``meta/info.json``.

    Raises:
        DataError: it is damaged, or of a version that is not read.
    """
    path = root / "meta" / "info.json"
    raw = read_json(path)
    version = raw.get("codebase_version") if isinstance(raw, dict) else None
    if version not in _VERSIONS:
        raise DataError(
            f"{path} is of LeRobot version {version!r}: {', '.join(_VERSIONS)} are read. "
            "LeRobot's own scripts convert older ones"
        )
    try:
        fps, n = float(raw["fps"]), int(raw.get("total_episodes", 0))
        size = int(raw.get("chunks_size", 1000))
        features = _features(dict(raw["features"]), path)
        columns = {str(k): str(v) for k, v in dict(raw.get(OURS) or {}).get("columns", {}).items()}
        templates = str(raw["data_path"]), str(raw.get("video_path") or "")
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    if not (math.isfinite(fps) and fps > 0) or size < 1 or n < 0:
        raise DataError(f"{path} says fps {fps}, chunks_size {size}, total_episodes {n}: expected positive numbers")
    return Info(root, version, fps, features, *templates, size, n, columns)


def _features(raw: dict[str, Any], path: Path) -> tuple[Feature, ...]:
    ours = any(isinstance(f, dict) and OURS in f for f in raw.values())
    wanted = {n: f for n, f in raw.items() if n not in BOOKKEEPING and (not ours or OURS in f)}
    keys = _keys(wanted)
    found = []
    for name, f in wanted.items():
        kind = str(f["dtype"])
        shape = tuple(int(n) for n in f["shape"])
        if any(n < 1 for n in shape) or math.prod(shape) > 1 << 28:
            raise DataError(f"{path}: feature {name!r} declares the shape {list(shape)}")
        if kind == "string":
            found.append(Feature(name, keys[name], "text", ArraySpec(shape=())))
            continue
        spec = _told(f[OURS], shape) if ours else _spec(name, kind, shape, f)
        if np.dtype(spec.dtype).kind not in "biuf":
            raise DataError(f"{path}: feature {name!r} holds {kind!r}: expected numbers, pictures or text")
        key = str(f[OURS]["key"]) if ours else keys[name]
        found.append(Feature(name, key, kind if kind in _CAMERAS else "array", spec))
    if len({f.key for f in found}) < len(found):
        raise DataError(f"{path}: two features have the key of one array: {[f.key for f in found]}")
    return tuple(found)


def _told(ours: Mapping[str, Any], shape: tuple[int, ...]) -> ArraySpec:
    spec = ArraySpec.from_dict(dict(ours["spec"]))
    if spec.size != math.prod(shape):
        raise DataError(f"a feature of shape {list(shape)} says that it is an array of shape {list(spec.shape)}")
    return spec


def _spec(name: str, kind: str, shape: tuple[int, ...], f: Mapping[str, Any]) -> ArraySpec:
    if kind in _CAMERAS:
        first = shape[0] in (1, 3, 4) and len(shape) == 3 and shape[2] not in (1, 3, 4)  # some declare channels first
        size = (shape[1], shape[2]) if first else shape[:2]
        return ArraySpec(shape=(*size, 3), dtype="uint8", role="observation", source=name)
    role = _role(name)
    if shape == (1,) and role not in ("observation", "action"):
        shape = ()  # LeRobot has no scalars
    return ArraySpec(shape=shape, dtype=kind, role=role, names=_names(f.get("names"), shape), source=name)


def _role(name: str) -> str:
    if name.startswith("observation"):
        return "observation"
    if name == "action" or name.startswith(("action.", "actions")):
        return "action"
    if name.endswith("is_intervention"):
        return "intervention"
    return {"timestamp": "timestamp", "next.reward": "reward"}.get(name, "other")


def _names(names: Any, shape: tuple[int, ...]) -> tuple[str, ...] | None:
    """A list, a list in a list, ``{"motors": [...]}`` or ``{name: index}``; None unless there is one a component."""
    if isinstance(names, dict):
        if all(isinstance(i, int) for i in names.values()):
            names = sorted(names, key=lambda n: names[n])
        elif len(names) == 1:
            names = next(iter(names.values()))
    while isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        return None
    return tuple(names) if len(shape) == 1 and len(names) == shape[0] else None


def _keys(names: Iterable[str]) -> dict[str, str]:
    """Short names: ``observation.images.top`` -> ``top``; the long form where two would be the same."""
    names = list(names)
    short = {n: _plain(re.sub(r"^(observation\.images\.|observation\.|next\.)", "", n)) for n in names}
    taken = list(short.values())
    return {n: s if taken.count(s) == 1 else _plain(n) for n, s in short.items()}


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "unnamed"


def expand(template: str, fields: Mapping[str, Any]) -> str:
    """A path of ``data_path`` or ``video_path`` with its fields filled in, relative to the dataset.

    Only ``{name}`` and ``{name:03d}`` are known, so that a template can neither look into objects nor pad to gigabytes.

    Raises:
        DataError: another field, or a path that leaves the dataset.
    """

    def fill(match: re.Match[str]) -> str:
        name, width = match.groups()
        if name not in fields:
            raise DataError(f"the path {template!r} in meta/info.json has the field {name!r}: known are {list(fields)}")
        return str(fields[name]) if width is None else f"{fields[name]:0{width}d}"

    path = _FIELD.sub(fill, template)
    parts = PurePosixPath(path).parts
    if "{" in path or "\0" in path or not parts or PurePosixPath(path).is_absolute() or ".." in parts:
        raise DataError(f"the path {template!r} in meta/info.json is none inside the dataset")
    return path


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        DataError: it is missing, too large, or no JSON.
    """
    return _parse(_text(path), str(path))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Parse a file of one JSON object a line; none if the file is missing.

    Raises:
        DataError: a line is no JSON object.
    """
    if not path.exists():
        return []
    rows = []
    for i, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            row = _parse(line, f"{path}, line {i}")
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {i}: expected a JSON object")
            rows.append(row)
    return rows


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes: expected a small description")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON: {error}") from None


def ranges(numbers: Iterable[int], most: int = 12) -> str:
    """``0, 3, 60-99``, cut after ``most`` parts."""
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    told = [str(a) if a == b else f"{a}-{b}" for a, b in parts[:most]]
    return ", ".join(told) + (", ..." if len(parts) > most else "")
