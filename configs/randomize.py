"""``randomization=<name or file>`` and ``randomization.<setting>=``: from words on the command line to typed terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from visuomotor.configs.compose import apply_words, known_keys, parse_plain, parse_words
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.sim2real.randomization.config import RandomizationConfig
from visuomotor.sim2real.randomization.curriculum.config import CurriculumConfig
from visuomotor.sim2real.randomization.registry import get_term, terms

__all__ = [
    "compose_randomization",
    "load_randomization",
    "parse_randomized",
    "plain_randomization",
    "presets",
    "split_words",
    "trained_with_delays",
    "typed_randomization",
]

_KEY = "randomization"


class _Randomized(Protocol):
    randomization: RandomizationConfig


C = TypeVar("C", bound=_Randomized)


def presets() -> list[str]:
    """Names that ``randomization=`` takes besides the path of a file."""
    folder = files("visuomotor.configs") / _KEY
    return ["none", *sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))]


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are about randomisation, and the others."""
    own = [w for w in words if w.split("=", 1)[0].lstrip("+") == _KEY or w.startswith(f"{_KEY}.")]
    return own, [w for w in words if w not in own]


def compose_randomization(words: Sequence[str]) -> DictConfig:
    """Settings from words such as ``randomization=tabletop+visual randomization.terms.object_friction.high=1.5``.

    Several presets or files are joined by ``+``: of settings that stand in both, the later hold.
    ``randomization.terms.<name>=null`` takes a term out.

    Raises:
        ConfigError: no such file or preset, an unknown term or setting, a value of the wrong type.
    """
    overrides = parse_words(words)
    chosen = [str(o.value()) for o in overrides if o.key_or_group == _KEY]
    base = OmegaConf.create({_KEY: _read(chosen[-1] if chosen else "none")})
    cfg = apply_words(base, [o for o in overrides if o.key_or_group != _KEY])
    plain = OmegaConf.to_container(cfg[_KEY], resolve=True)
    assert isinstance(plain, dict)
    return typed_randomization({str(k): v for k, v in plain.items()})


def parse_randomized(schema: type[C], words: Sequence[str]) -> C:
    """As :func:`~visuomotor.configs.compose.parse_plain`, for a command that also takes ``randomization``."""
    own, rest = split_words(words)
    return replace(parse_plain(schema, rest), randomization=load_randomization(own))  # type: ignore[type-var]


def load_randomization(words: Sequence[str]) -> RandomizationConfig:
    """As :func:`compose_randomization`, as an object."""
    typed = OmegaConf.to_object(compose_randomization(words))
    assert isinstance(typed, RandomizationConfig)
    return typed


def typed_randomization(plain: Mapping[str, Any]) -> DictConfig:
    """Plain values (of a file, of a checkpoint) as settings of :class:`RandomizationConfig`, each term of its class.

    Raises:
        ConfigError: an unknown term or setting, a value of the wrong type or out of its range.
    """
    known = ("terms", "curriculum")
    if unknown := sorted(set(plain) - set(known)):
        raise ConfigError(f"unknown setting '{_KEY}.{unknown[0]}'. {nearest(unknown[0], known)}")
    cfg: DictConfig = OmegaConf.structured(RandomizationConfig)
    given = plain.get("terms") or {}
    for name, values in given.items():
        if values is not None:
            cfg.terms[name] = _term(str(name), values, list(given))
    cfg.curriculum = _merged(CurriculumConfig, plain.get("curriculum") or {}, f"{_KEY}.curriculum")
    return cfg


def plain_randomization(config: RandomizationConfig) -> dict[str, Any]:
    """What :func:`typed_randomization` takes; empty if nothing is randomised."""
    return asdict(config) if config.terms else {}


def trained_with_delays(saved: Mapping[str, Any]) -> bool:
    """Whether commands or observations came late in the worlds where a policy was trained; ``saved``: its settings."""
    terms: Mapping[str, Any] = (saved.get(_KEY) or {}).get("terms") or {}
    return any((term["term"] or name).endswith("_delay") for name, term in terms.items())


def _read(name: str) -> dict[str, Any]:
    if name in ("none", "None", ""):
        return {}
    path = Path(name).expanduser()
    if name in presets():
        text = (files("visuomotor.configs") / _KEY / f"{name}.yaml").read_text()
    elif path.is_file():
        text = path.read_text()
    elif "+" in name:
        parts = OmegaConf.merge(*[OmegaConf.create(_read(part)) for part in name.split("+")])
        return {str(k): v for k, v in OmegaConf.to_container(parts).items()}  # type: ignore[union-attr]
    else:
        raise ConfigError(f"{_KEY}={name}: there is no such file, and no randomisation of that name. "
                          f"{nearest(name, presets())}")  # fmt: skip
    try:
        plain = OmegaConf.to_container(OmegaConf.create(text))
    except (YAMLError, OmegaConfBaseException, ValueError) as e:
        raise ConfigError(f"{path} cannot be read as YAML: {str(e).splitlines()[0]}") from None
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} holds a {type(plain).__name__}; expected terms: and curriculum:")
    return {str(k): v for k, v in plain.items()}


def _term(name: str, values: Any, others: Sequence[str]) -> DictConfig:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{_KEY}.terms.{name}={values}: expected settings of a term, or null to take it out")
    term = str(values.get("term") or name)
    if term not in terms() and "term" not in values:
        raise ConfigError(
            f"{_KEY}.terms.{name} is not among the terms given before ({', '.join(o for o in others if o != name)}), "
            f"and not a term by itself. {nearest(name, {*others, *terms()} - {name})}"
        )
    try:
        schema = get_term(term).config_class
    except ConfigError as e:
        raise ConfigError(f"{_KEY}.terms.{name}: {e}") from None
    return _merged(schema, values, f"{_KEY}.terms.{name}")


def _merged(schema: type, values: Mapping[str, Any], where: str) -> DictConfig:
    """Defaults of ``schema`` with ``values`` on top, checked."""
    base = OmegaConf.structured(schema)
    known = known_keys(base)
    for key in _keys(values, ""):
        if key not in known and not any(known.get(key.rsplit(".", n)[0]) for n in range(1, key.count(".") + 1)):
            raise ConfigError(f"unknown setting '{where}.{key}'. {nearest(key, known)}")
    try:
        cfg = OmegaConf.merge(base, dict(values))
        OmegaConf.to_object(cfg)  # which checks ranges
    except OmegaConfBaseException as e:
        raise ConfigError(f"{where}: {str(e).splitlines()[0]}") from None
    except ConfigError as e:
        raise ConfigError(f"{where}: {e}") from None
    assert isinstance(cfg, DictConfig)
    return cfg


def _keys(values: Mapping[str, Any], prefix: str) -> list[str]:
    out = []
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        out += _keys(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return out
