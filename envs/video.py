"""Video of an environment: the writer of :mod:`visuomotor.data.video`, by the name that rendering knows it by."""

from __future__ import annotations

from visuomotor.data.video import VideoWriter

__all__ = ["VideoWriter"]
