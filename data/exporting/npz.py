"""NumPy archives: one file with all episodes end to end, or a folder with one file an episode."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.errors import ConfigError
from visuomotor.data.exporting.job import ExportJob, check_options

__all__ = ["export_npz"]


def export_npz(job: ExportJob) -> list[str]:
    """Write ``.npz`` files that ``numpy.load`` reads without pickle.

    A path that ends in ``.npz`` becomes one file: ``data/<key>`` ``[T, ...]``, ``meta/episode_ends`` ``[E]`` and
    ``meta/<column>`` ``[E]``. Any other becomes a folder with ``episode_000000.npz``, ...: ``<key>`` ``[L, ...]`` and
    ``meta/<column>``, one value. The entry ``visuomotor`` holds fps and what each array is, as JSON.

    Options:
        compress: deflate the entries (default false). What is not compressed is mapped into memory when read.
        layout: ``"file"`` or ``"folder"``; by default as the path says.

    Raises:
        ConfigError: an unknown option.
    """
    folder = "folder" if not job.path.name.split(".part-")[0].endswith(".npz") else "file"
    options = check_options(job.options, {"compress": False, "layout": folder}, "npz")
    if options["layout"] not in ("file", "folder") or not isinstance(options["compress"], bool):
        raise ConfigError(f"npz: options {options}: expected layout 'file' or 'folder', compress true or false")
    method = zipfile.ZIP_DEFLATED if options["compress"] else zipfile.ZIP_STORED
    about = json.dumps({"fps": job.store.fps, "keys": {k: spec.to_dict() for k, spec in job.specs.items()}})
    if options["layout"] == "file":
        _one_file(job, method, about)
    else:
        job.path.mkdir()
        for k, (_, arrays, columns) in enumerate(job.iter_episodes()):
            single = {f"meta/{name}": np.asarray(value) for name, value in columns.items()}
            _write(job.path / f"episode_{k:06d}.npz", method, {**arrays, **single, "visuomotor": np.asarray(about)})
    return []


def _one_file(job: ExportJob, method: int, about: str) -> None:
    spans = [job.store.episode_slice(i) for i in job.episodes]
    values = {name: column[list(job.episodes)] for name, column in job.store.episode_columns.items()}
    with zipfile.ZipFile(job.path, "w", method) as archive:
        for n, key in enumerate(job.keys, start=1):
            spec = job.specs[key]
            _entry(archive, f"data/{key}", np.dtype(spec.dtype), (job.n_steps, *spec.shape), _rows(job, key, n))
        for name, column in values.items():
            plain = np.array(column.tolist(), dtype=str) if column.dtype == object else column
            _entry(archive, f"meta/{name}", plain.dtype, plain.shape, [plain])
        ends = np.cumsum([s.stop - s.start for s in spans], dtype=np.int64)
        _entry(archive, "meta/episode_ends", ends.dtype, ends.shape, [ends])
        text = np.asarray(about)
        _entry(archive, "visuomotor", text.dtype, (), [text])


def _rows(job: ExportJob, key: str, n: int) -> Iterator[np.ndarray]:
    """Rows of the ``n``-th array, episode by episode; the last array tells the progress."""
    for done, episode in enumerate(job.episodes, start=1):
        yield job.read(key, episode)
        if n == len(job.keys) and job.on_progress is not None:
            job.on_progress(done, len(job.episodes))


def _write(path: Path, method: int, arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in arrays.items():
            _entry(archive, name, array.dtype, array.shape, [array])


def _entry(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], blocks: Iterable[np.ndarray]
) -> None:
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    with archive.open(f"{name}.npy", "w", force_zip64=True) as f:
        f.write(header.getvalue())
        for block in blocks:
            f.write(np.ascontiguousarray(block).tobytes())
