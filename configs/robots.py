"""Robots by name or file, with settings on top: ``robot=ur5e robot.command.rate_hz=100``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from visuomotor.configs.compose import apply_words, parse_words
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.robots.registry import get_robot, robot_names
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.robots.presets import parse_preset, robot_from

__all__ = ["load_robot", "preset_names", "take_robot", "transport_words"]


def preset_names() -> list[str]:
    """Names that ``robot=`` knows; a path of a YAML file goes as well."""
    return sorted(p.name.removesuffix(".yaml") for p in (files("visuomotor.configs") / "robot").iterdir())


def load_robot(robot: str, words: Sequence[str] = ()) -> RobotConfig:
    """A preset or a file of one's own, with ``words`` (``command.rate_hz=100``) on top.

    Joints that nobody names are those of ``model``: of a registered robot, or found in a URDF or MJCF file.

    Raises:
        ConfigError: an unknown robot or setting (the nearest are named), or settings that contradict each other.
    """
    text, where = _find(robot)
    values = OmegaConf.create(parse_preset(text, where, _find))
    assert isinstance(values, DictConfig)
    config = robot_from(apply_words(values, parse_words([_literal(w) for w in words])), f"robot={robot}")
    if not config.joints and config.model:
        words = [*words, f"joints=[{','.join(map(repr, _joints_of(config.model)))}]"]
        return load_robot(robot, words)
    config.check_ready()
    return config


def take_robot(words: Sequence[str]) -> tuple[RobotConfig, list[str]]:
    """The robot of a command's words (``robot=...`` and ``robot.<setting>=...``), and the other words.

    Raises:
        ConfigError: none or several robots, or as :func:`load_robot`.
    """
    named = [w.removeprefix("robot=") for w in words if w.startswith("robot=")]
    if len(named) != 1 or not named[0]:
        raise ConfigError(
            f"give one robot=<name or file> ({len(named)} given). Presets: {', '.join(preset_names())}; a YAML file "
            "of your own, or robot=generic robot.model=/path/of/arm.urdf"
        )
    settings = [w.removeprefix("robot.") for w in words if w.startswith("robot.")]
    rest = [w for w in words if not w.startswith(("robot=", "robot."))]
    return load_robot(named[0], settings), rest


def transport_words(words: Sequence[str]) -> list[str]:
    """``transport=dds`` is short for ``transport.name=dds``."""
    return [f"transport.name={w.removeprefix('transport=')}" if w.startswith("transport=") else w for w in words]


def _literal(word: str) -> str:
    """A model's path as it is, whatever Hydra's grammar makes of its characters."""
    path = word.removeprefix("model=").replace("'", "\\'")
    return f"model='{path}'" if word.startswith("model=") and path[:1] not in ("", "\\") else word


def _find(robot: str) -> tuple[str, str]:
    """Text and name of a preset, or of a file."""
    if robot in preset_names():
        return (files("visuomotor.configs") / "robot" / f"{robot}.yaml").read_text(encoding="utf-8"), f"preset {robot}"
    path = Path(robot).expanduser()
    if path.suffix in (".yaml", ".yml") or "/" in robot:
        if not path.is_file():
            raise ConfigError(f"robot={robot}: there is no such file. Presets: {', '.join(preset_names())}")
        return path.read_text(encoding="utf-8"), str(path)
    raise ConfigError(
        f"unknown robot {robot!r}. {nearest(robot, preset_names())} A YAML file of your own goes as well."
    )


def _joints_of(model: str) -> tuple[str, ...]:
    return get_robot(model).joints if model in robot_names() else get_robot("custom", model).joints
