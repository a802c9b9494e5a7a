"""What the safety filter gives back: the command, and what it refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Filtered", "SafetyEvent", "note"]


@dataclass(frozen=True)
class SafetyEvent:
    """Something was refused or changed. Reported when it begins, not in every tick.

    Attributes:
        kind: ``not_finite``, ``shape``, ``first_command``, ``jump``, ``position``, ``geometry``, ``energy``,
            ``wrench`` or ``refused``.
        text: what came, which limit.
        fatal: a fault: the operator has to look.
    """

    kind: str
    text: str
    fatal: bool = False


@dataclass(frozen=True)
class Filtered:
    """What to send, ``[n]`` each [rad, rad/s, rad/s^2]; ``following``: it pursues the target and does not brake."""

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    events: tuple[SafetyEvent, ...]
    following: bool


def note(events: dict[str, SafetyEvent], kind: str, text: str, fatal: bool = False) -> None:
    """Add an event; the first of a kind in a tick stays."""
    events.setdefault(kind, SafetyEvent(kind, text, fatal))
