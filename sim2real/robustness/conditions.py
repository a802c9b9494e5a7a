"""The conditions that a policy is tried under: one factor at a time, and all of them together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from visuomotor.sim2real.robustness.config import FactorConfig

__all__ = ["NOMINAL", "Condition", "joint_conditions", "pair_conditions", "single_conditions"]


@dataclass(frozen=True)
class Condition:
    """Worlds of one kind.

    Attributes:
        kind: ``nominal``, ``single``, ``pair`` or ``joint``.
        levels: by factor, its value.
        terms: settings of randomisation terms, by name.
        env: settings of the task's environment, dotted.
    """

    kind: str
    levels: Mapping[str, Any] = field(default_factory=dict)
    terms: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for the same worlds, whatever they are called."""
        text = json.dumps({"terms": self.terms, "env": self.env}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """For people."""
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.levels.items())
        return ", ".join(shown) or "nominal"


NOMINAL = Condition("nominal")


def single_conditions(factors: Mapping[str, FactorConfig]) -> list[Condition]:
    """Every level of every factor by itself."""
    return [_condition("single", {name: (f, level)}) for name, f in factors.items() for level in f.levels]


def pair_conditions(factors: Mapping[str, FactorConfig], a: str, b: str) -> list[Condition]:
    """Every level of one factor with every level of another."""
    both = ((x, y) for x in factors[a].levels for y in factors[b].levels)
    return [_condition("pair", {a: (factors[a], x), b: (factors[b], y)}) for x, y in both]


def joint_conditions(factors: Mapping[str, FactorConfig], n: int, seed: int) -> list[Condition]:
    """``n`` conditions in which all factors differ at once, spread evenly (scrambled Sobol points, Owen 1998).

    Numbers are drawn between the smallest and the largest level of their factor, other values among the levels.
    """
    taken = {name: f for name, f in factors.items() if f.joint}
    if not taken or n < 1:
        return []
    points = torch.quasirandom.SobolEngine(len(taken), scramble=True, seed=seed).draw(n).tolist()
    out = []
    for point in points:
        chosen = {name: (f, _between(f, u)) for (name, f), u in zip(taken.items(), point, strict=True)}
        out.append(_condition("joint", chosen))
    return out


def _between(factor: FactorConfig, u: float) -> Any:
    if factor.setting:
        return factor.levels[min(int(u * len(factor.levels)), len(factor.levels) - 1)]
    low, high = float(min(factor.levels)), float(max(factor.levels))
    return low + (high - low) * u


def _condition(kind: str, chosen: Mapping[str, tuple[FactorConfig, Any]]) -> Condition:
    terms: dict[str, Any] = {}
    env: dict[str, Any] = {}
    for factor, level in chosen.values():
        if factor.setting:
            env[factor.setting] = level
        terms |= {name: {**t, "low": float(level), "high": float(level)} for name, t in factor.terms.items()}
    return Condition(kind, {name: level for name, (_, level) in chosen.items()}, terms, env)
