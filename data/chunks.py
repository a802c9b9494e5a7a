"""Chunk files behind an array: which they are, which are damaged, which episodes they hold."""

from __future__ import annotations

import itertools
import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import ZipStore

from visuomotor.data.errors import DataError
from visuomotor.data.layout import Root
from visuomotor.data.remote_store import RemoteStore

__all__ = [
    "ChunkFile",
    "Region",
    "array_files",
    "chunk_rows",
    "chunks_between",
    "episodes_at",
    "find_damage",
    "list_files",
]

Region = tuple[slice, ...]


@dataclass(frozen=True)
class ChunkFile:
    """One file of a store: path relative to its root, size [bytes], and a stamp that changes with its content."""

    name: str
    size: int
    stamp: int | str


def list_files(root: Root, folder: str) -> Iterator[ChunkFile]:
    """Every file under ``folder``, in sorted order; the stamp is mtime [ns], the CRC in a zip archive, or the ETag."""
    if isinstance(root.files, RemoteStore):
        yield from (ChunkFile(f.name, f.size, f.stamp) for f in root.files.files.files(folder))
        return
    if isinstance(root.files, ZipStore):
        with zipfile.ZipFile(root.path) as archive:
            for info in sorted(archive.infolist(), key=lambda i: i.filename):
                if info.filename.startswith(folder + "/") and not info.is_dir():
                    yield ChunkFile(info.filename, info.file_size, info.CRC)
        return
    yield from sorted(_walk(root.path / folder, folder), key=lambda f: f.name)


def _walk(path: Path, name: str) -> Iterator[ChunkFile]:
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{name}/{entry.name}")
            else:
                stat = entry.stat()
                yield ChunkFile(f"{name}/{entry.name}", stat.st_size, stat.st_mtime_ns)


def array_files(root: Root, name: str) -> dict[str, ChunkFile]:
    """Chunk files of the array ``name`` (``"data/img"``), without its metadata."""
    skip = {f"{name}/{m}" for m in ("zarr.json", ".zarray", ".zattrs")}
    return {f.name: f for f in list_files(root, name) if f.name not in skip}


def chunk_rows(array: zarr.Array) -> int:
    """Rows in one chunk file."""
    return int((array.shards or array.chunks)[0])


def chunks_between(array: zarr.Array, name: str, start: int, stop: int) -> Iterator[tuple[str, Region]]:
    """Path and region of every chunk file that holds rows ``[start, stop)``."""
    size = array.shards or array.chunks
    grid = [range(math.ceil(n / c)) for n, c in zip(array.shape, size, strict=True)]
    grid[0] = range(start // size[0], math.ceil(stop / size[0]))
    for index in itertools.product(*grid):
        region = tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, size, array.shape, strict=True))
        yield f"{name}/{array.metadata.encode_chunk_key(index)}", region


def lost_chunks(
    root: Root, array: zarr.Array, name: str, start: int, stop: int, *, complete: bool
) -> Iterator[tuple[str, Region, str]]:
    """Damaged chunk files with rows ``[start, stop)`` that no decoder would notice, with their region and the reason.

    A missing or empty shard decodes as fill values, and numcodecs reads beyond the end of a small Blosc chunk that was
    cut short; the Blosc header tells its size (bytes 12 to 15, little endian). A zip archive has its own checksums.
    ``complete``: the writer stores every chunk, so a missing one is lost.
    """
    if isinstance(root.files, ZipStore):
        return
    if isinstance(root.files, RemoteStore):
        sizes = {f.name: f.size for f in root.files.files.files(name)}
        for path, region in chunks_between(array, name, start, stop):
            if sizes.get(path, not complete) == 0:
                yield path, region, "0 bytes" if path in sizes else "the object is missing"
        return
    codecs = () if array.shards else array.compressors
    blosc = bool(codecs) and (isinstance(codecs[-1], BloscCodec) or getattr(codecs[-1], "codec_id", None) == "blosc")
    for path, region in chunks_between(array, name, start, stop):
        try:
            with (root.path / path).open("rb") as f:
                header, size = f.read(16), os.fstat(f.fileno()).st_size
        except FileNotFoundError:
            if complete:
                yield path, region, "the file is missing"
            continue
        expected = int.from_bytes(header[12:16], "little") if blosc and size >= 16 else size
        if size == 0 or size < expected:
            yield path, region, f"{size} of {expected} bytes" if size else "0 bytes"


def find_damage(
    root: Root, array: zarr.Array, name: str, start: int, stop: int, *, complete: bool
) -> Iterator[tuple[str, Region, str]]:
    """Chunk files with rows ``[start, stop)`` that cannot be decoded, each with its region and the reason."""
    lost = {path: reason for path, _, reason in lost_chunks(root, array, name, start, stop, complete=complete)}
    for path, region in chunks_between(array, name, start, stop):
        if path in lost:
            yield path, region, lost[path]
            continue
        error = _decode_error(root, array, path, region)
        if error is not None:
            yield path, region, error


def _decode_error(root: Root, array: zarr.Array, path: str, region: Region) -> str | None:
    """Why one chunk file cannot be decoded, or None.

    A shard is read in two steps, index and content; a writer that replaces the file between them is no damage.
    """
    while True:
        before = _version(root, path)
        try:
            array[region]
        except (MemoryError, DataError):
            raise
        except Exception as error:  # every decompressor raises a type of its own
            if _version(root, path) == before:
                return str(error)
        else:
            return None


def _version(root: Root, path: str) -> tuple[int, int] | None:
    if isinstance(root.files, ZipStore | RemoteStore):
        return None
    try:
        stat = os.stat(root.path / path)
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def episodes_at(ends: np.ndarray, start: int, stop: int) -> str:
    """Say which episodes have rows in ``[start, stop)``."""
    first = int(np.searchsorted(ends, start, side="right"))
    last = min(int(np.searchsorted(ends, stop - 1, side="right")), len(ends) - 1)
    if first > last:
        return "no episode"
    return f"episode {first}" if first == last else f"episodes {first} to {last}"
