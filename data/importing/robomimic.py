"""robomimic and robosuite HDF5: ``data/demo_<i>`` with ``actions``, ``obs/<key>``, ``rewards``, ``dones``, ``states``.

Layout after robomimic's documentation ("Datasets: overview" and "robosuite"), which robosuite's own recordings are
without ``obs``: states and actions alone, and the model as an attribute or as a file in ``models/`` beside them. What
cameras and sensors saw can be had again from states and model: :mod:`visuomotor.envs.replay_states`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.importing.hdf5 import Hdf5File, Stored, is_hdf5
from visuomotor.data.importing.naming import choose, numbered, store_name
from visuomotor.data.importing.source import EpisodeInfo, Source, SourceEpisode
from visuomotor.data.rows import COLUMN_TYPES
from visuomotor.data.spec import ArraySpec
from visuomotor.data.validate import Finding

__all__ = ["RobomimicSource"]

_NAMES = {  # name in the file: name in the store, role
    "actions": ("action", "action"),
    "rewards": ("reward", "reward"),
    "states": ("states", "privileged"),
    "dones": ("done", "other"),
}
_OPTIONS = {"fps": None, "filter": "", "next_obs": False, "model": "auto"}
_EMPTY: dict[str, Any] = {"str": "", "bool": False, "int64": 0, "float64": 0.0}
_MAX_MODEL_BYTES = 16 << 20


class RobomimicSource(Source):
    """One ``.hdf5`` file, or a folder with ``demo.hdf5``.

    Options: ``fps`` [Hz], where the file does not say it; ``filter``: take the episodes of this filter key
    (``mask/<name>``); ``next_obs``: also import ``next_obs/<key>`` as ``next_<key>``; ``model``: ``yes`` keeps each
    episode's MuJoCo model (MJCF text) as the column ``model``, ``auto`` does so where there are no observations.

    Columns: ``task`` (name of the environment), ``filters`` (filter keys of the episode, joined by commas),
    ``env_args`` (JSON) where the file has it, and ``model``.
    """

    format: ClassVar[str] = "robomimic"

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.path = path
        self._file_path = _file(path)
        self._options = choose(options, _OPTIONS, self.format)
        if self._options["model"] not in ("auto", "yes", "no"):
            raise ConfigError(f"robomimic: option model is {self._options['model']!r}: expected auto, yes or no")
        self._file = Hdf5File(self._file_path)
        self.findings: list[Finding] = []
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def recognises(cls, path: Path) -> str | None:
        file = _file(path)
        if not is_hdf5(file):
            return None
        with Hdf5File(file) as h5:  # raises for a damaged file: no other format would read it either
            try:
                demos = numbered(h5.groups("data"), "demo_") if h5.is_group("data") else []
            except DataError:
                return None
        return f"robomimic or robosuite HDF5 (data/{demos[0]})" if demos else None

    def close(self) -> None:
        self._file.close()

    # ---------------------------------------------------------------- what there is

    def _open(self) -> None:
        demos = numbered(self._file.groups("data"), "demo_") if self._file.is_group("data") else []
        if not demos:
            raise DataError(f"{self._file_path} has no groups data/demo_<number>: it is no robomimic HDF5")
        self._filters = self._read_filters(demos)
        wanted = self._options["filter"]
        if wanted and wanted not in self._filters:
            raise DataError(f"{self._file_path} has no filter key {wanted!r}. {nearest(wanted, self._filters)}")
        self._attributes = self._file.attributes("data")
        self._ours = _json(self._attributes.get("visuomotor"))  # what our export had no other place for
        self._env = self._environment()
        chosen = [d for d in demos if not wanted or d in self._filters[wanted]]
        if not chosen:
            raise DataError(f"{self._file_path}: none of its {len(demos)} episodes has the filter key {wanted!r}")
        stored = self._arrays(chosen[0])
        self._sources = self._naming(chosen[0], stored)
        self.specs = {name: self._spec(source, stored[source]) for name, source in self._sources.items()}
        self.episodes = [EpisodeInfo(id=d) for d in chosen]
        has_obs = any(source.startswith("obs/") for source in self._sources.values())
        self._keeps_model = self._options["model"] == "yes" or (
            self._options["model"] == "auto" and not has_obs and "states" in stored
        )
        self.columns = self._column_types()
        if not has_obs:
            message = "no observations (obs/), only states: visuomotor data replay gives poses and pictures"
            self.findings.append(Finding(severity="warning", message=message))
        self.fps = self._rate(chosen[0])

    def _arrays(self, demo: str) -> dict[str, Stored]:
        """What is imported of an episode, by its name in the file."""
        stored = self._file.leaves(f"data/{demo}")
        if "actions" not in stored or len(stored["actions"].shape) != 2:
            found = stored["actions"].shape if "actions" in stored else "absent"
            raise DataError(f"{self._file_path}: data/{demo}/actions is {found}: expected [steps, size of an action]")
        skipped = () if self._options["next_obs"] else ("next_obs/",)
        kept = {k: s for k, s in stored.items() if s.kind == "numbers" and not k.startswith(skipped)}
        self._file.check_total(kept, f"data/{demo}")
        return kept

    def _naming(self, demo: str, stored: dict[str, Stored]) -> dict[str, str]:
        """``{name in the store: name in the file}``; arrays with another number of rows are told and left out."""
        n = stored["actions"].shape[0]
        sources: dict[str, str] = {}
        for source, array in stored.items():
            if not array.shape or array.shape[0] != n or 0 in array.shape[1:]:
                message = f"data/{demo}/{source} has shape {list(array.shape)}, not {n} rows of values: left out"
                self.findings.append(Finding(severity="warning", message=message))
                continue
            name = self._name(source)
            if name is None:
                continue
            if name in sources:
                name = store_name(source, self._file_path)  # an observation of the name of another array
            if name in sources:
                raise DataError(f"{self._file_path}: {sources[name]} and {source} would both be {name!r}")
            sources[name] = source
        return sources

    def _name(self, source: str) -> str | None:
        """Name in the store; None for what our export added."""
        if not self._ours:
            return _name(source, self._file_path)
        entry = _at(self._ours, "keys", source)
        return None if entry is None else store_name(str(entry.get("name")), self._file_path)

    def _spec(self, source: str, stored: Stored) -> ArraySpec:
        plain = _spec(source, stored)
        told = (_at(self._ours, "keys", source) or {}).get("spec")
        if not isinstance(told, dict):
            return plain
        try:
            spec = ArraySpec.from_dict(told)
        except (TypeError, ValueError, KeyError):
            return plain
        return spec if (spec.shape, spec.dtype) == (plain.shape, plain.dtype) else plain

    def _column_types(self) -> dict[str, str]:
        told = self._ours.get("columns")
        if isinstance(told, dict):
            return {k: v for k, v in told.items() if v in COLUMN_TYPES and k not in ("source_episode", "episode_ends")}
        columns = {"task": "str", "filters": "str"}
        columns |= {"env_args": "str"} if "env_args" in self._attributes else {}
        return columns | ({"model": "str"} if self._keeps_model else {})

    def _read_filters(self, demos: list[str]) -> dict[str, set[str]]:
        if not self._file.is_group("mask"):
            return {}
        found = {name: set(self._file.texts(f"mask/{name}")) for name in self._file.leaves("mask")}
        for name, members in found.items():
            if strange := sorted(members - set(demos)):
                message = f"filter key {name!r} names {len(strange)} episodes that are not there ({strange[0]})"
                self.findings.append(Finding(severity="warning", message=message))
        return found

    def _environment(self) -> dict[str, Any]:
        """``{"name": ..., "rate": ...}`` of robomimic's env_args or of robosuite's env and env_info."""
        args = _json(self._attributes.get("env_args"))
        info = _json(self._attributes.get("env_info"))
        kwargs = args.get("env_kwargs") if isinstance(args.get("env_kwargs"), dict) else {}
        name = args.get("env_name") or self._attributes.get("env") or info.get("env_name") or ""
        rate = (kwargs or {}).get("control_freq") or info.get("control_freq")
        return {"name": name if isinstance(name, str) else "", "rate": rate}

    def _rate(self, demo: str) -> float | None:
        rate = self._options["fps"] or self._ours.get("fps") or self._env["rate"]
        if isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < 1e6:
            return float(rate)
        if "states" not in self._sources or len(self.specs["states"].shape) != 1:
            return None
        times = self._file.read(f"data/{demo}/states")[:, 0]  # MuJoCo's flattened state begins with the time [s]
        steps = np.diff(times.astype(np.float64))
        even = len(steps) > 0 and steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-6, atol=0)
        return round(1 / float(steps[0]), 6) if even else None

    # ---------------------------------------------------------------- episodes

    def read(self, index: int) -> SourceEpisode:
        demo = self.episodes[index].id
        stored = self._arrays(demo)
        n = stored["actions"].shape[0]
        arrays = {}
        for name, source in self._sources.items():
            shape = [n, *self.specs[name].shape]
            if source not in stored or list(stored[source].shape) != shape:
                found = list(stored[source].shape) if source in stored else "absent"
                raise DataError(f"{self._file_path}: data/{demo}/{source} is {found}: expected {shape}")
            if self.wanted is None or name in self.wanted:
                arrays[name] = self._file.read(f"data/{demo}/{source}")
        filters = sorted(name for name, members in self._filters.items() if demo in members)
        columns = {"task": self._env["name"], "filters": ",".join(filters)}
        columns["env_args"] = str(self._attributes.get("env_args", ""))
        findings = self._surplus(demo, stored, index)
        if "model" in self.columns:
            columns["model"], lost = self._model(demo, index)
            findings += lost
        kept = self._file.attributes(f"data/{demo}") if self._ours else {}
        columns |= {k: kept[f"column.{k}"] for k in self.columns if f"column.{k}" in kept}
        columns = {k: columns.get(k, _EMPTY[kind]) for k, kind in self.columns.items()}
        return SourceEpisode(arrays=arrays, columns=columns, findings=tuple(findings))

    def _surplus(self, demo: str, stored: dict[str, Stored], index: int) -> list[Finding]:
        declared = self._file.attributes(f"data/{demo}").get("num_samples")
        findings: list[Finding] = []
        n = stored["actions"].shape[0]
        if declared is not None and declared != n:
            message = f"num_samples of data/{demo} is {declared}, but there are {n} actions: {n} imported"
            findings.append(Finding(severity="warning", episode=index, message=message))
        unknown = sorted(set(stored) - set(self._sources.values()))
        if index and unknown and not self._ours:
            message = f"data/{demo} has {', '.join(unknown[:4])}, which the first episode has not: left out"
            findings.append(Finding(severity="warning", episode=index, message=message))
        return findings

    def _model(self, demo: str, index: int) -> tuple[str, list[Finding]]:
        """The episode's MJCF text: an attribute, or a file named by it in ``models/`` beside the HDF5."""
        told = self._file.attributes(f"data/{demo}").get("model_file")
        if not isinstance(told, str) or not told:
            message = "no model (attribute model_file): its states cannot be replayed"
            return "", [Finding(severity="warning", episode=index, message=message)]
        if "<" in told:
            return told, []
        folder = self._file_path.parent / "models"
        file = folder / told
        if Path(told).name != told or file.resolve().parent != folder.resolve():
            raise DataError(f"{self._file_path}: model_file of data/{demo} is {told!r}: expected a name in models/")
        if not file.is_file():
            message = f"its model {file} is absent: its states cannot be replayed"
            return "", [Finding(severity="warning", episode=index, message=message)]
        if file.stat().st_size > _MAX_MODEL_BYTES:
            raise DataError(f"{file} has {file.stat().st_size} bytes: a model has at most {_MAX_MODEL_BYTES}")
        return file.read_text("utf-8", "replace"), []


def _file(path: Path) -> Path:
    return path / "demo.hdf5" if path.is_dir() else path


def _name(source: str, where: Path) -> str:
    group, _, rest = source.partition("/")
    if group == "obs" and rest:
        return store_name(rest, where)
    if group == "next_obs" and rest:
        return store_name(f"next_{rest}", where)
    return _NAMES[source][0] if source in _NAMES else store_name(source, where)


def _spec(source: str, stored: Stored) -> ArraySpec:
    role = "observation" if source.startswith("obs/") else _NAMES.get(source, ("", "other"))[1]
    return ArraySpec(shape=stored.shape[1:], dtype=stored.dtype.name, role=role, source=source)


def _at(document: dict[str, Any], *names: str) -> dict[str, Any] | None:
    """The object at a path in JSON; None if there is none."""
    found: Any = document
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def _json(text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
