"""When the policy is asked for a chunk, what it is told, and what becomes of the answer. Imports without torch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visuomotor.sim2real.remote.source import ChunkSource, PlanRequest
from visuomotor.sim2real.runtime.blending import mean_chunk
from visuomotor.sim2real.runtime.types import Chunk, Observed

__all__ = ["Pilot", "Rhythm"]

_RECENT = 8  # delays of which the longest is expected next


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """How chunks follow each other.

    Attributes:
        fps: control steps per second.
        n_exec: control steps from one chunk to the next.
        delay: control steps that a chunk is expected to take; None: as long as the recent ones took.
        ensemble: execute the mean of all chunks, weighted exp(-decay i) from the oldest on (ACT, algorithm 2).
        decay: of the ensemble.
        lead_s: from when an observation was true to when its first action is meant: half a control step for a policy
            that learnt from commands that were held for a step each.
        ahead_s: how much earlier than it is meant an action has to be there: the bridge's latency of commands.
    """

    fps: float
    n_exec: int
    delay: int | None = None
    ensemble: bool = False
    decay: float = 0.01
    lead_s: float = 0.0
    ahead_s: float = 0.0


class Pilot:
    """Keeps the history of an episode and asks a source for chunks, in the policy's process.

    Args:
        source: makes chunks.
        rhythm: when.
        constants: observations that stay the same (goals, texts), ``{key: [...]}``.

    Attributes:
        delays: control steps that the last chunks took.
        latency_s: of the last chunk, from observation to answer.
    """

    def __init__(
        self, source: ChunkSource, rhythm: Rhythm, constants: Mapping[str, NDArray[np.generic]] | None = None
    ) -> None:
        self._source, self._rhythm = source, rhythm
        spec = source.spec
        self._keys = [k for k in spec.obs if k not in spec.constant_keys]
        self._constants = {k: np.asarray(v)[None] for k, v in (constants or {}).items()}
        self._window, self._config = spec.window, spec.action_config
        self._present = spec.window.n_obs - 1
        self._dt_ns = round(1e9 / rhythm.fps)
        self.delays: deque[int] = deque(maxlen=_RECENT)
        self.latency_s = 0.0
        self._sequence = -1
        self._begin(-1)

    def _begin(self, episode: int) -> None:
        self._episode, self._plans, self._planned_at = episode, 0, -(10**9)
        self._history: dict[str, deque[NDArray[np.generic]]] = {}
        self._now: Observed | None = None
        self._line: list[NDArray[np.float32]] = []  # actions by control step: executed, and to be executed
        self._line_start = 0
        self._made: list[tuple[int, NDArray[np.float32]]] = []  # chunks from their present on, by its step

    def take(self, observed: Observed) -> None:
        """Add an observation to the history; one of another episode begins it anew."""
        if observed.episode != self._episode:
            self._begin(observed.episode)
        missed = 0 if self._now is None else max(0, observed.step - self._now.step - 1)
        for key in self._keys:
            value = observed.values[key]
            if key not in self._history:  # an episode knows only its first observation: repeat it, as in training
                self._history[key] = deque([value] * self._window.n_obs, maxlen=self._window.n_obs)
                continue
            for _ in range(min(missed, self._window.n_obs)):
                self._history[key].append(self._history[key][-1])
            self._history[key].append(value)
        self._now = observed

    @property
    def due(self) -> bool:
        """Whether it is time for the next chunk."""
        return self._now is not None and self._now.step - self._planned_at >= self._rhythm.n_exec

    def plan(self, now_ns: Callable[[], int]) -> Chunk | None:
        """Ask for a chunk; None: none came. ``now_ns`` is read when it has come."""
        now = self._now
        assert now is not None
        request = PlanRequest(
            obs={k: np.stack(self._history[k]) for k in self._keys} | self._constants,
            previous=self._previous(now.step),
            seed=now.seed,
            plan=self._plans,
            delay=self._expected(),
        )
        made = self._source.plan(request)
        if made is None:
            return None
        self._plans, self._planned_at = self._plans + 1, now.step
        arrived = now_ns()
        self.latency_s = (arrived - now.time_ns) * 1e-9
        first_ns = now.time_ns + round(self._rhythm.lead_s * 1e9)
        due_ns = arrived + round(self._rhythm.ahead_s * 1e9)
        taken = max(0, (due_ns - first_ns) // self._dt_ns + 1)
        self.delays.append(taken)
        actions = self._combined(now.step, made[self._present :])
        self._follow(now.step, actions, taken)
        self._sequence += 1
        return Chunk(
            observed_ns=now.time_ns,
            first_ns=first_ns,
            dt_ns=self._dt_ns,
            actions=actions.astype(np.float64),
            sequence=self._sequence,
            episode=now.episode,
        )

    def _expected(self) -> int:
        if self._rhythm.delay is not None:
            return self._rhythm.delay
        return max(self.delays, default=0)

    def _combined(self, step: int, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean of all chunks for every step that the new one reaches, if they are combined."""
        if not self._rhythm.ensemble:
            return actions
        self._made.append((step, actions))
        self._made = [(s, a) for s, a in self._made if s + len(a) > step]
        return mean_chunk([a[step - s :] for s, a in self._made], self._rhythm.decay, self._config)

    def _follow(self, step: int, actions: NDArray[np.float32], taken: int) -> None:
        """Write down what will be executed from ``step + taken`` on."""
        if not self._line:
            self._line, self._line_start = list(actions), step
            return
        if taken < len(actions):
            kept = self._line[: max(0, step + taken - self._line_start)]
            kept += [self._line[-1]] * (step + taken - self._line_start - len(kept))
            self._line = kept + list(actions[taken:])
        old = step - self._line_start - self._window.horizon
        if old > 0:
            self._line, self._line_start = self._line[old:], self._line_start + old

    def _previous(self, step: int) -> NDArray[np.float32] | None:
        """``[H, Da]`` on the time axis of a chunk whose present is ``step``."""
        if not self._line:
            return None
        places = step - self._present + np.arange(self._window.horizon) - self._line_start
        return np.stack([self._line[i] for i in np.clip(places, 0, len(self._line) - 1)]).astype(np.float32)


def steps_of(seconds: float, fps: float) -> int:
    """Whole control steps that ``seconds`` take, rounded up."""
    return math.ceil(seconds * fps - 1e-9)
