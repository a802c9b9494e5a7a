"""How a gripper of unknown make opens and closes, found by moving it and watching its fingertips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from visuomotor.envs.robots.model import GripperModel
from visuomotor.envs.robots.structure import TIMESTEP, Structure, subtree

__all__ = ["Grip", "find_grip", "finger_inputs", "tune_grip"]

_GAP = 0.055  # opening at which the middle between the tips is taken for the grasp: room for an object of 4 cm [m]
_GRASP_SHARE = 0.25  # of its force limit that a gripper's servo shall press with, half closed
_PAD, _JAW_PAD = 0.008, 0.015  # from the tips of fingers and of a single jaw back to where an object is held [m]
_SETTLE = 1.0  # time given to the fingers [s]


@dataclass(frozen=True)
class Grip:
    """A gripper and where it grasps, in the frame of the hand's body.

    Attributes:
        model: what opens and closes it.
        pos: centre of the grasp ``[3]`` [m].
        rot: matrix ``[3, 3]``: z out of the hand, y along the closing direction (either sign).
    """

    model: GripperModel
    pos: np.ndarray
    rot: np.ndarray


def find_grip(m: mujoco.MjModel, structure: Structure, qpos: np.ndarray) -> Grip | None:
    """Drive each actuator behind the hand to both ends; the end with the fingertips further apart is *open*.

    None if nothing behind the hand is driven, or if no end opens further than the other by a millimetre.

    Args:
        m: with its arm joints driven by position servos, and without contacts among its own geoms.
        qpos: pose ``[nq]`` in which the arm is held.
    """
    inputs = finger_inputs(m, structure)
    if not inputs:
        return None
    hand = _Hand(m, structure, qpos, inputs)
    tips = _tips(m, structure, hand)
    if len(tips) < 2:
        return None
    ends = hand.opened_and_closed(tips)
    width = hand.spread(tips, ends[0]) - hand.spread(tips, ends[1])
    if width < 1e-3:
        return None
    opened, closed = (hand.settled(ctrl) for ctrl in ends)
    span = {j: (opened[m.jnt_qposadr[j]], closed[m.jnt_qposadr[j]]) for j in structure.fingers}
    span = {j: (float(a), float(b)) for j, (a, b) in span.items() if abs(a - b) > 1e-4}
    model = GripperModel(
        joints=tuple(m.joint(j).name for j in span),
        actuators=tuple(m.actuator(a).name for a in inputs),
        opened=tuple(float(ends[0][a]) for a in inputs),
        closed=tuple(float(ends[1][a]) for a in inputs),
        joint_opened=tuple(a for a, _ in span.values()),
        joint_closed=tuple(b for _, b in span.values()),
        width=float(width),
    )
    return Grip(model, *hand.grasp_frame(tips, ends, min(_GAP, 0.6 * width)))


def finger_inputs(m: mujoco.MjModel, structure: Structure) -> list[int]:
    """Actuators that move joints behind the hand, directly or by a tendon."""
    return [a for a in range(m.nu) if any(j in structure.fingers for j, _ in _moved(m, a))]


def _moved(m: mujoco.MjModel, a: int) -> list[tuple[int, float]]:
    """Joints that an actuator moves, each with its lever."""
    target, kind = int(m.actuator_trnid[a, 0]), int(m.actuator_trntype[a])
    if kind == mujoco.mjtTrn.mjTRN_JOINT.value:
        return [(target, float(m.actuator_gear[a, 0]))]
    if kind != mujoco.mjtTrn.mjTRN_TENDON.value:
        return []
    wraps = range(int(m.tendon_adr[target]), int(m.tendon_adr[target]) + int(m.tendon_num[target]))
    joints = [w for w in wraps if m.wrap_type[w] == mujoco.mjtWrap.mjWRAP_JOINT.value]
    return [(int(m.wrap_objid[w]), float(m.wrap_prm[w] * m.actuator_gear[a, 0])) for w in joints]


def tune_grip(m: mujoco.MjModel, a: int, factor: float | None) -> tuple[float, float] | None:
    """Stiffness and damping ``(kp, kv)`` for a gripper's position servo; None for other drives.

    Many models have servos so soft that they hold an object of half the opening with a newton or two, and drop it: the
    stiffness becomes ``factor`` times what it was, or what presses with a quarter of the force limit. Fingers that
    snap shut knock objects away: damping grows to a time constant of 0.25 s, as far as the scene's timestep allows.
    """
    if m.actuator_biastype[a] != mujoco.mjtBias.mjBIAS_AFFINE.value or m.actuator_biasprm[a, 1] >= 0:
        return None
    kp, kv = -float(m.actuator_biasprm[a, 1]), -float(m.actuator_biasprm[a, 2])
    if factor is None:
        low, high = _ends(m, a)
        force = 0.5 * m.actuator_gainprm[a, 0] * (high - low)  # half way to the commanded end
        limited = bool(m.actuator_forcelimited[a])
        factor = max(1.0, _GRASP_SHARE * np.abs(m.actuator_forcerange[a]).max() / max(force, 1e-9)) if limited else 1.0
    kp *= float(factor)
    return kp, max(kv, min(0.25 * kp, 0.8 * _moved_inertia(m, a) / TIMESTEP))


def _moved_inertia(m: mujoco.MjModel, a: int) -> float:
    """Inertia that an actuator of joints or of a fixed tendon feels [kg or kg m^2]."""
    inverse = 0.0
    d = mujoco.MjData(m)
    mujoco.mj_forward(m, d)
    for joint, coef in _moved(m, a):
        unit, out = np.zeros(m.nv), np.zeros(m.nv)
        unit[m.jnt_dofadr[joint]] = 1.0
        mujoco.mj_mulM(m, d, out, unit)
        inverse += coef**2 / float(unit @ out)
    return 1.0 / inverse


class _Hand:
    """The gripper in a simulation without gravity, its arm held."""

    def __init__(self, m: mujoco.MjModel, structure: Structure, qpos: np.ndarray, inputs: Sequence[int]) -> None:
        self.m, self._qpos, self._structure = m, qpos, structure
        self._held_q = [int(m.jnt_qposadr[j]) for j in structure.arm]
        self._held_v = [int(m.jnt_dofadr[j]) for j in structure.arm]
        self.limits = {a: _ends(m, a) for a in inputs}
        self._cache: dict[bytes, np.ndarray] = {}

    def settled(self, ctrl: np.ndarray) -> np.ndarray:
        """Positions ``[nq]`` that the joints come to under inputs ``[nu]``."""
        key = ctrl.tobytes()
        if key not in self._cache:
            self._cache[key] = self.path(self._qpos, ctrl)[-1]
        return self._cache[key]

    def path(self, qpos: np.ndarray, ctrl: np.ndarray) -> list[np.ndarray]:
        """Positions on the way from ``qpos``."""
        d = mujoco.MjData(self.m)
        d.qpos[:], d.ctrl[:] = qpos, ctrl
        way = [qpos.copy()]
        for _ in range(round(_SETTLE / self.m.opt.timestep)):
            mujoco.mj_step(self.m, d)
            d.qpos[self._held_q], d.qvel[self._held_v] = self._qpos[self._held_q], 0.0
            way.append(d.qpos.copy())
        return way

    def points(self, tips: Sequence[tuple[int, np.ndarray]], qpos: np.ndarray) -> np.ndarray:
        """Tips ``[k, 3]`` in the world."""
        d = mujoco.MjData(self.m)
        d.qpos[:] = qpos
        mujoco.mj_kinematics(self.m, d)
        return np.stack([d.xpos[b] + d.xmat[b].reshape(3, 3) @ p for b, p in tips])

    def spread(self, tips: Sequence[tuple[int, np.ndarray]], ctrl: np.ndarray) -> float:
        """Distance of the tips under inputs ``ctrl [nu]`` [m]."""
        return _spread(self.points(tips, self.settled(ctrl)))

    def middle(self) -> np.ndarray:
        """Inputs ``[nu]`` at the middle of their ranges."""
        ctrl = np.zeros(self.m.nu)
        for a, (low, high) in self.limits.items():
            ctrl[a] = (low + high) / 2
        return ctrl

    def opened_and_closed(self, tips: Sequence[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Inputs ``[nu]`` that open and that close, each actuator tried by itself."""
        opened, closed = self.middle(), self.middle()
        for a, ends in self.limits.items():
            tried = []
            for end in ends:
                ctrl = self.middle()
                ctrl[a] = end
                tried.append(self.spread(tips, ctrl))
            wide = int(np.argmax(tried))
            opened[a], closed[a] = ends[wide], ends[1 - wide]
        return opened, closed

    def grasp_frame(
        self, tips: Sequence[tuple[int, np.ndarray]], ends: tuple[np.ndarray, np.ndarray], gap: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Centre ``[3]`` and matrix ``[3, 3]`` of the grasp in the hand's frame, when ``gap`` is left to close."""
        way = self.path(self.settled(ends[0]), ends[1])[::4]
        at = [self.points(tips, q) for q in way]
        spreads = np.array([_spread(p) for p in at])
        p = at[int(np.argmin(np.abs(spreads - spreads[-1] - gap)))]
        d = mujoco.MjData(self.m)
        d.qpos[:] = self._qpos
        mujoco.mj_kinematics(self.m, d)
        z = approach(self.m, d, self._structure, p.mean(0))
        y = at[0][0] - at[0][np.argmax(np.linalg.norm(at[0] - at[0][0], axis=1))]
        y = y - (y @ z) * z
        y /= np.linalg.norm(y)
        hand = self._structure.hand
        moved = {b for j in self._structure.fingers for b in subtree(self.m, int(self.m.jnt_bodyid[j]))}
        pad = _PAD if all(body in moved for body, _ in tips) else _JAW_PAD
        turn = d.xmat[hand].reshape(3, 3)
        rot = np.stack([np.cross(y, z), y, z], 1)
        return turn.T @ (p.mean(0) - pad * z - d.xpos[hand]), turn.T @ rot


def approach(m: mujoco.MjModel, d: mujoco.MjData, structure: Structure, tips: np.ndarray) -> np.ndarray:
    """Direction out of the hand, world frame: the last joint's axis where it points to the tips, else towards them."""
    last = structure.arm[-1]
    way = tips - d.xanchor[last]
    way /= np.linalg.norm(way)
    axis = np.asarray(d.xaxis[last])
    along = float(axis @ way)
    hinge = m.jnt_type[last] == mujoco.mjtJoint.mjJNT_HINGE.value
    return axis * np.sign(along) if hinge and abs(along) > 0.7 else way


def _spread(points: np.ndarray) -> float:
    return float(np.linalg.norm(points[:, None] - points[None], axis=-1).max())


def _ends(m: mujoco.MjModel, a: int) -> tuple[float, float]:
    """Lowest and highest input of an actuator."""
    if m.actuator_ctrllimited[a]:
        return float(m.actuator_ctrlrange[a, 0]), float(m.actuator_ctrlrange[a, 1])
    servo = m.actuator_biastype[a] == mujoco.mjtBias.mjBIAS_AFFINE.value
    joint = int(m.actuator_trnid[a, 0])
    if servo and m.actuator_trntype[a] == mujoco.mjtTrn.mjTRN_JOINT.value and m.jnt_limited[joint]:
        return float(m.jnt_range[joint, 0]), float(m.jnt_range[joint, 1])
    return -1.0, 1.0


def _tips(m: mujoco.MjModel, structure: Structure, hand: _Hand) -> list[tuple[int, np.ndarray]]:
    """Fingertips as points of bodies: of each branch behind the hand that reaches as far as the furthest.

    A single moving jaw closes against the hand itself.
    """
    movers = [b for b in range(1, m.nbody) if m.body_parentid[b] == structure.hand]
    moving = [b for b in movers if any(int(m.jnt_bodyid[j]) in subtree(m, b) for j in structure.fingers)]
    still = [structure.hand, *(x for b in movers if b not in moving for x in subtree(m, b))]
    groups = [subtree(m, b) for b in moving]
    if len(groups) == 1:
        groups.append(still)
    found = []
    low, high = hand.middle(), hand.middle()
    for a, ends in hand.limits.items():
        low[a], high[a] = ends
    poses = [hand.settled(low), hand.settled(high)]
    for group in groups:
        candidates = [_furthest(m, structure, group, q) for q in poses]
        best = max((c for c in candidates if c is not None), key=lambda c: c[0], default=None)
        if best is not None:
            found.append(best)
    if not found:
        return []
    furthest = max(h for h, _, _ in found)
    return [(body, point) for h, body, point in found if h > 0.85 * furthest]


def _furthest(
    m: mujoco.MjModel, structure: Structure, bodies: Sequence[int], qpos: np.ndarray
) -> tuple[float, int, np.ndarray] | None:
    """How far bodies reach out of the hand [m], and the middle of what lies there, as a point of its body."""
    d = mujoco.MjData(m)
    d.qpos[:] = qpos
    mujoco.mj_kinematics(m, d)
    clouds = {b: points for b in bodies if len(points := _cloud(m, b))}
    if not clouds:
        return None
    world = {b: d.xpos[b] + p @ d.xmat[b].reshape(3, 3).T for b, p in clouds.items()}
    anchor = d.xanchor[structure.arm[-1]]
    fingers = [b for b in subtree(m, structure.hand)[1:] if len(_cloud(m, b))] or [structure.hand]
    centre = np.mean([d.xipos[b] for b in fingers], 0)
    z = approach(m, d, structure, centre)
    heights = {b: (p - anchor) @ z for b, p in world.items()}
    body = max(heights, key=lambda b: heights[b].max())
    top = heights[body].max()
    near = heights[body] > top - 0.006
    corner = clouds[body][near]
    return float(top), body, (corner.min(0) + corner.max(0)) / 2


def _cloud(m: mujoco.MjModel, body: int) -> np.ndarray:
    """Points ``[k, 3]`` of a body's geoms in its frame: vertices of meshes, corners of what bounds the others."""
    parts = [np.zeros((0, 3))]
    for g in range(m.body_geomadr[body], m.body_geomadr[body] + m.body_geomnum[body]):
        if m.geom_type[g] == mujoco.mjtGeom.mjGEOM_MESH.value:
            mesh = int(m.geom_dataid[g])
            first = int(m.mesh_vertadr[mesh])
            points = m.mesh_vert[first : first + int(m.mesh_vertnum[mesh])]
        else:
            corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
            points = m.geom_aabb[g, :3] + corners * m.geom_aabb[g, 3:]
        out = np.zeros(9)
        mujoco.mju_quat2Mat(out, m.geom_quat[g])
        parts.append(m.geom_pos[g] + points @ out.reshape(3, 3).T)
    return np.concatenate(parts)
