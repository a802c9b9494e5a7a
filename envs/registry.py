"""Tasks by name: what a config chooses from, and what other packages add to.

Another package adds a task by an entry point of the group ``visuomotor.tasks`` whose name is the task's and whose
object is a :class:`TaskEntry`; nothing needs to be imported by the user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.base import VecEnv
from visuomotor.envs.sim.env import sim_factory
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.task import SimConfig
from visuomotor.envs.suites.client import SuiteConfig, SuiteEnv
from visuomotor.envs.tasks.cartpole import Cartpole, CartpoleConfig
from visuomotor.envs.tasks.drawer import Drawer, DrawerConfig
from visuomotor.envs.tasks.handover import Handover, HandoverConfig
from visuomotor.envs.tasks.hopper import Hopper, HopperConfig
from visuomotor.envs.tasks.lift import Lift, LiftConfig
from visuomotor.envs.tasks.peg import Peg, PegConfig
from visuomotor.envs.tasks.pick_place import PickPlace, PickPlaceConfig
from visuomotor.envs.tasks.push_t import PushTArm, PushTArmConfig
from visuomotor.envs.tasks.pusht import PushT, PushTConfig
from visuomotor.envs.tasks.reach import Reach, ReachConfig
from visuomotor.envs.tasks.reacher import Reacher, ReacherConfig
from visuomotor.envs.tasks.stack import Stack, StackConfig
from visuomotor.envs.tasks.walker import Walker, WalkerConfig

__all__ = ["TaskEntry", "get_task", "make_env", "register_task", "task_names"]

_GROUP = "visuomotor.tasks"


@dataclass(frozen=True)
class TaskEntry:
    """A task's settings (a dataclass with defaults) and what builds ``num_envs`` worlds from them.

    A simulated task whose settings derive from :class:`SimConfig` also takes ``events``, a sequence of
    :class:`~visuomotor.envs.sim.events.Event`, when there are any.
    """

    config_class: type
    factory: Callable[..., VecEnv]


_TASKS: dict[str, TaskEntry] = {
    "cartpole": TaskEntry(CartpoleConfig, sim_factory(Cartpole)),
    "drawer": TaskEntry(DrawerConfig, sim_factory(Drawer)),
    "handover": TaskEntry(HandoverConfig, sim_factory(Handover)),
    "hopper": TaskEntry(HopperConfig, sim_factory(Hopper)),
    "lift": TaskEntry(LiftConfig, sim_factory(Lift)),
    "peg": TaskEntry(PegConfig, sim_factory(Peg)),
    "pick_place": TaskEntry(PickPlaceConfig, sim_factory(PickPlace)),
    "push_t_arm": TaskEntry(PushTArmConfig, sim_factory(PushTArm)),
    "pusht": TaskEntry(PushTConfig, PushT),
    "reach": TaskEntry(ReachConfig, sim_factory(Reach)),
    "reacher": TaskEntry(ReacherConfig, sim_factory(Reacher)),
    "stack": TaskEntry(StackConfig, sim_factory(Stack)),
    "suite": TaskEntry(SuiteConfig, SuiteEnv),
    "walker": TaskEntry(WalkerConfig, sim_factory(Walker)),
}


def register_task(name: str, config_class: type, factory: Callable[..., VecEnv]) -> None:
    """Add a task from running code. Raises ConfigError for a name that is taken."""
    if name in _known():
        raise ConfigError(f"a task {name!r} exists already; known: {', '.join(task_names())}")
    _TASKS[name] = TaskEntry(config_class, factory)


def task_names() -> list[str]:
    """Names of all tasks, those of other packages included."""
    return sorted(_known())


def get_task(name: str) -> TaskEntry:
    """The task of that name. Raises ConfigError with the nearest names for an unknown one."""
    known = _known()
    if name not in known:
        raise ConfigError(f"unknown task {name!r}. {nearest(name, known)}")
    entry = known[name]
    if isinstance(entry, EntryPoint):
        try:
            entry = entry.load()
        except Exception as error:  # whatever a package of others raises when it is imported
            raise ConfigError(f"the entry point {name!r} of group {_GROUP} cannot be loaded: {error}") from error
    if not isinstance(entry, TaskEntry):
        raise ConfigError(f"the entry point {name!r} of group {_GROUP} is {entry!r}; expected a TaskEntry")
    return entry


def make_env(config: object, num_envs: int, events: Sequence[Event] = ()) -> VecEnv:
    """Build ``num_envs`` worlds of the task whose settings ``config`` is, with what shall happen in them besides.

    Raises:
        ConfigError: there is no such task, or ``events`` for one that is not simulated here.
    """
    if num_envs < 1:
        raise ConfigError(f"num_envs={num_envs}; expected at least 1")
    for name in [*_TASKS, *_outside()]:
        entry = get_task(name)
        if type(config) is entry.config_class:
            if events and not isinstance(config, SimConfig):
                raise ConfigError(f"task {name!r} is not simulated here: no events can happen in it")
            return entry.factory(config, num_envs, events) if events else entry.factory(config, num_envs)
    given = repr(config) if isinstance(config, str) else type(config).__name__
    expected = ", ".join(f"{get_task(n).config_class.__name__} ({n})" for n in task_names())
    raise ConfigError(f"no task takes {given} as its settings; expected one of: {expected}")


def _known() -> dict[str, Any]:
    return {**_outside(), **_TASKS}


@cache
def _outside() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=_GROUP)}
