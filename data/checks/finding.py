"""What a check says: how grave it is, where it is, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

__all__ = ["SEVERITIES", "Finding", "listed", "located"]

SEVERITIES = ("error", "warning", "info")
_MAX_EPISODES = 10  # located faults of one kind in one array; the rest is counted


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found. ``error``: the data cannot be used as it is. ``warning``: it can, but look at it. ``info``:
    nothing is wrong, but training may want to know.

    Attributes:
        severity: one of :data:`SEVERITIES`.
        message: what was found, what was expected.
        array: name of the array, or None.
        episode: index of the (first) episode, or None.
        row: step within that episode, or None.
        fix: operation of ``visuomotor data edit`` that mends it, or None.
    """

    severity: str
    message: str
    array: str | None = None
    episode: int | None = None
    row: int | None = None
    fix: str | None = None

    def __str__(self) -> str:
        place = [
            f"{k} {v}"
            for k, v in (("array", self.array), ("episode", self.episode), ("row", self.row))
            if v is not None
        ]
        mend = f" (mended by: {self.fix})" if self.fix else ""
        return f"{self.severity}: {', '.join(place)}{': ' if place else ''}{self.message}{mend}"


def located(
    by_episode: Mapping[int, tuple[int | None, str]], *, severity: str, array: str | None, what: str,
    fix: str | None = None,
) -> Iterator[Finding]:  # fmt: skip
    """One finding an episode, ``{episode: (row, message)}``, up to ten; the others are counted as ``what``."""
    items = sorted(by_episode.items())
    for episode, (row, message) in items[:_MAX_EPISODES]:
        yield Finding(severity=severity, array=array, episode=episode, row=row, message=message, fix=fix)
    rest = [e for e, _ in items[_MAX_EPISODES:]]
    if rest:
        message = f"{what} in {len(rest)} more episodes"
        yield Finding(severity=severity, array=array, message=message, fix=fix)


def listed(numbers: Iterable[int], most: int = _MAX_EPISODES) -> str:
    """``3, 5, 8``, and ``...`` after ``most`` of them."""
    known = list(numbers)
    return ", ".join(map(str, known[:most])) + (", ..." if len(known) > most else "")
