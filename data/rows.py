"""Check that given values are what a spec says, and find the value that is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError, nearest
from visuomotor.data.spec import ArraySpec

__all__ = [
    "COLUMN_TYPES",
    "check_keys",
    "component",
    "conform",
    "conform_columns",
    "conform_episode",
    "first_nonfinite",
]

COLUMN_TYPES = ("str", "bool", "int64", "float64")


def component(index: tuple[int, ...], spec: ArraySpec) -> str:
    """Name one component of a step: its declared name, its index, or nothing for a scalar."""
    if not index:
        return ""
    if spec.names is not None and len(index) == 1:
        return f", component {index[0]} ({spec.names[index[0]]})"
    return f", component {index[0] if len(index) == 1 else list(index)}"


def first_nonfinite(block: np.ndarray) -> tuple[int, tuple[int, ...]] | None:
    """Return (row, index within the row) of the first NaN or infinity of ``block [L, ...]``, or None."""
    if block.dtype.kind != "f" or np.isfinite(block).all():
        return None
    row, *rest = (int(i) for i in np.argwhere(~np.isfinite(block))[0])
    return row, tuple(rest)


def check_keys(given: Mapping[str, Any], expected: Mapping[str, Any], *, what: str) -> None:
    """Raise DataError unless ``given`` has exactly the keys of ``expected``."""
    unknown = [k for k in given if k not in expected]
    if unknown:
        raise DataError(f"unknown {what} {unknown[0]!r}. {nearest(unknown[0], expected)}")
    missing = [k for k in expected if k not in given]
    if missing:
        raise DataError(f"missing {what} {', '.join(map(repr, missing))}: got {', '.join(given) or 'none'}")


def conform(key: str, value: Any, spec: ArraySpec, *, batched: bool) -> np.ndarray:
    """Return ``value`` as a contiguous array of the type in ``spec``; no value may change by it.

    Args:
        key: name of the array, for the message.
        value: one step (``spec.shape``), or with ``batched`` an episode ``[L, *spec.shape]``, L at least 1.
        spec: what was declared.
        batched: see ``value``.

    Raises:
        DataError: wrong shape, a type that cannot be converted without loss of kind, an integer out of range, or a
            NaN or infinity. The message names the array, the row and the component.
    """
    try:
        given = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{key!r} is not an array: {error}") from None
    shape = given.shape[1:] if batched else given.shape
    if shape != spec.shape or (batched and given.ndim == 0):
        expected = f"[L, {', '.join(map(str, spec.shape))}]" if batched else list(spec.shape)
        raise DataError(f"{key!r} has shape {list(given.shape)}: expected {expected}")
    if batched and not len(given):
        raise DataError(f"{key!r} has 0 steps: an episode has at least 1")
    dtype = np.dtype(spec.dtype)
    if not np.can_cast(given.dtype, dtype, "same_kind"):
        raise DataError(
            f"{key!r} has type {given.dtype}: expected {spec.dtype}. Convert it explicitly if that is meant"
        )
    if dtype.kind in "iu" and not np.can_cast(given.dtype, dtype, "safe"):
        limits = np.iinfo(dtype)
        if given.min() < limits.min or given.max() > limits.max:
            raise DataError(
                f"{key!r} holds values from {given.min()} to {given.max()}: {spec.dtype} "
                f"ends at {limits.min} and {limits.max}"
            )
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(given, dtype=dtype).reshape(given.shape)
    found = first_nonfinite(array if batched else array[None])
    if found is not None:
        row, index = found
        where = (f" at row {row}" if batched else "") + component(index, spec)
        raise DataError(f"{key!r} is {array[(row, *index) if batched else index]}{where}: every value must be finite")
    return array


def conform_episode(arrays: Mapping[str, Any], specs: Mapping[str, ArraySpec]) -> tuple[dict[str, np.ndarray], int]:
    """Return the arrays ``[L, *shape]`` of one episode as :func:`conform` does, and L.

    Raises:
        DataError: a key too many or too few, lengths that differ, or what :func:`conform` refuses.
    """
    check_keys(arrays, specs, what="array")
    checked = {key: conform(key, arrays[key], spec, batched=True) for key, spec in specs.items()}
    lengths = {key: len(rows) for key, rows in checked.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"arrays of different length in one episode: {', '.join(f'{k} {n}' for k, n in lengths.items())}"
        )
    return checked, next(iter(lengths.values()))


def conform_columns(given: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, str | bool | int | float]:
    """Return per-episode values as plain Python ones, checked against ``kinds``: name to one of COLUMN_TYPES."""
    check_keys(given, kinds, what="episode column")
    return {name: _plain(name, given[name], kind) for name, kind in kinds.items()}


def _plain(name: str, value: Any, kind: str) -> str | bool | int | float:
    if isinstance(value, np.generic):
        value = value.item()
    match kind:
        case "str" if isinstance(value, str):
            return value
        case "bool" if isinstance(value, bool):
            return value
        case "int64" if isinstance(value, int) and not isinstance(value, bool):
            return value
        case "float64" if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    raise DataError(f"episode column {name!r} is {value!r} ({type(value).__name__}): expected a finite {kind}")
