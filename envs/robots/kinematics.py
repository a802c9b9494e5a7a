"""Forward and differential inverse kinematics of a serial chain, for a batch of joint positions at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict, Unpack

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import matrix_to_quat, quat_to_axis_angle
from visuomotor.envs.sim.arrays import Words, namespace, tensor, words
from visuomotor.envs.sim.world import find

__all__ = ["Approach", "Chain", "rotation_error"]


def rotation_error(target: Tensor, current: Tensor) -> Tensor:
    """Rotation vector ``[..., 3]`` [rad] that takes ``current [..., 3, 3]`` to ``target [..., 3, 3]``."""
    error: Tensor = quat_to_axis_angle(matrix_to_quat(target @ current.transpose(-1, -2)))
    return error


class Approach(TypedDict):
    """Settings of inverse kinematics.

    Attributes:
        low, high: limits of the joints ``[n]``.
        rest: where redundant joints drift ``[n]``.
        rotation_weight: of an error of rotation [1/rad] against one of position [1/m].
        iterations: steps towards the pose; 2.
        damping: of the least squares; 0.03.
        rest_gain: share of the way to ``rest`` in each iteration; 0.05.
        max_step: of a joint in one iteration [rad or m]; 0.3.
    """

    low: Tensor
    high: Tensor
    rest: Tensor
    rotation_weight: float
    iterations: NotRequired[int]
    damping: NotRequired[float]
    rest_gain: NotRequired[float]
    max_step: NotRequired[float]


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

        def constant(x: object) -> Tensor:
            return torch.tensor(np.asarray(x), dtype=torch.float32, device=device)

        self.n = len(ids)
        self._first = constant(np.concatenate([steps[0][1].T, steps[0][0][None]]))[..., None]
        factors = constant([_factors(h, *step) for h, step in zip(hinge, steps[1:], strict=True)])
        self._factors = factors.view(self.n, 3, 4, 3).permute(1, 0, 3, 2)[..., None]  # [A B C, n, 3, 4, 1]
        self._zero, self._hinge, self._all_hinges = constant(zero)[:, None], constant(hinge)[:, None, None], all(hinge)

    @np.errstate(all="ignore")
    def forward(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Position ``[N, 3]`` [m] and matrix ``[N, 3, 3]`` of the site for joint positions ``q [N, n]``."""
        return _pose(self._frames(words(q.T.contiguous()))[-1])

    @np.errstate(all="ignore")
    def jacobian(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position, matrix and geometric Jacobian ``[N, 6, n]`` (linear above angular) of the site."""
        site, jac = self._jacobian(words(q.T.contiguous()))
        return *_pose(site), tensor(jac).permute(2, 1, 0)

    def origins(self, q: Tensor) -> Tensor:
        """Where the joints are ``[N, n, 3]`` [m]."""
        frames = self._frames(words(q.T.contiguous()))[:-1]
        return torch.stack([tensor(frame[3]) for frame in frames]).permute(2, 0, 1)

    @np.errstate(all="ignore")
    def solve(self, q: Tensor, pos: Tensor, rot: Tensor, **settings: Unpack[Approach]) -> Tensor:
        """Joint positions ``[N, n]`` near ``q`` whose site is at ``pos [N, 3]``, ``rot [N, 3, 3]``.

        Damped least squares (Nakamura and Hanafusa 1986; Wampler 1986): ``dq = J^T (J J^T + damping^2 I)^-1 e`` with
        rotation rows weighted; redundant chains drift towards ``rest`` in the null space. Joints that stand at a limit
        and would go beyond it are held, and the others make up for them (projected Newton, Bertsekas 1982). Steps are
        limited to ``max_step`` a joint and iteration, the result to ``low`` and ``high``. Unreachable poses give the
        nearest compromise.
        """
        x, goal = words(q.T.contiguous()), words(pos.T.contiguous())
        turned = words(rot.permute(2, 1, 0).contiguous())
        return self._approach(x, goal, turned, self._jacobian(x), **settings)

    @np.errstate(all="ignore")
    def follow(self, q: Tensor, motion: Tensor, **settings: Unpack[Approach]) -> Tensor:
        """Joint positions ``[N, n]`` near ``q`` that move the site by ``motion [N, 6]`` in the frame of the base.

        As :meth:`solve` does for a pose.

        Args:
            motion: change of the position [m], rotation vector [rad].
        """
        x, by = words(q.T.contiguous()), words(motion.T.contiguous())
        start = self._jacobian(x)
        return self._approach(x, start[0][3] + by[:3], _turned(start[0][:3], by[3:]), start, **settings)

    def _approach(
        self, x: Words, goal: Words, turned: Words, start: tuple[Words, Words], *, low: Tensor, high: Tensor,
        rest: Tensor, rotation_weight: float, iterations: int = 2, damping: float = 0.03, rest_gain: float = 0.05,
        max_step: float = 0.3,
    ) -> Tensor:  # fmt: skip
        """From joint positions ``x [n, N]``, whose :meth:`_jacobian` is ``start``, to ``goal [3, N]`` and the columns
        ``turned [3, 3, N]``: see :meth:`solve`.
        """
        xp = namespace(x)
        neutral, low, high = (words(v[:, None]) for v in (rest, low, high))
        for i in range(iterations):
            site, jac = start if i == 0 else self._jacobian(x)
            error = xp.concatenate([goal - site[3], rotation_weight * _turn_between(site[:3], turned)])
            jac[:, 3:] *= rotation_weight
            pull = rest_gain * (neutral - x) if self.n > 6 else None
            downhill = _sum((jac * error).swapaxes(0, 1))
            held = ((x <= low) & (downhill < 0)) | ((x >= high) & (downhill > 0))
            step = _damped_step(jac * ~held[:, None], error, pull, damping)
            x = xp.clip(x + xp.clip(step, -max_step, max_step), low, high)
        return tensor(x).T

    def _jacobian(self, q: Words) -> tuple[Words, Words]:
        """The site's frame ``[4, 3, N]`` and the geometric Jacobian ``[n, 6, N]`` for ``q [n, N]``."""
        xp = namespace(q)
        frames = self._frames(q)
        joints, site = xp.stack(frames[:-1]), frames[-1]
        axes = joints[:, 2]  # [n, 3, N]
        linear = _cross(axes.swapaxes(0, 1), (site[3] - joints[:, 3]).swapaxes(0, 1)).swapaxes(0, 1)
        if not self._all_hinges:
            hinge = words(self._hinge)
            linear = xp.where(hinge > 0, linear, axes)
            axes = axes * hinge
        return site, xp.concatenate([linear, axes], 1)

    def _frames(self, q: Words) -> list[Words]:
        """Frames of every joint before it moves (its axis is z) and of the site, for ``q [n, N]``.

        Each is ``[4, 3, N]``: the columns of its matrix, then its position. Worlds come last, so that every operation
        runs over long vectors: four times as fast on a CPU as worlds first.
        """
        xp = namespace(q)
        angle = q - words(self._zero)
        fixed, by_cos, by_sin = words(self._factors)
        joints = by_cos * xp.cos(angle)[:, None, None]  # [n, 3, 4, N]
        joints += by_sin * xp.sin(angle)[:, None, None]
        joints += fixed
        frames = [words(self._first.expand(4, 3, q.shape[1]))]
        for i in range(self.n):
            last = frames[-1]
            frame = _sum(joints[i, :, :, None] * last[:3, None])
            frame[3] += last[3]
            if not self._all_hinges:
                frame[3] += last[2] * ((1.0 - words(self._hinge[i, 0])) * angle[i])
            frames.append(frame)
        return frames


def _pose(frame: Words) -> tuple[Tensor, Tensor]:
    """Position ``[N, 3]`` and matrix ``[N, 3, 3]`` of a frame ``[4, 3, N]``."""
    columns = tensor(frame)
    return columns[3].T, columns[:3].permute(2, 1, 0)


def _sum(terms: Words) -> Words:
    """Sum over the first axis, term by term: on a CPU the order in which ``sum`` adds depends on the number of worlds,
    and episodes are to be the same in any number.
    """
    total = terms[0] + terms[1]
    for x in terms[2:]:
        total += x
    return total


def _cross(a: Words, b: Words) -> Words:
    """Cross product of vectors ``[3, ...]`` along the first axis."""
    xp = namespace(a)
    return xp.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _damped_step(jac: Words, error: Words, pull: Words | None, damping: float) -> Words:
    """Step ``[n, N]`` for ``jac [n, 6, N]``, ``error [6, N]`` and a wish ``pull [n, N]`` for the null space."""
    square = jac[0, :, None] * jac[0]
    for row in jac[1:]:
        square += row[:, None] * row
    for i in range(6):
        square[i, i] += damping**2
    if pull is not None:  # J^+ e + (1 - J^+ J) pull = J^+ (e - J pull) + pull
        error = error - _sum(jac * pull[:, None])
    step = _sum((jac * _solve(square, error)).swapaxes(0, 1))
    return step if pull is None else step + pull


def _solve(square: Words, right: Words) -> Words:
    """Solution ``[6, N]`` of ``square [6, 6, N] y = right [6, N]`` by elimination: twice as fast as LAPACK a world.

    Without pivots: the matrices are positive definite by their damping.
    """
    xp = namespace(square)
    rows = xp.concatenate([square, right[:, None]], 1)
    for k in range(right.shape[0]):
        pivot = rows[k, 1:] / rows[k, :1]
        rows = rows[:, 1:] - rows[:, :1] * pivot
        rows[k] = pivot
    return rows[:, 0]


def _factors(hinge: bool, offset: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """``[12, 3]``: ``[A | B | C]^T`` such that ``A + cos q B + sin q C`` is ``Rz(q) [turn | offset]`` (Rodrigues)."""
    after = np.concatenate([turn, offset[:, None]], 1)
    if not hinge:
        return np.concatenate([after, 0 * after, 0 * after], 1).T
    z, skew = np.diag([0.0, 0.0, 1.0]), np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    return np.concatenate([z @ after, (np.eye(3) - z) @ after, skew @ after], 1).T


def _turned(columns: Words, by: Words) -> Words:
    """Columns ``[3, 3, N]`` of a matrix turned by rotation vectors ``by [3, N]`` [rad] (Rodrigues)."""
    xp = namespace(by)
    angle = xp.sqrt(_sum(by * by))
    axis = by / xp.clip(angle, 1e-12, None)
    axes = axis[:, None] + xp.zeros_like(columns)  # [3, columns, N]
    vectors = columns.swapaxes(0, 1)
    cos, along = xp.cos(angle), _sum(axes * vectors)
    turned = cos * vectors + xp.sin(angle) * _cross(axes, vectors) + axes * ((1.0 - cos) * along)
    return turned.swapaxes(0, 1)


def _turn_between(current: Words, target: Words) -> Words:
    """Rotation vector ``[3, N]`` from the columns ``[3, 3, N]`` of two matrices, in few operations.

    Within 1e-3 rad of half a turn its axis is noise; :func:`rotation_error` is accurate everywhere.
    """
    xp = namespace(current)
    axis = _sum(_cross(current.swapaxes(0, 1), target.swapaxes(0, 1)).swapaxes(0, 1))  # 2 sin(angle) times the axis
    sine = xp.clip(xp.sqrt(_sum(axis * axis)), 1e-12, None)
    cosine = _sum(_sum(current * target)) - 1.0  # 2 cos(angle)
    # not atan2, whose last bits depend on the number of worlds on a CPU
    return axis * (2.0 * xp.arctan(sine / (cosine + xp.sqrt(sine * sine + cosine * cosine))) / sine)


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
