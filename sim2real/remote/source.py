"""What the bridge asks for actions: the policy in a process beside it, or a server elsewhere. Imports without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from visuomotor.policies.spec import PolicySpec

__all__ = ["ChunkSource", "PlanRequest"]


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Everything that a chunk depends on. Sources keep nothing between two of them, so one may answer for another.

    Attributes:
        obs: ``{key: [To, ...]}`` as the policy's specification has them, the newest step last; ``[1, ...]`` for its
            constant keys. Pictures uint8, everything else float32.
        previous: ``[H, Da]`` in raw units, on the time axis of the chunk that is asked for: up to the present what was
            executed, from the present on the chunk that is followed now, its last action repeated where it ends. None
            at the beginning of an episode.
        seed: of the episode.
        plan: number of this request in its episode; the noise is a function of both.
        delay: control steps that will pass between the present and the chunk's arrival, as far as is known.
        deadline_s: after so long nobody waits for the answer any more [s].
    """

    obs: Mapping[str, NDArray[Any]]
    previous: NDArray[np.float32] | None
    seed: int
    plan: int
    delay: int = 0
    deadline_s: float = 1.0


class ChunkSource(Protocol):
    """Makes chunks. Used from one thread."""

    @property
    def spec(self) -> PolicySpec:
        """What is observed and commanded."""

    def plan(self, request: PlanRequest) -> NDArray[np.float32] | None:
        """A chunk ``[H, Da]`` in raw units whose step ``To - 1`` is the present; None: none came in time."""

    def close(self) -> None:
        """Let go of what it holds. A second call does nothing."""
