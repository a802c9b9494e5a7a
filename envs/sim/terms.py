"""Physics that differs from world to world: events that set model fields, and pushes.

A :class:`ModelTerm` draws one number for each thing it names (or one for all of them) and sets a *quantity* from its
nominal value: ``nominal * x``, ``nominal + x`` or ``x``. Values are never taken from what is there, so that nothing
compounds over resets, and a range that is a point changes nothing. Quantities write every field that belongs together:
a mass scales its inertia, a gain its feedback term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import mujoco
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.quantities import QUANTITIES
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection, constant
from visuomotor.envs.sim.spread import Source, Spread
from visuomotor.envs.sim.world import World, names_of

__all__ = ["JointOffset", "ModelTerm", "Push", "matching"]


def matching(world: World, kind: str, patterns: Sequence[str]) -> list[str]:
    """Names of a kind that match shell patterns (``robot/link*``), in the model's order.

    Raises:
        ConfigError: a pattern that matches nothing; the nearest names are given.
    """
    names = [n for n in names_of(world.sim.model, kind) if n]
    for p in patterns:
        if not any(fnmatchcase(n, p) for n in names):
            raise ConfigError(f"the model has no {kind} {p!r}. {nearest(p, names)}")
    return [n for n in names if any(fnmatchcase(n, p) for p in patterns)]


def _listed(names: Sequence[str], who: str) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ConfigError(f"{who}: names={names!r}; expected a list of names or patterns: [{names!r}]")
    return tuple(names)


class ModelTerm(Event):
    """Varies a quantity of named things.

    Args:
        quantity: one of :data:`~visuomotor.envs.sim.quantities.QUANTITIES`.
        names: shell patterns of bodies, geoms, joints or actuators; not for ``gravity``.
        spread: how.
        shared: one number for all the things of a world, instead of one each.
        when: ``startup`` or ``reset``.

    Attributes:
        source: where its numbers come from: its spread, unless a curriculum puts something else here before it is
            bound. What it draws must lie within the spread.

    Raises:
        ConfigError: an unknown quantity, or a spread that gives values which are negative or 0 where they must not be.
    """

    def __init__(
        self, quantity: str, names: Sequence[str], spread: Spread, *, shared: bool = False, when: str = "reset"
    ) -> None:
        if quantity not in QUANTITIES:
            raise ConfigError(f"unknown quantity {quantity!r}. {nearest(quantity, QUANTITIES)}")
        self.quantity, self.names = quantity, _listed(names, quantity)
        self.spread, self.shared, self.when = spread, shared, when
        self.source: Source = spread
        self._q = QUANTITIES[quantity]
        self.changes_constants = self._q.constants
        self._things = 0
        self._writes: list[Callable[[Selection, Tensor], None]] = []

    def prepare(self, scene: mujoco.MjSpec) -> None:
        """Make room in the scene for what will vary: buffers of delayed actuators, bodies whose centre moves."""
        if self.quantity == "center_of_mass":
            for body in scene.bodies:  # a simple body's inertia is stored in a form that needs its centre at its origin
                if any(fnmatchcase(body.name, p) for p in self.names):
                    body.simple = False
        if self.quantity == "actuator_delay":
            for a in scene.actuators:
                if any(fnmatchcase(a.name, p) for p in self.names):
                    longest = float(self.spread.act(torch.tensor(float(a.delay)), torch.tensor(self.spread.largest)))
                    a.nsample = max(int(a.nsample), math.ceil(longest / scene.option.timestep) + 2)

    def bind(self, world: World) -> None:
        index = self._index(world)
        self._things = 1 if index is None else index.shape[0]
        nominal = _part(world.sim.nominal(self._q.main[0])[None], self._q.main[1])[0]
        nominal = nominal if index is None else nominal[index]
        self._refuse(nominal)
        field, part = self._q.main
        live = _part(world.sim.model_field(field), part)
        self._writes = [_writer(live, index, lambda number: self.spread.act(nominal, number))]
        for field, part in self._q.follow:
            other = _part(world.sim.nominal(field)[None], part)[0]
            other = other if index is None else other[index]
            live = _part(world.sim.model_field(field), part)
            self._writes.append(_writer(live, index, _scaled(other, nominal, self.spread)))

    def apply(self, worlds: Selection, draws: Draws) -> None:
        shape = self._shape()
        number = self.source.draw(draws, shape, worlds)
        for write in self._writes:
            write(worlds, number)

    def _shape(self) -> tuple[int, ...]:
        """Of the numbers of one world, such that they broadcast against ``[things, components]``."""
        vector = isinstance(self._q.main[1], slice)
        things = 1 if self.shared else self._things
        if not vector:
            return (things,)
        return (3,) if self._q.kind == "option" else (things, 3)

    def _index(self, world: World) -> Tensor | None:
        kind, device = self._q.kind, world.sim.device
        if kind == "option":
            if self.names:
                raise ConfigError(f"{self.quantity} belongs to the whole world; expected no names, not {self.names}")
            return None
        if not self.names:
            raise ConfigError(f"{self.quantity}: no names; expected names or patterns of a {kind}")
        m, all_names = world.sim.model, names_of(world.sim.model, kind)
        ids = [all_names.index(n) for n in matching(world, kind, self.names)]
        if self.quantity == "force_limit" and (free := [all_names[i] for i in ids if not m.actuator_forcelimited[i]]):
            raise ConfigError(f"force_limit: {', '.join(free)} have none; expected actuators with a force limit")
        if kind == "joint":
            moving = (mujoco.mjtJoint.mjJNT_HINGE.value, mujoco.mjtJoint.mjJNT_SLIDE.value)
            for i in ids:
                if m.jnt_type[i] not in moving:
                    raise ConfigError(
                        f"{self.quantity}: joint {all_names[i]!r} is free or a ball; expected a hinge or slide"
                    )
            ids = [int(m.jnt_dofadr[i]) for i in ids]
        return torch.tensor(ids, device=device)

    def _refuse(self, nominal: Tensor) -> None:
        least = float(self.spread.act(nominal, torch.full_like(nominal, self.spread.smallest)).min())
        if (self._q.positive and least <= 0) or (self._q.never_negative and least < 0):
            raise ConfigError(
                f"{self.quantity} of {', '.join(self.names)} would reach {least:g} {self._q.unit}; expected "
                f"{'more than 0' if self._q.positive else '0 or more'}"
            )


def _part(field: Tensor, part: slice | int | None) -> Tensor:
    return field if part is None else field[..., part]


def _scaled(other: Tensor, nominal: Tensor, spread: Spread) -> Callable[[Tensor], Tensor]:
    """A field that follows the main one by the same factor; where the nominal value is 0 it stays."""

    def value(number: Tensor) -> Tensor:
        new = spread.act(nominal, number)
        factor = torch.where(nominal != 0, new / torch.where(nominal != 0, nominal, 1.0), 1.0)
        return other * (factor if factor.ndim > other.ndim else factor[..., None])

    return value


def _writer(
    live: Tensor, index: Tensor | None, value: Callable[[Tensor], Tensor]
) -> Callable[[Selection, Tensor], None]:
    def write(worlds: Selection, number: Tensor) -> None:
        new = value(number.to(live.dtype))
        worlds.put(live, new, index)

    return write


class JointOffset(Event):
    """Starts episodes with joints away from where the reset puts them, within their limits.

    Args:
        names: shell patterns of hinge and slide joints.
        spread: with the operation ``+``: offset [rad or m], one a joint.
    """

    changes_state = True

    def __init__(self, names: Sequence[str], spread: Spread) -> None:
        if spread.operation != "+":
            raise ConfigError(f"JointOffset: operation {spread.operation!r}; expected '+'")
        self.names, self.spread = _listed(names, "JointOffset"), spread
        self.source: Source = spread
        if not self.names:
            raise ConfigError("JointOffset: no names; expected names or patterns of joints")

    def bind(self, world: World) -> None:
        self._joints = world.joints(matching(world, "joint", self.names))

    def apply(self, worlds: Selection, draws: Draws) -> None:
        j = self._joints
        offset = self.source.draw(draws, (len(j.names),), worlds)
        j.set_pos(worlds, torch.clamp(worlds.take(j.pos()) + offset, j.low, j.high))


class Push(Event):
    """Now and then gives a free body a change of velocity, as if it were hit.

    Args:
        body: its name.
        linear: largest change in each direction [m/s].
        angular: largest change about each axis [rad/s].
        interval: shortest and longest time between two pushes [s].
    """

    when = "interval"
    changes_state = True

    def __init__(self, body: str, *, linear: float, angular: float = 0.0, interval: tuple[float, float]) -> None:
        if not (0 <= linear < math.inf and 0 <= angular < math.inf):
            raise ConfigError(f"Push: linear={linear}, angular={angular}; expected finite numbers, 0 or more")
        self.body, self.linear, self.angular, self.interval = body, linear, angular, interval

    def bind(self, world: World) -> None:
        self._body = world.free_body(self.body)

    def apply(self, worlds: Selection, draws: Draws) -> None:
        change = draws.uniform((6,), -1.0, 1.0)
        scale = constant((self.linear,) * 3 + (self.angular,) * 3, change.device)
        self._body.add_velocity(worlds, change * scale)
