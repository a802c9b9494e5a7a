"""All simulated tasks for ``gymnasium.make`` and ``gymnasium.make_vec``: importing this module registers them.

Gymnasium has had no plug-ins since 1.0, so either import this module, or name it in the id::

    gymnasium.make("visuomotor.envs.gym_registration:visuomotor/Lift-v0", robot="panda", reward="sparse")

Settings are the fields of the task's configuration; a group of them is a mapping (``cameras={"names": ["front"]}``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import gymnasium as gym

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.registry import get_task, make_env, task_names
from visuomotor.envs.sim.task import SimConfig
from visuomotor.envs.to_gym import ToGym, ToGymVector

__all__ = ["environment_id", "make_single", "make_vector"]


def environment_id(task: str) -> str:
    """Gymnasium's name of a task: ``pick_place`` is ``visuomotor/PickPlace-v0``."""
    return f"visuomotor/{''.join(word.capitalize() for word in task.split('_'))}-v0"


def make_single(task: str, render_mode: str | None = None, **settings: Any) -> ToGym:
    """One world of ``task``, on one thread unless ``engine={"threads": n}`` says otherwise.

    Raises:
        ConfigError: an unknown setting or value, or a render mode other than ``rgb_array``.
    """
    config = _configure(get_task(task).config_class(), settings)
    if config.engine.threads == 0:
        config = replace(config, engine=replace(config.engine, threads=1))
    return ToGym(make_env(config, 1), render_mode)


def make_vector(task: str, num_envs: int = 1, render_mode: str | None = None, **settings: Any) -> ToGymVector:
    """``num_envs`` worlds of ``task`` side by side; ended worlds are reset within the same step.

    Raises:
        ConfigError: an unknown setting or value, or a render mode other than ``rgb_array``.
    """
    if render_mode not in (None, "rgb_array"):
        raise ConfigError(f"render_mode={render_mode!r}: expected None or 'rgb_array'")
    return ToGymVector(make_env(_configure(get_task(task).config_class(), settings), num_envs))


def _configure(config: Any, settings: Mapping[str, Any], path: str = "") -> Any:
    """A settings dataclass with some fields replaced; mappings go into groups of settings."""
    known = [f.name for f in fields(config)]
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"unknown setting {path + name!r}. {nearest(name, known)}")
        now = getattr(config, name)
        values[name] = _group(now, value, path + name) if is_dataclass(now) else value
    return replace(config, **values)


def _group(now: Any, value: Any, path: str) -> Any:
    if isinstance(value, type(now)):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{path}={value!r}: expected a mapping of {', '.join(f.name for f in fields(now))}, or a "
            f"{type(now).__name__}"
        )
    return _configure(now, value, f"{path}.")


for _task in task_names():
    if issubclass(get_task(_task).config_class, SimConfig):
        gym.register(
            environment_id(_task),
            entry_point=f"{__name__}:make_single",
            vector_entry_point=f"{__name__}:make_vector",
            kwargs={"task": _task},
        )
