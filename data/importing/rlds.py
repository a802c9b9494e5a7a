"""RLDS episodes as TensorFlow Datasets stores them (TFRecord shards, features.json), without TensorFlow.

Layout: ``dataset_info.json`` names splits and shards, ``features.json`` types and shapes; each record is one episode,
its steps flattened into ``steps/<feature>`` lists (tensorflow_datasets/core/features, RLDS: Ramos et al. 2021).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.importing.rlds_features import Leaf, flatten, leaf_rows, text
from visuomotor.data.importing.source import EpisodeInfo, Source, SourceEpisode
from visuomotor.data.importing.tfrecord import Feature, parse_example, read_record, record_spans
from visuomotor.data.spec import ArraySpec
from visuomotor.data.validate import Finding

__all__ = ["RldsSource"]

_OPTIONS = ("split",)
_STEPS = "steps/"
_TASK = ("language_instruction", "natural_language_instruction", "instruction", "task")
_MAX_JSON = 64 << 20
_KINDS = {"b": "bool", "i": "int64", "u": "int64", "f": "float64"}


@dataclass(frozen=True)
class _Record:
    path: Path
    span: tuple[int, int]
    split: str


class RldsSource(Source):
    """A dataset folder (with features.json), or the folder above with one version in it.

    Options: ``split``: a name, all by default (column ``split``). RLDS does not say its rate.
    """

    format: ClassVar[str] = "rlds"

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f"rlds has no option {name!r}. {nearest(name, _OPTIONS)}")
        self.path, self.findings = path, []
        folder = _version_folder(path)
        if folder is None:
            raise DataError(f"{path} holds no features.json and dataset_info.json: no dataset of TensorFlow Datasets")
        self.fps = None
        self._records: list[_Record] = []
        self.episodes = []
        self._find_records(folder, _load(folder / "dataset_info.json"), options.get("split"))
        leaves, left_out = flatten(_load(folder / "features.json"), str(folder / "features.json"))
        for name, why in left_out.items():
            self._warn(f"{name} is not imported: {why}")
        steps = {k.removeprefix(_STEPS): v for k, v in leaves.items() if k.startswith(_STEPS)}
        if not steps:
            raise DataError(f"{folder / 'features.json'} has no steps: no episodes (RLDS)")
        self._texts = {k: v for k, v in steps.items() if v.kind == "text"}
        self._once = {k: v for k, v in leaves.items() if not k.startswith(_STEPS)}
        self._choose_arrays({k: v for k, v in steps.items() if v.kind != "text"})
        self._choose_columns()

    @classmethod
    def recognises(cls, path: Path) -> str | None:
        """See :meth:`Source.recognises`."""
        folder = _version_folder(path)
        if folder is None:
            return None
        try:
            return "RLDS (features.json with steps)" if '"steps"' in (folder / "features.json").read_text() else None
        except (OSError, UnicodeDecodeError):
            return None

    def _warn(self, message: str, severity: str = "warning") -> None:
        self.findings.append(Finding(severity=severity, message=message))

    # ---------------------------------------------------------------- what is there

    def _find_records(self, folder: Path, info: dict[str, Any], split: Any) -> None:
        form = str(info.get("fileFormat", "tfrecord"))
        if form != "tfrecord":
            raise DataError(f"{folder} is stored as {form!r}: only tfrecord can be read")
        splits = info.get("splits")
        if not isinstance(splits, list) or not all(isinstance(s, dict) and "name" in s for s in splits):
            raise DataError(f"{folder / 'dataset_info.json'} lists no splits")
        known = [str(s["name"]) for s in splits]
        if split is not None and split not in known:
            raise ConfigError(f"{folder} has no split {split!r}. {nearest(str(split), known)}")
        for s in splits:
            if split in (None, s["name"]):
                self._find_shards(folder, str(info.get("name", "")), s)
        if not self._records:
            raise DataError(f"{folder}: no record was found in any shard")

    def _find_shards(self, folder: Path, dataset: str, split: dict[str, Any]) -> None:
        lengths = split.get("shardLengths") or []
        template = str(split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
        if not isinstance(lengths, list) or not all(str(n).isdigit() for n in lengths):
            raise DataError(f"{folder / 'dataset_info.json'}: shardLengths of {split['name']!r} is no list of numbers")
        for i, expected in enumerate(map(int, lengths)):
            fields = {
                "DATASET": dataset, "SPLIT": str(split["name"]), "FILEFORMAT": "tfrecord", "SHARD_INDEX": f"{i:05d}",
                "NUM_SHARDS": f"{len(lengths):05d}", "SHARD_X_OF_Y": f"{i:05d}-of-{len(lengths):05d}",
            }  # fmt: skip
            name = re.sub(r"\{(\w+)\}", lambda m: fields.get(m[1], m[0]), template)  # noqa: B023  (called here only)
            file = folder / Path(name).name  # never outside of the folder
            if not file.is_file():
                self._warn(f"shard {name} is absent: {expected} episodes", "error")
                continue
            try:
                spans = record_spans(file)
            except DataError as error:
                self._warn(f"shard left out: {error}", "error")
                continue
            if len(spans) != expected:
                self._warn(f"shard {name} has {len(spans)} records, dataset_info.json says {expected}")
            for k, span in enumerate(spans):
                self._records.append(_Record(file, span, str(split["name"])))
                self.episodes.append(EpisodeInfo(id=f"{file.name}#{k}"))

    def _choose_arrays(self, steps: dict[str, Leaf]) -> None:
        self._leaves: dict[str, tuple[str, Leaf]] = {}
        self.specs = {}
        first: dict[str, Feature] | None = None
        for path, leaf in steps.items():
            if leaf.kind == "image" and leaf.shape is None:
                first = first if first is not None else self._parse(0)
                leaf = leaf.with_shape(leaf_rows(leaf, first.get(_STEPS + path, []), path).shape[1:])
            short = path.removeprefix("observation/")
            taken = short in steps and short != path
            key = re.sub(r"\W+", "_", path if taken else short).strip("_") or "key"
            role = "other"
            if path.startswith("observation/") or path == "observation":
                role = "observation"
            elif path.split("/")[0] == "action":
                role = "action"
            elif path == "reward":
                role = "reward"
            shape = leaf.stored_shape
            if shape == () and role in ("observation", "action"):
                shape = (1,)
            if key in self.specs:
                raise DataError(f"two features would be named {key!r}: {self._leaves[key][0]} and {path}")
            self._leaves[key] = (path, leaf)
            self.specs[key] = ArraySpec(shape=shape, dtype=leaf.dtype, role=role, source=_STEPS + path)

    def _choose_columns(self) -> None:
        self.columns, self._column_of = {"split": "str"}, {}
        for path in [*self._texts, *self._once]:
            in_steps = path in self._texts
            leaf = self._texts[path] if in_steps else self._once[path]
            last = path.split("/")[-1]
            name = re.sub(r"\W+", "_", path.removeprefix("episode_metadata/").removeprefix("observation/")).strip("_")
            name = "task" if in_steps and last in _TASK and "task" not in self.columns else name
            if leaf.kind == "image" or (leaf.kind == "tensor" and leaf.shape != ()):
                self._warn(f"{path} is not imported: one array per episode")
            elif name in self.columns:
                self._warn(f"{path} is not imported: there is a column {name!r} already")
            else:
                self.columns[name] = "str" if leaf.kind == "text" else _KINDS[np.dtype(leaf.dtype).kind]
                self._column_of[name] = (path, leaf, in_steps)

    # ---------------------------------------------------------------- episodes

    def _parse(self, index: int) -> dict[str, Feature]:
        record = self._records[index]
        return parse_example(read_record(record.path, record.span))

    def read(self, index: int) -> SourceEpisode:
        """See :meth:`Source.read`."""
        record, where = self._records[index], self.episodes[index].id
        try:
            features = self._parse(index)
            arrays = {}
            for key, (path, leaf) in self._leaves.items():
                if _STEPS + path not in features:
                    raise DataError(f"it has no feature {_STEPS + path}")
                rows = leaf_rows(leaf, features[_STEPS + path], path)
                arrays[key] = rows.reshape(len(rows), *self.specs[key].shape)
            lengths = {key: len(a) for key, a in arrays.items()}
            if len(set(lengths.values())) > 1:
                raise DataError(f"its features have different numbers of steps: {lengths}")
            columns, findings = self._values(features, index)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            raise DataError(f"{where} is damaged: {error}") from None
        return SourceEpisode(arrays=arrays, columns={"split": record.split, **columns}, findings=tuple(findings))

    def _values(self, features: dict[str, Feature], index: int) -> tuple[dict[str, Any], list[Finding]]:
        columns: dict[str, Any] = {}
        findings = []
        for name, (path, leaf, in_steps) in self._column_of.items():
            values = features.get(_STEPS + path if in_steps else path, [])
            if not len(values):
                raise DataError(f"it has no value of {path}")
            if leaf.kind == "text":
                if not isinstance(values, list):
                    raise DataError(f"{path} holds numbers: expected text")
                columns[name] = text(values[0])
                if in_steps and len(set(values)) > 1:
                    message = f"{path} changes within the episode: column {name!r} has the first of {len(set(values))}"
                    findings.append(Finding(severity="warning", episode=index, message=message))
            else:
                value = leaf_rows(leaf, values, path)[0].item()
                columns[name] = bool(value) if self.columns[name] == "bool" else value
        return columns, findings


def _version_folder(path: Path) -> Path | None:
    """The folder with features.json: ``path``, or the only one inside of it that has it."""
    if not path.is_dir():
        return None
    inside = [path, *(p for p in sorted(path.iterdir()) if p.is_dir())]
    found = [p for p in inside if (p / "features.json").is_file() and (p / "dataset_info.json").is_file()]
    return found[0] if found and (found[0] == path or len(found) == 1) else None


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise DataError(f"{path} has {path.stat().st_size} bytes: more than {_MAX_JSON}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no JSON object")
    return found
