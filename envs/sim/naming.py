"""Which things of a model are meant: shell patterns, ``@objects``, and names for geoms that have none."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import mujoco

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.sim.world import names_of

__all__ = ["OBJECTS", "labels", "listed", "matching", "spec_bodies"]

OBJECTS = "@objects"  # bodies on a free joint, what hangs on them, and their geoms


def labels(model: mujoco.MjModel, kind: str) -> list[str]:
    """Names of all things of a kind; a geom without one is ``<body>:<its number in the body>``, others are ''."""
    names = names_of(model, kind)
    if kind != "geom":
        return names
    bodies = names_of(model, "body")
    return [n or _number(model, bodies, i) for i, n in enumerate(names)]


def matching(model: mujoco.MjModel, kind: str, patterns: Sequence[str], *, optional: bool = False) -> list[int]:
    """Indices of the things of a kind that patterns (``robot/link*``) name, in the model's order.

    Args:
        patterns: shell patterns, or :data:`OBJECTS` for bodies and geoms.
        optional: a pattern may match nothing.

    Raises:
        ConfigError: a pattern that matches nothing; the nearest names are given.
    """
    names = labels(model, kind)
    free = _of_objects(model, kind) if OBJECTS in patterns else set()
    if OBJECTS in patterns and not free and not optional:
        raise ConfigError(f"the model has no {kind} of a body on a free joint, which {OBJECTS} stands for")
    plain = [p for p in patterns if p != OBJECTS]
    for p in plain:
        if not optional and not any(fnmatchcase(n, p) for n in names):
            raise ConfigError(f"the model has no {kind} {p!r}. {nearest(p, [n for n in names if n])}")
    return [i for i, n in enumerate(names) if i in free or (n and any(fnmatchcase(n, p) for p in plain))]


def spec_bodies(scene: mujoco.MjSpec, patterns: Sequence[str]) -> list[mujoco.MjsBody]:
    """The bodies that the patterns will name once the scene is compiled."""
    free: set[str] = set()
    if OBJECTS in patterns:
        for body in scene.bodies:
            if any(j.type == mujoco.mjtJoint.mjJNT_FREE for j in body.joints):
                free |= {body.name, *(b.name for b in body.find_all("body"))}
    return [b for b in scene.bodies if b.name and (b.name in free or any(fnmatchcase(b.name, p) for p in patterns))]


def listed(names: Sequence[str], who: str) -> tuple[str, ...]:
    """Names as a tuple. Raises ConfigError for one bare name, which would be taken for its letters."""
    if isinstance(names, str):
        raise ConfigError(f"{who}: names={names!r}; expected a list of names or patterns: [{names!r}]")
    return tuple(names)


def _number(model: mujoco.MjModel, bodies: Sequence[str], geom: int) -> str:
    body = int(model.geom_bodyid[geom])
    return f"{bodies[body]}:{geom - int(model.body_geomadr[body])}" if bodies[body] else ""


def _of_objects(model: mujoco.MjModel, kind: str) -> set[int]:
    if kind not in ("body", "geom"):
        raise ConfigError(f"{OBJECTS} stands for bodies and geoms, not for a {kind}")
    joints = [j for j in range(model.njnt) if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_FREE.value]
    roots = {int(model.jnt_bodyid[j]) for j in joints}
    bodies: set[int] = set()
    for i in range(1, model.nbody):  # parents come first
        if i in roots or int(model.body_parentid[i]) in bodies:
            bodies.add(i)
    return bodies if kind == "body" else {g for g in range(model.ngeom) if int(model.geom_bodyid[g]) in bodies}
