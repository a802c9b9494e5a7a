"""Forward and differential inverse kinematics of a serial chain, for a batch of joint positions at once."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import matrix_to_quat, quat_to_axis_angle
from visuomotor.envs.sim.world import find

__all__ = ["Chain", "rotation_error"]


def rotation_error(target: Tensor, current: Tensor) -> Tensor:
    """Rotation vector ``[..., 3]`` [rad] that takes ``current [..., 3, 3]`` to ``target [..., 3, 3]``."""
    error: Tensor = quat_to_axis_angle(matrix_to_quat(target @ current.transpose(-1, -2)))
    return error


class Chain:
    """From a base body to a site through ``n`` hinge and slide joints, in the frame of the base body.

    Joints of other bodies on the way stay at their reference position. Each joint is stored with its frame turned so
    that the joint's axis is z: a rotation then mixes two columns.

    Args:
        model: where the chain is.
        joints: its joints, base first.
        site: its end.
        base: body in whose frame poses are given.

    Raises:
        ConfigError: joints that do not lead to the site in this order, or that are no hinges or slides.
    """

    def __init__(
        self, model: mujoco.MjModel, joints: Sequence[str], site: str, base: str, device: torch.device
    ) -> None:
        ids = [find(model, "joint", name) for name in joints]
        site_id, base_id = find(model, "site", site), find(model, "body", base)
        steps = _walk(model, ids, site_id, base_id)
        self._hinge = [int(model.jnt_type[i]) == mujoco.mjtJoint.mjJNT_HINGE.value for i in ids]
        slide = mujoco.mjtJoint.mjJNT_SLIDE.value
        if not all(hinge or int(model.jnt_type[i]) == slide for hinge, i in zip(self._hinge, ids, strict=True)):
            raise ConfigError(f"joints {list(joints)}: expected hinges and slides only")
        self._offset = [torch.tensor(p, dtype=torch.float32, device=device) for p, _ in steps]
        self._turn = [torch.tensor(r, dtype=torch.float32, device=device) for _, r in steps]
        self._zero = torch.tensor([model.qpos0[model.jnt_qposadr[i]] for i in ids], dtype=torch.float32, device=device)
        self.n = len(ids)

    def forward(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Position ``[N, 3]`` [m] and matrix ``[N, 3, 3]`` of the site for joint positions ``q [N, n]``."""
        pos, rot, _, _ = self._run(q)
        return pos, rot

    def jacobian(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position, matrix and geometric Jacobian ``[N, 6, n]`` (linear above angular) of the site."""
        pos, rot, axes, origins = self._run(q)
        linear = torch.stack(
            [
                torch.linalg.cross(a, pos - o) if hinge else a
                for a, o, hinge in zip(axes, origins, self._hinge, strict=True)
            ],
            -1,
        )
        angular = torch.stack([a if h else torch.zeros_like(a) for a, h in zip(axes, self._hinge, strict=True)], -1)
        return pos, rot, torch.cat([linear, angular], 1)

    def solve(
        self, q: Tensor, pos: Tensor, rot: Tensor, *, low: Tensor, high: Tensor, rest: Tensor, rotation_weight: float,
        iterations: int = 2, damping: float = 0.03, rest_gain: float = 0.05, max_step: float = 0.3,
    ) -> Tensor:  # fmt: skip
        """Joint positions ``[N, n]`` near ``q`` whose site is at ``pos [N, 3]``, ``rot [N, 3, 3]``.

        Damped least squares (Nakamura and Hanafusa 1986; Wampler 1986): ``dq = J^T (J J^T + damping^2 I)^-1 e`` with
        rotation rows weighted; redundant chains drift towards ``rest [n]`` in the null space. Steps are limited to
        ``max_step`` [rad] a joint and iteration, the result to ``low`` and ``high [n]``. Unreachable poses give the
        nearest compromise.
        """
        eye = damping**2 * torch.eye(6, device=q.device)
        weight = torch.tensor([1.0] * 3 + [rotation_weight] * 3, device=q.device)
        for _ in range(iterations):
            p, r, jac = self.jacobian(q)
            error = torch.cat([pos - p, rotation_error(rot, r)], 1) * weight
            jac = jac * weight[:, None]
            right = error[..., None]
            pull = rest_gain * (rest - q) if self.n > 6 else None
            if pull is not None:
                right = torch.cat([right, jac @ pull[..., None]], -1)
            y = jac.transpose(1, 2) @ torch.linalg.solve(jac @ jac.transpose(1, 2) + eye, right)
            step = y[..., 0] if pull is None else y[..., 0] + pull - y[..., 1]
            q = torch.clamp(q + step.clamp(-max_step, max_step), low, high)
        return q

    def _run(self, q: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Site pose, and axis and origin of each joint."""
        angle = q - self._zero
        cos, sin = torch.cos(angle), torch.sin(angle)
        rot = self._turn[0].expand(q.shape[0], 3, 3)
        pos = self._offset[0].expand(q.shape[0], 3)
        axes, origins = [], []
        for i, hinge in enumerate(self._hinge):
            z = rot[..., 2]
            axes.append(z)
            origins.append(pos)
            if hinge:
                c, s = cos[:, i : i + 1], sin[:, i : i + 1]
                x, y = rot[..., 0], rot[..., 1]
                rot = torch.stack([c * x + s * y, c * y - s * x, z], -1)
            else:
                pos = pos + z * angle[:, i : i + 1]
            pos = pos + rot @ self._offset[i + 1]
            rot = rot @ self._turn[i + 1]
        return pos, rot, axes, origins


def _walk(m: mujoco.MjModel, joints: list[int], site: int, base: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Fixed transforms before, between and after the joints, each joint's axis turned to z: ``n + 1`` of them."""
    bodies = [int(m.site_bodyid[site])]
    while bodies[-1] not in (base, 0):
        bodies.append(int(m.body_parentid[bodies[-1]]))
    if bodies[-1] != base:
        raise ConfigError(f"site {m.site(site).name!r} does not hang on body {m.body(base).name!r}")
    found: list[int] = []
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    pos, rot = np.zeros(3), np.eye(3)
    for body in reversed(bodies[:-1]):
        pos, rot = pos + rot @ m.body_pos[body], rot @ _matrix(m.body_quat[body])
        for j in range(m.body_jntadr[body], m.body_jntadr[body] + m.body_jntnum[body]):
            if j not in joints:
                continue
            found.append(j)
            turn = _z_to(m.jnt_axis[j])
            steps.append((pos + rot @ m.jnt_pos[j], rot @ turn))
            pos, rot = -turn.T @ m.jnt_pos[j], turn.T
    if found != joints:
        names = [m.joint(j).name for j in found]
        raise ConfigError(
            f"the joints between body {m.body(base).name!r} and the site are, in order, {names}; expected "
            f"{[m.joint(j).name for j in joints]}"
        )
    steps.append((pos + rot @ m.site_pos[site], rot @ _matrix(m.site_quat[site])))
    return steps


def _matrix(quat: np.ndarray) -> np.ndarray:
    out = np.zeros(9)
    mujoco.mju_quat2Mat(out, quat)
    return out.reshape(3, 3)


def _z_to(axis: np.ndarray) -> np.ndarray:
    """A rotation whose z column is ``axis``."""
    quat = np.zeros(4)
    mujoco.mju_quatZ2Vec(quat, axis / np.linalg.norm(axis))
    return _matrix(quat)
