"""Operations on the arrays: ``keys``, ``add``, ``resize``, ``uint8``, ``quaternions``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from visuomotor.data.checks.rotation import find_quaternions
from visuomotor.data.editing.demos import Demos
from visuomotor.data.editing.words import numbers, options
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.importing.archive import Archive
from visuomotor.data.importing.npy import NpyEntry, read_entry
from visuomotor.data.importing.roles import infer_role
from visuomotor.data.parts import PartConfig, part_spec
from visuomotor.data.spec import ArraySpec

__all__ = ["add", "as_uint8", "choose_keys", "fix_quaternions", "resize"]

Change = Callable[[np.ndarray], np.ndarray]


def _each(demos: Demos, specs: Mapping[str, ArraySpec], changes: Mapping[str, Change]) -> Demos:
    """Some arrays changed by themselves."""

    def change(episode: int, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {k: changes[k](v) if k in changes else v for k, v in rows.items()}

    return demos.mapped({**demos.specs, **specs}, change)


def choose_keys(demos: Demos, words: Sequence[str]) -> Demos:
    """``keys keep=<a,b> | drop=<a,b> rename=<old:new,...>``: which arrays stay, and their names."""
    given = options("keys", words, {"keep": "arrays", "drop": "arrays", "rename": "old:new"})
    if not given or {"keep", "drop"} <= set(given):
        raise ConfigError("keys: give keep= or drop= and, or, rename=<old:new,...>")
    keep, dropped = (given[k].split(",") if k in given else [] for k in ("keep", "drop"))
    pairs = [p.partition(":")[::2] for p in given["rename"].split(",")] if "rename" in given else []
    demos.require([*keep, *dropped, *(old for old, _ in pairs)])
    rename = dict(pairs)
    kept = [k for k in demos.specs if (not keep or k in keep) and k not in dropped]
    old_of = {rename.get(k, k): k for k in kept}
    if len(old_of) < len(kept) or not all(old_of) or not kept:
        raise ConfigError(f"keys: {' '.join(words)}: arrays would have one name, none, or there would be no array left")
    specs = {new: demos.specs[old] for new, old in old_of.items()}
    return demos.mapped(
        specs,
        lambda episode, rows: {new: rows[old] for new, old in old_of.items() if old in rows},
        lambda keys: [old_of[k] for k in keys],
    )


def add(demos: Demos, words: Sequence[str]) -> Demos:
    """``add <name>=<array>:<components>`` or ``add from=<file.npz>``: new arrays.

    An array of the file has one row for each step of all episodes, in order; pickled objects are refused.
    """
    for word in words or [""]:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise ConfigError("add: expected <name>=<array>:<components>, as in gripper=state:6, or from=<file.npz>")
        demos = _add_file(demos, Path(value).expanduser()) if name == "from" else _add_part(demos, name, value)
    return demos


def _new_name(demos: Demos, name: str) -> None:
    if name in demos.specs:
        raise ConfigError(f"add: there is an array {name!r} already: drop or rename it first")


def _add_part(demos: Demos, name: str, value: str) -> Demos:
    key, sign, dims_text = value.rpartition(":")
    if not sign:
        raise ConfigError(f"add {name}={value}: expected <array>:<components>, as in state:0,1 or state:3-6")
    _new_name(demos, name)
    demos.require([key])
    dims = numbers(dims_text, demos.specs[key].size, f"add {name}")
    spec = part_spec(name, PartConfig(key=key, dims=dims), demos.specs)

    def change(episode: int, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**rows, name: np.ascontiguousarray(rows[key][:, dims])} if key in rows else rows

    return demos.mapped(
        {**demos.specs, name: spec}, change, lambda keys: list(dict.fromkeys(key if k == name else k for k in keys))
    )


def _add_file(demos: Demos, path: Path) -> Demos:
    if not path.is_file():
        raise DataError(f"add: there is no file {path}")
    archive = Archive(path)
    try:
        entries = {n.removesuffix(".npy"): n for n in archive.names if n.endswith(".npy")}
        loaded: dict[str, np.ndarray] = {}
        for name, entry in entries.items():
            _new_name(demos, name)
            loaded[name] = read_entry(NpyEntry.open(archive, entry))
    finally:
        archive.close()
    if not loaded:
        raise DataError(f"add: {path} holds no arrays")
    specs = {}
    for name, array in loaded.items():
        if array.ndim < 1 or len(array) != demos.n_steps or array.dtype.kind not in "biuf":
            raise DataError(
                f"add: {path}: {name!r} is {array.dtype} of shape {list(array.shape)}: expected numbers, one row for "
                f"each of the {demos.n_steps} steps"
            )
        specs[name] = ArraySpec(
            shape=array.shape[1:], dtype=array.dtype.name, role=infer_role(name), source=f"{path.name}: {name}"
        )
    ends = np.cumsum(demos.lengths)

    def change(episode: int, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        span = slice(int(ends[episode] - demos.lengths[episode]), int(ends[episode]))
        return {**rows, **{name: array[span] for name, array in loaded.items()}}

    return demos.mapped({**demos.specs, **specs}, change, lambda keys: [k for k in keys if k not in loaded])


def resize(demos: Demos, words: Sequence[str]) -> Demos:
    """``resize <camera>=<width>x<height> ...``: colours by area (linear to enlarge), depth by the nearest pixel."""
    if not words:
        raise ConfigError("resize: expected <camera>=<width>x<height>, as in img=96x96")
    specs, changes = {}, {}
    for word in words:
        key, _, size = word.partition("=")
        demos.require([key])
        spec = demos.specs[key]
        width, sign, height = size.partition("x")
        if not (sign and width.isdigit() and height.isdigit() and 8 <= int(width) <= 8192 and 8 <= int(height) <= 8192):
            raise ConfigError(f"resize {word}: expected {key}=<width>x<height>, 8 to 8192 each")
        if not (spec.is_image or spec.is_depth):
            raise ConfigError(f"resize: {key!r} has steps of shape {list(spec.shape)}: expected images or depth")
        specs[key] = replace(spec, shape=(int(height), int(width), *spec.shape[2:]), names=None)
        changes[key] = _resizer(int(width), int(height), spec)
    return _each(demos, specs, changes)


def _resizer(width: int, height: int, spec: ArraySpec) -> Change:
    import cv2

    smaller = width * height < spec.shape[0] * spec.shape[1]
    how = cv2.INTER_NEAREST if spec.is_depth else cv2.INTER_AREA if smaller else cv2.INTER_LINEAR

    def change(frames: np.ndarray) -> np.ndarray:
        out = np.empty((len(frames), height, width, *spec.shape[2:]), frames.dtype)
        for i, frame in enumerate(frames):
            out[i] = cv2.resize(frame, (width, height), interpolation=how).reshape(out.shape[1:])
        return out

    return change


def as_uint8(demos: Demos, words: Sequence[str]) -> Demos:
    """``uint8 [<camera> ...]``: float images in 0..255 or 0..1 as uint8, all of them by default."""
    floats = [k for k, s in demos.specs.items() if s.is_image and np.dtype(s.dtype).kind == "f"]
    demos.require(words)
    for key in words:
        if key not in floats:
            raise ConfigError(f"uint8: {key!r} is {demos.specs[key].dtype}: expected float images")
    chosen = list(words) or floats
    if not chosen:
        raise ConfigError("uint8: there are no float images")
    changes = {k: _to_uint8(k, _gain(demos, k)) for k in chosen}
    return _each(demos, {k: replace(demos.specs[k], dtype="uint8") for k in chosen}, changes)


def _gain(demos: Demos, key: str) -> int:
    """255 for pixels in 0..1, 1 for 0..255: the first pixel that can only be one of them tells."""
    for episode in range(len(demos)):
        pixels = demos.read(episode, [key])[key]
        telling = pixels[(pixels > 1) | (pixels != np.rint(pixels))]
        if telling.size:
            return 1 if float(telling.max()) > 1 else 255
    raise DataError(f"uint8: {key!r} holds only 0 and 1: whether pixels are in 0..1 or in 0..255 cannot be told")


def _to_uint8(key: str, gain: int) -> Change:
    def change(pixels: np.ndarray) -> np.ndarray:
        scaled = np.rint(pixels * gain)
        if not (scaled.min() >= 0 and scaled.max() <= 255):  # false for NaN too
            raise DataError(
                f"uint8: {key!r} has pixels outside 0..{255 // gain}, from {pixels.min()} to {pixels.max()}"
            )
        return scaled.astype(np.uint8)

    return change


def fix_quaternions(demos: Demos, words: Sequence[str]) -> Demos:
    """``quaternions [<array> ...]``: lengths made 1, and signs such that an episode never jumps; all by default.

    Raises:
        DataError: a quaternion of length 0 (``drop faulty`` leaves such episodes out).
    """
    found = find_quaternions(demos.specs)
    demos.require(words)
    chosen = [q for q in found if not words or q.key in words]
    missing = [k for k in words if k not in {q.key for q in found}]
    if missing:
        raise ConfigError(f"quaternions: {missing[0]!r} holds none by its names: expected qw, qx, qy, qz in some order")

    def change_of(key: str) -> Change:
        groups = [list(q.dims) for q in chosen if q.key == key]

        def change(rows: np.ndarray) -> np.ndarray:
            out = rows.copy()
            for dims in groups:
                out[:, dims] = _continuous(rows[:, dims].astype(np.float64), key)
            return out

        return change

    return _each(demos, {}, {k: change_of(k) for k in {q.key for q in chosen}})


def _continuous(q: np.ndarray, key: str) -> np.ndarray:
    norm = np.linalg.norm(q, axis=1, keepdims=True)
    if (norm < 1e-6).any():
        raise DataError(f"quaternions: {key!r} has one of length 0, which is no rotation: drop faulty first")
    flips = np.where((q[1:] * q[:-1]).sum(axis=1) < 0, -1.0, 1.0)
    return np.asarray(q / norm * np.concatenate([[1.0], np.cumprod(flips)])[:, None])
