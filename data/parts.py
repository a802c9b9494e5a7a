"""Some components of a stored array under a name of their own. Imports without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from visuomotor.data.errors import DataError, nearest
from visuomotor.data.spec import ArraySpec

__all__ = ["PartConfig", "part_spec"]


@dataclass(kw_only=True, slots=True)
class PartConfig:
    """Components of another array, for stores that keep as one vector what a robot or a task gives one by one.

    Attributes:
        key: array of the store, a vector a step.
        dims: its components, in the order of the new array.
    """

    key: str = ""
    dims: list[int] = field(default_factory=list)


def part_spec(name: str, part: PartConfig, specs: Mapping[str, ArraySpec]) -> ArraySpec:
    """What the array ``name`` is that ``part`` makes of the arrays ``specs``.

    Raises:
        DataError: no such array, no vector, or components that it does not have.
    """
    if part.key not in specs:
        raise DataError(f"data.parts.{name}.key: there is no array {part.key!r}. {nearest(part.key, specs)}")
    whole = specs[part.key]
    if len(whole.shape) != 1 or not part.dims or not all(0 <= i < whole.shape[0] for i in part.dims):
        raise DataError(
            f"data.parts.{name}.dims={part.dims}: {part.key!r} has steps of shape {whole.shape}; expected components "
            "of a vector"
        )
    names = None if whole.names is None else tuple(whole.names[i] for i in part.dims)
    return ArraySpec(
        shape=(len(part.dims),), dtype=whole.dtype, role=whole.role, unit=whole.unit, names=names, source=whole.source
    )
