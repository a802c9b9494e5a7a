"""Cameras of a simulation: which are observed, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

from visuomotor.data.errors import ConfigError

__all__ = ["CameraConfig"]


@dataclass(kw_only=True, slots=True)
class CameraConfig:
    """Which cameras are observed, and how.

    Attributes:
        names: cameras of the scene; each becomes an observation of its name.
        height, width: of their pictures [px].
    """

    names: list[str] = field(default_factory=list)
    height: int = 84
    width: int = 84

    def __post_init__(self) -> None:
        for side in ("height", "width"):
            if getattr(self, side) < 8:
                raise ConfigError(f"cameras.{side}={getattr(self, side)}: expected at least 8 pixels")
