"""Task descriptions."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["TextConfig"]


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """Which observations are texts, and how they are encoded.

    Attributes:
        keys: arrays of character codes.
    """

    keys: list[str] = field(default_factory=list)
