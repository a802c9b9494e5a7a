"""Randomisation terms by name: what settings choose from, and what other packages add to.

Another package adds a term by an entry point of the group ``visuomotor.randomization`` whose name is the term's and
whose object is a :class:`TermEntry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.quantities import QUANTITIES
from visuomotor.envs.sim.terms import JointOffset, ModelTerm
from visuomotor.sim2real.randomization.config import TermConfig

__all__ = ["TermEntry", "get_term", "terms"]

_GROUP = "visuomotor.randomization"


@dataclass(frozen=True)
class TermEntry:
    """A term's settings (:class:`TermConfig` or a class derived from it), and what makes an event of them.

    An event whose numbers a curriculum may govern has the attributes ``spread`` and ``source`` (see
    :class:`~visuomotor.envs.sim.spread.Source`).
    """

    config_class: type[TermConfig]
    build: Callable[[Any], Event]


@dataclass(kw_only=True, slots=True)
class JointOffsetConfig(TermConfig):
    """Episodes begin with joints away from where the task puts them, within their limits [rad or m]."""

    operation: str = "+"
    low: float = 0.0
    high: float = 0.0


def _model_term(quantity: str, config: TermConfig) -> Event:
    return ModelTerm(
        quantity, config.names, config.spread(), shared=config.shared, optional=config.optional, when=config.when
    )


def _joint_offset(config: JointOffsetConfig) -> Event:
    return JointOffset(config.names, config.spread(), optional=config.optional)


_TERMS: dict[str, TermEntry] = {
    **{name: TermEntry(TermConfig, partial(_model_term, name)) for name in QUANTITIES},
    "joint_offset": TermEntry(JointOffsetConfig, _joint_offset),
}


@cache
def terms() -> Mapping[str, TermEntry]:
    """Every term, those of other packages included.

    Raises:
        ConfigError: an entry point that cannot be loaded, is no entry, or has a name that is taken.
    """
    known = dict(_TERMS)
    for point in entry_points(group=_GROUP):
        where = f"the entry point {point.name!r} of group {_GROUP} ({point.value})"
        try:
            entry = point.load()
        except Exception as e:  # whatever a module of another package does when it is imported
            raise ConfigError(f"{where} cannot be loaded: {type(e).__name__}: {e}") from e
        if not isinstance(entry, TermEntry):
            raise ConfigError(f"{where} is {entry!r}; expected a TermEntry")
        if point.name in known:
            raise ConfigError(f"{where} has a name that is taken")
        known[point.name] = entry
    return known


def get_term(name: str) -> TermEntry:
    """The term of that name. Raises ConfigError with the nearest names for an unknown one."""
    if name not in terms():
        raise ConfigError(f"unknown term {name!r}. {nearest(name, terms())}")
    return terms()[name]
