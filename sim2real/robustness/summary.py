"""What many evaluations say together: damage by factor, the worst cases, and which policy to trust. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.errors import UserError
from visuomotor.policies.learn.statistics import bootstrap_mean_interval, wilson_interval

__all__ = ["Damage", "Outcome", "damage", "risk", "spearman", "transfer_scores"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """Episodes of one condition, in the order of their seeds."""

    success: tuple[bool, ...]
    score: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Share of successes."""
        return sum(self.success) / len(self.success)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, at 95 %."""
        return wilson_interval(sum(self.success), len(self.success))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        low, high = self.interval
        return {
            "success": {"rate": self.rate, "low": low, "high": high, "count": sum(self.success)},
            "score": {"mean": float(np.mean(self.score))}, "n_episodes": len(self.success),
        }  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """How much success one factor costs: points of success below the nominal worlds, on the same seeds.

    Attributes:
        factor: its name.
        mean: over its levels; interval at 95 %, by bootstrap over the seeds.
        worst: at its worst level, ``worst_level``.
    """

    factor: str
    mean: float
    interval: tuple[float, float]
    worst: float
    worst_level: Any

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        low, high = (None if math.isnan(x) else x for x in self.interval)
        return {
            "factor": self.factor, "mean": self.mean, "low": low, "high": high, "worst": self.worst,
            "worst_level": self.worst_level,
        }  # fmt: skip


def damage(factor: str, nominal: Outcome, levels: Mapping[Any, Outcome]) -> Damage:
    """Damage of a factor whose ``levels`` ran the seeds of ``nominal``."""
    before = np.asarray(nominal.success, float)
    lost = {level: before - np.asarray(o.success, float) for level, o in levels.items()}
    by_seed = np.mean(list(lost.values()), axis=0)
    worst = max(lost, key=lambda level: lost[level].mean())
    interval = bootstrap_mean_interval(by_seed.tolist())
    return Damage(factor, float(by_seed.mean()), interval, float(lost[worst].mean()), worst)


def risk(rates: Sequence[float], share: float, *, seed: int = 0) -> dict[str, float]:
    """Mean success over conditions, and over the worst ``share`` of them (conditional value at risk).

    The part of a condition that ``share`` cuts through counts by that part (Rockafellar and Uryasev 2000). Intervals at
    95 % are by bootstrap over the conditions.

    Raises:
        UserError: no conditions, or a share outside of 0..1.
    """
    if not rates or not 0 < share <= 1:
        raise UserError(f"{len(rates)} conditions and share={share}: expected at least one, and above 0 up to 1")
    x, rng = np.asarray(rates, float), np.random.default_rng(seed)
    drawn = x[rng.integers(0, len(x), (2000, len(x)))]
    tails = np.apply_along_axis(_tail, 1, drawn, share)
    out = {"mean": float(x.mean()), "cvar": _tail(x, share), "worst": float(x.min())}
    for name, values in (("mean", drawn.mean(1)), ("cvar", tails)):
        out[f"{name}_low"], out[f"{name}_high"] = (float(q) for q in np.quantile(values, (0.025, 0.975)))
    return out


def _tail(x: Floats, share: float) -> float:
    size = share * len(x)
    weight = np.clip(size - np.arange(len(x)), 0.0, 1.0)
    return float((np.sort(x) * weight).sum() / weight.sum())


def transfer_scores(success: Sequence[float], distance: Sequence[float], weight: float = 1.0) -> list[float]:
    """A score for each of several policies, to rank them before any has met the real world.

    As "Validate on Sim, Detect on Real" (Leibovich et al. 2022, arXiv:2111.00765) proposes, success in simulation and
    how strange real observations are to the policy are combined, since each alone misleads: both are brought to mean 0
    and deviation 1 over the policies, and ``weight`` times the second is subtracted.
    """
    return (_standard(success) - weight * _standard(distance)).tolist()


def _standard(values: Sequence[float]) -> Floats:
    x = np.asarray(values, float)
    spread = x.std()
    return (x - x.mean()) / spread if spread > 1e-12 else np.zeros_like(x)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation (Spearman 1904), ties at their mean rank; nan where one of both does not vary.

    Raises:
        UserError: fewer than two values, or not as many of both.
    """
    if len(a) != len(b) or len(a) < 2:
        raise UserError(f"{len(a)} and {len(b)} values; expected as many of both, at least two")
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale > 0 else math.nan


def _ranks(values: Sequence[float]) -> Floats:
    x = np.asarray(values, float)
    return np.asarray([(np.sum(x < v) + np.sum(x <= v) + 1) / 2 for v in x])
