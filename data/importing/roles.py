"""The role of an array that comes without one, by its name."""

from __future__ import annotations

import re

__all__ = ["infer_role"]

_ROLES = (
    (r"actions?", "action"),
    (r"rewards?|returns?", "reward"),
    (r"timestamps?|time|times|stamps?", "timestamp"),
    (r"is_intervention|interventions?", "intervention"),
    (r"dones?|terminals?|terminateds?|truncateds?|terminations?|truncations?|timeouts?|discounts?|success|.*_index",
     "other"),
)  # fmt: skip


def infer_role(name: str) -> str:
    """Role of the array ``name``: what it is called in the replay buffers of the field; else an observation."""
    for pattern, role in _ROLES:
        if re.fullmatch(pattern, name, re.IGNORECASE):
            return role
    return "observation"
