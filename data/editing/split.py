"""``split``: episodes dealt to training, validation and test, or by the value of a column."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.editing.demos import Demos
from visuomotor.data.errors import ConfigError, nearest

__all__ = ["split_by_column", "split_by_share"]

_MOST_PARTS = 100


def split_by_share(
    demos: Demos, shares: Mapping[str, float], seed: int, together: str | None = None
) -> dict[str, NDArray[np.int64]]:
    """Episodes of each part, sorted; drawn by ``seed``. Every part gets one at least.

    ``together``: a column; episodes of one value (an operator, an object) all go to the same part, so that a test set
    has operators that training never saw. Shares are then met as far as the sizes of these groups allow.

    Raises:
        ConfigError: shares that do not add up to 1, fewer groups than parts, or no such column.
    """
    if len(shares) < 2 or any(s <= 0 for s in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        told = ", ".join(f"{k}={v:g}" for k, v in shares.items())
        raise ConfigError(f"split: shares {told or '(none)'}: expected two parts or more, above 0, adding up to 1")
    groups = _groups(demos, together)
    if len(groups) < len(shares):
        raise ConfigError(f"split: {len(groups)} episodes or groups cannot be dealt to {len(shares)} parts")
    order = np.random.default_rng(seed).permutation(len(groups))
    wanted = {name: share * len(demos) for name, share in shares.items()}
    parts: dict[str, list[int]] = {name: [] for name in shares}
    for turn, g in enumerate(order):
        left = len(order) - turn
        empty = [n for n in parts if not parts[n]]
        open_to = empty if len(empty) >= left else list(parts)
        name = max(open_to, key=lambda n: (wanted[n] - len(parts[n]), wanted[n]))
        parts[name] += groups[g]
    return {name: np.sort(np.array(episodes, np.int64)) for name, episodes in parts.items()}


def _groups(demos: Demos, together: str | None) -> list[list[int]]:
    if together is None:
        return [[e] for e in range(len(demos))]
    if together not in demos.columns:
        raise ConfigError(f"split: there is no column {together!r}. {nearest(together, demos.columns)}")
    values = demos.columns[together].tolist()
    return [[e for e, v in enumerate(values) if v == value] for value in dict.fromkeys(values)]


def split_by_column(demos: Demos, column: str) -> dict[str, NDArray[np.int64]]:
    """One part for each value of a column, named after it.

    Raises:
        ConfigError: no such column, or more than a hundred values.
    """
    groups = _groups(demos, column)
    if len(groups) > _MOST_PARTS:
        raise ConfigError(
            f"split by={column}: {len(groups)} values would be {len(groups)} parts; at most {_MOST_PARTS}"
        )
    out: dict[str, NDArray[np.int64]] = {}
    for group in groups:
        text = re.sub(r"[^A-Za-z0-9_\-]+", "_", str(demos.columns[column][group[0]])).strip("_")[:60] or "none"
        name, n = text, 2
        while name in out:
            name, n = f"{text}-{n}", n + 1
        out[name] = np.array(group, np.int64)
    return out
