"""How a demonstration store lies on disk: finding and opening it, its attributes, and the arrays of a new one."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, ZipStore

from visuomotor.data.durable import DurableStore
from visuomotor.data.errors import DataError, nearest
from visuomotor.data.remote import UrlPath
from visuomotor.data.remote_store import RemoteStore, RemoteTree, open_files
from visuomotor.data.rows import COLUMN_TYPES
from visuomotor.data.spec import ArraySpec

__all__ = [
    "ENDS",
    "FORMAT_VERSION",
    "Root",
    "check_fps",
    "create_layout",
    "infer_spec",
    "open_array",
    "open_root",
    "read_attributes",
    "read_origin",
]

FORMAT_VERSION = 1
ATTRIBUTE = "visuomotor"
ENDS = "episode_ends"
_EXPECTED = (
    "Expected a Zarr group (version 2 or 3; a folder or a .zarr.zip) with data/<key> arrays and meta/episode_ends"
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_SHARDED_ROW_BYTES = 4096  # steps larger than this (images, clouds) are sharded
_CHUNK_BYTES, _SHARD_BYTES, _LOW_DIM_CHUNK_BYTES = 4 << 20, 64 << 20, 1 << 20


@dataclass(frozen=True)
class Root:
    """An opened Zarr group and the files behind it."""

    path: Path
    group: zarr.Group
    files: LocalStore | ZipStore | RemoteStore

    @property
    def tree(self) -> Path | zipfile.Path | RemoteTree:
        """Where the files can be listed."""
        if isinstance(self.files, RemoteStore):
            return RemoteTree(self.files.files)
        return zipfile.Path(self.path) if isinstance(self.files, ZipStore) else self.path

    def arrays(self, folder: str) -> list[str]:
        """Names of the arrays directly in ``folder``, sorted, whether or not they can be opened."""
        top = self.tree / folder
        names = (
            [p.name for p in top.iterdir() if p.is_dir() and _node_type(p) in ("array", "damaged")]
            if top.is_dir()
            else []
        )
        return sorted(names)


def _node_type(p: Path | zipfile.Path | RemoteTree) -> str | None:
    """``"array"``, ``"group"``, ``"damaged"``, or None for a folder that is no Zarr node."""
    for name, kind in ((".zarray", "array"), (".zgroup", "group")):
        if (p / name).exists():
            return kind
    meta = p / "zarr.json"
    if not meta.exists():
        return None
    try:
        return str(json.loads(meta.read_text())["node_type"])
    except (ValueError, KeyError, TypeError):
        return "damaged"


def _some(names: list[str]) -> str:
    return (", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")) if names else "(nothing)"


def open_root(path: Path, mode: str) -> Root:
    """Open the Zarr group at ``path``.

    Raises:
        DataError: nothing is there, or it is no Zarr group, or it lacks data/ or meta/episode_ends.
    """
    if isinstance(path, UrlPath):
        files: LocalStore | ZipStore | RemoteStore = _open_remote(path)
    elif not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"no demonstration store at {path}: nothing is there. In {path.parent}: {nearest(path.name, beside)}"
        )
    else:
        files = _open_zip(path) if path.is_file() else _open_folder(path, mode)
    try:
        group = zarr.open_group(files, mode="r" if mode == "r" else "r+", use_consolidated=False)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} has damaged group metadata: {type(error).__name__}: {error}") from None
    root = Root(path, group, files)
    keys, meta = root.arrays("data"), root.arrays("meta")
    if ENDS not in meta or not (root.tree / "data").is_dir():
        lacks = "meta/episode_ends" if ENDS not in meta else "data/"
        top = [p.name for p in root.tree.iterdir() if not p.name.startswith((".", "zarr.json"))]
        raise DataError(
            f"{path} is a Zarr group without {lacks}. {_EXPECTED}. It has: {_some(top)}"
            f"; arrays in data/: {_some(keys)}; arrays in meta/: {_some(meta)}"
        )
    if not keys:
        raise DataError(f"{path} has no arrays in data/. {_EXPECTED}")
    return root


def _open_folder(path: Path, mode: str) -> LocalStore:
    kind = _node_type(path)
    if kind == "damaged":
        raise DataError(f"{path} has a damaged zarr.json: it is no JSON with a node_type. Restore it from a copy")
    if kind == "array":
        raise DataError(f"{path} is a single Zarr array, not a group. {_EXPECTED}")
    if kind is None:
        inside = list(path.iterdir())
        zarrs = [p.name for p in inside if p.is_dir() and _node_type(p)]
        hint = f" Did you mean {path / sorted(zarrs)[0]}?" if zarrs else ""
        raise DataError(
            f"{path} is a folder but not a Zarr (no zarr.json, no .zgroup).{hint} {_EXPECTED}. "
            f"It has: {_some([p.name for p in inside])}"
        )
    return LocalStore(path, read_only=True) if mode == "r" else DurableStore(path)


def _open_remote(path: UrlPath) -> RemoteStore:
    files = open_files(str(path))
    kind = _node_type(RemoteTree(files))
    if kind != "group":
        beside = "" if kind else f". It has: {_some(list(files.children('')))}"
        what = {"array": "a single Zarr array", "damaged": "a damaged zarr.json"}.get(
            str(kind), "no zarr.json, no .zgroup"
        )
        raise DataError(f"no demonstration store at {path}: there is {what}. {_EXPECTED}{beside}")
    if files.children("").get("journal") and (staged := [n for n in files.children("journal") if n.isdigit()]):
        raise DataError(
            f"{path} holds {len(staged)} episodes in its journal, which only a local store can read: open the original "
            "with mode 'a' and close it, then copy it again"
        )
    return RemoteStore(files)


def _open_zip(path: Path) -> ZipStore:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is a file of {path.stat().st_size} bytes, but no zip archive. {_EXPECTED}")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not {"zarr.json", ".zgroup"} & set(names):
        inner = sorted(n for n in names if n.endswith(("/zarr.json", "/.zgroup")))
        hint = f" A Zarr lies inside, in {min(inner, key=len).rsplit('/', 1)[0]}/: unpack the archive." if inner else ""
        raise DataError(
            f"{path} is a zip archive but not a zipped Zarr.{hint} {_EXPECTED} at its top. It has: {_some(names)}"
        )
    return ZipStore(path, mode="r")


def open_array(group: zarr.Group, name: str) -> zarr.Array:
    """Open one array; its partly filled chunks will be written even where they equal the fill value.

    So a missing chunk of a store that we wrote is a loss and not a run of zeros.
    """
    try:
        with zarr.config.set({"array.write_empty_chunks": True}):
            node = group[name]
    except (MemoryError, DataError):
        raise
    except Exception as error:  # zarr raises many types for metadata that it cannot read
        raise DataError(f"{name} cannot be opened: {type(error).__name__}: {error}") from None
    if not isinstance(node, zarr.Array):
        raise DataError(f"{name} is a group: expected an array")
    return node


def infer_spec(key: str, array: zarr.Array) -> ArraySpec:
    """Spec of an array that came without our attributes.

    Raises:
        DataError: the array has no time axis, or holds neither numbers nor booleans.
    """
    if array.ndim == 0:
        raise DataError(f"data/{key} has rank 0: expected [T, ...], one row per step")
    dtype = array.dtype
    if getattr(dtype, "kind", "O") not in "biuf":
        raise DataError(f"data/{key} has type {dtype}: expected numbers or booleans")
    return ArraySpec(
        shape=array.shape[1:], dtype=np.dtype(dtype).name, role="action" if key == "action" else "observation"
    )


def read_attributes(root: Root) -> tuple[float | None, dict[str, ArraySpec]]:
    """Return fps and declared specs; ``(None, {})`` for a store that is not of our making.

    Raises:
        DataError: the attributes are of a newer format, or damaged.
    """
    attrs: Any = root.group.attrs.asdict().get(ATTRIBUTE)
    if attrs is None:
        return None, {}
    try:
        version = attrs["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise DataError(
                f"{root.path} has store format {version}; this version of visuomotor reads up to {FORMAT_VERSION}: "
                "upgrade visuomotor"
            )
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise DataError(
                f"{root.path} has store format {version!r}: expected a whole number from 1 to {FORMAT_VERSION}"
            )
        fps = None if attrs["fps"] is None else check_fps(attrs["fps"])
        return fps, {k: ArraySpec.from_dict(d) for k, d in attrs["keys"].items()}
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{root.path} has damaged attributes {ATTRIBUTE!r}: {type(error).__name__}: {error}") from None


def read_origin(root: Root) -> dict[str, Any]:
    """What a store says of how it was made; empty where it says nothing."""
    attrs: Any = root.group.attrs.asdict().get(ATTRIBUTE)
    origin = attrs.get("origin") if isinstance(attrs, dict) else None
    return dict(origin) if isinstance(origin, dict) else {}


def check_fps(fps: Any) -> float:
    """Return steps per second [Hz] as a float, or raise DataError."""
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not math.isfinite(fps) or fps <= 0:
        raise DataError(f"fps is {fps!r}: expected a positive number of steps per second")
    return float(fps)


def create_layout(
    path: Path, specs: Mapping[str, ArraySpec], fps: float | None, columns: Mapping[str, str],
    origin: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write an empty store into the new folder ``path``."""
    _check_declared(specs, columns)
    files = DurableStore(path)
    # plain types only: one value that JSON refuses would poison the attributes of the group object
    attrs: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "fps": None if fps is None else check_fps(fps),
        "keys": {key: spec.to_dict() for key, spec in specs.items()},
    }
    if origin is not None:
        attrs["origin"] = dict(origin)
    group = zarr.create_group(files, zarr_format=3, attributes={ATTRIBUTE: attrs})
    data, meta = group.create_group("data"), group.create_group("meta")
    for key, spec in specs.items():
        _create_rows(data, key, spec)
    flat: Any = {"name": "default", "separator": "."}  # one folder per array, so that flushing it is one call
    meta.create_array(
        ENDS,
        shape=(0,),
        chunks=(4096,),
        dtype="int64",
        fill_value=-1,
        compressors=[Crc32cCodec()],
        chunk_key_encoding=flat,
    )
    for name, kind in columns.items():
        codecs = [ZstdCodec(level=3), Crc32cCodec()]
        meta.create_array(name, shape=(0,), chunks=(4096,), dtype=kind, compressors=codecs, chunk_key_encoding=flat)


def _check_declared(specs: Mapping[str, ArraySpec], columns: Mapping[str, str]) -> None:
    if not specs:
        raise DataError("a store needs at least one array: specs is empty")
    for name in (*specs, *columns):
        if not _NAME.fullmatch(name):
            raise DataError(f"{name!r} is no name for an array: use letters, digits, '_', '-' and '.' (not first)")
    for key, spec in specs.items():
        if spec.size == 0 or np.dtype(spec.dtype).kind not in "biuf":
            raise DataError(
                f"{key!r} has shape {list(spec.shape)} and type {spec.dtype}: expected numbers or booleans, "
                "and no size of 0"
            )
    for name, kind in columns.items():
        if name == ENDS or kind not in COLUMN_TYPES:
            raise DataError(
                f"episode column {name!r} of type {kind!r}: expected another name than {ENDS!r}, "
                f"and a type of {', '.join(COLUMN_TYPES)}"
            )


def _create_rows(group: zarr.Group, key: str, spec: ArraySpec) -> None:
    dtype = np.dtype(spec.dtype)
    row_bytes = spec.size * dtype.itemsize
    encoding: Any = {"name": "default", "separator": "."}
    sharded = row_bytes >= _SHARDED_ROW_BYTES
    codec: Any
    if sharded and dtype.itemsize == 1:
        # Not within Blosc, which compresses blocks smaller than a picture, each by itself: what a picture shares with
        # the one before is then stored again. Level 2 is the first that looks back far enough for 640 x 480; level 3
        # takes 30 % longer for 10 % less, and three times as long where there is sensor noise.
        codec = ZstdCodec(level=2)
    else:
        shuffle: Any = "noshuffle" if dtype.itemsize == 1 else "shuffle"
        codec = BloscCodec(cname="zstd", clevel=1 if sharded else 3, shuffle=shuffle)
    if sharded:
        rows = min(64, max(16, _CHUNK_BYTES // row_bytes))
        shards = (rows * min(256 // rows, max(1, _SHARD_BYTES // (rows * row_bytes))), *spec.shape)
    else:
        rows, shards = min(16384, max(64, _LOW_DIM_CHUNK_BYTES // row_bytes)), None
    group.create_array(
        key,
        shape=(0, *spec.shape),
        chunks=(rows, *spec.shape),
        shards=shards,
        dtype=spec.dtype,
        compressors=[codec, Crc32cCodec()],
        chunk_key_encoding=encoding,
    )
