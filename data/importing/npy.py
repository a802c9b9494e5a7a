"""One array in a NumPy archive: its header read strictly, its size compared with what the header declares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.importing.archive import Archive

__all__ = ["NpyEntry", "read_entry"]


@dataclass(frozen=True)
class NpyEntry:
    """An ``.npy`` entry of an archive.

    Attributes:
        archive: where it is.
        name: of the entry, with ``.npy``.
        dtype: numbers, booleans or text.
        shape: of the whole array.
        fortran: the first index changes fastest.
        header_bytes: where the values begin.
    """

    archive: Archive
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    header_bytes: int

    @property
    def key(self) -> str:
        """Name without ``.npy``."""
        return self.name.removesuffix(".npy")

    @property
    def where(self) -> str:
        """File and entry, for messages."""
        return f"{self.archive.path}: {self.key!r}"

    @classmethod
    def open(cls, archive: Archive, name: str) -> NpyEntry:
        """Read the header alone.

        Raises:
            DataError: it is damaged, declares another size than there is, or pickled objects.
        """
        where = f"{archive.path}: entry {name!r}"
        with archive.open(name) as f:
            try:
                version = np.lib.format.read_magic(f)
                readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version not in readers:
                    raise DataError(f"{where} has NPY version {version}: expected 1.0 or 2.0")
                shape, fortran, dtype = readers[version](f)
                header_bytes = f.tell()
            except DataError:
                raise
            except Exception as error:  # the header is parsed as Python text, which fails in many ways
                raise DataError(f"{where} has a damaged header: {type(error).__name__}: {error}") from None
        if dtype.hasobject:
            raise DataError(f"{where} holds pickled objects, which could run code: not read. Save plain arrays")
        if dtype.kind not in "biufU":
            raise DataError(f"{where} holds {dtype}: expected numbers, booleans or text")
        declared, there = math.prod(shape) * dtype.itemsize, archive.size(name) - header_bytes
        if declared != there or any(n < 0 for n in shape):
            raise DataError(f"{where} declares {dtype} {list(shape)}, {declared} bytes, but holds {there}")
        return cls(archive, name, dtype, shape, bool(fortran), header_bytes)


def read_entry(entry: NpyEntry) -> np.ndarray:
    """The whole array, its checksum compared.

    Raises:
        DataError: it is damaged.
    """
    data = entry.archive.read(entry.name)
    flat = np.frombuffer(data, entry.dtype, offset=entry.header_bytes)
    try:
        array = flat.reshape(entry.shape, order="F" if entry.fortran else "C")
        if entry.dtype.kind == "U":
            array.tolist()  # code points beyond Unicode show themselves only here
    except ValueError as error:
        raise DataError(f"{entry.where} is damaged: {error}") from None
    return np.ascontiguousarray(array).reshape(entry.shape)
