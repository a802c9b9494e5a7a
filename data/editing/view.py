"""A view: a small JSON file that names episodes and steps of a store. It is read like a store; nothing is copied.

``DemoStore.open("train.json")`` gives one, so that training, checks, exports and viewing take it as they take a store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.chunks import chunk_rows
from visuomotor.data.errors import DataError
from visuomotor.data.journal import JournalEntry
from visuomotor.data.parts import PartConfig
from visuomotor.data.rows import COLUMN_TYPES, conform_columns
from visuomotor.data.store import DemoStore

__all__ = ["FORMAT", "VERSION", "StoreView", "episodes_hash", "open_view"]

FORMAT, VERSION = "visuomotor view", 1
_MOST_BYTES = 256 << 20
_BLOCK_BYTES = 64 << 20


class StoreView(DemoStore):
    """Episodes of another store, in another order or cut, with other columns. For reading only.

    ``arrays``, ``columns`` and what else belongs to files are those of the whole store, :attr:`whole`.

    Args:
        path: the view.
        whole: the store, open; closed with the view.
        spans: ``[E, 3]``: its episode, the first step and the step after the last one within it.
        columns: columns that differ from those of the store: ``{name: (type, values [E])}``.
        history: what was done to the store.
    """

    def __init__(
        self, path: Path, whole: DemoStore, spans: NDArray[np.int64], columns: Mapping[str, tuple[str, list[Any]]],
        history: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        super().__init__(whole.root, "r", None, 0)
        self.path, self.whole = path, whole
        self.specs, self.fps = whole.specs, whole.fps
        self.origin = {**whole.origin, "history": history}
        starts = np.concatenate([[0], whole.episode_ends[:-1]])[spans[:, 0]]
        self.spans, self.own_columns = spans, dict(columns)
        self._from = starts + spans[:, 1]  # [E] first step in the whole store
        self._ends = np.cumsum(spans[:, 2] - spans[:, 1])

    @property
    def episode_ends(self) -> np.ndarray:
        """int64 ``[E]``: the step after the last one of each episode of the view."""
        return self._ends

    @property
    def n_episodes(self) -> int:
        """Number of episodes of the view."""
        return len(self._ends)

    @property
    def n_steps(self) -> int:
        """Number of steps of the view."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def journal(self) -> tuple[JournalEntry, ...]:
        """None: what lies in the journal of the store is the store's concern."""
        return ()

    @property
    def column_types(self) -> dict[str, str]:
        """Type of each per-episode column."""
        return {**super().column_types, **{name: kind for name, (kind, _) in self.own_columns.items()}}

    @property
    def episode_columns(self) -> dict[str, np.ndarray]:
        """Per-episode values ``[E]``; text as an object array of str."""
        out = {name: values[self.spans[:, 0]] for name, values in self.whole.episode_columns.items()}
        for name, (kind, values) in self.own_columns.items():
            out[name] = np.array(values, dtype=object if kind == "str" else kind)
        return {name: out[name] for name in self.column_types}

    def add_part(self, name: str, part: PartConfig) -> None:
        """As of the whole store."""
        self.whole.add_part(name, part)

    def add_name(self, name: str, key: str) -> None:
        """As of the whole store."""
        self.whole.add_name(name, key)

    def fingerprint(self, keys: Iterable[str]) -> str:
        """Hash of the whole store's content and of what is chosen of it."""
        chosen = hashlib.sha256(self.spans.tobytes()).hexdigest()
        return hashlib.sha256(f"{self.whole.fingerprint(keys)} {chosen}".encode()).hexdigest()

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows of the steps ``[start, stop)`` of the view; see :meth:`DemoStore.read`."""
        self.require([key])
        self._check_open()
        if not 0 <= start <= stop <= self.n_steps:
            raise DataError(f"steps {start} to {stop} of {key!r}: expected a range within 0 to {self.n_steps}")
        parts = [self.whole.read(key, a, b) for a, b in self._pieces(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Ranges of the whole store that make up the steps of the view; neighbours that touch are one."""
        out: list[tuple[int, int]] = []
        episode = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            begin = int(self._ends[episode - 1]) if episode else 0
            end = min(stop, int(self._ends[episode]))
            first = int(self._from[episode]) + start - begin
            if out and out[-1][1] == first:
                out[-1] = (out[-1][0], first + end - start)
            else:
                out.append((first, first + end - start))
            start, episode = end, episode + 1
        return out or [(0, 0)]

    def iter_blocks(
        self, key: str, block_bytes: int = _BLOCK_BYTES, first: int = 0
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first step, rows) over the array from the step ``first`` on, in blocks of whole chunks' size."""
        self.require([key])
        spec = self.specs[key]
        row_bytes = max(1, spec.size * np.dtype(spec.dtype).itemsize)
        rows = max(chunk_rows(self.arrays[key]) if key in self.arrays else 1, block_bytes // row_bytes, 1)
        for start in range(first, self.n_steps, rows):
            yield start, self.read(key, start, min(start + rows, self.n_steps))

    def close(self) -> None:
        """Close the whole store."""
        super().close()
        self.whole.close()


def episodes_hash(whole: DemoStore, spans: NDArray[np.int64]) -> str:
    """Hash of the lengths of the episodes up to the last that is used: appending to the store leaves a view valid."""
    last = int(spans[:, 0].max()) + 1 if len(spans) else 0
    return hashlib.sha256(np.ascontiguousarray(whole.episode_ends[:last], np.int64).tobytes()).hexdigest()


def open_view(path: Path) -> StoreView:
    """Open a view and the store that it is of.

    Raises:
        DataError: no view, damaged, or of a store that is gone or is another by now.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes: too large for a view")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no view: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{path} is a JSON file, but no view as visuomotor data edit writes them")
    if document.get("version") != VERSION:
        raise DataError(f"{path} is a view of version {document.get('version')}: this version reads {VERSION}")
    try:
        source, spans = str(document["source"]), np.array(document["spans"], np.int64).reshape(-1, 3)
        columns = {str(n): (str(kind), list(values)) for n, (kind, values) in document["columns"].items()}
        for name, (kind, values) in columns.items():
            if kind not in COLUMN_TYPES or len(values) != len(spans):
                raise ValueError(f"column {name!r}")
            columns[name] = (kind, [conform_columns({name: v}, {name: kind})[name] for v in values])
        told, history = str(document["episodes_hash"]), [dict(h) for h in document["history"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is a damaged view: {type(error).__name__}: {error}") from None
    if source.endswith(".json"):
        raise DataError(f"{path} is a view of the view {source}: expected a store")
    whole = DemoStore.open(source if "://" in source else path.parent / source)
    try:
        _check_spans(path, whole, spans, told)
        return StoreView(path, whole, spans, columns, history)
    except BaseException:
        whole.close()
        raise


def _check_spans(path: Path, whole: DemoStore, spans: NDArray[np.int64], told: str) -> None:
    lengths = np.diff(whole.episode_ends, prepend=0)
    known = len(spans) and spans[:, 0].min() >= 0 and spans[:, 0].max() < len(lengths)
    if not known or episodes_hash(whole, spans) != told:
        raise DataError(f"{path} is a view of {whole.path}, whose episodes are others by now: make the view again")
    if (spans[:, 1] < 0).any() or (spans[:, 1] >= spans[:, 2]).any() or (spans[:, 2] > lengths[spans[:, 0]]).any():
        raise DataError(f"{path} is a damaged view: steps outside of an episode")
