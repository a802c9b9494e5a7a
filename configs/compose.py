"""From words on the command line to typed settings. Every mistake becomes one sentence with the nearest valid names."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from visuomotor.configs.registry import backbones, heads, name_of
from visuomotor.configs.schema import TrainConfig, register
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.registry import get_task, task_names

__all__ = [
    "Composed",
    "apply_words",
    "check_keys",
    "compose_train",
    "groups",
    "known_keys",
    "parse_plain",
    "parse_words",
    "restore_train",
    "task_settings",
    "to_typed",
]

T = TypeVar("T")

_LITERAL = (  # paths and sentences
    "data", "data.path", "data.cache.dir", "run_dir", "resume", "checkpoint", "against", "rank_by", "out", "goal",
    "eval.goal", "text", "eval.text", "record", "obs.image.pretrained.name", "obs.image.pretrained.weights",
    "obs.image.augment.textures", "store", "save", "path", "hold.data", "demo_start.store", "randomization",
    "token", "token_file", "tls_cert", "tls_key", "tls_ca", "url", "bag",
)  # fmt: skip


@dataclass(frozen=True)
class Composed:
    """Typed settings, and the same as plain values with the names that were chosen (ready for JSON and YAML)."""

    config: TrainConfig
    plain: dict[str, Any]  # {"choices": {"policy", "backbone", "task"}, "config": {...}}


def groups() -> dict[str, list[str]]:
    """What can be chosen by one word."""
    return {"policy": sorted(heads()), "backbone": sorted(backbones()), "task": sorted({*task_names(), *_presets()})}


def _presets() -> set[str]:
    """Tasks with a file of settings; several may be of the same environment."""
    return {p.name.removesuffix(".yaml") for p in (files("visuomotor.configs") / "task").iterdir()}


def compose_train(words: Sequence[str]) -> Composed:
    """Settings of ``visuomotor train`` from Hydra overrides such as ``backbone=unet train.steps=5000``.

    Raises:
        ConfigError: an unknown setting or choice, a value of the wrong type, or settings that contradict each other.
    """
    overrides = parse_words([_shorthand(w) for w in words])
    chosen = [o for o in overrides if o.key_or_group in groups()]
    for o in chosen:
        if str(o.value()) not in groups()[o.key_or_group]:
            known = groups()[o.key_or_group]
            raise ConfigError(f"unknown {o.key_or_group} {o.value()!r}. {nearest(str(o.value()), known)}")
    base = _compose([str(o.input_line) for o in chosen])
    check_keys([o for o in overrides if o not in chosen], known_keys(base))
    tasks = [str(o.value()) for o in chosen if o.key_or_group == "task"]
    return _finish(apply_words(base, [o for o in overrides if o not in chosen]), tasks[-1] if tasks else "none")


def restore_train(plain: Mapping[str, Any], words: Sequence[str] = ()) -> Composed:
    """Settings saved with a checkpoint, with overrides on top. ``plain`` is :attr:`Composed.plain`."""
    saved = _compose([f"{group}={name}" for group, name in plain["choices"].items()])
    try:
        cfg = OmegaConf.merge(saved, plain["config"])
        assert isinstance(cfg, DictConfig)
    except OmegaConfBaseException as e:
        raise ConfigError(
            f"the checkpoint was saved with settings that this version does not know: {_first_line(e)}"
        ) from None
    overrides = parse_words([_shorthand(w) for w in words])
    check_keys(overrides, known_keys(cfg))
    return _finish(apply_words(cfg, overrides), plain["choices"]["task"])


def parse_plain(schema: type[T], words: Sequence[str]) -> T:
    """Settings of a command without groups, by the same grammar: ``key=value ...`` onto the dataclass ``schema``."""
    cfg = OmegaConf.structured(schema)
    overrides = parse_words(words)
    check_keys(overrides, known_keys(cfg))
    return to_typed(apply_words(cfg, overrides), schema)


def task_settings(task: str, settings: Mapping[str, Any]) -> Any:
    """Settings of a task's environment: its defaults, and ``settings`` on top.

    Raises:
        ConfigError: an unknown task, or a setting that it does not have.
    """
    schema = get_task(task).config_class
    known = set(schema.__dataclass_fields__)  # type: ignore[attr-defined]
    if unknown := sorted(set(settings) - known):
        raise ConfigError(f"task {task!r} has no setting env.{unknown[0]}. {nearest(unknown[0], known)}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(settings)))
    except OmegaConfBaseException as e:
        raise ConfigError(f"env: {str(e).splitlines()[0]}") from None


def to_typed(cfg: DictConfig, schema: type[T]) -> T:
    """``cfg`` as an object of ``schema``; a setting that must be given and is not is named."""
    try:
        typed = OmegaConf.to_object(cfg)
    except MissingMandatoryValue as e:
        key = str(getattr(e, "full_key", None) or "a setting")
        raise ConfigError(f"{key} is missing: give {key}=<value>") from None
    except OmegaConfBaseException as e:
        raise ConfigError(_first_line(e)) from None
    assert isinstance(typed, schema)
    return typed


def known_keys(cfg: DictConfig) -> dict[str, bool]:
    """Every dotted key of ``cfg``, and whether new keys may be put below it."""
    keys: dict[str, bool] = {}

    def visit(node: DictConfig, prefix: str) -> None:
        for name in [str(n) for n in node]:
            child = None if OmegaConf.is_missing(node, name) else node[name]
            # A plain dict takes any key; a dataclass and its fields do not.
            keys[prefix + name] = isinstance(child, DictConfig) and not _is_dataclass(child)
            if isinstance(child, DictConfig):
                visit(child, f"{prefix}{name}.")

    visit(cfg, "")
    return keys


def _is_dataclass(node: DictConfig) -> bool:
    kind = OmegaConf.get_type(node)
    return kind is not None and kind is not dict and hasattr(kind, "__dataclass_fields__")


def _shorthand(word: str) -> str:
    """``data=<path>`` means ``data.path=<path>``: what everybody types first."""
    return f"data.path={word[5:]}" if word.startswith("data=") else word


def parse_words(words: Sequence[str]) -> list[Override]:
    """Words ``key=value`` by Hydra's grammar.

    Raises:
        ConfigError: a word that cannot be read, deletes something or names several values.
    """
    out = []
    for word in words:
        if "=" not in word:
            raise ConfigError(f"cannot read {word!r}: expected key=value, as in train.steps=5000")
        try:
            out += OverridesParser.create().parse_overrides([_literal(word)])
        except HydraException as e:
            raise ConfigError(f"cannot read {word!r}: {_first_line(e)}") from None
    deleted = [o.input_line for o in out if o.is_delete()]
    if deleted:
        raise ConfigError(f"{deleted[0]!r}: settings cannot be deleted, only given another value")
    sweeps = [o.input_line for o in out if o.is_sweep_override()]
    if sweeps:
        raise ConfigError(f"{sweeps[0]!r} names several values; this command runs one. Loop over them in the shell.")
    return out


def _literal(word: str) -> str:
    """A path or sentence as it is: it may hold commas, spaces and braces, to which Hydra's grammar gives a meaning."""
    key, value = word.split("=", 1)
    if key not in _LITERAL or value in ("", "null") or value[0] in "'\"":
        return word
    quoted = value.replace("'", "\\'")
    return f"{key}='{quoted}'"


def check_keys(overrides: Sequence[Override], known: Mapping[str, bool]) -> None:
    """Refuse a key that is not among ``known`` (see :func:`known_keys`), with the nearest ones."""
    for o in overrides:
        key = o.key_or_group
        parents = [key.rsplit(".", n)[0] for n in range(1, key.count(".") + 1)]
        if key not in known and not any(known.get(p, False) for p in parents):
            raise ConfigError(f"unknown setting {key!r}. {nearest(key, known)}")


def _compose(lines: Sequence[str]) -> DictConfig:
    register(_presets())
    if GlobalHydra.instance().is_initialized():  # a caller's own Hydra application
        GlobalHydra.instance().clear()
    with initialize_config_module("visuomotor.configs", version_base="1.3"), _explained(" ".join(lines)):
        return compose("train", overrides=list(lines))


def apply_words(cfg: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """``cfg`` with the values. Merging, unlike Hydra's own assignment, types what goes into a plain dict."""
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)  # which new keys are allowed was checked before; Hydra would allow none
    for o in overrides:
        with _explained(o.input_line or ""):
            try:
                merged = OmegaConf.merge(cfg, _nested(o.key_or_group, o.value()))
            except OmegaConfBaseException:  # lists of lists of decimal numbers refuse whole ones, single values do not
                merged = OmegaConf.merge(cfg, _nested(o.key_or_group, _decimal(o.value())))
        assert isinstance(merged, DictConfig)
        cfg = merged
    return cfg


def _nested(key: str, value: Any) -> Any:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _decimal(value: Any) -> Any:
    """``value`` with every whole number inside a list as a decimal one."""
    if isinstance(value, list):
        return [float(v) if type(v) is int else _decimal(v) for v in value]
    return value


def _finish(cfg: DictConfig, task: str) -> Composed:
    config = to_typed(cfg, TrainConfig)
    choices = {"policy": name_of(config.policy), "backbone": name_of(config.backbone), "task": task}
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return Composed(config, {"choices": choices, "config": plain})


@contextmanager
def _explained(line: str) -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as e:
        cause = e.__cause__ if isinstance(e.__cause__, OmegaConfBaseException) else e
        raise ConfigError(f"{line}: {_first_line(cause)}") from None


def _first_line(e: BaseException) -> str:
    return str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
