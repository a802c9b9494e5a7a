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

    Joints of other bodies on the way stay at their reference position.

    Args:
        model: where the chain is.
        joints: its joints, base first.
        site: its end.
        base: body in whose frame poses are given.
        device: where it computes.

    Raises:
        ConfigError: joints that do not lead to the site in this order, or that are no hinges or slides.
    """

    def __init__(
        self, model: mujoco.MjModel, joints: Sequence[str], site: str, base: str, device: torch.device
    ) -> None:
        ids = [find(model, "joint", name) for name in joints]
        steps = _walk(model, ids, find(model, "site", site), find(model, "body", base))
        hinge = [int(model.jnt_type[i]) == mujoco.mjtJoint.mjJNT_HINGE.value for i in ids]
        slide = mujoco.mjtJoint.mjJNT_SLIDE.value
        if not all(h or int(model.jnt_type[i]) == slide for h, i in zip(hinge, ids, strict=True)):
            raise ConfigError(f"joints {list(joints)}: expected hinges and slides only")
        zero = [float(model.qpos0[model.jnt_qposadr[i]]) for i in ids]

        def tensor(x: object) -> Tensor:
            return torch.tensor(np.asarray(x), dtype=torch.float32, device=device)

        self.n = len(ids)
        self._first = tensor(np.concatenate([steps[0][1].T, steps[0][0][None]]))[..., None]
        factors = tensor([_factors(h, *step) for h, step in zip(hinge, steps[1:], strict=True)])
        self._factors = factors.view(self.n, 3, 4, 3).permute(1, 0, 3, 2)[..., None]  # [A B C, n, 3, 4, 1]
        self._zero, self._hinge, self._all_hinges = tensor(zero), tensor(hinge)[:, None, None], all(hinge)

    def forward(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Position ``[N, 3]`` [m] and matrix ``[N, 3, 3]`` of the site for joint positions ``q [N, n]``."""
        site = self._frames(q)[-1]
        return site[3].T, site[:3].permute(2, 1, 0)

    def jacobian(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position, matrix and geometric Jacobian ``[N, 6, n]`` (linear above angular) of the site."""
        frames = self._frames(q)
        joints, site = torch.stack(frames[:-1]), frames[-1]
        axes = joints[:, 2]  # [n, 3, N]
        linear = torch.linalg.cross(axes, site[3] - joints[:, 3], dim=1)
        if not self._all_hinges:
            linear = torch.where(self._hinge > 0, linear, axes)
            axes = axes * self._hinge
        return site[3].T, site[:3].permute(2, 1, 0), torch.cat([linear, axes], 1).permute(2, 1, 0)

    def origins(self, q: Tensor) -> Tensor:
        """Where the joints are ``[N, n, 3]`` [m]."""
        return torch.stack(self._frames(q)[:-1])[:, 3].permute(2, 0, 1)

    def solve(
        self, q: Tensor, pos: Tensor, rot: Tensor, *, low: Tensor, high: Tensor, rest: Tensor, rotation_weight: float,
        iterations: int = 2, damping: float = 0.03, rest_gain: float = 0.05, max_step: float = 0.3,
        start: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Joint positions ``[N, n]`` near ``q`` whose site is at ``pos [N, 3]``, ``rot [N, 3, 3]``.

        Damped least squares (Nakamura and Hanafusa 1986; Wampler 1986): ``dq = J^T (J J^T + damping^2 I)^-1 e`` with
        rotation rows weighted; redundant chains drift towards ``rest [n]`` in the null space. Joints that stand at a
        limit and would go beyond it are held, and the others make up for them (projected Newton, Bertsekas 1982).
        Steps are limited to ``max_step`` [rad or m] a joint and iteration, the result to ``low`` and ``high [n]``.
        Unreachable poses give the nearest compromise.

        Args:
            start: :meth:`jacobian` of ``q``, where it is known already.
        """
        weight = torch.ones(6, 1, device=q.device)
        weight[3:] = rotation_weight
        goal, turned = pos.T, rot.permute(2, 1, 0).contiguous()
        x, rest = q.T, rest[:, None]  # worlds last from here on: every operation runs over long vectors
        low, high = low[:, None], high[:, None]
        for i in range(iterations):
            p, r, jac = start if i == 0 and start is not None else self.jacobian(x.T)
            error = torch.cat([goal - p.T, _turn_between(r.permute(2, 1, 0), turned)]) * weight
            jac = jac.permute(2, 1, 0) * weight
            pull = rest_gain * (rest - x) if self.n > 6 else None
            downhill = _sum((jac * error).unbind(1))
            held = ((x <= low) & (downhill < 0)) | ((x >= high) & (downhill > 0))
            step = _damped_step(jac * ~held[:, None], error, pull, damping)
            x = torch.clamp(x + step.clamp(-max_step, max_step), low, high)
        return x.T

    def _frames(self, q: Tensor) -> list[Tensor]:
        """Frames of every joint before it moves (its axis is z) and of the site.

        Each is ``[4, 3, N]``: the columns of its matrix, then its position. Worlds come last, so that every operation
        runs over long vectors: four times as fast on a CPU as worlds first.
        """
        angle = (q - self._zero).T.contiguous()
        cos, sin = torch.cos(angle), torch.sin(angle)
        fixed, by_cos, by_sin = self._factors
        joints = fixed + by_cos * cos[:, None, None] + by_sin * sin[:, None, None]  # [n, 3, 4, N]
        frames = [self._first.expand(4, 3, q.shape[0])]
        for i in range(self.n):
            last = frames[-1]
            frame = _sum(joints[i, :, :, None] * last[:3, None])
            frame[3] += last[3]
            if not self._all_hinges:
                frame[3] += last[2] * ((1.0 - self._hinge[i, 0]) * angle[i])
            frames.append(frame)
        return frames


def _sum(terms: Tensor | Sequence[Tensor]) -> Tensor:
    """Sum over the first axis, term by term: on a CPU the order in which ``sum`` adds depends on the number of worlds,
    and episodes are to be the same in any number.
    """
    total = terms[0]
    for x in terms[1:]:
        total = total + x
    return total


def _damped_step(jac: Tensor, error: Tensor, pull: Tensor | None, damping: float) -> Tensor:
    """Step ``[n, N]`` for ``jac [n, 6, N]``, ``error [6, N]`` and a wish ``pull [n, N]`` for the null space."""
    square = _sum(jac[:, :, None] * jac[:, None]) + damping**2 * torch.eye(6, device=jac.device)[..., None]
    if pull is not None:  # J^+ e + (1 - J^+ J) pull = J^+ (e - J pull) + pull
        error = error - _sum(jac * pull[:, None])
    step = _sum((jac * _solve(square, error)).unbind(1))
    return step if pull is None else step + pull


def _solve(square: Tensor, right: Tensor) -> Tensor:
    """Solution ``[6, N]`` of ``square [6, 6, N] y = right [6, N]`` by elimination: twice as fast as LAPACK a world.

    Without pivots: the matrices are positive definite by their damping.
    """
    rows = torch.cat([square, right[:, None]], 1)
    for k in range(right.shape[0]):
        pivot = rows[k, 1:] / rows[k, :1]
        rows = torch.addcmul(rows[:, 1:], rows[:, :1], pivot, value=-1.0)
        rows[k] = pivot
    return rows[:, 0]


def _factors(hinge: bool, offset: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """``[12, 3]``: ``[A | B | C]^T`` such that ``A + cos q B + sin q C`` is ``Rz(q) [turn | offset]`` (Rodrigues)."""
    after = np.concatenate([turn, offset[:, None]], 1)
    if not hinge:
        return np.concatenate([after, 0 * after, 0 * after], 1).T
    z, skew = np.diag([0.0, 0.0, 1.0]), np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    return np.concatenate([z @ after, (np.eye(3) - z) @ after, skew @ after], 1).T


def _turn_between(current: Tensor, target: Tensor) -> Tensor:
    """Rotation vector ``[3, N]`` from the columns ``[3, 3, N]`` of two matrices, in few operations.

    Within 1e-3 rad of half a turn its axis is noise; :func:`rotation_error` is accurate everywhere.
    """
    axis = _sum(torch.linalg.cross(current, target, dim=1))  # 2 sin(angle) times the axis
    sine = _sum(axis * axis).sqrt().clamp(min=1e-12)
    cosine = _sum((current * target).flatten(0, 1)) - 1.0  # 2 cos(angle)
    # not atan2, whose last bits depend on the number of worlds on a CPU
    return axis * (2.0 * torch.atan(sine / (cosine + (sine * sine + cosine * cosine).sqrt())) / sine)


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
