"""Objects of several shapes: every world has one of them, the others are hidden inside it."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.naming import listed, spec_bodies
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.spread import Source, Spread
from visuomotor.envs.sim.world import World, find
from visuomotor.envs.sim.written import Written

__all__ = ["SHAPES", "Shape"]

SHAPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
    "ellipsoid": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
}
_HIDDEN = 1e-3  # size of what is not there; engines cannot take a geom out of one world
_COPIED = ("pos", "quat", "contype", "conaffinity", "condim", "priority", "friction", "solmix", "solref", "solimp",
           "margin", "gap", "group", "rgba", "material")  # fmt: skip


class Shape(Event):
    """Gives bodies that are made of one primitive geom another shape, within the same box and of the same mass.

    Shapes that a world does not have are a thousandth of their size, in the middle of the one it has, and invisible.

    Args:
        names: patterns of bodies.
        shapes: of :data:`SHAPES`, to choose from, all equally likely; the one that the bodies have is among them.
        optional: names may match nothing.
        when: ``startup`` or ``reset``.

    Attributes:
        spread: of the number of the shape.

    Raises:
        ConfigError: an unknown shape, fewer than two, or a body that is made of something else.
    """

    changes_constants, changes_state = True, True

    def __init__(
        self, names: Sequence[str], shapes: Sequence[str], *, optional: bool = False, when: str = "reset"
    ) -> None:
        for shape in shapes:
            if shape not in SHAPES:
                raise ConfigError(f"shape: unknown shape {shape!r}. {nearest(shape, SHAPES)}")
        if len(set(shapes)) < 2:
            raise ConfigError(f"shape: shapes={list(shapes)}; expected two different ones or more")
        self.names, self.shapes = listed(names, "shape"), tuple(dict.fromkeys(shapes))
        self.optional, self.when = optional, when
        self.spread = Spread(operation="=", distribution="choice", values=tuple(map(float, range(len(self.shapes)))))
        self.source: Source = self.spread
        self._made: dict[str, list[tuple[str, np.ndarray]]] = {}  # {body: [geom, inertia of a mass of 1] a shape}

    def prepare(self, scene: mujoco.MjSpec) -> None:
        for body in spec_bodies(scene, self.names):
            geoms, own = body.geoms, [SHAPES[s] for s in self.shapes]
            if len(geoms) != 1 or geoms[0].type not in own:
                made_of = ", ".join(_name(g.type) for g in geoms) or "nothing"
                raise ConfigError(
                    f"shape: body {body.name!r} is made of {made_of}; expected one geom, of {', '.join(self.shapes)}"
                )
            self._made[body.name] = [_option(body, geoms[0], shape) for shape in self.shapes]
        if not self._made and not self.optional:
            raise ConfigError(f"shape: no body {', '.join(self.names)}. {nearest(self.names[0], _named(scene))}")

    def bind(self, world: World) -> None:
        sim, m = world.sim, world.sim.model
        geoms = [[find(m, "geom", name) for name, _ in made] for made in self._made.values()]
        bodies = [find(m, "body", name) for name in self._made]
        self._geoms = [g for group in geoms for g in group]
        if not bodies:
            return

        def index(ids: Sequence[int]) -> Tensor:
            return torch.tensor(ids, dtype=torch.int64, device=sim.device)

        self._size, self._alpha = (
            Written(sim, "geom_size", slice(None), index(self._geoms)), Written(sim, "geom_rgba", 3, index(self._geoms))
        )  # fmt: skip
        self._inertia = Written(sim, "body_inertia", slice(None), index(bodies))
        unit = np.array([[inertia for _, inertia in made] for made in self._made.values()])
        self._unit = torch.tensor(unit, device=sim.device, dtype=sim.dtype)  # [bodies, shapes, 3]
        self._body_index = index(bodies)
        self._body_mass = sim.model_field("body_mass")

    def written(self) -> list[Written]:
        return [self._size, self._alpha, self._inertia] if self._geoms else []

    def apply(self, worlds: Selection, draws: Draws) -> None:
        if not self._geoms:
            return
        bodies, shapes, _ = self._unit.shape
        choice = self.source.draw(draws, (bodies,), worlds).long()  # [n, bodies]
        there = choice[..., None] == torch.arange(shapes, device=choice.device)  # [n, bodies, shapes]
        seen = there.flatten(1)
        self._size.put(worlds, self._size.base(worlds) * torch.where(seen, 1.0, _HIDDEN)[..., None])
        self._alpha.put(worlds, self._alpha.base(worlds) * seen)
        mass = worlds.take(self._body_mass)[:, self._body_index]
        self._inertia.put(worlds, mass[..., None] * (self._unit * there[..., None]).sum(2))


def _named(scene: mujoco.MjSpec) -> list[str]:
    return [b.name for b in scene.bodies if b.name]


def _name(kind: mujoco.mjtGeom) -> str:
    return mujoco.mjtGeom(kind).name.removeprefix("mjGEOM_").lower()


def _option(body: mujoco.MjsBody, geom: mujoco.MjsGeom, shape: str) -> tuple[str, np.ndarray]:
    """The geom of a shape, made where the body does not have it, and its moments of inertia for a mass of 1 kg."""
    geom.name = geom.name or f"{body.name}:0"
    kind, size = SHAPES[shape], _size(_name(geom.type), np.array(geom.size), shape)
    alone = mujoco.MjSpec()
    alone.worldbody.add_body().add_geom(type=kind, size=size, mass=1.0)
    inertia = np.array(alone.compile().body_inertia[1])
    if kind == geom.type:
        return geom.name, inertia
    name = f"{geom.name}@{shape}"
    body.add_geom(name=name, type=kind, size=size, mass=0.0, **{k: getattr(geom, k) for k in _COPIED})
    return name, inertia


def _size(old: str, size: np.ndarray, new: str) -> np.ndarray:
    """``geom_size`` of a shape that fits into the box around another one."""
    x, y, z = {
        "sphere": lambda: (size[0],) * 3,
        "cylinder": lambda: (size[0], size[0], size[1]),
        "capsule": lambda: (size[0], size[0], size[0] + size[1]),
    }.get(old, lambda: tuple(size))()
    if old == new:
        return size
    r = min(x, y)
    fitted = {
        "sphere": (min(r, z), 0.0, 0.0),
        "cylinder": (r, z, 0.0),
        "capsule": (min(r, 0.9 * z), z - min(r, 0.9 * z), 0.0),
    }
    return np.array(fitted.get(new, (x, y, z)))
