"""Parquet tables as numpy arrays, and back. The one place where pyarrow is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError, MissingExtraError

__all__ = ["ParquetFile", "ParquetWriter", "column_to_numpy", "write_table"]

_FREE_ROWS, _ROWS_PER_BYTE = 1 << 20, 64  # even a table of constants that is run-length coded takes more


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("parquet files need pyarrow: pip install 'visuomotor[lerobot]'") from None
    return pyarrow, pyarrow.parquet


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    pa, _ = _arrow()
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read as parquet: {reason}") from None


class ParquetFile:
    """One file; only its footer is read at first. Not for several threads at once.

    Attributes:
        path: the file.
        n_rows: rows of the table.
        columns: name to type of each column, the type as Arrow writes it.

    Raises:
        DataError: it is no parquet file, is damaged, or declares more rows than its size can hold.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        pa, pq = _arrow()
        self.path = path
        with _explained(path):
            self._file = pq.ParquetFile(path)
            self.n_rows = int(self._file.metadata.num_rows)
            schema = self._file.schema_arrow
            texts = [f.name for f in schema if _is_bytes(pa.types, f.type)]
            if texts:  # a text that is repeated a million times stays one text and its indices
                self._file = pq.ParquetFile(path, read_dictionary=texts)
        limit = _FREE_ROWS + _ROWS_PER_BYTE * path.stat().st_size
        groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.metadata.num_row_groups)]
        if not 0 <= self.n_rows <= limit or sum(groups) != self.n_rows:
            raise DataError(f"{path} declares {self.n_rows} rows in {path.stat().st_size} bytes: file damaged")
        self._starts = np.concatenate([[0], np.cumsum(groups)]).astype(np.int64)
        self.columns = {field.name: str(field.type) for field in schema}
        self.text = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]

    def read(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> dict[str, Any]:
        """Rows ``[start, stop)`` as ``{column: Arrow array}``; row groups that hold none of them are not touched.

        Raises:
            DataError: damaged, or a column is not there.
        """
        stop = self.n_rows if stop is None else stop
        if lost := [c for c in columns if c not in self.columns]:
            raise DataError(f"{self.path} has no column {lost[0]!r}. It has: {', '.join(self.columns)}")
        groups = [i for i in range(len(self._starts) - 1) if self._starts[i] < stop and self._starts[i + 1] > start]
        with _explained(self.path):
            table = self._file.read_row_groups(groups, columns=list(columns), use_threads=False)
            first = int(self._starts[groups[0]]) if groups else 0
            return {c: table.column(c).slice(start - first, stop - start) for c in columns}

    def read_plain(self, columns: Sequence[str]) -> dict[str, list[Any]]:
        """Whole columns as Python lists: for small tables."""
        with _explained(self.path):
            return {name: _plain(column) for name, column in self.read(columns).items()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_bytes(types: Any, kind: Any) -> bool:
    return any(is_a(kind) for is_a in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary))


def _plain(column: Any) -> list[Any]:
    pa, _ = _arrow()
    if not pa.types.is_dictionary(column.type):
        return list(column.to_pylist())
    out: list[Any] = []
    for chunk in column.chunks:
        values = chunk.dictionary.to_pylist()
        out += [None if i is None else values[i] for i in chunk.indices.to_pylist()]
    return out


def column_to_numpy(column: Any, dtype: str, shape: tuple[int, ...], what: str) -> np.ndarray:
    """An Arrow column of numbers, or of (nested) lists of them, as ``[L, *shape]``.

    Raises:
        DataError: empty cells, rows of other lengths than ``shape``, or a type that is not of the kind of ``dtype``.
    """
    pa, _ = _arrow()
    flat: Any = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(flat, pa.ChunkedArray):  # of zero chunks
        flat = pa.concat_arrays(flat.chunks) if flat.num_chunks else pa.array([], flat.type)
    n_rows, counts = len(flat), []
    while True:
        if flat.null_count:
            raise DataError(f"{what} has {flat.null_count} empty cells: expected {dtype} {list(shape)} in each row")
        if isinstance(flat, pa.ExtensionArray):
            flat = flat.storage
        elif pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
            inner = flat.flatten()
            counts.append(_even(flat, inner, what))
            flat = inner
        else:
            break
    if pa.types.is_dictionary(flat.type):
        raise DataError(f"{what} holds {flat.type.value_type}; expected {dtype}")
    values = flat.to_numpy(zero_copy_only=False)
    found = tuple(counts)
    if values.size != n_rows * int(np.prod(shape, dtype=np.int64)) or (len(found) > 1 and found != shape):
        raise DataError(f"{what} has rows of shape {list(found)}; expected {list(shape)}")
    if values.dtype.kind not in "biuf" or not np.can_cast(values.dtype, dtype, "same_kind"):
        raise DataError(f"{what} holds {flat.type}; expected {dtype}")
    target = np.dtype(dtype)
    if target.kind in "iu" and values.size and not np.can_cast(values.dtype, target, "safe"):
        limits = np.iinfo(target)
        if values.min() < limits.min or values.max() > limits.max:
            raise DataError(f"{what} holds values from {values.min()} to {values.max()}: too large for {dtype}")
    return values.astype(dtype, copy=False).reshape(n_rows, *shape)


def _even(lists: Any, inner: Any, what: str) -> int:
    """Length that all rows share."""
    if not len(lists):
        return 0
    count, rest = divmod(len(inner), len(lists))
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False) if hasattr(lists, "value_lengths") else None
    if rest or (lengths is not None and (lengths != count).any()):
        odd = int(np.flatnonzero(lengths != lengths[0])[0]) if lengths is not None else 0
        raise DataError(f"{what}: rows of different length, first at row {odd}")
    return count


class ParquetWriter:
    """A table written row group by row group.

    Args:
        path: the file; its folder is created.
        metadata: text stored beside the schema.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        self.path, self._metadata = path, dict(metadata or {})
        self._writer: Any = None
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, columns: Mapping[str, Any]) -> None:
        """One row group of ``{column: array [L] or [L, ...], or list}``."""
        pa, pq = _arrow()
        table = pa.table({name: _to_arrow(pa, values) for name, values in columns.items()})
        if self._writer is None:
            schema = table.schema.with_metadata(self._metadata or None)
            self._writer = pq.ParquetWriter(self.path, schema, compression="snappy")
        self._writer.write_table(table.replace_schema_metadata(self._metadata or None).cast(self._writer.schema))

    @property
    def n_bytes(self) -> int:
        """Bytes on disk so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        """Write the footer."""
        if self._writer is not None:
            self._writer.close()


def write_table(path: Path, columns: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a small table at once."""
    writer = ParquetWriter(path, metadata)
    writer.write(columns)
    writer.close()


def _to_arrow(pa: Any, values: Any) -> Any:
    """Vectors become lists of fixed length, the form that LeRobot writes; more axes become nested lists."""
    if not isinstance(values, np.ndarray):
        return pa.array(values)
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        size = values.shape[axis]
        if axis == 1 and values.ndim == 2:
            array = pa.FixedSizeListArray.from_arrays(array, size)
        else:
            array = pa.ListArray.from_arrays(np.arange(0, len(array) + 1, size, dtype=np.int32), array)
    return array
