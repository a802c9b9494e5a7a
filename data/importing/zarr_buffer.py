"""Replay buffers in Zarr, as Diffusion Policy and UMI publish them: ``data/<key>`` and ``meta/episode_ends``.

Layouts: Chi et al., "Diffusion Policy" (RSS 2023), replay buffer of its published data; Chi et al., "Universal
Manipulation Interface" (RSS 2024), ``dataset.zarr.zip`` as its pipeline writes it.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.chunks import chunk_rows, chunks_between
from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.importing.jpegxl import CODEC, JpegXlFrames
from visuomotor.data.importing.roles import infer_role
from visuomotor.data.importing.source import EpisodeInfo, Source, SourceEpisode
from visuomotor.data.importing.zarr_guard import ZarrFiles
from visuomotor.data.ingest import ArrayPlan, image_gain, plan_array, read_rows
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import Finding

__all__ = ["ZarrSource"]

_BLOCK_BYTES = 4 << 20
_CACHED_BLOCKS = 32
_GRIPPER_POSE = ("eef_pos", "eef_rot_axis_angle", "gripper_width")  # UMI's action is these of each robot, end to end
_XYZ, _RXYZ = ("x", "y", "z"), ("rx", "ry", "rz")
_UMI: dict[str, dict[str, Any]] = {
    "eef_pos": {"unit": "m", "names": _XYZ},
    "eef_rot_axis_angle": {"unit": "rad", "names": _RXYZ},
    "gripper_width": {"unit": "m", "names": ("width",)},
    "demo_start_pose": {"names": (*_XYZ, *_RXYZ), "role": "other"},
    "demo_end_pose": {"names": (*_XYZ, *_RXYZ), "role": "other"},
}


class ZarrSource(Source):
    """A Zarr group (version 2 or 3, folder or zip archive) with ``data/<key>`` ``[T, ...]`` and ``meta/episode_ends``.

    Float images in 0..1 or 0..255 become uint8 as the training cache makes them; JPEG XL frames are decoded. Roles are
    inferred from names, unless the store is one of ours and says them.

    Options:
        action: ``"pose"`` (default) adds to a UMI store, which has no action, the one that UMI trains on: position,
            axis-angle and gripper width of every robot, end to end, at the same step. ``"none"`` adds nothing.
    """

    format = "zarr"

    @classmethod
    def recognises(cls, path: Path) -> str | None:
        """See :meth:`Source.recognises`."""
        if path.is_dir():
            names = [p.name for p in (path / "meta" / "episode_ends").glob("*.*") if p.is_file()]
            names += [p.name for p in (path / "meta" / "episode_ends").glob(".zarray")]
            ok = (path / "data").is_dir()
        elif path.suffix == ".zip" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inside = archive.namelist()
            names = [n.rsplit("/", 1)[1] for n in inside if n.startswith("meta/episode_ends/")]
            ok = any(n.startswith("data/") for n in inside)
        else:
            return None
        version = "2" if ".zarray" in names else "3" if "zarr.json" in names else None
        return f"Zarr {version} replay buffer (meta/episode_ends)" if version and ok else None

    def __init__(self, path: Path, options: Mapping[str, Any] | None = None) -> None:
        self.path = path
        settings = dict(options or {})
        made_action = settings.pop("action", "pose")
        if settings or made_action not in ("pose", "none"):
            unknown = next(iter(settings), None)
            raise ConfigError(
                f"format zarr has no option {unknown!r}. {nearest(unknown, ['action'])}"
                if unknown is not None
                else f"option action is {made_action!r}: expected 'pose' or 'none'"
            )
        self._files = ZarrFiles(path)
        self._store = DemoStore.open(path)
        self.fps = self._store.fps
        self.findings = []
        self._readers: dict[str, Callable[[int, int], np.ndarray]] = {}
        self.specs = {}
        self._open_arrays()
        self._parts = self._pose_parts() if made_action == "pose" else ()
        if self._parts:
            self.specs["action"] = self._pose_spec()
        self.columns, self._values = self._open_columns()
        spans = [self._store.episode_slice(i) for i in range(self._store.n_episodes)]
        self.episodes = [EpisodeInfo(id=str(i), length=s.stop - s.start) for i, s in enumerate(spans)]
        self._spans = spans

    # ---------------------------------------------------------------- what is there

    def _open_arrays(self) -> None:
        for key, spec in self._store.specs.items():
            if self._is_jpegxl(key):
                continue
            try:
                plan = plan_array(key, spec, self._store.n_steps)
            except DataError as error:
                self.findings.append(Finding(severity="warning", array=key, message=f"left out: {error}"))
                continue
            kept = spec.dtype if plan.kind == "number" else "uint8"
            told = {} if self._store.ours else {"role": infer_role(key), **_known(key)}
            self.specs[key] = replace(spec, **{"dtype": kept, **told})
            self._readers[key] = self._blocks(key, plan)
        for name, array in self._files.arrays.items():
            key = name.removeprefix("data/")
            if name.startswith("data/") and self._is_jpegxl(key):
                frames = JpegXlFrames(self._files, array)
                if array.shape[0] < self._store.n_steps:
                    raise DataError(
                        f"{self.path}: {name} has {array.shape[0]} frames, "
                        f"meta/episode_ends needs {self._store.n_steps}"
                    )
                self.specs[key] = ArraySpec(shape=array.shape[1:], dtype="uint8", role="observation", source=key)
                self._readers[key] = frames.read
        for key, reason in self._store.unusable.items():
            if key not in self.specs:
                self.findings.append(Finding(severity="warning", array=key, message=f"left out: {reason}"))
        if not self.specs:
            why = "; ".join(f.message for f in self.findings)
            raise DataError(f"{self.path} has no array that can be used: {why}")

    def _is_jpegxl(self, key: str) -> bool:
        array = self._files.arrays.get(f"data/{key}")
        return array is not None and any(c.get("id") == CODEC for c in array.codecs)

    def _open_columns(self) -> tuple[dict[str, str], dict[str, list[Any]]]:
        kinds = {n: k for n, k in self._store.column_types.items() if n != "source_episode"}
        try:
            values = {name: self._store.episode_columns[name].tolist() for name in kinds}
        except Exception as error:  # every decompressor raises a type of its own
            raise DataError(f"{self.path}: a column of meta/ cannot be read: {error}") from None
        return kinds, values

    def _pose_parts(self) -> tuple[str, ...]:
        if "action" in self.specs:
            return ()
        robots = sorted({m[1] for key in self.specs if (m := re.fullmatch(r"robot(\d+)_eef_pos", key))}, key=int)
        named = [f"robot{i}_{part}" for i in robots for part in _GRIPPER_POSE]
        return tuple(key for key in named if key in self.specs and len(self.specs[key].shape) == 1)

    def _pose_spec(self) -> ArraySpec:
        names = [f"{key.split('_')[0]}_{n}" for key in self._parts for n in self.specs[key].names or ()]
        size = sum(self.specs[key].size for key in self._parts)
        told = tuple(names) if len(names) == size else None
        return ArraySpec(shape=(size,), role="action", names=told, source=" + ".join(self._parts))

    # ---------------------------------------------------------------- reading

    def read(self, index: int) -> SourceEpisode:
        """See :meth:`Source.read`."""
        span = self._spans[index]
        keys = [k for k in self.specs if self.wanted is None or k in self.wanted]
        arrays = {key: self._readers[key](span.start, span.stop) for key in keys if key in self._readers}
        if self._parts and "action" in keys:
            parts = [self._readers[key](span.start, span.stop) for key in self._parts]
            arrays["action"] = np.concatenate(parts, axis=1).astype(np.float32, copy=False)
        return SourceEpisode(arrays=arrays, columns={name: v[index] for name, v in self._values.items()})

    def _blocks(self, key: str, plan: ArrayPlan) -> Callable[[int, int], np.ndarray]:
        """Reader of rows that decodes whole chunks and keeps the last ones: episodes end within chunks."""
        array, files = self._store.arrays[key], self._files.arrays[f"data/{key}"]
        row_bytes = max(1, plan.spec.size * np.dtype(plan.spec.dtype).itemsize)
        rows = chunk_rows(array)
        rows *= max(1, _BLOCK_BYTES // (rows * row_bytes))
        kept = _CACHED_BLOCKS if rows * row_bytes <= 8 * _BLOCK_BYTES else 2
        gain = lru_cache(1)(lambda: image_gain(self._store, key) if plan.kind == "float_image" else 1)

        @lru_cache(kept)
        def block(i: int) -> np.ndarray:
            start, stop = i * rows, min((i + 1) * rows, self._store.n_steps)
            names = [name for name, _ in chunks_between(array, f"data/{key}", start, stop)]
            self._files.check_chunks(files, names)
            if plan.kind == "number":
                return self._store.read(key, start, stop)
            return read_rows(self._store, plan, start, stop, gain())

        def read(start: int, stop: int) -> np.ndarray:
            first, last = start // rows, (stop - 1) // rows
            parts = [block(i)[max(start - i * rows, 0) : min(stop - i * rows, rows)] for i in range(first, last + 1)]
            return np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)

        return read

    def close(self) -> None:
        """Close the files."""
        self._store.close()
        self._files.close()


def _known(key: str) -> dict[str, Any]:
    part = re.sub(r"^robot\d+_", "", key)
    return {"source": key, **(_UMI.get(part, {}) if part != key else {})}
