"""Goals: what the world should look like in the end."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["GoalConfig"]


@dataclass(kw_only=True, slots=True)
class GoalConfig:
    """What of the observations is also given as a goal.

    Attributes:
        keys: observations whose value at a later step of the episode is the goal.
        dropout: share of the training windows whose goal is hidden, so that the policy also knows what it would do
            without one (classifier-free guidance).
    """

    keys: list[str] = field(default_factory=list)
    dropout: float = 0.0
