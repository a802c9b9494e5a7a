"""What one array of a demonstration is: its shape, role, unit and names. Imports without torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError, nearest

__all__ = ["ROLES", "ArraySpec"]

ROLES = ("observation", "action", "privileged", "reward", "timestamp", "intervention", "other")


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Shape, type and meaning of one step of one array.

    Attributes:
        shape: shape of one step, without time or batch; ``()`` for a scalar.
        dtype: numpy name of the stored type (``"float32"``, ``"uint8"``).
        role: one of :data:`ROLES`.
        unit: physical unit (``"m"``, ``"rad"``, ``"px"``), one for all components, or None when mixed or unknown.
        names: a name per component of a vector, or None.
        source: where it was measured (topic, sensor, simulator field), or None.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    role: str = "other"
    unit: str | None = None
    names: tuple[str, ...] | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if self.names is not None:
            object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        if self.role not in ROLES:
            raise DataError(f"unknown role {self.role!r}. {nearest(self.role, ROLES)}")
        if self.names is not None and self.shape and len(self.names) != self.shape[0]:
            raise DataError(f"{len(self.names)} names for an array of shape {self.shape}: expected {self.shape[0]}")

    @property
    def size(self) -> int:
        """Number of values in one step."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_image(self) -> bool:
        """True for ``[H, W, C]`` with 1, 3 or 4 channels and at least 8 pixels a side, unless it holds distances."""
        return len(self.shape) == 3 and self.shape[2] in (1, 3, 4) and min(self.shape[:2]) >= 8 and not self.is_depth

    @property
    def is_depth(self) -> bool:
        """True for distances: ``[H, W, 1]`` that is not uint8, ``[H, W]`` in uint16; at least 8 pixels a side."""
        if len(self.shape) not in (2, 3) or min(self.shape[:2]) < 8:
            return False
        return self.dtype == "uint16" if len(self.shape) == 2 else self.shape[2] == 1 and self.dtype != "uint8"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready dictionary (inverse: :meth:`from_dict`)."""
        d = asdict(self)
        d["shape"] = list(self.shape)
        d["names"] = None if self.names is None else list(self.names)
        return d

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> ArraySpec:
        """Inverse of :meth:`to_dict`."""
        return cls(**{**d, "shape": tuple(d["shape"]), "names": None if d.get("names") is None else tuple(d["names"])})
