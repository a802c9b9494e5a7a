"""Objects that are larger or smaller than nominal, with the mass and inertia that belong to it."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import quat_to_matrix
from visuomotor.envs.sim.arrays import namespace, tensor, words
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.naming import labels, listed, matching
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.spread import Source, Spread
from visuomotor.envs.sim.world import World
from visuomotor.envs.sim.written import Written

__all__ = ["ObjectSize"]

_PRIMITIVES = {
    t.value
    for t in (
        mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_ELLIPSOID,
        mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_BOX,
    )
}  # fmt: skip
_FREE = mujoco.mjtJoint.mjJNT_FREE.value


class ObjectSize(Event):
    """Scales bodies with their geoms in all directions alike.

    A body on a free joint is raised or lowered by what its lowest point moves, so that one that lay on a table does so
    still. What hangs on a body by a joint keeps its place and size.

    Args:
        names: patterns of bodies made of primitive geoms.
        spread: of the factor, with the operation ``*``.
        density: the mass grows with the volume; otherwise it stays.
        shared: the same factor for all bodies of a world.
        optional: names may match nothing.

    Raises:
        ConfigError: another operation, a range that reaches 0, or a body with a mesh.
    """

    changes_constants, changes_state = True, True

    def __init__(
        self, names: Sequence[str], spread: Spread, *, density: bool = True, shared: bool = False,
        optional: bool = False,
    ) -> None:  # fmt: skip
        if spread.operation != "*" or spread.smallest <= 0:
            raise ConfigError(
                f"object_size: {spread.operation}{spread.smallest:g}; expected the operation '*' and factors above 0"
            )
        self.names, self.spread, self.density = listed(names, "object_size"), spread, density
        self.shared, self.optional = shared, optional
        self.source: Source = spread

    def bind(self, world: World) -> None:
        sim, m, known = world.sim, world.sim.model, labels(world.sim.model, "body")
        bodies = matching(m, "body", self.names, optional=self.optional)
        geoms = [g for g in range(m.ngeom) if int(m.geom_bodyid[g]) in bodies]
        if meshes := {known[int(m.geom_bodyid[g])] for g in geoms if int(m.geom_type[g]) not in _PRIMITIVES}:
            raise ConfigError(f"object_size: {', '.join(sorted(meshes))}: expected bodies made of primitive geoms")

        def index(ids: Sequence[int]) -> Tensor:
            return torch.tensor(ids, dtype=torch.int64, device=sim.device)

        self._bodies = len(bodies)
        self._owner = index([bodies.index(int(m.geom_bodyid[g])) for g in geoms])
        fields = (("geom_size", slice(None), geoms, 1), ("geom_pos", slice(None), geoms, 1),
                  ("body_ipos", slice(None), bodies, 1), ("body_mass", None, bodies, 3 if self.density else 0),
                  ("body_inertia", slice(None), bodies, 5 if self.density else 2))  # fmt: skip
        self._fields = [
            (Written(sim, name, part, index(ids)), ids is geoms, power) for name, part, ids, power in fields if ids
        ]
        free = [(b, int(m.body_jntadr[i])) for b, i in enumerate(bodies) if m.body_jntadr[i] >= 0]
        lifted = [(b, int(m.jnt_qposadr[j])) for b, j in free if m.jnt_type[j] == _FREE]
        self._qpos = sim.field("qpos")
        hulls = [_hull(world, [g for g in geoms if m.geom_bodyid[g] == body]) for body in bodies]
        self._lifted = [(b, adr, hulls[b]) for b, adr in lifted]

    def written(self) -> list[Written]:
        return [field for field, _, _ in self._fields]

    def apply(self, worlds: Selection, draws: Draws) -> None:
        if not self._bodies:
            return
        factor = self.source.draw(draws, (1 if self.shared else self._bodies,), worlds).expand(-1, self._bodies)
        factor, owner = words(factor.to(self._qpos.dtype)), words(self._owner)
        for field, of_geoms, power in self._fields:
            scale = (factor[:, owner] if of_geoms else factor) ** power
            base = words(field.base(worlds))
            field.put(worlds, base * (scale if field.part is None else scale[..., None]))
        for body, adr, hull in self._lifted:
            pose = words(worlds.take(self._qpos[:, adr : adr + 7]))
            heights = (quat_to_matrix(pose[:, 3:])[:, None, 2] * words(hull)).sum(-1)  # of the corners [n, k]
            raised = pose[:, 2:3] - (factor[:, body] - 1.0)[:, None] * namespace(heights).amin(heights, -1)[:, None]
            worlds.put(self._qpos, tensor(raised), slice(adr + 2, adr + 3))


def _hull(world: World, geoms: Sequence[int]) -> Tensor:
    """Corners ``[k, 3]`` of the boxes around geoms, in the frame of their body [m]."""
    m, corners = world.sim.model, []
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    for g in geoms:
        box = torch.tensor(m.geom_aabb[g])
        turn = quat_to_matrix(torch.tensor(m.geom_quat[g]))
        corners.append(torch.tensor(m.geom_pos[g]) + (box[:3] + signs * box[3:]) @ turn.T)
    hull = torch.cat(corners) if corners else torch.zeros(1, 3)
    return hull.to(world.sim.device, world.sim.dtype)
