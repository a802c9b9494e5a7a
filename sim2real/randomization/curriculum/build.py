"""From settings to a curriculum that governs the terms of a randomisation."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from visuomotor.data.errors import ConfigError
from visuomotor.envs.sim.events import Event
from visuomotor.sim2real.randomization.curriculum.adr import ADR
from visuomotor.sim2real.randomization.curriculum.base import Curriculum
from visuomotor.sim2real.randomization.curriculum.config import CurriculumConfig
from visuomotor.sim2real.randomization.curriculum.doraemon import Doraemon
from visuomotor.sim2real.randomization.curriculum.parameters import Parameter
from visuomotor.sim2real.randomization.curriculum.scaled import Fixed, Linear

__all__ = ["govern", "make_curriculum"]


def make_curriculum(config: CurriculumConfig, parameters: list[Parameter]) -> Curriculum:
    """The curriculum that the settings name."""
    if config.kind == "linear":
        return Linear(parameters, config.linear)
    if config.kind == "adr":
        return ADR(parameters, config.adr)
    return Doraemon(parameters, config.doraemon) if config.kind == "doraemon" else Fixed(parameters)


def govern(config: CurriculumConfig, terms: Mapping[str, Event], names: Collection[str]) -> list[Event]:
    """The events of ``terms``, by name, with a curriculum before them where the settings ask for one.

    Of those in ``names`` it governs all that have a ``spread`` whose range is no point and a ``source`` to put in its
    place, and that draw at resets or while an episode runs.

    Raises:
        ConfigError: a curriculum that has nothing to govern.
    """
    events = list(terms.values())
    if config.kind == "fixed" and not config.observe:
        return events
    parameters = []
    for name, event in terms.items():
        spread = getattr(event, "spread", None)
        if name in names and spread is not None and hasattr(event, "source") and event.when != "startup":
            parameter = Parameter.of(name, spread)
            parameters += [] if parameter.is_point else [parameter]
    if not parameters:
        raise ConfigError(
            f"randomization.curriculum.kind={config.kind} has nothing to govern: no term draws from a range"
        )
    curriculum = make_curriculum(config, parameters)
    curriculum.observed = config.observe
    for p in parameters:
        terms[p.name].source = curriculum.source(p.name)  # type: ignore[attr-defined]
    return [curriculum, *events]
