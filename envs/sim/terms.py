"""Physics that differs from world to world: events that set model fields, and pushes.

A :class:`ModelTerm` draws one number for each thing it names (or one for all of them) and sets a *quantity* from its
nominal value: ``nominal * x``, ``nominal + x`` or ``x``. Values are never taken from what is there, so that nothing
compounds over resets, and a range that is a point changes nothing. Quantities write every field that belongs together:
a mass scales its inertia, a gain its feedback term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import mujoco
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection, constant
from visuomotor.envs.sim.world import World, names_of

__all__ = ["QUANTITIES", "JointOffset", "ModelTerm", "Push", "Spread", "matching"]

_OPERATIONS = ("*", "+", "=")
_DISTRIBUTIONS = ("uniform", "loguniform", "normal", "choice")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a number varies, and how it acts on a nominal value.

    Attributes:
        operation: ``*`` (times the nominal value), ``+`` (added to it) or ``=`` (instead of it).
        distribution: ``uniform`` or ``loguniform`` in ``low`` .. ``high``; ``normal`` about their middle, cut
            off at both, a quarter of their distance its standard deviation; or ``choice`` of ``values``.
        low, high: the range.
        values: for ``choice``.
    """

    operation: str = "*"
    distribution: str = "uniform"
    low: float = 1.0
    high: float = 1.0
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.operation not in _OPERATIONS:
            raise ConfigError(f"unknown operation {self.operation!r}; expected one of {', '.join(_OPERATIONS)}")
        if self.distribution not in _DISTRIBUTIONS:
            raise ConfigError(
                f"unknown distribution {self.distribution!r}. {nearest(self.distribution, _DISTRIBUTIONS)}"
            )
        if self.distribution == "choice":
            if not self.values:
                raise ConfigError("a choice of no values; expected at least one")
            return
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ConfigError(
                f"the range {self.low:g} .. {self.high:g}; expected two finite numbers, the smaller first"
            )
        if self.distribution == "loguniform" and self.low <= 0:
            raise ConfigError(f"a log-uniform range from {self.low:g}; expected more than 0")

    @property
    def smallest(self) -> float:
        """The smallest number that can be drawn."""
        return min(self.values) if self.distribution == "choice" else self.low

    @property
    def largest(self) -> float:
        """The largest number that can be drawn."""
        return max(self.values) if self.distribution == "choice" else self.high

    def draw(self, draws: Draws, shape: Sequence[int]) -> Tensor:
        """Numbers ``[n, *shape]``."""
        if self.distribution == "choice":
            table = constant(self.values, draws.device)
            return table[draws.integers(len(self.values), shape)]
        if self.distribution == "loguniform":
            return draws.uniform(shape, math.log(self.low), math.log(self.high)).exp().clamp(self.low, self.high)
        if self.distribution == "normal":
            middle, sigma = (self.low + self.high) / 2, (self.high - self.low) / 4
            return (middle + sigma * draws.normal(shape)).clamp(self.low, self.high)
        return draws.uniform(shape, self.low, self.high)

    def act(self, nominal: Tensor, number: Tensor) -> Tensor:
        """The value that ``number`` makes of ``nominal``."""
        if self.operation == "*":
            return nominal * number
        return nominal + number if self.operation == "+" else number + torch.zeros_like(nominal)


# What sets a quantity: (field, columns of its last axis or None, how the value enters).
_Part = tuple[str, slice | int | None]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A physical quantity of named things.

    Attributes:
        kind: ``body``, ``geom``, ``joint`` (hinges and slides, by degree of freedom), ``actuator`` or ``option``.
        main: the field that the drawn number acts on.
        follow: fields that are scaled by the same factor as the main one.
        positive: the value must stay above 0.
        never_negative: the value must stay at 0 or above.
        constants: :meth:`Simulator.set_const` has to run afterwards.
        unit: of the value.
    """

    kind: str
    main: _Part
    follow: tuple[_Part, ...] = ()
    positive: bool = False
    never_negative: bool = False
    constants: bool = False
    unit: str = ""


QUANTITIES: dict[str, Quantity] = {
    "mass": Quantity(
        kind="body", main=("body_mass", None), follow=(("body_inertia", slice(None)),), positive=True, constants=True,
        unit="kg",
    ),
    "center_of_mass": Quantity(kind="body", main=("body_ipos", slice(None)), constants=True, unit="m"),
    "friction": Quantity(kind="geom", main=("geom_friction", 0), positive=True),
    "contact_time": Quantity(kind="geom", main=("geom_solref", 0), positive=True, unit="s"),
    "damping": Quantity(kind="joint", main=("dof_damping", None), never_negative=True, unit="N s/m or N m s/rad"),
    "friction_loss": Quantity(kind="joint", main=("dof_frictionloss", None), never_negative=True, unit="N or N m"),
    "armature": Quantity(
        kind="joint", main=("dof_armature", None), never_negative=True, constants=True, unit="kg or kg m^2"
    ),
    "position_gain": Quantity(kind="actuator", main=("actuator_gainprm", 0), follow=(("actuator_biasprm", 1),)),
    "velocity_gain": Quantity(kind="actuator", main=("actuator_biasprm", 2)),
    "force_limit": Quantity(
        kind="actuator", main=("actuator_forcerange", 1), follow=(("actuator_forcerange", 0),), never_negative=True,
        unit="N or N m",
    ),
    "actuator_delay": Quantity(kind="actuator", main=("actuator_delay", None), never_negative=True, unit="s"),
    "gravity": Quantity(kind="option", main=("opt.gravity", slice(None)), unit="m/s^2"),
}  # fmt: skip
"""What a :class:`ModelTerm` can vary. ``velocity_gain`` is negative in MuJoCo's bias term: multiply it."""


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
        quantity: one of :data:`QUANTITIES`.
        names: shell patterns of bodies, geoms, joints or actuators; not for ``gravity``.
        spread: how.
        shared: one number for all the things of a world, instead of one each.
        when: ``startup`` or ``reset``.

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
        number = self.spread.draw(draws, shape)
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
        if not self.names:
            raise ConfigError("JointOffset: no names; expected names or patterns of joints")

    def bind(self, world: World) -> None:
        self._joints = world.joints(matching(world, "joint", self.names))

    def apply(self, worlds: Selection, draws: Draws) -> None:
        j = self._joints
        offset = self.spread.draw(draws, (len(j.names),))
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
