"""What evaluations found: episodes, totals with intervals, and paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.errors import UserError
from visuomotor.policies.learn.statistics import bootstrap_mean_interval, mcnemar_exact, wilson_interval

__all__ = ["Comparison", "Episode", "EvalResult", "Video", "compare"]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """``score``: maximum over the episode; ``success``: goal reached at some step; ``length`` in control steps."""

    seed: int
    score: float
    success: bool
    length: int
    episode_return: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        d = asdict(self)
        d["return"] = d.pop("episode_return")
        return d


@dataclass(frozen=True, kw_only=True)
class Video:
    """A filmed episode: ``kind`` is ``"worst"`` or ``"best"``."""

    path: Path
    kind: str
    seed: int
    score: float
    success: bool


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Results of all episodes, in the order of their seeds. Intervals are at 95 %: bootstrap (score), Wilson (success).

    ``warnings`` says what the environment reports (worlds that diverged, full buffers) and names filmed episodes whose
    repetition did not give the same score.
    """

    episodes: tuple[Episode, ...]
    seconds: float  # of the evaluation itself, without filming
    videos: tuple[Video, ...] = ()
    warnings: tuple[str, ...] = ()
    score_mean: float = field(init=False)
    score_interval: tuple[float, float] = field(init=False)  # nan for a single episode
    success_count: int = field(init=False)
    success_interval: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        scores = [e.score for e in self.episodes]
        count = sum(e.success for e in self.episodes)
        object.__setattr__(self, "score_mean", float(np.mean(scores)))
        object.__setattr__(self, "score_interval", bootstrap_mean_interval(scores))
        object.__setattr__(self, "success_count", count)
        object.__setattr__(self, "success_interval", wilson_interval(count, len(scores)))

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> EvalResult:
        """The episodes of :meth:`to_dict`, to compare with; without films."""
        episodes = (Episode(**{k: e[k] for k in e if k != "return"}, episode_return=e["return"]) for e in d["episodes"])
        return cls(episodes=tuple(episodes), seconds=d["seconds"], warnings=tuple(d["warnings"]))

    @property
    def success_rate(self) -> float:
        """Share of successful episodes."""
        return self.success_count / len(self.episodes)

    @property
    def steps_per_s(self) -> float:
        """Control steps of all worlds together per second of wall time, policy included."""
        return sum(e.length for e in self.episodes) / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an interval that does not exist is None."""
        score_low, score_high = (_json_number(x) for x in self.score_interval)
        low, high = self.success_interval
        return {
            "n_episodes": len(self.episodes),
            "score": {"mean": self.score_mean, "low": score_low, "high": score_high},
            "success": {"rate": self.success_rate, "low": low, "high": high, "count": self.success_count},
            "episodes": [e.to_dict() for e in self.episodes],
            "videos": [{**asdict(v), "path": str(v.path)} for v in self.videos],
            "warnings": list(self.warnings),
            "seconds": self.seconds,
            "steps_per_s": self.steps_per_s,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences ``a - b`` over the seeds that both ran; 95 % intervals by bootstrap over seeds (nan for one seed)."""

    n: int
    score_difference: float
    score_interval: tuple[float, float]
    success_difference: float
    success_interval: tuple[float, float]
    only_a: int  # seeds in which a succeeded and b did not
    only_b: int
    p_value: float  # exact McNemar test that both succeed equally often

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an interval that does not exist is None."""
        intervals = ("score_interval", "success_interval")
        return {**asdict(self), **{k: [_json_number(x) for x in getattr(self, k)] for k in intervals}}


def compare(a: EvalResult, b: EvalResult) -> Comparison:
    """Paired differences over common seeds. Raises UserError if there are none."""
    of_b = {e.seed: e for e in b.episodes}
    pairs = [(e, of_b[e.seed]) for e in a.episodes if e.seed in of_b]
    if not pairs:
        raise UserError(f"no common seed: one ran {_span(a)}, the other {_span(b)}; evaluate both on the same seeds")
    score = [x.score - y.score for x, y in pairs]
    success = [float(x.success) - float(y.success) for x, y in pairs]
    only_a, only_b = success.count(1.0), success.count(-1.0)
    return Comparison(
        n=len(pairs),
        score_difference=float(np.mean(score)),
        score_interval=bootstrap_mean_interval(score),
        success_difference=float(np.mean(success)),
        success_interval=bootstrap_mean_interval(success),
        only_a=only_a,
        only_b=only_b,
        p_value=mcnemar_exact(only_a, only_b),
    )


def _json_number(x: float) -> float | None:
    return None if math.isnan(x) else x


def _span(result: EvalResult) -> str:
    seeds = [e.seed for e in result.episodes]
    return f"{len(seeds)} seeds from {min(seeds)} to {max(seeds)}"
