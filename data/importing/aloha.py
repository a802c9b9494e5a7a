"""ALOHA HDF5: a folder of ``episode_<i>.hdf5``, each with ``/action`` and ``/observations/``.

Layout after the recording and compressing scripts of ACT, ALOHA and Mobile ALOHA (``record_sim_episodes.py``,
``record_episodes.py``, ``compress_data.py``): ``qpos``, ``qvel``, ``effort``, ``images/<camera>``; 50 Hz; 14 joints,
left arm before right, of each six joints [rad] and the gripper (0 closed, 1 open); pictures raw ``[T, 480, 640, 3]``,
or as JPEG in rows filled up with zeros to one length, with the lengths in ``/compress_len``; ``/base_action``
[m/s, rad/s] of the mobile one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.importing.hdf5 import Hdf5File, Stored, allowed_bytes, is_hdf5
from visuomotor.data.importing.jpeg import decode_jpegs, is_jpeg, jpeg_shape
from visuomotor.data.importing.naming import choose, numbered, store_name
from visuomotor.data.importing.source import EpisodeInfo, Source, SourceEpisode
from visuomotor.data.spec import ArraySpec
from visuomotor.data.validate import Finding

__all__ = ["AlohaSource"]

_FPS = 50.0
_OPTIONS = {"fps": _FPS, "jpeg": "opencv", "task": ""}
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
_NAMES = {
    14: tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _JOINTS),
    2: ("base_linear", "base_angular"),
}
_OBS, _IMAGES = "observations/", "observations/images/"


class AlohaSource(Source):
    """A folder of episodes, or one of them.

    Options: ``fps`` [Hz], 50 if not given; ``task``: text for every episode; ``jpeg``: ``opencv`` where OpenCV wrote
    the JPEGs from RGB arrays, as ``compress_data.py`` does, so that red and blue are exchanged in them; ``standard``
    where other programs show them in their true colours.

    Columns: ``task``, ``sim`` (the file's attribute).
    """

    format: ClassVar[str] = "aloha"

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.path = path
        if isinstance(options.get("fps"), int):
            options = {**options, "fps": float(options["fps"])}
        self._options = choose(options, _OPTIONS, self.format)
        if self._options["jpeg"] not in ("opencv", "standard"):
            raise ConfigError(f"aloha: option jpeg is {self._options['jpeg']!r}: expected opencv or standard")
        if not 0 < self._options["fps"] < 1e6:
            raise ConfigError(f"aloha: option fps is {self._options['fps']}: expected a number above 0")
        files = _files(path)
        if not files:
            raise DataError(f"{path} has no episode_<number>.hdf5: it is no ALOHA data")
        self._files = {file.stem: file for file in files}
        self.fps = self._options["fps"]
        self.columns = {"task": "str", "sim": "bool"}
        self.episodes = [EpisodeInfo(id=name) for name in self._files]
        self.findings = self._holes()
        with Hdf5File(files[0]) as h5:
            stored = _arrays(h5)
            self._sources = {_name(source, files[0]): source for source in stored}
            if len(self._sources) < len(stored):
                raise DataError(f"{files[0]}: two arrays would have one name: {', '.join(stored)}")
            self.specs = {name: _spec(h5, source, stored[source]) for name, source in self._sources.items()}

    @classmethod
    def recognises(cls, path: Path) -> str | None:
        files = _files(path)
        if not files or not is_hdf5(files[0]):
            return None
        with Hdf5File(files[0]) as h5:  # raises for a damaged file: no other format would read it either
            try:
                found = h5.has("action") and h5.has("observations/qpos")
            except DataError:
                return None
        return f"ALOHA HDF5 ({files[0].name}: action, observations/qpos)" if found else None

    def read(self, index: int) -> SourceEpisode:
        with Hdf5File(self._files[self.episodes[index].id]) as h5:
            stored = _arrays(h5)
            n = stored["action"].shape[0]
            arrays = {}
            for name, source in self._sources.items():
                if self.wanted is not None and name not in self.wanted:
                    continue
                if source not in stored:
                    raise DataError(f"{h5.path} has no {source}, which {self._first.name} has")
                arrays[name] = self._array(h5, name, source, stored[source], n)
            findings = []
            if more := sorted(set(stored) - set(self._sources.values())):
                message = f"{h5.path.name} has {', '.join(more)}, which {self._first.name} has not: left out"
                findings.append(Finding(severity="warning", episode=index, message=message))
            columns = {"task": self._options["task"], "sim": bool(h5.attributes().get("sim", False))}
        return SourceEpisode(arrays=arrays, columns=columns, findings=tuple(findings))

    @property
    def _first(self) -> Path:
        return next(iter(self._files.values()))

    def _array(self, h5: Hdf5File, name: str, source: str, stored: Stored, n: int) -> np.ndarray:
        spec, what = self.specs[name], f"{h5.path}: {source}"
        packed = stored.kind == "bytes" or (spec.is_image and len(stored.shape) == 2)
        if stored.shape[:1] != (n,) or not (packed or stored.shape[1:] == spec.shape):
            raise DataError(f"{what} has shape {list(stored.shape)}: expected {[n, *spec.shape]}")
        if not packed:
            return h5.read(source)
        if spec.size * n > allowed_bytes(h5.n_bytes):
            raise DataError(f"{what} declares {n} pictures of {list(spec.shape)}; the file has {h5.n_bytes} bytes")
        rows = h5.blobs(source)
        return decode_jpegs(rows, n, spec.shape, what, swapped=self._options["jpeg"] == "opencv")

    def _holes(self) -> list[Finding]:
        indices = [int(name.rpartition("_")[2]) for name in self._files]
        missing = sorted(set(range(indices[0], indices[-1] + 1)) - set(indices)) if indices[-1] < 1_000_000 else []
        if not missing:
            return []
        some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        return [Finding(severity="warning", message=f"{len(missing)} episodes are missing between others: {some}")]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if numbered([path.stem], "episode_") and path.suffix in (".hdf5", ".h5") else []
    if not path.is_dir():
        return []
    inside = {p.stem: p for p in path.iterdir() if p.suffix in (".hdf5", ".h5") and p.is_file()}
    return [inside[name] for name in numbered(inside, "episode_")]


def _arrays(h5: Hdf5File) -> dict[str, Stored]:
    """Arrays with one row a step; ``compress_len``, which has one row a camera, is not among them."""
    stored = h5.leaves("")
    if "action" not in stored or "observations/qpos" not in stored:
        raise DataError(
            f"{h5.path} has no action and observations/qpos: it is no ALOHA episode. It has {', '.join(stored)}"
        )
    kept = {k: s for k, s in stored.items() if k != "compress_len" and s.kind != "text" and s.shape}
    h5.check_total(kept, "the episode")
    return kept


def _name(source: str, where: Path) -> str:
    for prefix in (_IMAGES, _OBS):
        if source.startswith(prefix):
            return store_name(source.removeprefix(prefix), where)
    return store_name(source, where)


def _spec(h5: Hdf5File, source: str, stored: Stored) -> ArraySpec:
    observed = source.startswith(_OBS)
    role = "observation" if observed else "action" if source in ("action", "base_action") else "other"
    shape, dtype = stored.shape[1:], stored.dtype.name
    if source.startswith(_IMAGES) and (stored.kind == "bytes" or len(shape) == 1):
        first = next(h5.blobs(source), None)
        if first is None or not is_jpeg(first):
            raise DataError(f"{h5.path}: {source} is {dtype} {list(stored.shape)}, but its rows are no JPEGs")
        shape, dtype = jpeg_shape(first, f"{h5.path}: {source}, row 0,"), "uint8"
    names = _NAMES.get(shape[0]) if len(shape) == 1 and not source.startswith(_IMAGES) else None
    return ArraySpec(shape=shape, dtype=dtype, role=role, names=names, source=f"/{source}")
