"""Camera images."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ImageConfig"]


@dataclass(kw_only=True, slots=True)
class ImageConfig:
    """How cameras are encoded."""
