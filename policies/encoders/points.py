"""Point clouds."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["PointsConfig"]


@dataclass(kw_only=True, slots=True)
class PointsConfig:
    """Which observations are point clouds, and how they are encoded.

    Attributes:
        keys: arrays of points ``[n, 3 + features]``.
    """

    keys: list[str] = field(default_factory=list)
