"""The trees of a compiled MuJoCo model as URDF: for simulators that cannot read MJCF.

A tree is a child of the world with all that hangs on it; geoms of the world itself (but for planes) are one more. URDF
(wiki.ros.org/urdf/XML) knows less than MJCF: a link has one joint, whose origin is the link's. So a body with several
joints gets nearly massless links between them, and a body whose joint is anchored away from its origin becomes a link
whose frame is shifted to the anchor (:attr:`Tree.offset`). Frames are never turned against the bodies' own.

Only what collides is exported, nothing to be looked at. A capsule, which URDF lacks, is a cylinder with a sphere at
each end; a mesh becomes a Wavefront file.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field

import mujoco
import numpy as np

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import quat_to_matrix

__all__ = ["LIGHT_INERTIA", "LIGHT_MASS", "Tree", "export_trees"]

# Of links that stand for no mass in the model: simulators take 0 for "unknown" or fail.
LIGHT_MASS = 1e-4  # [kg]
LIGHT_INERTIA = 1e-7  # [kg m^2]
_UNLIMITED = 1e3  # [m, m/s, rad/s, N, N m]: what URDF makes state and MuJoCo has not
_BOX, _SPHERE, _CYLINDER, _CAPSULE, _MESH, _PLANE = (
    getattr(mujoco.mjtGeom, f"mjGEOM_{n}").value for n in ("BOX", "SPHERE", "CYLINDER", "CAPSULE", "MESH", "PLANE")
)
_FREE, _SLIDE, _BALL = (getattr(mujoco.mjtJoint, f"mjJNT_{n}").value for n in ("FREE", "SLIDE", "BALL"))


@dataclass(frozen=True)
class Tree:
    """One kinematic tree.

    Attributes:
        name: of its root body.
        body: its root body; 0 for the world's own geoms.
        floating: it moves freely; else its root stands still (a mocap body: where it is put).
        urdf: the text.
        links: {name of a link: its body}; links between the joints of one body are not among them.
        joints: {name of a joint: the model's hinge or slide}.
        shapes: {name of a link: the geom of each of its collision shapes, in their order}.
        offset: {body: its origin in the frame of its link [m]}.
        meshes: {name of a file: its text}, which the URDF refers to.
    """

    name: str
    body: int
    floating: bool
    urdf: str = ""
    links: dict[str, int] = field(default_factory=dict)
    joints: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    offset: dict[int, np.ndarray] = field(default_factory=dict)
    meshes: dict[str, str] = field(default_factory=dict)


def export_trees(model: mujoco.MjModel) -> list[Tree]:
    """Every tree that moves or collides, in the order of their bodies.

    Raises:
        ConfigError: something in the model that URDF cannot say: equality constraints, tendons, ball joints, flexible
            bodies, colliding ellipsoids, height fields or signed distance fields, or planes on bodies.
    """
    for count, what in ((model.neq, "equality constraints"), (model.ntendon, "tendons"), (model.nflex, "flexes")):
        if count:
            raise ConfigError(f"the model has {what}, which URDF cannot express")
    roots = [i for i in range(1, model.nbody) if model.body_parentid[i] == 0]
    trees = [_Exporter(model, 0, [0]).tree] if _colliding(model, 0) else []
    for root in roots:
        bodies = [i for i in range(model.nbody) if model.body_rootid[i] == root]
        moves = any(model.body_jntnum[i] for i in bodies)
        if moves or any(_colliding(model, i) for i in bodies):
            trees.append(_Exporter(model, root, bodies).tree)
    return trees


class _Exporter:
    """Builds the URDF of one tree."""

    def __init__(self, model: mujoco.MjModel, root: int, bodies: Sequence[int]) -> None:
        self._m = model
        first = int(model.body_jntadr[root])
        floating = bool(root and first >= 0 and model.jnt_type[first] == _FREE)
        self._xml = ET.Element("robot", name=_safe(_name(model, "body", root) or "world"))
        # for MuJoCo's own importer, others skip it: fixed links stay, inertias are taken as they are
        ET.SubElement(ET.SubElement(self._xml, "mujoco"), "compiler", fusestatic="false", balanceinertia="false")
        tree = Tree(_name(model, "body", root) or "world", root, floating)
        self._tree = tree
        own_joints = bool(root) and not floating and int(model.body_jntnum[root]) > 0
        if own_joints:  # a root that hangs on the world by joints: the world's end of them is a link too
            self._link(f"{self._link_name(root)}_base", None)
        for body in bodies:
            self._body(body, root, f"{self._link_name(root)}_base" if own_joints else None)
        ET.indent(self._xml)
        self.tree = Tree(**{**vars(tree), "urdf": ET.tostring(self._xml, encoding="unicode")})

    def _body(self, body: int, root: int, base: str | None) -> None:
        m, t = self._m, self._tree
        name = self._link_name(body)
        first, count = int(m.body_jntadr[body]), int(m.body_jntnum[body])
        joints = [j for j in range(first, first + count) if m.jnt_type[j] != _FREE]
        parent = base if body == root else self._link_name(int(m.body_parentid[body]))
        # the root's pose is that of its actor; the others stand in the frame of their parents' links
        pos = np.zeros(3) if body == root else m.body_pos[body] + t.offset[int(m.body_parentid[body])]
        matrix = np.eye(3) if body == root else quat_to_matrix(np.array(m.body_quat[body]))
        at = np.zeros(3)  # origin of the last link, from the body's origin in its frame
        for k, j in enumerate(joints):
            anchor = np.array(m.jnt_pos[j])
            link = name if k == len(joints) - 1 else f"{name}_{k}"
            self._joint(j, str(parent), link, pos + matrix @ (anchor - at), matrix)
            if link != name:
                self._link(link, None)
            parent, pos, matrix, at = link, np.zeros(3), np.eye(3), anchor
        if not joints and parent is not None:
            element = ET.SubElement(self._xml, "joint", name=f"{name}_fixed", type="fixed")
            _ends(element, parent, name, pos, matrix)
        t.offset[body], t.links[name] = -at, body
        self._link(name, body)

    def _joint(self, j: int, parent: str, child: str, pos: np.ndarray, matrix: np.ndarray) -> None:
        m, kind = self._m, int(self._m.jnt_type[j])
        name = f"{_safe(_name(m, 'joint', j))}_j{j}"
        if kind == _BALL:
            raise ConfigError(f"joint {_name(m, 'joint', j)!r} is a ball joint, which URDF cannot express")
        limited = bool(m.jnt_limited[j])
        what = "prismatic" if kind == _SLIDE else "revolute" if limited else "continuous"
        element = ET.SubElement(self._xml, "joint", name=name, type=what)
        _ends(element, parent, child, pos, matrix)
        ET.SubElement(element, "axis", xyz=_text(m.jnt_axis[j]))
        force = [
            float(m.actuator_forcerange[a, 1]) for a in range(m.nu) if m.actuator_forcelimited[a] and _drives(m, a, j)
        ]
        limit = ET.SubElement(element, "limit", effort=_text([*force, _UNLIMITED][:1]), velocity=_text([_UNLIMITED]))
        if what != "continuous":
            low, high = m.jnt_range[j] - m.qpos0[m.jnt_qposadr[j]] if limited else (-_UNLIMITED, _UNLIMITED)
            limit.set("lower", _text([low]))
            limit.set("upper", _text([high]))
        self._tree.joints[name] = j

    def _link(self, name: str, body: int | None) -> None:
        """The link of a body, or (None) one that is only there to hang joints on."""
        m = self._m
        link = ET.SubElement(self._xml, "link", name=name)
        offset = np.zeros(3) if body is None else self._tree.offset[body]
        empty = body is None or m.body_mass[body] < LIGHT_MASS
        mass, com, tensor = LIGHT_MASS, np.zeros(3), np.eye(3) * LIGHT_INERTIA
        if body is not None and not empty:
            turn = quat_to_matrix(np.array(m.body_iquat[body]))
            mass, com = float(m.body_mass[body]), m.body_ipos[body] + offset
            tensor = turn @ np.diag(m.body_inertia[body]) @ turn.T
        inertial = ET.SubElement(link, "inertial")
        ET.SubElement(inertial, "origin", xyz=_text(com), rpy="0 0 0")
        ET.SubElement(inertial, "mass", value=_text([mass]))
        pairs = {"ixx": (0, 0), "ixy": (0, 1), "ixz": (0, 2), "iyy": (1, 1), "iyz": (1, 2), "izz": (2, 2)}
        ET.SubElement(inertial, "inertia", {k: _text([tensor[ij]]) for k, ij in pairs.items()})
        self._tree.shapes[name] = []
        for g in [] if body is None else _colliding(m, body):
            for pos, matrix, kind, size in self._primitives(g):
                collision = ET.SubElement(link, "collision")
                _origin(collision, pos + offset, matrix)
                ET.SubElement(ET.SubElement(collision, "geometry"), kind, size)
                self._tree.shapes[name].append(g)

    def _primitives(self, g: int) -> list[tuple[np.ndarray, np.ndarray, str, dict[str, str]]]:
        """URDF shapes of a geom: position and axes in the body's frame, tag, attributes."""
        m, kind, size = self._m, int(self._m.geom_type[g]), self._m.geom_size[g]
        pos, matrix = np.array(m.geom_pos[g]), quat_to_matrix(np.array(m.geom_quat[g]))
        if kind == _BOX:
            return [(pos, matrix, "box", {"size": _text(2 * size)})]
        ball = {"radius": _text(size[:1])}
        if kind == _SPHERE:
            return [(pos, matrix, "sphere", ball)]
        if kind in (_CYLINDER, _CAPSULE):
            end = matrix[:, 2] * size[1]
            rod = (pos, matrix, "cylinder", {**ball, "length": _text([2 * size[1]])})
            ends = [(p, matrix, "sphere", ball) for p in (pos - end, pos + end)]
            return [rod] if kind == _CYLINDER else [rod, *ends]
        if kind == _MESH:
            file = f"mesh{m.geom_dataid[g]}.obj"
            self._tree.meshes[file] = _wavefront(m, int(m.geom_dataid[g]))
            return [(pos, matrix, "mesh", {"filename": file})]
        where = f"geom {_name(m, 'geom', g)!r} of body {_name(m, 'body', int(m.geom_bodyid[g]))!r}"
        raise ConfigError(
            f"{where} collides and is of type {mujoco.mjtGeom(kind).name.removeprefix('mjGEOM_').lower()}, which URDF "
            "cannot express; expected box, sphere, cylinder, capsule or mesh (a plane: on the world itself)"
        )

    def _link_name(self, body: int) -> str:
        return f"{_safe(_name(self._m, 'body', body))}_b{body}"


def _colliding(m: mujoco.MjModel, body: int) -> list[int]:
    """Geoms of a body that can collide; planes of the world are its ground."""
    first, count = int(m.body_geomadr[body]), int(m.body_geomnum[body])
    touch = [g for g in range(first, first + count) if m.geom_contype[g] or m.geom_conaffinity[g]]
    return [g for g in touch if body or m.geom_type[g] != _PLANE]


def _drives(m: mujoco.MjModel, actuator: int, joint: int) -> bool:
    on_joint = m.actuator_trntype[actuator] == mujoco.mjtTrn.mjTRN_JOINT.value
    return bool(on_joint and m.actuator_trnid[actuator, 0] == joint)


def _ends(element: ET.Element, parent: str, child: str, pos: np.ndarray, matrix: np.ndarray) -> None:
    ET.SubElement(element, "parent", link=parent)
    ET.SubElement(element, "child", link=child)
    _origin(element, pos, matrix)


def _origin(element: ET.Element, pos: np.ndarray, matrix: np.ndarray) -> None:
    ET.SubElement(element, "origin", xyz=_text(pos), rpy=_text(_rpy(matrix)))


def _rpy(matrix: np.ndarray) -> tuple[float, float, float]:
    """Roll, pitch, yaw with ``matrix = Rz(yaw) Ry(pitch) Rx(roll)``; exact also where yaw and roll are one."""
    yaw = np.arctan2(matrix[1, 0], matrix[0, 0])
    c, s = np.cos(yaw), np.sin(yaw)
    rest = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) @ matrix
    return np.arctan2(-rest[1, 2], rest[1, 1]), np.arctan2(-rest[2, 0], rest[0, 0]), yaw


def _wavefront(m: mujoco.MjModel, mesh: int) -> str:
    first, count = int(m.mesh_vertadr[mesh]), int(m.mesh_vertnum[mesh])
    faces = m.mesh_face[m.mesh_faceadr[mesh] : m.mesh_faceadr[mesh] + m.mesh_facenum[mesh]]
    lines = [f"v {_text(v)}" for v in m.mesh_vert[first : first + count]]
    return "\n".join([*lines, *(f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces), ""])


def _text(numbers: Sequence[float] | np.ndarray) -> str:
    return " ".join(repr(float(x)) for x in numbers)


def _name(m: mujoco.MjModel, kind: str, index: int) -> str:
    return str(getattr(m, kind)(index).name)


def _safe(name: str) -> str:
    return re.sub(r"\W", "_", name) or "unnamed"
