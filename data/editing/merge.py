"""``merge``: episodes of several stores in one, what they mean reconciled or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from visuomotor.data.editing.demos import Demos
from visuomotor.data.editing.words import as_value
from visuomotor.data.errors import DataError
from visuomotor.data.spec import ArraySpec

__all__ = ["merge"]


def merge(parts: Sequence[Demos], names: Sequence[str], *, common: bool = False, fill: dict[str, str]) -> Demos:
    """All episodes of ``parts`` in order.

    Arrays of one key must have one shape, role, unit (or none said) and kind of number; the wider type is taken, and
    components that have the same names in another order are put in the order of the first part. Rates must agree.

    Args:
        parts: what to merge.
        names: what each is called in messages.
        common: leave out arrays and columns that not all have; else they are refused, or filled.
        fill: value of a column for the parts that do not have it.

    Raises:
        DataError: what contradicts, by part, array and property.
    """
    _check_rates(parts, names)
    keys = _shared([p.specs for p in parts], names, "array", common)
    for name in fill:
        if not any(name in p.column_types for p in parts):
            raise DataError(f"merge: fill.{name}: no part has such a column")
    columns = _shared([{**p.column_types, **dict.fromkeys(fill, "")} for p in parts], names, "column", common)
    specs = {k: _reconciled(k, [p.specs[k] for p in parts], names) for k in keys}
    orders = [{k: _order(p.specs[k], specs[k]) for k in keys} for p in parts]
    offsets = np.cumsum([0, *(len(p) for p in parts)])

    def read(episode: int, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        which = int(np.searchsorted(offsets, episode, side="right")) - 1
        rows = parts[which].reader(episode - int(offsets[which]), wanted)
        return {k: _as(v, specs[k], orders[which][k]) for k, v in rows.items()}

    kinds = {c: _kind(c, parts, names) for c in columns}
    return Demos(
        specs=specs,
        fps=next((p.fps for p in parts if p.fps is not None), None),
        lengths=np.concatenate([p.lengths for p in parts]),
        column_types=kinds,
        columns={c: np.concatenate([_column(p, c, kind, fill) for p in parts]) for c, kind in kinds.items()},
        reader=read,
        origin={"merged": [{"source": n, "origin": p.origin, "history": list(p.history)} for n, p in
                           zip(names, parts, strict=True)]},
    )  # fmt: skip


def _check_rates(parts: Sequence[Demos], names: Sequence[str]) -> None:
    rates = {n: p.fps for n, p in zip(names, parts, strict=True)}
    if len({r for r in rates.values() if r is not None}) > 1:
        told = ", ".join(f"{n} {r:g} Hz" for n, r in rates.items() if r is not None)
        raise DataError(f"merge: the rates differ: {told}. Resample them first, or give merge hz=<rate>")


def _shared(of: Sequence[dict[str, object] | dict[str, ArraySpec] | dict[str, str]], names: Sequence[str], what: str,
            common: bool) -> list[str]:  # fmt: skip
    everything = list(dict.fromkeys(k for part in of for k in part))
    shared = [k for k in everything if all(k in part for part in of)]
    if common or len(shared) == len(everything):
        if not shared and what == "array":
            raise DataError("merge: the stores have no array in common")
        return shared
    key = next(k for k in everything if k not in shared)
    without = [n for n, part in zip(names, of, strict=True) if key not in part]
    advice = "give common=true to leave it out" + (f", or fill.{key}=<value>" if what == "column" else "")
    raise DataError(f"merge: {what} {key!r} is not in {', '.join(without)}: {advice}")


def _reconciled(key: str, specs: Sequence[ArraySpec], names: Sequence[str]) -> ArraySpec:
    first = specs[0]
    for name, spec in zip(names[1:], specs[1:], strict=True):
        for what in ("shape", "role", "unit"):
            a, b = getattr(first, what), getattr(spec, what)
            if a != b and not (what == "unit" and None in (a, b)):
                raise DataError(f"merge: {key!r} has {what} {a} in {names[0]}, but {b} in {name}")
        if np.dtype(first.dtype).kind != np.dtype(spec.dtype).kind:
            raise DataError(f"merge: {key!r} is {first.dtype} in {names[0]}, but {spec.dtype} in {name}")
        if None not in (first.names, spec.names) and set(first.names or ()) != set(spec.names or ()):
            raise DataError(
                f"merge: the components of {key!r} are {', '.join(first.names or ())} in {names[0]}, but "
                f"{', '.join(spec.names or ())} in {name}"
            )
    return replace(
        first,
        dtype=np.result_type(*(np.dtype(s.dtype) for s in specs)).name,
        unit=next((s.unit for s in specs if s.unit is not None), None),
        names=next((s.names for s in specs if s.names is not None), None),
    )


def _order(spec: ArraySpec, wanted: ArraySpec) -> list[int] | None:
    """Where the components of ``wanted`` are in ``spec``; None: in the same places."""
    if spec.names is None or wanted.names is None or spec.names == wanted.names:
        return None
    if len(set(spec.names)) < len(spec.names):
        raise DataError(f"merge: components of the same name in another order: {', '.join(spec.names)}")
    return [spec.names.index(n) for n in wanted.names]


def _as(rows: np.ndarray, spec: ArraySpec, order: list[int] | None) -> np.ndarray:
    return np.ascontiguousarray(rows if order is None else rows[:, order], spec.dtype).reshape(len(rows), *spec.shape)


def _kind(column: str, parts: Sequence[Demos], names: Sequence[str]) -> str:
    kinds = {n: p.column_types[column] for n, p in zip(names, parts, strict=True) if column in p.column_types}
    found = set(kinds.values())
    if found == {"int64", "float64"}:
        return "float64"
    if len(found) > 1:
        raise DataError(f"merge: column {column!r} is {', but '.join(f'{k} in {n}' for n, k in kinds.items())}")
    return found.pop()


def _column(part: Demos, column: str, kind: str, fill: dict[str, str]) -> np.ndarray:
    dtype = object if kind == "str" else kind
    if column in part.columns:
        return part.columns[column].astype(dtype)
    out = np.empty(len(part), dtype)
    out[:] = as_value(f"fill.{column}", fill[column], kind)
    return out
