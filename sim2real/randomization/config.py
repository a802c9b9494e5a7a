"""Settings of a randomisation: its terms by name, and its curriculum."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.sim.spread import Spread
from visuomotor.sim2real.randomization.curriculum.config import CurriculumConfig

__all__ = ["RandomizationConfig", "TermConfig"]

_TIMES = ("startup", "reset", "interval")


@dataclass(kw_only=True, slots=True)
class TermConfig:
    """One thing that differs from world to world. A range that is a point (``low == high``) is one value for all.

    Attributes:
        term: name of a registered term; empty takes the name under which these settings stand.
        names: bodies, geoms, joints, actuators, cameras, lights, materials or observations that it acts on, as shell
            patterns; ``@objects`` are those that move freely. A geom without a name is ``<body>:<number>``.
        optional: names that match nothing are passed over: for settings that serve several tasks.
        operation: what the number does with the nominal value: ``*``, ``+`` or ``=``.
        distribution: ``uniform``, ``loguniform``, ``normal`` (cut off at both ends, which are two standard deviations
            from the middle) or ``choice``.
        low, high: range of the number.
        values: what ``choice`` chooses from.
        shared: one number for all the named things of a world, instead of one each.
        when: ``startup`` (once), ``reset`` (each episode) or ``interval`` (now and then in an episode).
        interval: shortest and longest time [s] between two draws, for ``when: interval``.
        governed: a curriculum may draw from less than the range; otherwise this term always has all of it.
    """

    term: str = ""
    names: list[str] = field(default_factory=list)
    optional: bool = False
    operation: str = "*"
    distribution: str = "uniform"
    low: float = 1.0
    high: float = 1.0
    values: list[float] = field(default_factory=list)
    shared: bool = False
    when: str = "reset"
    interval: list[float] = field(default_factory=list)
    governed: bool = True

    def __post_init__(self) -> None:
        self.spread()
        if self.when not in _TIMES:
            raise ConfigError(f"unknown time when={self.when!r}. {nearest(self.when, _TIMES)}")
        if (self.when == "interval") != bool(self.interval):
            raise ConfigError(f"when={self.when} with interval={self.interval}: an interval goes with when=interval")
        if self.interval and not (len(self.interval) == 2 and 0 < self.interval[0] <= self.interval[1] < math.inf):
            raise ConfigError(f"interval={self.interval} [s]: expected two positive numbers, the shorter first")

    def spread(self) -> Spread:
        """The range and distribution.

        Raises:
            ConfigError: an unknown operation or distribution, an empty range, a choice of nothing.
        """
        return Spread(
            operation=self.operation, distribution=self.distribution, low=self.low, high=self.high,
            values=tuple(self.values),
        )  # fmt: skip


@dataclass(kw_only=True, slots=True)
class RandomizationConfig:
    """What differs from world to world and from episode to episode.

    Attributes:
        terms: by names of your choice; each is settings of the class that its registered term has.
        curriculum: how wide the ranges are at each time of training.
    """

    terms: dict[str, TermConfig] = field(default_factory=dict)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
