"""Zarr of strangers, looked at before zarr opens it: codecs that may run code, sizes that only a bomb has.

Format: Zarr storage specifications 2 and 3 (zarr-specs.readthedocs.io), numcodecs' headers of compressed buffers
(Blosc chunk format, RFC 8878 for Zstandard).
"""

from __future__ import annotations

import bz2
import json
import lzma
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.importing.archive import Archive

__all__ = ["ArrayFiles", "ZarrFiles"]

_METADATA_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 30
_FREE_BYTES, _RATIO = 256 << 20, 1000  # an array may hold this much, and beyond it this multiple of its files
_EXPAND = 8  # a chunk may unpack to this multiple of its own size, for filters that make it smaller
_COMPRESSORS = frozenset({"blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma", "imagecodecs_jpegxl"})
_FILTERS = frozenset(
    {
        "delta",
        "shuffle",
        "fixedscaleoffset",
        "quantize",
        "bitround",
        "astype",
        "packbits",
        "crc32",
        "crc32c",
        "adler32",
        "fletcher32",
        "jenkins_lookup3",
        "vlen-utf8",
        "bytes",
        "transpose",
        "sharding_indexed",
    }
)  # neither pickle nor what else holds objects


@dataclass(frozen=True)
class ArrayFiles:
    """What the metadata of one array say.

    Attributes:
        name: ``"data/img"``.
        version: 2 or 3.
        shape: ``[T, ...]``.
        chunks: shape of a chunk file.
        itemsize: bytes of a value; 0 for text.
        codecs: plain metadata of each, in the order of encoding.
        raw: all metadata.
    """

    name: str
    version: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    itemsize: int
    codecs: tuple[dict[str, Any], ...]
    raw: dict[str, Any]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk file when decoded."""
        return math.prod(self.chunks) * self.itemsize

    def chunk_name(self, index: tuple[int, ...]) -> str:
        """Path of a chunk file of version 2."""
        return f"{self.name}/{self.raw.get('dimension_separator', '.').join(map(str, index))}"


class ZarrFiles:
    """Files of a Zarr group in a folder or a zip archive.

    Args:
        path: folder or archive.

    Raises:
        DataError: damaged or hostile metadata; see the module.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = None if path.is_dir() else Archive(path)
        found = (self._describe(f"{folder}/{name}") for folder in ("data", "meta") for name in self._children(folder))
        self.arrays = {a.name: a for a in found if a is not None}
        for array in self.arrays.values():
            self._check_size(array)
            if array.name.startswith("meta/"):
                self.check_chunks(array, self.chunk_files(array.name))

    def _children(self, folder: str) -> list[str]:
        if self._archive is None:
            top = self.path / folder
            return sorted(p.name for p in top.iterdir() if p.is_dir()) if top.is_dir() else []
        inside = (n.split("/") for n in self._archive.names if n.startswith(folder + "/"))
        return sorted({parts[1] for parts in inside if len(parts) > 2})

    def size(self, name: str) -> int | None:
        """Bytes of a file, None if there is none."""
        if self._archive is not None:
            return self._archive.size(name) if name in self._archive else None
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            DataError: it is not there, or damaged.
        """
        if self.size(name) is None:
            raise DataError(f"{self.path}: file {name} is missing")
        return (self.path / name).read_bytes() if self._archive is None else self._archive.read(name)

    def chunk_files(self, name: str) -> list[str]:
        """Chunk files of an array."""
        if self._archive is None:
            files = (p for p in (self.path / name).rglob("*") if p.is_file())
            found = [p.relative_to(self.path).as_posix() for p in files]
        else:
            found = [n for n in self._archive.names if n.startswith(name + "/") and not n.endswith("/")]
        return [n for n in found if n.rsplit("/", 1)[1] not in (".zarray", ".zattrs", "zarr.json", ".zgroup")]

    def close(self) -> None:
        """Close the archive."""
        if self._archive is not None:
            self._archive.close()

    # ---------------------------------------------------------------- metadata

    def _describe(self, name: str) -> ArrayFiles | None:
        for file, version in ((".zarray", 2), ("zarr.json", 3)):
            size = self.size(f"{name}/{file}")
            if size is None:
                continue
            if size > _METADATA_BYTES:
                raise DataError(f"{self.path}: {name}/{file} has {size} bytes: expected metadata of a few hundred")
            try:
                raw = json.loads(self.read(f"{name}/{file}"))
                if version == 3 and raw["node_type"] != "array":
                    return None
                return _version_2(name, raw) if version == 2 else _version_3(name, raw)
            except DataError as error:
                raise DataError(f"{self.path}: {error}") from None
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise DataError(f"{self.path}: {name}/{file} is damaged: {type(error).__name__}: {error}") from None
        return None

    def _check_size(self, array: ArrayFiles) -> None:
        used = [_codec_id(codec) for codec in array.codecs]
        known = _COMPRESSORS | _FILTERS
        for codec in used:
            if codec not in known:
                raise DataError(
                    f"{self.path}: {array.name} is encoded by {codec!r}, which is not read here: "
                    f"expected {', '.join(sorted(known))}"
                )
        if sum(codec in _COMPRESSORS for codec in used) > 1:
            raise DataError(f"{self.path}: {array.name} is compressed twice ({', '.join(used)}): expected once")
        if array.chunk_bytes > _CHUNK_BYTES:
            raise DataError(
                f"{self.path}: {array.name} has chunks {list(array.chunks)} of {array.chunk_bytes} bytes: "
                f"expected at most {_CHUNK_BYTES}"
            )
        declared = math.prod(array.shape) * array.itemsize
        stored = sum(self.size(n) or 0 for n in self.chunk_files(array.name))
        if declared > max(_FREE_BYTES, _RATIO * stored):
            raise DataError(
                f"{self.path}: {array.name} declares {list(array.shape)}, {declared} bytes, but its files have {stored}"
            )

    # ---------------------------------------------------------------- chunks

    def check_chunks(self, array: ArrayFiles, names: list[str]) -> None:
        """Refuse chunk files that would unpack to more than a chunk.

        Raises:
            DataError: names the file.
        """
        codec = next((c for c in map(_codec_id, array.codecs) if c in _COMPRESSORS), "imagecodecs_jpegxl")
        if codec == "imagecodecs_jpegxl":  # nothing to unpack, or decoded into an array of the size expected
            return
        limit = max(1 << 20, array.chunk_bytes * _EXPAND if array.itemsize else 64 << 20)
        for name in names:
            if self.size(name) is None:
                continue  # all values are the fill value
            size = _unpacked(codec, self.read(name), limit)
            if size > limit:
                raise DataError(
                    f"{self.path}: chunk file {name} would unpack to {size} bytes or more: expected {array.chunk_bytes}"
                )


def _codec_id(codec: dict[str, Any]) -> str:
    return str(codec.get("id", codec.get("name"))).removeprefix("numcodecs.")


def _version_2(name: str, raw: dict[str, Any]) -> ArrayFiles:
    dtype = np.dtype([tuple(f) for f in raw["dtype"]] if isinstance(raw["dtype"], list) else str(raw["dtype"]))
    codecs = [*(raw.get("filters") or []), *([raw["compressor"]] if raw.get("compressor") else [])]
    if raw.get("dimension_separator", ".") not in (".", "/"):
        raise DataError(f"{name} has the dimension separator {raw['dimension_separator']!r}: expected '.' or '/'")
    itemsize = 0 if dtype.kind == "O" else dtype.itemsize
    return _checked(name, 2, raw["shape"], raw["chunks"], itemsize, codecs, raw)


def _version_3(name: str, raw: dict[str, Any]) -> ArrayFiles:
    kind = raw["data_type"]
    try:
        itemsize = np.dtype(kind).itemsize if isinstance(kind, str) and kind != "string" else 0
    except TypeError:
        itemsize = 0
    chunks = raw["chunk_grid"]["configuration"]["chunk_shape"]
    return _checked(name, 3, raw["shape"], chunks, itemsize, raw["codecs"], raw)


def _checked(
    name: str, version: int, shape: Any, chunks: Any, itemsize: int, codecs: Any, raw: dict[str, Any]
) -> ArrayFiles:
    sizes = (*shape, *chunks)
    if len(shape) != len(chunks) or not all(isinstance(n, int) and 0 <= n < 2**62 for n in sizes) or 0 in chunks:
        raise DataError(f"{name} has shape {shape} and chunks {chunks}: expected as many whole numbers, chunks above 0")
    if len(shape) > 8:
        raise DataError(f"{name} has {len(shape)} dimensions: expected 8 at most")
    if not all(isinstance(c, dict) for c in codecs):
        raise DataError(f"{name} has the codecs {codecs}: expected a list of objects")
    return ArrayFiles(name, version, tuple(shape), tuple(chunks), itemsize, tuple(codecs), raw)


def _unpacked(codec: str, data: bytes, limit: int) -> int:
    """Bytes that a compressed buffer unpacks to, as its header says, or found out without keeping them.

    What cannot be told, because the buffer is damaged, counts as 0: decoding it will say so.
    """
    if codec == "blosc":
        return int.from_bytes(data[4:8], "little")
    if codec == "lz4":
        return int.from_bytes(data[:4], "little")
    if codec == "zstd":
        return _zstd_content_size(data)
    makers: dict[str, Any] = {
        "zlib": zlib.decompressobj,
        "gzip": lambda: zlib.decompressobj(31),
        "bz2": bz2.BZ2Decompressor,
        "lzma": lzma.LZMADecompressor,
    }
    return sum(_stream(makers[codec](), data, limit)) if codec in makers else 0


def _stream(decoder: Any, data: bytes, limit: int) -> Iterator[int]:
    total = 0
    try:
        while total <= limit and not decoder.eof:
            block = decoder.decompress(data, 1 << 20)
            data = decoder.unconsumed_tail if hasattr(decoder, "unconsumed_tail") else b""
            if not block:
                return
            total += len(block)
            yield len(block)
    except (zlib.error, OSError, EOFError, lzma.LZMAError):
        return


def _zstd_content_size(data: bytes) -> int:
    """Content size of the first frame, RFC 8878 section 3.1.1.1; without end where the frame does not say."""
    if len(data) < 6 or data[:4] != b"\x28\xb5\x2f\xfd":
        return 0
    flag, single, dictionary = data[4] >> 6, data[4] >> 5 & 1, (0, 1, 2, 4)[data[4] & 3]
    width = (single, 2, 4, 8)[flag]
    if not width:
        return 1 << 62
    start = 5 + (0 if single else 1) + dictionary
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)
