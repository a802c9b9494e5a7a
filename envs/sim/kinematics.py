"""Forward kinematics of a whole MuJoCo model, batched in torch: for engines that know joint positions alone.

The same quantities as ``mj_kinematics`` (MuJoCo 4, ``engine_core_smooth.c``), for free, hinge and slide joints and
mocap bodies. All bodies of one depth in the tree are computed together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.rotations import axis_angle_to_quat, quat_multiply, quat_to_matrix

__all__ = ["POSE_FIELDS", "TreeKinematics", "rotate"]

# {field: numbers a thing}
POSE_FIELDS = {
    "xpos": 3, "xquat": 4, "xmat": 9, "xipos": 3, "ximat": 9, "geom_xpos": 3, "geom_xmat": 9, "site_xpos": 3,
    "site_xmat": 9, "xanchor": 3, "xaxis": 3,
}  # fmt: skip
_FREE, _SLIDE, _HINGE = (getattr(mujoco.mjtJoint, f"mjJNT_{n}").value for n in ("FREE", "SLIDE", "HINGE"))


def rotate(q_wxyz: Tensor, v: Tensor) -> Tensor:
    """``v [..., 3]`` turned by unit quaternions ``[..., 4]``."""
    w, u = q_wxyz[..., :1], q_wxyz[..., 1:]
    u, v = torch.broadcast_tensors(u, v)
    t = 2.0 * torch.linalg.cross(u, v)
    return v + w * t + torch.linalg.cross(u, t)


@dataclass(frozen=True)
class _Joints:
    """The k-th joint of every body of a level that has one of this kind."""

    kind: int
    rows: Tensor  # of the level's bodies
    ids: Tensor
    qpos: Tensor  # columns
    axis: Tensor  # [n, 3]
    anchor: Tensor  # [n, 3]
    start: Tensor  # [n], qpos0


@dataclass(frozen=True)
class _Level:
    bodies: Tensor
    parents: Tensor
    pos: Tensor
    quat: Tensor
    mocap_rows: Tensor
    mocap_ids: Tensor
    joints: list[_Joints]


class TreeKinematics:
    """Poses of everything in ``model`` from joint positions.

    Args:
        model: compiled; only its nominal values are used.
        device, dtype: of the tensors.

    Raises:
        ConfigError: the model has ball joints.
    """

    def __init__(self, model: mujoco.MjModel, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model

        def values(x: object) -> Tensor:
            return torch.tensor(np.array(x), device=device, dtype=dtype)

        def indices(x: object) -> Tensor:
            return torch.tensor(np.array(x, dtype=np.int64), device=device)

        if (np.asarray(model.jnt_type) == mujoco.mjtJoint.mjJNT_BALL.value).any():
            raise ConfigError("the model has ball joints; kinematics here knows free, hinge and slide joints")
        self._levels = [_level(model, ids, values, indices) for ids in _by_depth(model)]
        self._frames: dict[str, tuple[Tensor, Tensor, Tensor]] = {
            "geom_x": (indices(model.geom_bodyid), values(model.geom_pos), values(model.geom_quat)),
            "site_x": (indices(model.site_bodyid), values(model.site_pos), values(model.site_quat)),
            "xi": (indices(np.arange(model.nbody)), values(model.body_ipos), values(model.body_iquat)),
        }

    def shape(self, name: str) -> tuple[int, int]:
        """Shape ``[things, numbers]`` of a field of :data:`POSE_FIELDS`.

        Raises:
            ConfigError: a name that is not there.
        """
        if name not in POSE_FIELDS:
            raise ConfigError(f"kinematics gives no field {name!r}. {nearest(name, POSE_FIELDS)}")
        m = self._model
        count = {"geom": m.ngeom, "site": m.nsite, "xanc": m.njnt, "xaxi": m.njnt}.get(name[:4], m.nbody)
        return int(count), POSE_FIELDS[name]

    def __call__(self, qpos: Tensor, mocap_pos: Tensor, mocap_quat: Tensor, out: dict[str, Tensor]) -> None:
        """Compute fields in place.

        Args:
            qpos: ``[N, nq]``.
            mocap_pos, mocap_quat: ``[N, nmocap, 3]``, ``[N, nmocap, 4]`` (wxyz).
            out: the wanted fields of :data:`POSE_FIELDS`, ``{name: [N, *shape(name)]}``.
        """
        m, n = self._model, qpos.shape[0]
        xpos, xquat = qpos.new_zeros(n, m.nbody, 3), qpos.new_zeros(n, m.nbody, 4)
        xquat[:, 0, 0] = 1.0
        xanchor, xaxis = qpos.new_zeros(n, m.njnt, 3), qpos.new_zeros(n, m.njnt, 3)
        for level in self._levels:
            frame_pos, frame_quat = level.pos.expand(n, -1, -1), level.quat.expand(n, -1, -1)
            if len(level.mocap_rows):
                frame_pos, frame_quat = frame_pos.clone(), frame_quat.clone()
                frame_pos[:, level.mocap_rows] = mocap_pos[:, level.mocap_ids]
                frame_quat[:, level.mocap_rows] = _unit(mocap_quat[:, level.mocap_ids])
            parent = xquat[:, level.parents]
            pos = xpos[:, level.parents] + rotate(parent, frame_pos)
            quat = quat_multiply(parent, frame_quat)
            for joints in level.joints:
                pos, quat = _move(joints, qpos, pos, quat, xanchor, xaxis)
            xpos[:, level.bodies], xquat[:, level.bodies] = pos, _unit(quat)
        found = {"xpos": xpos, "xquat": xquat, "xanchor": xanchor, "xaxis": xaxis}
        for name, field in out.items():
            field.copy_(found[name] if name in found else self._attached(name, xpos, xquat))

    def _attached(self, name: str, xpos: Tensor, xquat: Tensor) -> Tensor:
        """Something fixed to bodies."""
        if name == "xmat":
            return quat_to_matrix(xquat).flatten(2)
        bodies, pos, quat = self._frames[name[:-3]]
        if name.endswith("pos"):
            return xpos[:, bodies] + rotate(xquat[:, bodies], pos)
        turned = quat_multiply(xquat[:, bodies], quat.expand(xquat.shape[0], -1, -1))
        return quat_to_matrix(turned).flatten(2)


def _move(j: _Joints, qpos: Tensor, pos: Tensor, quat: Tensor, xanchor: Tensor, xaxis: Tensor) -> tuple[Tensor, Tensor]:
    """Poses ``[N, n, ...]`` of a level's bodies after one more joint of each; anchors and axes are written."""
    pos, quat = pos.clone(), quat.clone()
    if j.kind == _FREE:
        columns = j.qpos[:, None] + torch.arange(7, device=qpos.device)
        pos[:, j.rows], quat[:, j.rows] = qpos[:, columns[:, :3]], _unit(qpos[:, columns[:, 3:]])
        xanchor[:, j.ids], xaxis[:, j.ids] = pos[:, j.rows], j.axis
        return pos, quat
    q = quat[:, j.rows]
    axis, anchor = rotate(q, j.axis), rotate(q, j.anchor) + pos[:, j.rows]
    moved = (qpos[:, j.qpos] - j.start)[..., None]
    xanchor[:, j.ids], xaxis[:, j.ids] = anchor, axis
    if j.kind == _SLIDE:
        pos[:, j.rows] += axis * moved
    else:
        q = quat_multiply(q, axis_angle_to_quat(j.axis * moved))
        quat[:, j.rows] = q
        pos[:, j.rows] = anchor - rotate(q, j.anchor)
    return pos, quat


def _by_depth(model: mujoco.MjModel) -> list[list[int]]:
    depth = [0] * model.nbody
    for i in range(1, model.nbody):  # parents come first
        depth[i] = depth[model.body_parentid[i]] + 1
    return [[i for i in range(model.nbody) if depth[i] == d] for d in range(1, max(depth) + 1)]


def _level(
    m: mujoco.MjModel, ids: list[int], values: Callable[[object], Tensor], indices: Callable[[object], Tensor]
) -> _Level:
    mocap = [(row, int(m.body_mocapid[i])) for row, i in enumerate(ids) if m.body_mocapid[i] >= 0]
    joints = []
    for k in range(max(int(m.body_jntnum[i]) for i in ids)):
        for kind in (_FREE, _SLIDE, _HINGE):
            here = [
                (row, int(m.body_jntadr[i]) + k)
                for row, i in enumerate(ids)
                if k < m.body_jntnum[i] and m.jnt_type[m.body_jntadr[i] + k] == kind
            ]
            if here:
                rows, which = map(list, zip(*here, strict=True))
                adr = m.jnt_qposadr[which]
                joints.append(
                    _Joints(
                        kind, indices(rows), indices(which), indices(adr), values(m.jnt_axis[which]),
                        values(m.jnt_pos[which]), values(m.qpos0[adr]),
                    )
                )  # fmt: skip
    return _Level(
        indices(ids), indices(m.body_parentid[ids]), values(m.body_pos[ids]), values(m.body_quat[ids]),
        indices([row for row, _ in mocap]), indices([i for _, i in mocap]), joints,
    )  # fmt: skip


def _unit(q: Tensor) -> Tensor:
    return q / q.norm(dim=-1, keepdim=True)
