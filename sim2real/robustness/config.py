"""Factors by which worlds may differ from the one that a policy was trained in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from visuomotor.data.errors import ConfigError

__all__ = ["FactorConfig", "check_together"]


@dataclass(kw_only=True, slots=True)
class FactorConfig:
    """One way in which worlds differ: terms of a randomisation whose number is the level, or a setting of the task.

    Attributes:
        terms: by name, settings of randomisation terms without a range: every level sets ``low`` and ``high`` to it.
        setting: of the task's environment (``control.pos_step``), instead of terms.
        levels: numbers, or values of ``setting``; not the nominal one, which is evaluated once for all factors.
        joint: it takes part in the joint evaluation, between its smallest and its largest level.
        unit: of the levels, for the report.
    """

    terms: dict[str, Any] = field(default_factory=dict)
    setting: str = ""
    levels: list[Any] = field(default_factory=list)
    joint: bool = True
    unit: str = ""

    def __post_init__(self) -> None:
        if bool(self.terms) == bool(self.setting):
            raise ConfigError("a factor is of terms or of one setting of the environment: give one of both")
        if not self.levels:
            raise ConfigError("a factor without levels; expected at least one")
        numbers = [x for x in self.levels if isinstance(x, int | float) and not isinstance(x, bool)]
        if self.terms and (len(numbers) < len(self.levels) or not all(map(math.isfinite, numbers))):
            raise ConfigError(f"levels={self.levels}: expected finite numbers, which are what terms take")
        if given := [n for n, t in self.terms.items() if not isinstance(t, dict) or {"low", "high", "values"} & set(t)]:
            raise ConfigError(f"term {given[0]!r}: expected settings without low, high and values: the levels")


def check_together(factors: Mapping[str, FactorConfig]) -> None:
    """Under several factors at once each has to keep its own level.

    Raises:
        ConfigError: two of them set the same.
    """
    owner: dict[str, str] = {}
    for key, factor in factors.items():
        for name in (*factor.terms, *([factor.setting] if factor.setting else [])):
            if name in owner:
                raise ConfigError(
                    f"factors {owner[name]!r} and {key!r} both set {name!r}, so that one would undo the other: give "
                    "terms of the same kind names of their own, as <name>: {term: <kind>, ...}"
                )
            owner[name] = key
