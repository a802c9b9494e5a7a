"""Physics that differs from world to world: events that set model fields, and pushes.

A :class:`ModelTerm` draws one number for each thing it names (or one for all of them) and sets a *quantity* from its
nominal value: ``nominal * x``, ``nominal + x`` or ``x``. Values are never taken from what is there, so that nothing
compounds over resets, and a range that is a point changes nothing. Quantities write every field that belongs together:
a mass scales its inertia, a gain its feedback term.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import mujoco
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.sim.arrays import namespace, tensor, words
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.naming import labels, listed, matching, spec_bodies
from visuomotor.envs.sim.quantities import QUANTITIES, Quantity
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection, constant
from visuomotor.envs.sim.spread import Source, Spread
from visuomotor.envs.sim.world import World
from visuomotor.envs.sim.written import Written

__all__ = ["JointOffset", "ModelTerm", "Push"]

_DELAYS = {"actuator_delay": "actuators", "sensor_delay": "sensors"}
_SHAPELESS = {t.value for t in (mujoco.mjtGeom.mjGEOM_MESH, mujoco.mjtGeom.mjGEOM_HFIELD, mujoco.mjtGeom.mjGEOM_SDF)}


class ModelTerm(Event):
    """Varies a quantity of named things.

    Args:
        quantity: one of :data:`~visuomotor.envs.sim.quantities.QUANTITIES`.
        names: patterns of what has the quantity (see :func:`~visuomotor.envs.sim.naming.matching`); none for
            ``gravity``.
        spread: how.
        shared: one number for all the things of a world, instead of one each.
        optional: names may match nothing.
        when: ``startup``, ``reset`` or ``interval``.

    Attributes:
        source: where its numbers come from: its spread, unless a curriculum puts something else here before it is
            bound. What it draws must lie within the spread.

    Raises:
        ConfigError: an unknown quantity, or a spread that gives values which the quantity cannot have.
    """

    def __init__(
        self, quantity: str, names: Sequence[str], spread: Spread, *, shared: bool = False, optional: bool = False,
        when: str = "reset",
    ) -> None:  # fmt: skip
        if quantity not in QUANTITIES:
            raise ConfigError(f"unknown quantity {quantity!r}. {nearest(quantity, QUANTITIES)}")
        self.quantity, self.names = quantity, listed(names, quantity)
        self.spread, self.shared, self.optional, self.when = spread, shared, optional, when
        self.source: Source = spread
        self._q = QUANTITIES[quantity]
        if spread.operation not in self._q.operations:
            raise ConfigError(f"{quantity}: operation {spread.operation!r}; expected {' or '.join(self._q.operations)}")
        self.changes_constants = self._q.constants
        self._shape: tuple[int, ...] = ()  # of the numbers of one world
        self._main: Written | None = None
        self._follow: list[Written] = []

    def prepare(self, scene: mujoco.MjSpec) -> None:
        """Make room in the scene for what will vary: buffers of delays, bodies whose centre moves."""
        if self.quantity == "center_of_mass":
            for body in spec_bodies(scene, self.names):
                body.simple = False  # else its inertia is stored in a form that needs its centre at its origin
        for thing in getattr(scene, _DELAYS[self.quantity]) if self.quantity in _DELAYS else ():
            if any(fnmatchcase(thing.name, p) for p in self.names):
                ends = torch.tensor([self.spread.smallest, self.spread.largest])
                longest = float(self.spread.act(torch.tensor(float(thing.delay)), ends).max())
                thing.nsample = max(int(thing.nsample), math.ceil(longest / scene.option.timestep) + 2)

    def bind(self, world: World) -> None:
        q, sim = self._q, world.sim
        index = _index(world, self.quantity, q, self.names, optional=self.optional)
        self._main, self._follow = None, []
        if index is not None and not len(index):
            return
        self._main = Written(sim, *q.main, index)
        self._follow = [Written(sim, *part, index) for part in q.follow]
        nominal = self._main.nominal
        components = nominal.shape[-1:] if isinstance(q.main[1], slice) else ()
        things = () if index is None else (1 if self.shared else len(index),)
        self._shape = (*things, *(components if q.vector else (1,) * len(components)))
        self._refuse(nominal)

    def written(self) -> list[Written]:
        return [] if self._main is None else [self._main, *self._follow]

    def apply(self, worlds: Selection, draws: Draws) -> None:
        main, q = self._main, self._q
        if main is None:
            return
        number = self.source.draw(draws, self._shape, worlds).to(main.nominal.dtype)
        base, number = words(main.base(worlds)), words(number)
        new = self.spread.act(base, number)
        for other in self._follow:
            where = namespace(base).where
            factor = where(base != 0, new / where(base != 0, base, 1.0), 1.0)  # where that is 0, it stays
            wider = isinstance(other.part, slice) and not isinstance(main.part, slice)
            other.put(worlds, words(other.base(worlds)) * (factor[..., None] if wider else factor))
        new = new if q.stored is None else q.stored(tensor(new))
        main.put(worlds, new if q.clamp is None else new.clip(*q.clamp))

    def _refuse(self, nominal: Tensor) -> None:
        """Values out of bounds; where a product is taken with 0, nothing changes."""
        q, s = self._q, self.spread
        nominal = nominal[nominal != 0] if s.operation == "*" else nominal.flatten()
        if not len(nominal):
            return
        ends = torch.stack([s.act(nominal, torch.full_like(nominal, x)) for x in (s.smallest, s.largest)])
        low, high = float(ends.min()), float(ends.max())
        low_is_wrong = low <= q.above or low < q.least
        if low_is_wrong or high >= q.below:
            least = f"more than {q.above:g}" if math.isfinite(q.above) else f"{q.least:g} or more"
            limits = [least] + ([f"less than {q.below:g}"] if math.isfinite(q.below) else [])
            raise ConfigError(
                f"{self.quantity} of {', '.join(self.names)} would reach {low if low_is_wrong else high:g}"
                f"{' ' + q.unit if q.unit else ''}; expected {' and '.join(limits)}"
            )


def _index(world: World, quantity: str, q: Quantity, names: Sequence[str], *, optional: bool) -> Tensor | None:
    """Rows of the fields of the named things; None where the world itself has the quantity."""
    if q.kind == "option":
        if names:
            raise ConfigError(f"{quantity} belongs to the whole world; expected no names, not {tuple(names)}")
        return None
    if not names:
        raise ConfigError(f"{quantity}: no names; expected names or patterns of a {q.kind}")
    m, known = world.sim.model, labels(world.sim.model, q.kind)
    ids = matching(m, q.kind, names, optional=optional)
    if q.flag is not None and (without := [known[i] for i in ids if not getattr(m, q.flag)[i]]):
        raise ConfigError(f"{quantity}: {', '.join(without)} have none; expected {q.kind}s that have one")
    if quantity == "geom_size" and (meshes := [known[i] for i in ids if int(m.geom_type[i]) in _SHAPELESS]):
        raise ConfigError(f"geom_size: {', '.join(meshes)} are meshes, whose size cannot vary; expected primitives")
    if q.kind == "joint":
        moving = (mujoco.mjtJoint.mjJNT_HINGE.value, mujoco.mjtJoint.mjJNT_SLIDE.value)
        for i in ids:
            if m.jnt_type[i] not in moving:
                raise ConfigError(f"{quantity}: joint {known[i]!r} is free or a ball; expected a hinge or slide")
        ids = ids if q.per_joint else [int(m.jnt_dofadr[i]) for i in ids]
    return torch.tensor(ids, dtype=torch.int64, device=world.sim.device)


class JointOffset(Event):
    """Starts episodes with joints away from where the reset puts them, within their limits.

    Args:
        names: patterns of hinge and slide joints.
        spread: with the operation ``+``: offset [rad or m], one a joint.
        optional: names may match nothing.
    """

    changes_state = True

    def __init__(self, names: Sequence[str], spread: Spread, *, optional: bool = False) -> None:
        if spread.operation != "+":
            raise ConfigError(f"JointOffset: operation {spread.operation!r}; expected '+'")
        self.names, self.spread, self.optional = listed(names, "JointOffset"), spread, optional
        self.source: Source = spread
        if not self.names:
            raise ConfigError("JointOffset: no names; expected names or patterns of joints")

    def bind(self, world: World) -> None:
        known = labels(world.sim.model, "joint")
        ids = matching(world.sim.model, "joint", self.names, optional=self.optional)
        self._joints = world.joints([known[i] for i in ids]) if ids else None

    def apply(self, worlds: Selection, draws: Draws) -> None:
        j = self._joints
        if j is not None:
            offset = self.source.draw(draws, (len(j.names),), worlds)
            j.set_pos(worlds, torch.clamp(worlds.take(j.pos()) + offset, j.low, j.high))


class Push(Event):
    """Now and then gives free bodies a change of velocity, as if they were hit.

    Args:
        names: patterns of bodies on a free joint, or one name.
        linear: largest change in each direction [m/s].
        angular: largest change about each axis [rad/s].
        interval: shortest and longest time between two pushes [s].
        optional: names may match nothing.
    """

    when = "interval"
    changes_state = True

    def __init__(
        self, names: str | Sequence[str], *, linear: float, angular: float = 0.0, interval: tuple[float, float],
        optional: bool = False,
    ) -> None:  # fmt: skip
        if not (0 <= linear < math.inf and 0 <= angular < math.inf):
            raise ConfigError(f"Push: linear={linear}, angular={angular}; expected finite numbers, 0 or more")
        self.names = (names,) if isinstance(names, str) else tuple(names)
        self.linear, self.angular, self.interval, self.optional = linear, angular, interval, optional

    def bind(self, world: World) -> None:
        known = labels(world.sim.model, "body")
        ids = matching(world.sim.model, "body", self.names, optional=self.optional)
        self._bodies = [world.free_body(known[i]) for i in ids]

    def apply(self, worlds: Selection, draws: Draws) -> None:
        scale = constant((self.linear,) * 3 + (self.angular,) * 3, draws.device)
        for body in self._bodies:
            body.add_velocity(worlds, draws.uniform((6,), -1.0, 1.0) * scale)
