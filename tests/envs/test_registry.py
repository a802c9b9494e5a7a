from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from visuomotor.data.errors import ConfigError
from visuomotor.envs import registry
from visuomotor.envs.registry import TaskEntry, get_task, make_env, register_task, task_names
from visuomotor.envs.tasks.pusht import PushTConfig


@dataclass
class MineConfig:
    size: int = 3


def make_mine(config: MineConfig, num_envs: int) -> Any:
    return (config.size, num_envs)


MINE = TaskEntry(MineConfig, make_mine)


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))


def test_a_registered_task_is_built_from_its_settings() -> None:
    register_task("mine", MineConfig, make_mine)
    assert {"mine", "pusht"} <= set(task_names())
    assert make_env(MineConfig(size=5), 2) == (5, 2)
    with pytest.raises(ConfigError, match="'mine' exists already"):
        register_task("mine", MineConfig, make_mine)


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'push'.*Did you mean 'pusht'"):
        get_task("push")
    with pytest.raises(ConfigError, match=r"MineConfig.*PushTConfig \(pusht\)"):
        make_env(MineConfig(), 2)
    with pytest.raises(ConfigError, match="num_envs=0"):
        make_env(PushTConfig(), 0)


def test_other_packages_add_tasks_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("theirs", "their_package:TASK", "visuomotor.tasks")
    monkeypatch.setattr(EntryPoint, "load", lambda self: MINE)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "visuomotor.tasks" else [])
    registry._outside.cache_clear()
    try:
        assert make_env(MineConfig(), 4) == (3, 4)
        monkeypatch.setattr(EntryPoint, "load", lambda self: 7)
        registry._outside.cache_clear()
        with pytest.raises(ConfigError, match=r"'theirs'.*expected a TaskEntry"):
            get_task("theirs")
        monkeypatch.undo()
        monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "visuomotor.tasks" else [])
        registry._outside.cache_clear()
        with pytest.raises(ConfigError, match=r"'theirs' .* cannot be loaded: No module named 'their_package'"):
            get_task("theirs")
        assert get_task("lift").config_class.__name__ == "LiftConfig"
    finally:
        registry._outside.cache_clear()
