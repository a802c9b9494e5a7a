"""From a YAML file to a :class:`~visuomotor.sim2real.robots.config.RobotConfig`. A typo is refused with what exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.sim2real.robots.config import RobotConfig

__all__ = ["check_settings", "parse_preset", "robot_from"]

_MAX_BASES = 8


def parse_preset(text: str, where: str, find: Callable[[str], tuple[str, str]]) -> dict[str, Any]:
    """The settings in a preset's YAML, those of the preset that it builds on (``base: <name or file>``) below them.

    Args:
        text: of the file.
        where: its name, for messages.
        find: gives text and name of a base.

    Raises:
        ConfigError: no YAML of settings, a setting that does not exist, or bases in a circle.
    """
    layers: list[Any] = []
    while True:
        values = _read(text, where)
        base = values.pop("base", None)
        check_settings(values, RobotConfig, where)
        layers.insert(0, values)
        if base is None:
            break
        if len(layers) > _MAX_BASES:
            raise ConfigError(f"{where}: more than {_MAX_BASES} bases upon each other; is there a circle?")
        text, where = find(str(base))
    merged = OmegaConf.to_container(OmegaConf.merge(*layers))
    assert isinstance(merged, dict)
    return {str(k): v for k, v in merged.items()}


def robot_from(values: Mapping[str, Any] | DictConfig, where: str) -> RobotConfig:
    """The typed settings.

    Raises:
        ConfigError: a setting that does not exist, has the wrong type, or contradicts another.
    """
    plain = OmegaConf.to_container(values) if isinstance(values, DictConfig) else dict(values)
    check_settings(plain, RobotConfig, where)
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RobotConfig), plain))
    except OmegaConfBaseException as e:
        raise ConfigError(f"{where}: {str(e).splitlines()[0]}") from None
    except ConfigError as e:
        raise ConfigError(f"{where}: {e}") from None
    assert isinstance(typed, RobotConfig)
    return typed


def check_settings(values: Any, schema: type, where: str, prefix: str = "") -> None:
    """Refuse keys of ``values`` that the dataclass ``schema`` does not have, anywhere below.

    Raises:
        ConfigError: with the nearest names.
    """
    if not isinstance(values, Mapping):
        if values is not None:
            raise ConfigError(f"{where}: {prefix.rstrip('.') or 'the file'} is {values!r}; expected settings")
        return
    hints = get_type_hints(schema)
    known = [f.name for f in fields(schema)]
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown setting {prefix}{key}. {nearest(str(key), known)}")
        inner, many = _schema_of(hints[key])
        if inner is None:
            continue
        if not many:
            check_settings(value, inner, where, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            for name, item in value.items():
                check_settings(item, inner, where, f"{prefix}{key}.{name}.")


def _schema_of(hint: Any) -> tuple[type | None, bool]:
    """The dataclass in a type, and whether it stands in a dictionary of them."""
    many = get_origin(hint) is dict
    candidates: Sequence[Any] = get_args(hint) or (hint,)
    found = [c for c in candidates if isinstance(c, type) and is_dataclass(c)]
    return (found[0] if found else None), many


def _read(text: str, where: str) -> dict[str, Any]:
    try:
        values = OmegaConf.create(text)
    except (OmegaConfBaseException, YAMLError) as e:
        raise ConfigError(f"{where} is no YAML: {' '.join(str(e).split())[:200]}") from None
    if not isinstance(values, DictConfig):
        raise ConfigError(f"{where}: expected settings as 'name: value', one a line")
    plain = OmegaConf.to_container(values)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}
