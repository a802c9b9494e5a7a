"""Forward and inverse kinematics of the arm in the bridge: numpy alone, and the simulator's numbers.

A policy of hand motions has learned with the inverse kinematics of ``envs/robots/kinematics.py``: what a motion means
to the joints is part of its environment. Here is the same iteration for one arm, without torch, in double precision.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.robots.importing import compile_spec, read_model
from visuomotor.envs.robots.model import RobotModel
from visuomotor.envs.robots.registry import get_robot, robot_names
from visuomotor.sim2real.safety.cover import ancestors, cover_arm, joints_of

__all__ = ["Kinematics", "urdf_velocity"]

_ITERATIONS, _DAMPING, _REST_GAIN, _MAX_STEP = 2, 0.03, 0.05, 0.3  # of the simulator's arm


class Kinematics:
    """A serial chain of ``n`` hinges and slides from the model's world to the hand. Holds arrays only (pickles).

    Poses are in the frame of the arm's base. Joints of other bodies stay at their reference position.

    Attributes:
        n: joints.
        joints: their names, base first.
        low, high: their limits ``[n]`` [rad or m], infinite where there is none.
        velocity: their largest velocities ``[n]`` [rad/s or m/s] as a URDF says, else infinite.
        rotation_weight: of an error of rotation [1/rad] against one of position [1/m].
        home: joint positions ``[n]`` of a registered robot, else None.
        links, local, radii: of the spheres that cover the arm: the link each moves with ``[K]`` (0: the base),
            homogeneous centres in the links' frames ``[4, K]`` [m], and radii ``[K]`` [m].
    """

    def __init__(
        self, model: mujoco.MjModel, joints: Sequence[str], tcp: str, *, rotation_weight: float = 0.3,
        home: Sequence[float] | None = None, velocity: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        ids = [_find(model, mujoco.mjtObj.mjOBJ_JOINT, "joint", name) for name in joints]
        kinds = (mujoco.mjtJoint.mjJNT_HINGE.value, mujoco.mjtJoint.mjJNT_SLIDE.value)
        if not ids or any(int(model.jnt_type[i]) not in kinds for i in ids):
            raise ConfigError(f"joints {list(joints)}: expected hinges and slides, one at least")
        self.n, self.joints = len(ids), tuple(joints)
        limited = np.asarray(model.jnt_limited)[ids].astype(bool)
        bounds = np.where(limited[:, None], model.jnt_range[ids], np.array([-np.inf, np.inf]))
        self.low, self.high = (np.ascontiguousarray(b) for b in bounds.T)
        self.velocity = np.full(self.n, np.inf) if velocity is None else np.array(velocity, dtype=np.float64)
        self.rotation_weight = rotation_weight
        self.home = None if home is None else np.array(home, dtype=np.float64)
        self._zero = np.array([model.qpos0[model.jnt_qposadr[i]] for i in ids])
        self._hinge = np.array([int(model.jnt_type[i]) == kinds[0] for i in ids])
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        frames = [np.eye(4), *(_frame(_z_to(data.xaxis[i]), data.xanchor[i]) for i in ids)]
        steps = np.stack([np.linalg.inv(a) @ b for a, b in pairwise(frames)])
        self._factors = _factors(steps, self._hinge)
        kind, index = _end(model, tcp)
        body = index if kind == "body" else int(model.site_bodyid[index])
        above = ancestors(model, body)
        found = [i for b in reversed(above) for i in joints_of(model, b) if i in ids]
        if found != ids:
            names = [model.joint(i).name for i in found]
            raise ConfigError(f"the joints before {tcp!r} are, in order, {names}; expected {list(joints)}")
        rot = data.xmat[index] if kind == "body" else data.site_xmat[index]
        pos = data.xpos[index] if kind == "body" else data.site_xpos[index]
        self._tcp = np.linalg.inv(frames[-1]) @ _frame(rot.reshape(3, 3), pos)
        self.links, self.local, self.radii = cover_arm(model, ids, frames)
        self._bounds = np.searchsorted(self.links, np.arange(self.n + 2)).tolist()

    @classmethod
    def load(cls, model: str, joints: Sequence[str] = (), tcp: str = "") -> Kinematics:
        """From a registered robot (``ur5e``), a URDF or MJCF file, or what :meth:`save` has written.

        Args:
            joints: names in the model, base first; none: the registered robot's own, or every hinge and slide of the
                file on the way to ``tcp``.
            tcp: site or body that is the hand; none: the registered robot's own.

        Raises:
            ConfigError: no such robot or file, unknown joints or tcp, or joints that do not lead to it in this order.
        """
        if model in robot_names():
            return cls.of(get_robot(model), joints, tcp)
        path = Path(model).expanduser()
        if not path.suffix:
            raise ConfigError(
                f"model={model!r} is no registered robot. {nearest(model, robot_names())} Or give a URDF or MJCF file"
            )
        if path.suffix == ".npz":
            return cls._restore(path, joints)
        compiled = compile_spec(read_model(path)[0], path)
        if not tcp:
            raise ConfigError(f"model={model}: state tcp, the site or body that is the hand: {_names(compiled)}")
        if not joints:
            kind, index = _end(compiled, tcp)
            body = index if kind == "body" else int(compiled.site_bodyid[index])
            chain = [i for b in reversed(ancestors(compiled, body)) for i in joints_of(compiled, b)]
            joints = [compiled.joint(i).name for i in chain]
        weight = 0.3 if len(joints) >= 6 else 0.05
        return cls(compiled, joints, tcp, rotation_weight=weight, velocity=urdf_velocity(path, joints))

    @classmethod
    def of(
        cls, robot: RobotModel, joints: Sequence[str] = (), tcp: str = "", velocity: Sequence[float] | None = None
    ) -> Kinematics:
        """Of a robot of the simulator, one from a file (``robot=custom``) included."""
        own = not joints or tuple(joints) == robot.joints
        return cls(
            robot.spec().compile(), joints or robot.joints, tcp or robot.tcp,
            rotation_weight=robot.rotation_weight, home=robot.home if own else None, velocity=velocity,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write it to an npz file: for processes that cannot read its model, which may take torch."""
        saved: dict[str, Any] = {k: np.asarray(v) for k, v in vars(self).items() if v is not None}
        np.savez(path, **saved)

    @classmethod
    def _restore(cls, path: Path, joints: Sequence[str]) -> Kinematics:
        if not path.is_file():
            raise ConfigError(f"model={path}: there is no such file")
        self = cls.__new__(cls)
        with np.load(path, allow_pickle=False) as saved:
            vars(self).update(saved, home=saved.get("home"))
        self.n, self.rotation_weight = int(self.n), float(self.rotation_weight)
        self.joints, self._bounds = tuple(np.asarray(self.joints).tolist()), np.asarray(self._bounds).tolist()
        if joints and tuple(joints) != self.joints:
            raise ConfigError(f"model={path} has the joints {', '.join(self.joints)}; expected {', '.join(joints)}")
        return self

    def frames(self, q: np.ndarray) -> np.ndarray:
        """Base, then the frame that moves with each joint: ``[n + 1, P, 4, 4]`` for joint positions ``q [P, n]``."""
        angle = (q - self._zero).T[:, :, None, None]
        fixed, by_cos, by_sin, by_angle = self._factors
        moves = fixed + np.cos(angle) * by_cos
        moves += np.sin(angle) * by_sin
        if not self._hinge.all():
            moves += angle * by_angle
        out = np.empty((self.n + 1, q.shape[0], 4, 4))
        out[0] = np.eye(4)
        for i in range(self.n):
            np.matmul(out[i], moves[i], out=out[i + 1])
        return out

    def pose(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position ``[3]`` [m] and matrix ``[3, 3]`` of the hand for joint positions ``q [n]``."""
        hand = self.frames(q[None])[-1, 0] @ self._tcp
        return hand[:3, 3].copy(), hand[:3, :3].copy()

    def jacobian(self, q: np.ndarray) -> np.ndarray:
        """Geometric Jacobian ``[6, n]`` of the hand: linear above angular."""
        return self._jacobian(q)[2]

    def tcp_of(self, frames: np.ndarray) -> np.ndarray:
        """Positions ``[P, 3]`` of the hand's point for :meth:`frames`."""
        point: np.ndarray = frames[-1, :, :3] @ self._tcp[:, 3]
        return point

    def spheres_of(self, frames: np.ndarray) -> np.ndarray:
        """Centres ``[P, 3, K]`` of the spheres that cover the arm, for :meth:`frames`; ordered by ``links [K]``."""
        centres = np.empty((frames.shape[1], 3, len(self.radii)))
        for link, (a, b) in enumerate(pairwise(self._bounds)):
            np.matmul(frames[link, :, :3], self.local[:, a:b], out=centres[:, :, a:b])
        return centres

    def spheres(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centres ``[K, 3]`` and radii ``[K]`` [m] of spheres that cover the arm, its fingers open and closed."""
        return self.spheres_of(self.frames(q[None]))[0].T, self.radii

    def follow(self, q: np.ndarray, motion: np.ndarray, rest: np.ndarray) -> np.ndarray:
        """Joint positions ``[n]`` near ``q`` that move the hand by ``motion [6]`` in the frame of the base.

        Args:
            motion: change of the position [m], rotation vector [rad].
            rest: where redundant joints drift ``[n]``.
        """
        start = self._jacobian(q)
        return self._approach(q, start[0] + motion[:3], _turned(start[1], motion[3:]), rest, start)

    def solve(self, q: np.ndarray, pos: np.ndarray, rot: np.ndarray, rest: np.ndarray) -> np.ndarray:
        """Joint positions ``[n]`` near ``q`` that bring the hand towards ``pos [3]``, ``rot [3, 3]``.

        Damped least squares of two iterations, at most 0.3 rad a joint each, within the joints' limits; details and
        sources at ``Chain.solve`` of the simulator.
        """
        return self._approach(q, pos, rot, rest, self._jacobian(q))

    def _approach(
        self, q: np.ndarray, pos: np.ndarray, rot: np.ndarray, rest: np.ndarray,
        start: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> np.ndarray:  # fmt: skip
        x = np.asarray(q, dtype=np.float64)
        for i in range(_ITERATIONS):
            at, turned, jac = start if i == 0 else self._jacobian(x)
            error = np.concatenate([pos - at, self.rotation_weight * _turn_between(turned, rot)])
            jac = jac.copy()
            jac[3:] *= self.rotation_weight
            downhill = jac.T @ error
            held = ((x <= self.low) & (downhill < 0)) | ((x >= self.high) & (downhill > 0))
            jac[:, held] = 0.0
            square = jac @ jac.T + _DAMPING**2 * np.eye(6)
            if self.n > 6:
                pull = _REST_GAIN * (rest - x)
                step = jac.T @ np.linalg.solve(square, error - jac @ pull) + pull
            else:
                step = jac.T @ np.linalg.solve(square, error)
            x = np.clip(x + np.clip(step, -_MAX_STEP, _MAX_STEP), self.low, self.high)
        return x

    def _jacobian(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        frames = self.frames(np.asarray(q, dtype=np.float64)[None])[1:, 0]
        hand = frames[-1] @ self._tcp
        axes, points = frames[:, :3, 2], frames[:, :3, 3]
        linear = np.where(self._hinge[:, None], np.cross(axes, hand[:3, 3] - points), axes)
        angular = axes * self._hinge[:, None]
        return hand[:3, 3], hand[:3, :3], np.concatenate([linear.T, angular.T])


def _factors(steps: np.ndarray, hinge: np.ndarray) -> np.ndarray:
    """``[4, n, 1, 4, 4]``: ``A, B, C, D`` such that ``A + cos q B + sin q C + q D`` is a fixed step ``[4, 4]`` and then
    the motion ``q`` of its joint about z or along it.
    """
    turns = hinge[:, None, None]
    cos, sin, along = np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 4))
    cos[0, 0] = cos[1, 1] = sin[1, 0] = along[2, 3] = 1.0
    sin[0, 1] = -1.0
    fixed = np.where(turns, np.eye(4) - cos, np.eye(4))
    parts = [fixed, np.where(turns, cos, 0.0), np.where(turns, sin, 0.0), np.where(turns, 0.0, along)]
    return np.stack([steps @ part for part in parts])[:, :, None]


def _turned(rot: np.ndarray, by: np.ndarray) -> np.ndarray:
    """``rot [3, 3]`` turned by the rotation vector ``by [3]`` [rad] (Rodrigues)."""
    angle = float(np.linalg.norm(by))
    x, y, z = by / max(angle, 1e-12)
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turned: np.ndarray = (np.eye(3) + math.sin(angle) * skew + (1.0 - math.cos(angle)) * (skew @ skew)) @ rot
    return turned


def _turn_between(current: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation vector ``[3]`` from one matrix to another, as the simulator computes it."""
    axis = np.cross(current.T, target.T).sum(0)  # 2 sin(angle) times the axis
    sine = max(float(np.linalg.norm(axis)), 1e-12)
    cosine = float((current * target).sum()) - 1.0  # 2 cos(angle)
    turn: np.ndarray = axis * (2.0 * math.atan(sine / (cosine + math.hypot(sine, cosine))) / sine)
    return turn


def _frame(rot: np.ndarray, pos: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rot, pos
    return out


def _z_to(axis: np.ndarray) -> np.ndarray:
    """A rotation whose z column is ``axis``."""
    quat, out = np.zeros(4), np.zeros(9)
    mujoco.mju_quatZ2Vec(quat, axis / np.linalg.norm(axis))
    mujoco.mju_quat2Mat(out, quat)
    return out.reshape(3, 3)


def _names(model: mujoco.MjModel) -> str:
    return ", ".join(
        [model.body(i).name for i in range(1, model.nbody)] + [model.site(i).name for i in range(model.nsite)]
    )


def _find(model: mujoco.MjModel, code: mujoco.mjtObj, kind: str, name: str) -> int:
    index = int(mujoco.mj_name2id(model, code, name))
    if index < 0:
        count = {"joint": model.njnt, "site": model.nsite, "body": model.nbody}[kind]
        known = [mujoco.mj_id2name(model, code, i) or "" for i in range(count)]
        raise ConfigError(f"the model has no {kind} {name!r}. {nearest(name, [k for k in known if k])}")
    return index


def _end(model: mujoco.MjModel, tcp: str) -> tuple[str, int]:
    """Site or body of that name."""
    site = int(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, tcp))
    if site >= 0:
        return "site", site
    body = int(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, tcp))
    if body < 0:
        raise ConfigError(f"the model has no site or body {tcp!r}. It has: {_names(model)}")
    return "body", body


def urdf_velocity(path: Path, joints: Sequence[str]) -> list[float] | None:
    """``<limit velocity>`` of each joint; infinite where there is none; None for an MJCF."""
    root = ET.parse(path).getroot()
    if root.tag != "robot":
        return None
    limits = {j.get("name"): j.find("limit") for j in root.iter("joint")}
    found = [limits.get(name) for name in joints]
    return [math.inf if limit is None else float(limit.get("velocity", "inf")) for limit in found]
