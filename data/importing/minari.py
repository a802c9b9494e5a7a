"""Minari datasets kept as HDF5: ``data/main_data.hdf5`` with groups ``episode_<i>``, and ``data/metadata.json``.

Layout after Minari's documentation ("Dataset Standards") and files that minari 0.5.4 wrote: ``observations`` (an array,
or nested groups) and ``infos`` have one row more than ``actions``, ``rewards``, ``terminations`` and ``truncations``.
Row t of the store is observation t with the action that was taken on it; the observation after the last action has no
action, so it is left out, or comes in ``next_<key>`` with the option ``next_obs``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.importing.hdf5 import Hdf5File, Stored, allowed_bytes, is_hdf5
from visuomotor.data.importing.jpeg import decode_jpegs, is_jpeg, jpeg_shape
from visuomotor.data.importing.naming import choose, numbered, store_name
from visuomotor.data.importing.source import EpisodeInfo, Source, SourceEpisode
from visuomotor.data.spec import ArraySpec
from visuomotor.data.validate import Finding

__all__ = ["MinariSource"]

_OPTIONS = {"fps": None, "next_obs": False, "infos": False}
_ONCE = {  # name in the file: name in the store, role
    "rewards": ("reward", "reward"),
    "terminations": ("terminated", "other"),
    "truncations": ("truncated", "other"),
}
_MAX_METADATA = 64 << 20
_NO_SEED = -1


class MinariSource(Source):
    """A dataset's folder, its ``data`` folder, or ``main_data.hdf5``.

    A flat observation is called ``state`` (``image`` if it is one), nested ones by their path (``robot/pos``:
    ``robot_pos``); the action ``action``. Options: ``fps`` [Hz], which Minari does not say; ``next_obs``; ``infos``:
    also import ``infos`` as ``info_<key>``.

    Columns: ``task`` (id of the environment), ``seed`` (-1: none), ``success`` (``infos/success`` true at any step)
    where the dataset has it, and one for every text among the observations (its first value).
    """

    format: ClassVar[str] = "minari"

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.path = path
        self._file_path = _file(path)
        self._options = choose(options, _OPTIONS, self.format)
        metadata = _metadata(self._file_path.parent / "metadata.json")
        if (told := metadata.get("data_format", "hdf5")) != "hdf5":
            raise DataError(f"{path} is a Minari dataset kept as {told!r}: expected hdf5")
        if not self._file_path.is_file():
            raise DataError(f"{path} has no main_data.hdf5: it is no Minari dataset kept as HDF5")
        self._task = _task(metadata)
        self._file = Hdf5File(self._file_path)
        try:
            self._open(metadata)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def recognises(cls, path: Path) -> str | None:
        file = _file(path)
        if file.name != "main_data.hdf5" or not is_hdf5(file):
            return None
        with Hdf5File(file) as h5:  # raises for a damaged file: no other format would read it either
            try:
                found = numbered(h5.groups(), "episode_")
                whole = bool(found) and h5.has(f"{found[0]}/observations") and h5.has(f"{found[0]}/actions")
            except DataError:
                return None
        return f"Minari ({file.name}: {found[0]}/observations)" if whole else None

    def close(self) -> None:
        self._file.close()

    def _open(self, metadata: dict[str, Any]) -> None:
        found = numbered(self._file.groups(), "episode_")
        if not found:
            raise DataError(f"{self._file_path} has no groups episode_<number>: it is no Minari dataset")
        self.findings: list[Finding] = []
        if metadata.get("total_episodes", len(found)) != len(found):
            message = f"metadata.json declares {metadata['total_episodes']} episodes, the file has {len(found)}"
            self.findings.append(Finding(severity="warning", message=message))
        self.episodes = [EpisodeInfo(id=name) for name in found]
        self.fps = None if self._options["fps"] is None else float(self._options["fps"])
        stored = self._arrays(found[0])
        self._texts = {
            store_name(_short(k), self._file_path): k
            for k, s in stored.items()
            if s.kind == "text" and k.startswith("observ")
        }
        self._sources: dict[str, tuple[str, int]] = {}  # name in the store: name in the file, first row
        self.specs = {}
        for source, array in stored.items():
            if array.kind != "text" and (self._options["infos"] or not source.startswith("infos")):
                self._add(found[0], source, array)
        self._has_success = "infos/success" in stored
        self.columns = {"task": "str", "seed": "int64"} | dict.fromkeys(self._texts, "str")
        self.columns |= {"success": "bool"} if self._has_success else {}

    def _add(self, episode: str, source: str, array: Stored) -> None:
        spec = self._spec(episode, source, array)
        if spec.size == 0:
            return
        name = _named(source, spec, self._file_path)
        names = [(name, 0)]
        if source.partition("/")[0] == "observations" and self._options["next_obs"]:
            names.append((f"next_{name}", 1))
        for new, first in names:
            if new in self._sources:
                raise DataError(f"{self._file_path}: {self._sources[new][0]} and {source} would both be {new!r}")
            self._sources[new] = (source, first)
            self.specs[new] = spec if not first else ArraySpec(**{**spec.to_dict(), "role": "other"})

    def _arrays(self, episode: str) -> dict[str, Stored]:
        stored = self._file.leaves(episode)
        if not any(k.partition("/")[0] == "actions" for k in stored) or "rewards" not in stored:
            raise DataError(f"{self._file_path}: {episode} has no actions and rewards. It has {', '.join(stored)}")
        wanted = {k: s for k, s in stored.items() if s.shape and (not k.startswith("infos") or self._options["infos"])}
        success = stored.get("infos/success")
        if success is not None and success.kind == "numbers" and len(success.shape) == 1:
            wanted["infos/success"] = success
        self._file.check_total(wanted, episode)
        return wanted

    def _spec(self, episode: str, source: str, array: Stored) -> ArraySpec:
        top = source.partition("/")[0]
        role = {"observations": "observation", "actions": "action"}.get(top, _ONCE.get(source, ("", "other"))[1])
        shape, dtype = array.shape[1:], array.dtype.name
        if self._may_be_jpeg(array):
            first = next(self._file.blobs(f"{episode}/{source}"), None)
            if first is not None and is_jpeg(first):
                shape, dtype = jpeg_shape(first, f"{self._file_path}: {episode}/{source}, row 0,"), "uint8"
            elif array.kind == "bytes":
                raise DataError(f"{self._file_path}: {episode}/{source} has rows of bytes that are no JPEGs")
        return ArraySpec(shape=shape, dtype=dtype, role=role, source=source)

    @staticmethod
    def _may_be_jpeg(array: Stored) -> bool:
        return array.kind == "bytes" or (array.dtype == np.uint8 and len(array.shape) == 2)

    def read(self, index: int) -> SourceEpisode:
        episode = self.episodes[index].id
        stored = self._arrays(episode)
        n = stored["rewards"].shape[0]
        arrays = {}
        for name, (source, first) in self._sources.items():
            if self.wanted is not None and name not in self.wanted:
                continue
            if source not in stored:
                raise DataError(f"{self._file_path}: {episode} has no {source}, which the first episode has")
            arrays[name] = self._array(f"{episode}/{source}", name, stored[source], n)[first : first + n]
        seed = self._file.attributes(episode).get("seed", _NO_SEED)
        columns = {"task": self._task, "seed": seed if isinstance(seed, int) and abs(seed) < 2**63 else _NO_SEED}
        columns |= {name: (self._file.texts(f"{episode}/{k}") or [""])[0] for name, k in self._texts.items()}
        if self._has_success:
            told = self._file.read(f"{episode}/infos/success") if "infos/success" in stored else np.zeros(1)
            columns["success"] = bool(told.any())
        return SourceEpisode(arrays=arrays, columns=columns)

    def _array(self, place: str, name: str, stored: Stored, n: int) -> np.ndarray:
        spec, what = self.specs[name], f"{self._file_path}: {place}"
        rows = n + 1 if spec.role == "observation" or name.startswith("next_") else n
        found = stored.shape[0]
        packed = self._may_be_jpeg(stored) and spec.is_image
        if not (found == rows or (found == n + 1 and "/infos/" in place)) or not (
            packed or stored.shape[1:] == spec.shape
        ):
            raise DataError(f"{what} has shape {list(stored.shape)}: expected {[rows, *spec.shape]}")
        if not packed:
            return self._file.read(place)
        if spec.size * found > allowed_bytes(self._file.n_bytes):
            raise DataError(f"{what} declares {found} pictures of {list(spec.shape)} in {self._file.n_bytes} bytes")
        return decode_jpegs(self._file.blobs(place), found, spec.shape, what, swapped=False)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    return path / "main_data.hdf5" if (path / "main_data.hdf5").exists() else path / "data" / "main_data.hdf5"


def _short(source: str) -> str:
    return source.partition("/")[2] or source


def _named(source: str, spec: ArraySpec, where: Path) -> str:
    top, _, rest = source.partition("/")
    if top == "observations":
        return store_name(rest, where) if rest else "image" if spec.is_image else "state"
    if top == "actions":
        return store_name(f"action_{rest}", where) if rest else "action"
    if top == "infos":
        return store_name(f"info_{rest}", where) if rest else "info"
    return _ONCE[source][0] if source in _ONCE else store_name(source, where)


def _metadata(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_METADATA:
        raise DataError(f"{path} has {path.stat().st_size} bytes: metadata has at most {_MAX_METADATA}")
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {type(value).__name__}: expected an object")
    return value


def _task(metadata: dict[str, Any]) -> str:
    """Id of the environment, else of the dataset."""
    try:
        spec = json.loads(metadata.get("env_spec") or "{}")
    except (ValueError, TypeError, RecursionError):
        spec = {}
    told = spec.get("id") if isinstance(spec, dict) else None
    told = told or metadata.get("dataset_id")
    return told if isinstance(told, str) else ""
