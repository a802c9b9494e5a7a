"""What every foreign format offers to the import: its arrays, its episodes, and what is wrong with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.validate import Finding

__all__ = ["EpisodeInfo", "Source", "SourceEpisode", "stack"]


@dataclass(frozen=True, kw_only=True)
class EpisodeInfo:
    """One episode of a source.

    Attributes:
        id: names it within the source, for good: what an import that goes on recognises it by.
        length: its steps, None where only reading it tells.
    """

    id: str
    length: int | None = None


@dataclass(frozen=True, kw_only=True)
class SourceEpisode:
    """Everything of one episode: ``arrays`` ``{key: [L, *shape]}`` of every key, and its columns."""

    arrays: Mapping[str, np.ndarray]
    columns: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()  # what was wrong with it and mended or left out


class Source(ABC):
    """Demonstrations in another format. Opening reads what describes them; :meth:`read` reads an episode.

    Several threads call :meth:`read` at once. Nothing in a source may run code: no pickle, no eval. Paths inside it
    never lead out of it.

    Args:
        path: file or folder.
        options: settings of this format, as given by the user; unknown ones are refused.

    Attributes:
        format: name of the format (class attribute).
        fps: steps per second [Hz]; None if it does not say.
        specs: what each array is, under the names that the store will have.
        columns: name to type of per-episode values (``"str"``, ``"bool"``, ``"int64"``, ``"float64"``).
        episodes: in order.
        findings: what is wrong with the whole: holes, files that are declared and absent.
        threads: of a decoder in :meth:`read`; 0: as many as there are cores. The import sets it.
        wanted: arrays that will be used; :meth:`read` may leave out all others. None: all. The import sets it.

    Raises:
        DataError: it is not of this format, or damaged.
        ConfigError: an option that the format does not have.
        MissingExtraError: a package that reads it is not installed.
    """

    format: ClassVar[str]
    path: Path
    fps: float | None
    specs: dict[str, ArraySpec]
    columns: dict[str, str]
    episodes: list[EpisodeInfo]
    findings: list[Finding]
    threads: int = 0
    wanted: frozenset[str] | None = None

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> str | None:
        """Why ``path`` looks like this format (``"LeRobot v3.0 (meta/info.json)"``); None if it does not. Quick."""

    @abstractmethod
    def read(self, index: int) -> SourceEpisode:
        """Decode one episode.

        Raises:
            DataError: it is damaged; the message names the file and what is wrong.
        """

    def close(self) -> None:  # noqa: B027  (most sources keep nothing open)
        """Close files."""


def stack(values: Sequence[Any], dtype: str, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Rows of a table as one array ``[L, *shape]``.

    Raises:
        DataError: rows of different lengths or of other numbers than expected.
    """
    try:
        array = np.asarray(list(values), dtype=dtype)
    except (ValueError, TypeError) as error:
        raise DataError(f"{what}: rows do not fit {dtype} {list(shape)}: {error}") from None
    if array.shape[1:] != shape:
        raise DataError(f"{what}: rows of shape {list(array.shape[1:])}; expected {list(shape)}")
    return array
