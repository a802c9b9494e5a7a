"""Settings of the curriculum of a randomisation."""

from __future__ import annotations

from dataclasses import dataclass

from visuomotor.data.errors import ConfigError, nearest

__all__ = ["CurriculumConfig"]

_KINDS = ("fixed",)


@dataclass(kw_only=True, slots=True)
class CurriculumConfig:
    """How wide the ranges are at each time of training.

    Attributes:
        kind: ``fixed``: every term draws from its whole range from the first episode on.
    """

    kind: str = "fixed"

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f"unknown randomization.curriculum.kind={self.kind!r}. {nearest(self.kind, _KINDS)}")
