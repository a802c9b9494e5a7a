"""From the settings of a randomisation to the events of an environment."""

from __future__ import annotations

from visuomotor.data.errors import ConfigError
from visuomotor.envs.sim.events import Event
from visuomotor.sim2real.randomization.config import RandomizationConfig, TermConfig
from visuomotor.sim2real.randomization.curriculum.build import govern
from visuomotor.sim2real.randomization.registry import get_term

__all__ = ["build_events", "build_terms", "training_events"]


def build_events(config: RandomizationConfig) -> list[Event]:
    """The events of a randomisation, for :func:`~visuomotor.envs.registry.make_env`: always all of its ranges.

    Raises:
        ConfigError: an unknown term, or settings that it does not take.
    """
    return list(build_terms(config).values())


def training_events(config: RandomizationConfig) -> list[Event]:
    """The events of a randomisation for worlds in which a policy learns: as its curriculum says.

    Raises:
        ConfigError: as :func:`build_events`; also a curriculum that has nothing to govern.
    """
    return govern(config.curriculum, build_terms(config), {n for n, t in config.terms.items() if t.governed})


def build_terms(config: RandomizationConfig) -> dict[str, Event]:
    """The event of each term, by the name of its settings, before a curriculum governs them.

    Raises:
        ConfigError: as :func:`build_events`.
    """
    return {name: _build(name, term) for name, term in config.terms.items()}


def _build(name: str, config: TermConfig) -> Event:
    try:
        entry = get_term(config.term or name)
        if not isinstance(config, entry.config_class):
            raise ConfigError(f"settings of class {type(config).__name__}; expected {entry.config_class.__name__}")
        event = entry.build(config)
        if event.when != config.when:
            raise ConfigError(f"when={config.when}: this term acts at {event.when}")
    except ConfigError as e:
        raise ConfigError(f"randomization.terms.{name}: {e}") from None
    event.interval = (config.interval[0], config.interval[1]) if config.interval else event.interval
    return event
