"""What Isaac Gym is told of a MuJoCo model, and how its numbers are those of MuJoCo in another order.

Isaac Gym: quaternions xyzw; the linear velocity of a free body is that of its centre of mass and the angular velocity
is in the world's frame (PhysX, ``PxRigidDynamic``); MuJoCo: wxyz, the velocity of the body's origin, the angular one in
the body's frame. Positions of joints count from 0 where MuJoCo's count from ``qpos0``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.data.rotations import quat_to_matrix
from visuomotor.envs.sim.kinematics import rotate
from visuomotor.envs.sim.urdf import LIGHT_INERTIA, LIGHT_MASS, Tree, export_trees

__all__ = ["VARIABLE", "IsaacModel"]

VARIABLE = (
    "body_mass", "body_inertia", "dof_damping", "dof_armature", "actuator_gainprm", "actuator_biasprm",
    "actuator_forcerange", "geom_friction", "opt.gravity",
)  # fmt: skip
"""Model fields that Isaac Gym can vary from world to world (gravity: set, but one for all)."""
_NO_LIMIT = 1e6  # of an actuator's force [N or N m]
_STICK = 0.01  # dry friction is full above this velocity [m/s or rad/s]
_PLANE = mujoco.mjtGeom.mjGEOM_PLANE.value
Fields = Callable[[str], Tensor]  # value [N or 1, ...] of a model field


class IsaacModel:
    """Actors, drives, collision filters, and the order of everything.

    Args:
        model: compiled.

    Attributes:
        trees: one an actor.
        sizes: numbers of actors, degrees of freedom, bodies (links) and shapes a world.

    Raises:
        ConfigError: something that PhysX in Isaac Gym, or URDF on the way to it, does not have.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self._m = model
        self.trees = export_trees(model)
        if not self.trees:
            raise ConfigError("nothing in the model moves or collides: there is nothing to simulate")
        _check(model)
        self._drive = _drives(model)
        self._weightless = [_weightless(model, t) for t in self.trees]
        self._filters = _filters(model, self.trees)
        self.ground = _ground(model)
        links = [n for t in self.trees for n in t.shapes]
        self.sizes = (
            len(self.trees), sum(len(t.joints) for t in self.trees), len(links),
            sum(len(s) for t in self.trees for s in t.shapes.values()),
        )  # fmt: skip

    def actors(self) -> list[dict[str, Any]]:
        """What the server needs to make each actor."""
        m, found = self._m, []
        for i, tree in enumerate(self.trees):
            p, q = m.body_pos[tree.body], m.body_quat[tree.body]
            found.append(
                {
                    "file": f"actor{i}.urdf",
                    "fixed": not tree.floating,
                    "weightless": self._weightless[i],
                    "placed": tree.floating or self._mocap(tree) >= 0,
                    "jointed": bool(tree.joints),
                    "pose": [float(x) for x in (*p, *q[[1, 2, 3, 0]])],
                }
            )
        return found

    def arrange(self, names: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Take Isaac Gym's order of things.

        Raises:
            UserError: it does not have what was exported.
        """
        m = self._m
        joints: list[int] = []
        self.link_bodies: list[int] = []  # body of each link, -1 of links without mass
        geoms: list[int] = []
        for tree, found in zip(self.trees, names, strict=True):
            for kind, theirs, ours in (("joints", found["dofs"], tree.joints), ("links", found["bodies"], tree.shapes)):
                if sorted(theirs) != sorted(ours):
                    raise UserError(f"Isaac Gym has {kind} {theirs} in {tree.name!r}; expected {list(ours)}")
            counts = dict(zip(found["bodies"], found["shapes"], strict=True))
            for link, count in counts.items():
                if count != len(tree.shapes[link]):
                    raise UserError(f"Isaac Gym has {count} shapes in {link!r}; expected {len(tree.shapes[link])}")
                self.link_bodies.append(tree.links.get(link, -1))
                geoms += tree.shapes[link]
            joints += [tree.joints[n] for n in found["dofs"]]

        def indices(x: Sequence[int] | np.ndarray) -> Tensor:
            return torch.tensor(np.array(x, dtype=np.int64), device=device)

        def values(x: object) -> Tensor:
            return torch.tensor(np.array(x), device=device, dtype=torch.float32)

        self.geoms, self.filters = indices(geoms), np.array([self._filters[g] for g in geoms], np.int32)
        self._q, self._v = indices(m.jnt_qposadr[joints]), indices(m.jnt_dofadr[joints])
        self._start = values(m.qpos0[m.jnt_qposadr[joints]])
        drive = [self._drive.get(j, -1) for j in joints]
        self._driven, self._actuator = (
            indices(np.flatnonzero(np.array(drive) >= 0)),
            indices([a for a in drive if a >= 0]),
        )
        limited = np.asarray(m.actuator_ctrllimited, bool)[:, None]
        self._low, self._high = values(np.where(limited, m.actuator_ctrlrange, [-np.inf, np.inf])).T
        free = [i for i, t in enumerate(self.trees) if t.floating]
        roots = [self.trees[i].body for i in free]
        first = m.body_jntadr[roots]
        self._free, self._com = indices(free), values(m.body_ipos[roots])
        self._free_q = indices(m.jnt_qposadr[first])[:, None] + torch.arange(7, device=device)
        self._free_v = indices(m.jnt_dofadr[first])[:, None] + torch.arange(6, device=device)
        mocap = [(i, self._mocap(t)) for i, t in enumerate(self.trees) if self._mocap(t) >= 0]
        self._put, self._mocap_ids = indices([i for i, _ in mocap]), indices([k for _, k in mocap])

    def to_isaac(
        self, qpos: Tensor, qvel: Tensor, mocap_pos: Tensor, mocap_quat: Tensor, root: Tensor, dof: Tensor
    ) -> None:
        """Write a state into ``root [N, A, 13]`` and ``dof [N, D, 2]``; actors that stand still are left alone."""
        dof[..., 0], dof[..., 1] = qpos[:, self._q] - self._start, qvel[:, self._v]
        q, v = qpos[:, self._free_q], qvel[:, self._free_v]
        quat = q[..., 3:] / q[..., 3:].norm(dim=-1, keepdim=True)
        omega = rotate(quat, v[..., 3:])
        linear = v[..., :3] + torch.linalg.cross(omega, rotate(quat, self._com))
        root[:, self._free] = torch.cat([q[..., :3], quat[..., [1, 2, 3, 0]], linear, omega], -1)
        quat = mocap_quat[:, self._mocap_ids]
        quat = quat / quat.norm(dim=-1, keepdim=True)
        still = torch.zeros(*quat.shape[:2], 6, device=quat.device)
        root[:, self._put] = torch.cat([mocap_pos[:, self._mocap_ids], quat[..., [1, 2, 3, 0]], still], -1)

    def from_isaac(self, root: Tensor, dof: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """Inverse of :meth:`to_isaac`, in place of ``qpos`` and ``qvel``; mocap bodies are inputs alone."""
        qpos[:, self._q], qvel[:, self._v] = dof[..., 0] + self._start, dof[..., 1]
        r = root[:, self._free]
        quat, omega = r[..., [6, 3, 4, 5]], r[..., 10:]
        quat = quat / quat.norm(dim=-1, keepdim=True)
        linear = r[..., 7:10] - torch.linalg.cross(omega, rotate(quat, self._com))
        back = torch.cat([quat[..., :1], -quat[..., 1:]], -1)
        qpos[:, self._free_q] = torch.cat([r[..., :3], quat], -1)
        qvel[:, self._free_v] = torch.cat([linear, rotate(back, omega)], -1)

    def targets(self, ctrl: Tensor) -> Tensor:
        """Positions ``[N, D]`` that the servos hold, from actuator inputs ``[N, nu]``."""
        out = torch.zeros(ctrl.shape[0], self.sizes[1], device=ctrl.device)
        clipped = torch.clamp(ctrl.nan_to_num(0.0), self._low, self._high)[:, self._actuator]
        out[:, self._driven] = clipped - self._start[self._driven]
        return out

    def properties(self, field: Fields) -> dict[str, Tensor]:
        """``drive [N, D, 4]``, ``body [N, L, 10]``, ``friction [N, S]``, ``gravity [N, 3]`` from model fields."""
        damping, armature = field("dof_damping")[:, self._v], field("dof_armature")[:, self._v]
        stiffness = torch.zeros_like(damping)
        effort = torch.full_like(damping, _NO_LIMIT)
        loss = torch.tensor(self._m.dof_frictionloss, device=damping.device, dtype=damping.dtype)[self._v]
        # dry friction of a joint without a motor: a brake that gives way at the friction
        damping = torch.where(loss > 0, torch.maximum(damping, loss / _STICK), damping)
        effort = torch.where(loss > 0, loss, effort)
        a, d = self._actuator, self._driven
        stiffness, effort, damping = (
            x.expand(max(field(n).shape[0], x.shape[0]), -1).clone()
            for x, n in (
                (stiffness, "actuator_gainprm"),
                (effort, "actuator_forcerange"),
                (damping, "actuator_biasprm"),
            )
        )
        stiffness[:, d] = field("actuator_gainprm")[:, a, 0]
        limited = torch.tensor(np.asarray(self._m.actuator_forcelimited, bool), device=a.device)[a]
        effort[:, d] = torch.where(limited, field("actuator_forcerange")[:, a, 1], effort[:, d])
        damping[:, d] = damping[:, d] - field("actuator_biasprm")[:, a, 2]
        n = max(x.shape[0] for x in (stiffness, damping, effort, armature))
        drive = torch.stack([x.expand(n, -1) for x in (stiffness, damping, effort, armature)], -1)
        return {
            "drive": drive,
            "body": self._bodies(field("body_mass"), field("body_inertia")),
            "friction": field("geom_friction")[:, self.geoms, 0],
            "gravity": field("opt.gravity"),
        }

    def _bodies(self, mass: Tensor, inertia: Tensor) -> Tensor:
        n = max(mass.shape[0], inertia.shape[0])
        out = torch.zeros(n, len(self.link_bodies), 10, device=mass.device)
        out[..., 0], out[..., [1, 5, 9]] = LIGHT_MASS, LIGHT_INERTIA
        heavy = [i for i, b in enumerate(self.link_bodies) if b >= 0 and self._m.body_mass[b] >= LIGHT_MASS]
        bodies = [self.link_bodies[i] for i in heavy]
        turn = quat_to_matrix(torch.tensor(self._m.body_iquat[bodies], device=mass.device, dtype=mass.dtype))
        tensor = turn @ torch.diag_embed(inertia[:, bodies]) @ turn.mT
        out[:, heavy, 0] = mass[:, bodies].expand(n, -1)
        out[:, heavy, 1:] = tensor.flatten(2).expand(n, -1, -1)
        return out

    def _mocap(self, tree: Tree) -> int:
        return int(self._m.body_mocapid[tree.body])


def _check(m: mujoco.MjModel) -> None:
    """Refuse what PhysX in Isaac Gym does not have."""
    for bad, what in (
        (m.npair, "explicit contact pairs"),
        (m.na, "actuators with activations"),
        (np.any(m.jnt_stiffness), "joints with springs"),
        (np.any(m.actuator_delay), "delayed actuators"),
    ):
        if bad:
            raise ConfigError(f"the model has {what}; the engine isaac does not know them: use batch or warp")


def _drives(m: mujoco.MjModel) -> dict[int, int]:
    """{joint: its position servo}."""
    found: dict[int, int] = {}
    for a in range(m.nu):
        name, bias = m.actuator(a).name, m.actuator_biasprm[a]
        servo = (
            m.actuator_trntype[a] == mujoco.mjtTrn.mjTRN_JOINT.value
            and m.actuator_gaintype[a] == mujoco.mjtGain.mjGAIN_FIXED.value
            and m.actuator_biastype[a] == mujoco.mjtBias.mjBIAS_AFFINE.value
            and m.actuator_gear[a, 0] == 1.0
            and bias[0] == 0.0
            and np.isclose(bias[1], -m.actuator_gainprm[a, 0])
        )
        joint = int(m.actuator_trnid[a, 0])
        if not servo or joint in found:
            raise ConfigError(
                f"actuator {name!r}: the engine isaac knows position servos (<position>) of gear 1, one a joint; "
                "use batch or warp"
            )
        if m.dof_frictionloss[m.jnt_dofadr[joint]]:
            raise ConfigError(
                f"joint {m.joint(joint).name!r} has a servo and frictionloss, which PhysX has not at once: set "
                "frictionloss=0, or use batch or warp"
            )
        found[joint] = a
    return found


def _weightless(m: mujoco.MjModel, tree: Tree) -> bool:
    shares = {float(m.body_gravcomp[b]) for b in tree.links.values() if m.body_mass[b] >= LIGHT_MASS}
    if not shares <= {0.0} and not shares <= {1.0}:
        raise ConfigError(
            f"bodies of {tree.name!r} have gravcomp {sorted(shares)}; the engine isaac switches gravity off for a "
            "whole tree or not at all: expected 0 or 1 throughout"
        )
    return shares == {1.0}


def _ground(m: mujoco.MjModel) -> float | None:
    """Friction of the ground, if there is one."""
    planes = [g for g in range(m.ngeom) if m.geom_type[g] == _PLANE and (m.geom_contype[g] or m.geom_conaffinity[g])]
    if not planes:
        return None
    g = planes[0]
    level = np.allclose(m.geom_pos[g][2], 0.0) and np.allclose(m.geom_quat[g][[1, 2]], 0.0)
    if len(planes) > 1 or not level:
        raise ConfigError(f"{len(planes)} colliding planes; the engine isaac has one ground, level, at z = 0")
    return float(m.geom_friction[g, 0])


def _filters(m: mujoco.MjModel, trees: Sequence[Tree]) -> dict[int, int]:
    """Bits of each colliding geom: two that share one do not collide.

    So the geoms of one bit are a clique of what must not collide by MuJoCo's ``contype``, ``conaffinity`` and
    ``exclude``. Cliques are grown until every such pair of bodies is covered.
    """
    geoms = sorted({g for t in trees for shapes in t.shapes.values() for g in shapes})
    kind = {g: (int(m.geom_contype[g]), int(m.geom_conaffinity[g])) for g in geoms}
    kinds = sorted(set(kind.values()))
    nodes = sorted({(int(m.geom_bodyid[g]), kind[g]) for g in geoms})  # of one body nothing collides anyway
    excluded = {(int(s) >> 16, int(s) & 0xFFFF) for s in m.exclude_signature}

    def apart(a: tuple[int, tuple[int, int]], b: tuple[int, tuple[int, int]]) -> bool:
        meet = a[1][0] & b[1][1] or b[1][0] & a[1][1]
        return not meet or a[0] == b[0] or (a[0], b[0]) in excluded or (b[0], a[0]) in excluded

    open_pairs = {(a, b) for a in nodes for b in nodes if a < b and a[0] != b[0] and apart(a, b)}
    cliques: list[list[tuple[int, tuple[int, int]]]] = []
    while open_pairs:
        clique = list(min(open_pairs))
        for n in nodes:
            if n not in clique and all(apart(n, c) for c in clique):
                clique.append(n)
        open_pairs -= {(a, b) for a in clique for b in clique}
        cliques.append(clique)
    if len(cliques) > 31:
        raise ConfigError(f"{len(cliques)} groups of bodies that must not collide; the engine isaac has room for 31")
    for g in range(m.ngeom):
        if m.geom_type[g] == _PLANE:
            ground = (int(m.geom_contype[g]), int(m.geom_conaffinity[g]))
            through = [k for k in kinds if ground != (0, 0) and not (k[0] & ground[1] or ground[0] & k[1])]
            if through:
                raise ConfigError(
                    f"geoms with (contype, conaffinity) {through[0]} pass through the ground {ground}; in Isaac Gym "
                    "the ground stops everything"
                )
    return {g: sum(1 << i for i, c in enumerate(cliques) if (int(m.geom_bodyid[g]), kind[g]) in c) for g in geoms}
