"""How arrays of a store are declared in a LeRobot dataset: names, types, and what LeRobot has no word for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.exporting.job import ExportJob
from visuomotor.data.spec import ArraySpec

__all__ = ["BOOKKEEPING", "Feature", "declare", "plan_features"]

BOOKKEEPING = {  # columns that every LeRobot table has
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64",
}  # fmt: skip
_MAX_AXES = 5  # of an array in a Hugging Face table


@dataclass(frozen=True)
class Feature:
    """An array under its name in LeRobot. ``kind``: ``"video"``, ``"image"`` (PNG), ``"array"`` or ``"timestamp"``."""

    key: str
    name: str
    kind: str
    spec: ArraySpec

    def convert(self, values: np.ndarray) -> np.ndarray:
        """Values ``[L, *shape]`` as LeRobot stores them: pictures as uint8, scalars as ``[L]``.

        Raises:
            DataError: float pictures that are not whole numbers in 0..255.
        """
        if self.kind in ("video", "image") and values.dtype != np.uint8:
            pixels = values.astype(np.uint8)
            if not (pixels == values).all():
                raise DataError(
                    f"image array {self.key!r} holds {values.dtype} that are not whole numbers in 0..255: "
                    "convert it to uint8 first, or leave it out"
                )
            return pixels
        return values.reshape(len(values)) if self.spec.shape == (1,) else values


def plan_features(
    job: ExportJob, names: Mapping[str, str], *, as_video: bool, fps: float
) -> tuple[list[Feature], list[str]]:
    """A feature for each array, and sentences for the user.

    Raises:
        ConfigError: ``names`` has an unknown array, or two features would have one name.
        DataError: an array that LeRobot cannot hold.
    """
    for key in names:
        if key not in job.keys:
            raise ConfigError(f"option names: no array {key!r} is exported. {nearest(key, job.keys)}")
    notes: list[str] = []
    found = []
    for key, spec in job.specs.items():
        kind = _kind(key, spec, as_video, notes)
        if key == "timestamp" and key not in names and _is_grid(job, fps):
            found.append(Feature(key, "timestamp", "timestamp", spec))
            continue
        if kind != "array":
            spec = replace(spec, dtype="uint8")
        found.append(Feature(key, str(names.get(key) or _name(key, spec, job.specs)), kind, spec))
    for f in found:
        others = [g.key for g in found if g.name == f.name]
        if len(others) > 1 or (f.name in BOOKKEEPING and f.kind != "timestamp") or "/" in f.name or not f.name:
            raise ConfigError(
                f"array {f.key!r} cannot be called {f.name!r} in LeRobot (arrays of that name: {', '.join(others)}; "
                f"its own: {', '.join(BOOKKEEPING)}): give options.names={{{f.key}: <feature>}}"
            )
    return found, notes


def _kind(key: str, spec: ArraySpec, as_video: bool, notes: list[str]) -> str:
    if len(spec.shape) > _MAX_AXES:
        raise DataError(f"array {key!r} of shape {list(spec.shape)}: LeRobot holds {_MAX_AXES} axes at most")
    if not spec.is_image or spec.shape[2] != 3:
        return "array"
    if as_video and any(n % 2 for n in spec.shape[:2]):
        notes.append(f"{key} is {spec.shape[1]} x {spec.shape[0]} px: video needs even sides, so it is written as PNG")
        return "image"
    return "video" if as_video else "image"


def _name(key: str, spec: ArraySpec, specs: Mapping[str, ArraySpec]) -> str:
    """LeRobot's name: the one it came with, or one derived from role and key."""
    source = spec.source or ""
    if source == "action" or source.startswith(("observation.", "action.", "next.")):
        return source
    alike = [k for k, s in specs.items() if s.role == spec.role and len(s.shape) == 1]
    if spec.role == "action":
        return "action" if key == "action" or alike == [key] else f"action.{key}"
    if spec.is_image and spec.shape[2] == 3:
        return f"observation.images.{key}"
    if spec.role == "observation":
        return "observation.state" if key == "state" or alike == [key] else f"observation.{key}"
    if key in ("reward", "done", "success"):
        return f"next.{key}"
    return f"recorded.{key}" if key in BOOKKEEPING else key


def _is_grid(job: ExportJob, fps: float) -> bool:
    """True if the store's timestamps are exactly those that LeRobot derives from the rate."""
    if job.specs["timestamp"].dtype != "float32" or job.specs["timestamp"].size != 1:
        return False
    for episode in job.episodes:
        times = job.read("timestamp", episode).reshape(-1)
        if not np.array_equal(times, (np.arange(len(times)) / fps).astype(np.float32)):
            return False
    return True


def declare(features: list[Feature], fps: float) -> dict[str, Any]:
    """The entry ``features`` of ``meta/info.json``."""
    document: dict[str, Any] = {}
    for f in features:
        shape = list(f.spec.shape) or [1]
        told: dict[str, Any] = {"dtype": f.spec.dtype, "shape": shape, "names": f.spec.names and list(f.spec.names)}
        if f.kind in ("video", "image"):
            told |= {"dtype": f.kind, "names": ["height", "width", "channels"]}
        if f.kind == "video":
            told["info"] = {
                "video.height": shape[0], "video.width": shape[1], "video.channels": 3, "video.codec": "h264",
                "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "video.fps": fps, "has_audio": False,
            }  # fmt: skip
        document[f.name] = {**told, "visuomotor": {"key": f.key, "spec": f.spec.to_dict()}}
    return {**document, **{n: document.get(n, _plain(t)) for n, t in BOOKKEEPING.items()}}


def _plain(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [1], "names": None}
