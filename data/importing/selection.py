"""Which arrays and episodes of a source are imported, under which names and with which meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from visuomotor.data.errors import DataError, nearest
from visuomotor.data.importing.source import Source
from visuomotor.data.layout import check_fps
from visuomotor.data.spec import ArraySpec

__all__ = ["Selection"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which arrays and episodes are imported, and under which names.

    Attributes:
        keys: arrays to take, by the names that the source gives them; empty takes all.
        drop: arrays to leave out.
        rename: new names.
        episodes: indices to take; None takes all.
        roles: of arrays (by the names of the source), where the source's own say something else.
        fps: steps per second [Hz], for a source that does not say.
    """

    keys: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    episodes: tuple[int, ...] | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    fps: float | None = None

    def names(self, specs: Mapping[str, ArraySpec]) -> dict[str, str]:
        """``{name in the source: name in the store}``.

        Raises:
            DataError: a name that the source does not have, or two arrays of one name.
        """
        for name in (*self.keys, *self.drop, *self.rename, *self.roles):
            if name not in specs:
                raise DataError(f"the source has no array {name!r}. {nearest(name, specs)}")
        kept = [k for k in specs if (not self.keys or k in self.keys) and k not in self.drop]
        names = {k: self.rename.get(k, k) for k in kept}
        if len(set(names.values())) < len(names):
            raise DataError(f"two arrays would have one name: {names}")
        return names

    def specs(self, specs: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
        """What each array of the store is.

        Raises:
            DataError: as :meth:`names`; or an unknown role.
        """
        return {new: replace(specs[old], role=self.roles.get(old, specs[old].role)) for old, new in
                self.names(specs).items()}  # fmt: skip

    def rate(self, source: Source) -> float | None:
        """Steps per second of the store [Hz].

        Raises:
            DataError: the source says another.
        """
        if self.fps is None:
            return source.fps
        fps = check_fps(self.fps)
        if source.fps is not None and source.fps != fps:
            raise DataError(f"{source.path} says {source.fps:g} steps a second, fps={fps:g} was given: leave fps out")
        return fps

    def wanted(self, path: Path, n: int) -> list[int]:
        """Indices of the episodes to import, of ``n``.

        Raises:
            DataError: an index that the source does not have.
        """
        if self.episodes is None:
            return list(range(n))
        for i in self.episodes:
            if not 0 <= i < n:
                raise DataError(f"{path} has no episode {i}: it has {n}, from 0")
        return list(dict.fromkeys(self.episodes))
