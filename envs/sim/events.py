"""Events: what happens to worlds besides the policy's actions. Randomisation is a list of them, built elsewhere.

An event names once, when it is bound, what it acts on; then it is applied to selected worlds at its time: at *startup*
(once, before the first episode), at every *reset* (after the task has placed its objects), at the *beginning* of an
episode (after the reset, when everything has its place and the controls are at rest: the whole state may be replaced)
or at *intervals* of random length while an episode runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import mujoco
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.written import Written, chain

if TYPE_CHECKING:
    from visuomotor.envs.sim.world import World

__all__ = ["WHEN", "Event", "EventSchedule", "Gather"]

Gather = Callable[[Tensor], Tensor]
_ACT, _SENSE = 1 << 16, 1 << 17  # domains of random numbers, beyond those of interval events
WHEN = ("startup", "reset", "beginning", "interval")


class Event(ABC):
    """Something that happens to worlds.

    Attributes:
        when: one of :data:`WHEN`.
        interval: shortest and longest time [s] between two applications in one world, for ``when="interval"``.
        changes_constants: it writes model fields that ``set_const`` reads; the schedule calls that, and computes
            outputs anew, afterwards.
        changes_state: it writes state (``qpos`` …), so outputs are computed anew afterwards.
        watches: it wants to see how control steps end.
        acts: it changes actions on their way to the controls.
        senses: it changes what the worlds show.
    """

    when: str = "reset"
    interval: tuple[float, float] = (0.0, 0.0)
    changes_constants: bool = False
    changes_state: bool = False
    watches: bool = False
    acts: bool = False
    senses: bool = False

    def prepare(self, scene: mujoco.MjSpec) -> None:  # noqa: B027  (most events need nothing)
        """Change the scene before it is compiled, where the event needs room in the model."""

    @abstractmethod
    def bind(self, world: World) -> None:
        """Look names up and take the fields it writes.

        Raises:
            ConfigError: a body, joint, geom or actuator that does not exist, with the nearest names.
        """

    @abstractmethod
    def apply(self, worlds: Selection, draws: Draws) -> None:
        """Act on the worlds, with random numbers from ``draws`` alone. Model fields are set from nominal values."""

    def written(self) -> Sequence[Written]:
        """Model fields that it sets from nominal values, once it is bound."""
        return ()

    def watch(self, success: Tensor, ended: Tensor) -> None:  # noqa: B027
        """After each control step, if it ``watches``: where the goal holds, where an episode ended; bool ``[N]``."""

    def adapt(self, env_steps: int, gather: Gather) -> None:  # noqa: B027
        """Between two updates of a policy that learns in these worlds: change what later episodes are like.

        Args:
            env_steps: control steps done so far, of the worlds of all processes.
            gather: rows ``[n, ...]`` of all processes one after another; all call it alike, with the same ``n``.
        """

    def act(self, action: Tensor, given: Tensor | None, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """What the controls get instead of ``action [N, Da]``, once a control step, if it ``acts``.

        Args:
            given: bool ``[N]``, the worlds in which there is an action at all; None: in all.
            draws: of all worlds, for this step.

        Returns:
            the action, and in which worlds there still is one: elsewhere the controls keep their targets.
        """
        return action, given

    def sense(self, obs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """What is shown instead of some of ``obs``, if it ``senses``: fresh tensors ``{key: [N, ...]}``.

        It may be called several times for one state (a reset shows all worlds again): for the same episodes, at the
        same ``world.elapsed``, it must give the same and keep the same.

        Args:
            draws: of all worlds, for this step.
        """
        return {}

    def adds(self) -> dict[str, ArraySpec]:
        """Observations that it adds to those of the task, by key, once it is bound."""
        return {}

    def observe(self) -> dict[str, Tensor]:
        """What :meth:`adds` announces, ``{key: [N, ...]}``; fresh tensors."""
        return {}

    def buffers(self) -> dict[str, Tensor]:
        """Live tensors that a snapshot has to hold."""
        return {}

    def report(self) -> dict[str, float]:
        """What is worth plotting while a policy is trained."""
        return {}


class EventSchedule:
    """Applies events at their times.

    Args:
        events: in the order in which they are applied.
        world: what they are bound to.
        dt: duration of a control step [s].

    Raises:
        ConfigError: an event with an unknown time, an empty interval, or unknown names; two that set the same model
            fields at different times.
    """

    def __init__(self, events: Sequence[Event], world: World, dt: float) -> None:
        self._world, self._dt = world, dt
        for e in events:
            if e.when not in WHEN:
                raise ConfigError(f"{type(e).__name__}: unknown time {e.when!r}. {nearest(e.when, WHEN)}")
            if e.when == "interval" and not 0 < e.interval[0] <= e.interval[1]:
                raise ConfigError(
                    f"{type(e).__name__}: interval {e.interval} [s]; expected two positive numbers, the shorter first"
                )
            e.bind(world)
        chain(events, world.sim)
        self.obs_spec: dict[str, ArraySpec] = {}
        self._observing = [e for e in events if e.adds()]
        for e in self._observing:
            self.obs_spec |= e.adds()
        self._events, self._watching = list(events), [e for e in events if e.watches]
        self._at: dict[str, list[Event]] = {w: [e for e in events if e.when == w] for w in WHEN}
        self._acting = [(_ACT + i, e) for i, e in enumerate(events) if e.acts]
        self._sensing = [(_SENSE + i, e) for i, e in enumerate(events) if e.senses]
        n, device = world.sim.num_envs, world.sim.device
        self._everyone = Selection.all(n, device)
        self._due = [torch.zeros(n, dtype=torch.int64, device=device) for _ in self._at["interval"]]

    def startup(self, draws: Draws) -> None:
        """Once, on all worlds."""
        self._apply(self._at["startup"], Selection.all(self._world.sim.num_envs, self._world.sim.device), draws)

    def reset(self, worlds: Selection, draws: Draws) -> None:
        """At the beginning of episodes; the caller computes outputs afterwards."""
        self._apply(self._at["reset"], worlds, draws)
        for e, due in zip(self._at["interval"], self._due, strict=True):
            worlds.put(due, self._wait(e, draws))

    def begin(self, worlds: Selection, draws: Draws) -> None:
        """When everything else of a reset is done."""
        events = self._at["beginning"]
        self._apply(events, worlds, draws)
        if any(e.changes_state or e.changes_constants for e in events):
            self._world.sim.forward(worlds)

    def watch(self, success: Tensor, ended: Tensor) -> None:
        """After each control step."""
        for e in self._watching:
            e.watch(success, ended)

    def adapt(self, env_steps: int, gather: Gather) -> None:
        """Between two updates of a policy."""
        for e in self._events:
            e.adapt(env_steps, gather)

    def interval(self, elapsed: Tensor, active: Tensor | None = None) -> None:
        """Before a control step of the ``active [N]`` worlds: whatever is due after ``elapsed [N]`` steps."""
        for i, (e, due) in enumerate(zip(self._at["interval"], self._due, strict=True)):
            is_due = due <= elapsed
            worlds = Selection(is_due if active is None else is_due & active)
            if worlds.is_empty:
                continue
            draws = self._world.random.draws(worlds, 1 + i, elapsed)
            self._apply([e], worlds, draws)
            worlds.put(due, worlds.take(elapsed) + self._wait(e, draws))
            if e.changes_state or e.changes_constants:
                self._world.sim.forward(worlds)

    def act(self, action: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the controls get, and in which worlds; see :meth:`Event.act`."""
        given = active
        for domain, e in self._acting:
            action, given = e.act(action, given, self._draws(domain))
        return action, given if active is None or given is None else given & active

    def sense(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is shown instead of ``obs``."""
        for domain, e in self._sensing:
            obs = obs | e.sense(obs, self._draws(domain))
        return obs

    def observe(self) -> dict[str, Tensor]:
        """What events add to the observations of the task; ``obs_spec`` says what that is."""
        return {k: v for e in self._observing for k, v in e.observe().items()}

    def buffers(self) -> dict[str, Tensor]:
        """When interval events are next due, and what events keep: live, for snapshots."""
        own = {f"{i}.{k}": v for i, e in enumerate(self._events) for k, v in e.buffers().items()}
        return {f"due{i}": due for i, due in enumerate(self._due)} | own

    def report(self) -> dict[str, float]:
        """What events have to say while a policy is trained."""
        return {k: v for e in self._events for k, v in e.report().items()}

    def _apply(self, events: Sequence[Event], worlds: Selection, draws: Draws) -> None:
        for e in events:
            e.apply(worlds, draws)
        if any(e.changes_constants for e in events):
            self._world.sim.set_const(worlds)

    def _draws(self, domain: int) -> Draws:
        assert self._world.elapsed is not None
        return self._world.random.draws(self._everyone, domain, self._world.elapsed)

    def _wait(self, event: Event, draws: Draws) -> Tensor:
        low, high = event.interval
        return (draws.uniform((), low, high) / self._dt).round().clamp_(min=1).long()
