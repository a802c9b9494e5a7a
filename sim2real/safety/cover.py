"""Spheres that cover the geometry of an arm's model: what the checks for collisions see of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import mujoco
import numpy as np

__all__ = ["ancestors", "cover_arm", "cover_geom", "joints_of", "shapes_of"]

_CELL = 0.05  # boxes are cut into cells of about this edge, or of their thinnest side if that is more [m]
_CELLS = 6  # along one edge at most
_STRIDE = 1.5  # of the spheres along a capsule, in its radii: they stick out by a quarter of the radius


def shapes_of(model: mujoco.MjModel, body: int) -> list[int]:
    """Geoms that make the shape of a body: those that collide, or all where none does (links next to the base)."""
    first = int(model.body_geomadr[body])
    geoms = list(range(first, first + int(model.body_geomnum[body]))) if first >= 0 else []
    geoms = [g for g in geoms if model.geom_type[g] != mujoco.mjtGeom.mjGEOM_PLANE.value]
    solid = [g for g in geoms if model.geom_contype[g] or model.geom_conaffinity[g]]
    return solid or geoms


def cover_geom(model: mujoco.MjModel, geom: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres ``[K, 3]`` in the geom's own frame and radii ``[K]`` [m] of spheres that hold all of it."""
    kind, size = int(model.geom_type[geom]), np.asarray(model.geom_size[geom], dtype=np.float64)
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE.value:
        return np.zeros((1, 3)), size[:1]
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE.value:  # slabs of the cylinder; the end spheres hold the caps
        centres, radii = _slabs(size[0], size[1])
        ends = np.array([[0.0, 0.0, -size[1]], [0.0, 0.0, size[1]]])
        return np.concatenate([centres, ends]), np.concatenate([radii, [size[0], size[0]]])
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER.value:
        return _slabs(size[0], size[1])
    box = np.asarray(model.geom_aabb[geom], dtype=np.float64)  # of a mesh too: centre and half sizes
    return _cells(box[:3], box[3:])


def _slabs(radius: float, half: float) -> tuple[np.ndarray, np.ndarray]:
    """Of a cylinder along z: each sphere holds one slab of it."""
    count = max(1, math.ceil(2.0 * half / (_STRIDE * radius)))
    thick = 2.0 * half / count
    z = -half + thick * (np.arange(count) + 0.5)
    centres = np.stack([0.0 * z, 0.0 * z, z], 1)
    return centres, np.full(count, math.hypot(radius, thick / 2.0))


def _cells(centre: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a box: each sphere holds one cell of it."""
    edge = max(_CELL, 2.0 * float(half.min()))
    counts = [min(_CELLS, max(1, math.ceil(2.0 * h / edge - 1e-9))) for h in half]
    cell = 2.0 * half / np.array(counts)
    index = np.array(list(itertools.product(*(range(c) for c in counts))), dtype=np.float64)
    centres = centre - half + cell * (index + 0.5)
    return centres, np.full(len(centres), float(np.linalg.norm(cell)) / 2.0)


def ancestors(model: mujoco.MjModel, body: int) -> list[int]:
    """A body and all it hangs on, but for the world."""
    out = []
    while body:
        out.append(body)
        body = int(model.body_parentid[body])
    return out


def joints_of(model: mujoco.MjModel, body: int) -> list[int]:
    """Joints of one body."""
    first = int(model.body_jntadr[body])
    return list(range(first, first + int(model.body_jntnum[body]))) if first >= 0 else []


def cover_arm(
    model: mujoco.MjModel, ids: Sequence[int], frames: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spheres of every body on the arm's base. Other joints (fingers) stand at their reference and at both limits.

    Args:
        model: where the arm is, at its reference.
        ids: its joints, base first.
        frames: of the base, then of what moves with each joint: ``n + 1`` of ``[4, 4]``.

    Returns:
        The link each sphere moves with ``[K]`` (0: none), ascending; homogeneous centres in that link's frame
        ``[4, K]`` and radii ``[K]`` [m].
    """
    root = ancestors(model, int(model.jnt_bodyid[ids[0]]))[-1]
    others = [j for j in range(model.njnt) if j not in ids and model.jnt_limited[j]]
    links, centres, radii = [], [], []
    for end in (None, 0, 1):
        data = mujoco.MjData(model)
        for j in others if end is not None else ():
            data.qpos[model.jnt_qposadr[j]] = model.jnt_range[j, end]
        mujoco.mj_kinematics(model, data)
        for body in range(1, model.nbody):
            above = ancestors(model, body)
            mine = {j for b in above for j in joints_of(model, b)}
            if above[-1] != root or (end is not None and not mine.intersection(others)):
                continue
            link = sum(i in mine for i in ids)
            for geom in shapes_of(model, body):
                local, radius = cover_geom(model, geom)
                world = local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
                back = np.linalg.inv(frames[link])
                centres.append(np.concatenate([world, np.ones((len(world), 1))], 1) @ back.T)
                radii.append(radius)
                links += [link] * len(radius)
    if not links:
        return np.zeros(0, np.intp), np.zeros((4, 0)), np.zeros(0)
    order = np.argsort(links, kind="stable")
    return np.array(links, np.intp)[order], np.concatenate(centres)[order].T.copy(), np.concatenate(radii)[order]
