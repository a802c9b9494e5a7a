"""HDF5 files from strangers, read without running, following or over-allocating anything.

What a hostile file can try, and what is done: links of any kind but hard ones, virtual datasets and external raw data
(they read other files) are refused; types other than numbers and text (objects, references, compounds, opaque bytes,
in which pickles are kept) are refused; so are filters but the four that every file has, shapes that the stored
bytes cannot fill, and chunks that unpack to more than they declare. HDF5 itself is described in the HDF5 File Format
Specification, version 3.0 (The HDF Group).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError, MissingExtraError, nearest
from visuomotor.data.importing.hdf5_probe import probe

__all__ = ["Hdf5File", "Stored", "allowed_bytes", "is_hdf5", "load_h5py"]

_SLACK_BYTES = 16 << 20  # what a file may declare without storing it: fill values, tiny compressed arrays
_RATIO = 1100  # deflate packs 1032 : 1 at best (RFC 1951), JPEG about 1000 : 1
_MAGIC = b"\x89HDF\r\n\x1a\n"
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # simple enough to trust with damaged data
_MAX_DEPTH, _MAX_LEAVES, _MAX_ATTRIBUTE, _MAX_TEXTS = 8, 1024, 16 << 20, 1_000_000
_MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True)
class Stored:
    """A dataset in a file: ``shape``, and ``kind`` ``"numbers"`` (of ``dtype``), ``"text"`` or ``"bytes"`` (rows of
    uint8 of different lengths)."""

    shape: tuple[int, ...]
    dtype: np.dtype
    kind: str

    @property
    def n_bytes(self) -> int:
        """Bytes that the whole takes in memory, as declared (text and bytes: what refers to them)."""
        return math.prod(self.shape) * self.dtype.itemsize


class Hdf5File:
    """One file, open for reading. Names are paths from its root, ``"data/demo_0/actions"``. Threads may share it.

    Raises:
        DataError: by every method: the file is damaged, or holds at that place what is not read from strangers.
        MissingExtraError: h5py is not installed.
    """

    def __init__(self, path: Path, *, probed: bool = False) -> None:
        self.path = path
        self._h5 = load_h5py()
        with self._told("the file"):
            if not probed:
                probe(path)
            # no lock: data may lie where nobody may write, and is not written meanwhile
            self._file = self._h5.File(path, "r", locking=False)
            self.n_bytes = path.stat().st_size

    def close(self) -> None:
        """Close the file; what was read stays."""
        with self._told("the file"):
            self._file.close()

    def __enter__(self) -> Hdf5File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- structure

    def children(self, name: str = "") -> list[str]:
        """Names of everything in a group."""
        with self._told(name):
            return self._children(name)

    def groups(self, name: str = "") -> list[str]:
        """Names of the groups in a group."""
        with self._told(name):
            return [n for n in self._children(name) if isinstance(self._node(f"{name}/{n}"), self._h5.Group)]

    def has(self, name: str) -> bool:
        """True if something is there; a link counts."""
        with self._told(name):
            parent, _, last = name.rpartition("/")
            if parent and not self.has(parent):
                return False
            node = self._node(parent)
            return isinstance(node, self._h5.Group) and last in node

    def is_group(self, name: str) -> bool:
        """True if a group is there."""
        with self._told(name):
            return self.has(name) and isinstance(self._node(name), self._h5.Group)

    def leaves(self, group: str) -> dict[str, Stored]:
        """``{path below the group: what it is}`` of every dataset in a group and in the groups in it."""
        found: dict[str, Stored] = {}
        with self._told(group):
            self._collect(group, "", found, 0)
        return found

    def stored(self, name: str) -> Stored:
        """What the dataset is."""
        with self._told(name):
            return self._stored(self._dataset(name), name)

    def attributes(self, name: str = "") -> dict[str, Any]:
        """Texts and numbers attached to a group or dataset, arrays of them as lists; other types are left out."""
        with self._told(f"attributes of {name or '/'}"):
            attrs = self._node(name).attrs
            values = {key: self._attribute(attrs, key) for key in attrs}
            return {key: value for key, value in values.items() if value is not None}

    # ---------------------------------------------------------------- content

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows ``[start, stop)`` of a dataset of numbers, in the byte order of this machine."""
        with self._told(name):
            dataset = self._dataset(name)
            stored = self._stored(dataset, name)
            if stored.kind != "numbers":
                raise DataError(f"{self._at(name)} holds {stored.kind}: expected numbers")
            self._check_size(dataset, stored, name)
            array = np.asarray(dataset[()] if not stored.shape or (start, stop) == (0, None) else dataset[start:stop])
            return array.astype(array.dtype.newbyteorder("="), copy=False)

    def texts(self, name: str) -> list[str]:
        """A dataset of texts, flattened."""
        with self._told(name):
            dataset = self._dataset(name)
            stored = self._stored(dataset, name)
            if stored.kind != "text" or len(stored.shape) > 1:
                raise DataError(f"{self._at(name)} is {stored.kind} {list(stored.shape)}: expected a list of texts")
            self._check_size(dataset, stored, name)
            values = [dataset[()]] if not stored.shape else (dataset[i] for i in range(stored.shape[0]))
            return [_text(v) for v in self._limited(values, name)]

    def blobs(self, name: str) -> Iterator[np.ndarray]:
        """Rows of uint8 of a dataset of ``"bytes"``, or of a matrix of uint8, one by one."""
        with self._told(name):
            dataset = self._dataset(name)
            stored = self._stored(dataset, name)
            if stored.kind == "text" or len(stored.shape) != (1 if stored.kind == "bytes" else 2):
                raise DataError(f"{self._at(name)} is {stored.kind} {list(stored.shape)}: expected rows of bytes")
            self._check_size(dataset, stored, name)
        for i in range(stored.shape[0]):
            with self._told(name):
                row = np.asarray(dataset[i], np.uint8)
            yield row

    def touch(self, name: str) -> None:
        """Read what the HDF5 library has to parse of a dataset: its type, its chunk index, its texts and bytes."""
        stored = self.stored(name)
        with self._told(name):
            self._check_size(self._dataset(name), stored, name)
        if stored.kind == "text":
            self.texts(name)
        elif stored.kind == "bytes":
            for _ in self.blobs(name):
                pass

    def check_total(self, stored: Mapping[str, Stored], what: str) -> None:
        """Refuse an episode that declares more than this file can hold, in all its arrays together."""
        declared = sum(s.n_bytes for s in stored.values())
        if declared > allowed_bytes(self.n_bytes):
            raise DataError(
                f"{self.path}: {what} declares {declared} bytes in {len(stored)} arrays; the file has {self.n_bytes}"
            )

    # ---------------------------------------------------------------- inside

    def _at(self, name: str) -> str:
        return f"{self.path}: {name or '/'}"

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except (DataError, MemoryError):
            raise
        except Exception as error:  # damage in a file comes out of h5py as many types
            text = str(error).split("\n")[0][:200] or type(error).__name__
            raise DataError(f"{self._at(name)} cannot be read: {text}") from None

    def _children(self, name: str) -> list[str]:
        node = self._node(name)
        if not isinstance(node, self._h5.Group):
            raise DataError(f"{self._at(name)} is a dataset: expected a group")
        return list(node)

    def _node(self, name: str) -> Any:
        node = self._file["/"]
        for part in filter(None, name.split("/")):
            if not isinstance(node, self._h5.Group) or part not in node:
                beside = list(node) if isinstance(node, self._h5.Group) else []
                raise DataError(f"{self.path} has no {name.strip('/')!r}. {nearest(part, beside)}")
            link = node.get(part, getlink=True)
            if type(link) is not self._h5.HardLink:
                raise DataError(f"{self._at(name)} is reached by a {type(link).__name__}: links are not followed")
            node = node[part]
            if not isinstance(node, self._h5.Group | self._h5.Dataset):
                raise DataError(f"{self._at(name)} is a {type(node).__name__}: expected a group or dataset")
        return node

    def _dataset(self, name: str) -> Any:
        node = self._node(name)
        if not isinstance(node, self._h5.Dataset):
            raise DataError(f"{self._at(name)} is a group: expected a dataset")
        return node

    def _collect(self, top: str, below: str, found: dict[str, Stored], depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise DataError(f"{self._at(top)}: groups within groups, more than {_MAX_DEPTH} deep")
        for child in self._children(f"{top}/{below}"):
            inner = f"{below}/{child}".lstrip("/")
            node = self._node(f"{top}/{inner}")
            if isinstance(node, self._h5.Group):
                self._collect(top, inner, found, depth + 1)
                continue
            found[inner] = self._stored(node, f"{top}/{inner}")
            if len(found) > _MAX_LEAVES:
                raise DataError(f"{self._at(top)}: more than {_MAX_LEAVES} datasets")

    def _stored(self, dataset: Any, name: str) -> Stored:
        if dataset.shape is None:
            raise DataError(f"{self._at(name)} is empty: it has no shape")
        if dataset.is_virtual or dataset.external:
            raise DataError(f"{self._at(name)} keeps its data in other files, which are not read")
        dtype, shape = dataset.dtype, tuple(int(n) for n in dataset.shape)
        if self._h5.check_string_dtype(dtype) is not None:
            return Stored(shape, dtype, "text")
        if self._h5.check_vlen_dtype(dtype) == np.uint8:
            return Stored(shape, dtype, "bytes")
        if dtype.kind in "biuf" and dtype.subdtype is None and dtype.itemsize <= 8:
            return Stored(shape, dtype, "numbers")
        raise DataError(f"{self._at(name)} has type {_type_name(dtype)}: expected numbers or text")

    def _check_size(self, dataset: Any, stored: Stored, name: str) -> None:
        held = dataset.id.get_storage_size()
        limit = allowed_bytes(min(held, self.n_bytes))
        if stored.n_bytes > limit:
            raise DataError(
                f"{self._at(name)} declares {stored.dtype} {list(stored.shape)}, {stored.n_bytes} bytes, "
                f"but {held} are stored"
            )
        if stored.kind != "numbers" and math.prod(stored.shape) > _MAX_TEXTS:
            raise DataError(f"{self._at(name)} holds {math.prod(stored.shape)} texts: at most {_MAX_TEXTS} are read")
        if dataset.chunks is not None:
            self._check_chunks(dataset, math.prod(dataset.chunks) * stored.dtype.itemsize, limit, name)

    def _check_chunks(self, dataset: Any, chunk_bytes: int, limit: int, name: str) -> None:
        plist = dataset.id.get_create_plist()
        codes = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        if strange := [code for code in codes if code not in _FILTERS]:
            raise DataError(
                f"{self._at(name)} is packed with filter {strange[0]}, which is not unpacked here: expected "
                f"{', '.join(_FILTERS.values())}. `h5repack -f GZIP=4` writes a copy that can be read"
            )
        packers = [_FILTERS[code] for code in codes if code not in (2, 3)]
        if len(packers) > 1 or (1 in codes and set(codes[codes.index(1) + 1 :]) - {3}):
            raise DataError(f"{self._at(name)} is packed with {', '.join(_FILTERS[c] for c in codes)}: one is expected")
        if chunk_bytes > limit:
            raise DataError(f"{self._at(name)} has chunks of {chunk_bytes} bytes, more than its data could fill")
        infos: list[Any] = []
        dataset.id.chunk_iter(infos.append)
        if packers:
            for info in infos:
                self._check_chunk(dataset, info, chunk_bytes, packers[0], name)

    def _check_chunk(self, dataset: Any, info: Any, chunk_bytes: int, packer: str, name: str) -> None:
        """A sound packer stores what does not shrink as it is: a much larger chunk is a bomb."""
        most = chunk_bytes + chunk_bytes // 8 + 4096
        bomb = info.size > most
        if not bomb and packer == "deflate" and info.size * _RATIO > (1 << 30) and not info.filter_mask:
            _, packed = dataset.id.read_direct_chunk(info.chunk_offset)
            bomb = len(zlib.decompressobj().decompress(packed, chunk_bytes + 1)) > chunk_bytes
        if bomb:
            raise DataError(
                f"{self._at(name)}: the chunk at {list(info.chunk_offset)} unpacks to more than {chunk_bytes} bytes"
            )

    def _attribute(self, attrs: Any, key: str) -> Any:
        raw = attrs.get_id(key)
        is_text = self._h5.check_string_dtype(raw.dtype) is not None
        if raw.shape is None or not (is_text or raw.dtype.kind in "biuf") or raw.dtype.subdtype is not None:
            return None
        if math.prod(raw.shape) * raw.dtype.itemsize > (
            _MAX_ATTRIBUTE >> 10 if is_text and raw.shape else _MAX_ATTRIBUTE
        ):
            raise DataError(f"{self.path}: attribute {key!r} declares {raw.dtype} {list(raw.shape)}: too large")
        value = attrs[key]
        if is_text:
            return _text(value) if not raw.shape else [_text(v) for v in self._limited(value.flat, key)]
        return value.tolist()

    def _limited(self, values: Any, name: str) -> Iterator[Any]:
        total = 0
        for value in values:
            total += len(value)
            if total > _MAX_TEXT_BYTES:
                raise DataError(f"{self._at(name)} holds more than {_MAX_TEXT_BYTES} bytes of text")
            yield value


def allowed_bytes(held: int) -> int:
    """Most bytes that ``held`` stored ones may be said to unpack to."""
    return _SLACK_BYTES + _RATIO * held


def is_hdf5(path: Path) -> bool:
    """True if a file begins as HDF5 files do; they may have a user block of 512, 1024, ... bytes before."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return any(file.seek(at) == at and file.read(8) == _MAGIC for at in (0, 512, 1024, 2048))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _type_name(dtype: np.dtype) -> str:
    return {"O": "object or reference", "V": "compound or opaque bytes"}.get(dtype.kind, str(dtype))


def load_h5py() -> Any:
    """The module h5py.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("HDF5 files need h5py: pip install 'visuomotor[hdf5]'") from None
    return h5py
