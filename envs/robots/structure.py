"""Which joints of a model are the arm, which the gripper, and how the arm is driven."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.sim.world import names_of

__all__ = ["TIMESTEP", "Structure", "drive", "find_structure", "inside", "subtree"]

_JAW_JOINT = re.compile(r"finger|jaw|grip|claw|thumb", re.IGNORECASE)
_JAW_BODY = re.compile(r"finger|jaw|claw|thumb", re.IGNORECASE)
_OMEGA = 40.0  # natural frequency of servos that are added [rad/s]
TIMESTEP = 0.005  # of the scenes [s]
_ROTOR = 500.0  # acceleration of a drive's own rotor at its full torque, which tells its inertia [rad/s^2]


@dataclass(frozen=True)
class Structure:
    """Joints by their indices in the model.

    Attributes:
        arm: from base to hand.
        hand: the body that carries the fingers, or the last one.
        fingers: joints behind the hand.
    """

    arm: tuple[int, ...]
    hand: int
    fingers: tuple[int, ...]


def subtree(m: mujoco.MjModel, body: int) -> list[int]:
    """A body and all that hang on it."""
    found = [body]
    for b in range(body + 1, m.nbody):  # parents come before their children
        if int(m.body_parentid[b]) in found:
            found.append(b)
    return found


def inside(m: mujoco.MjModel, body: int) -> list[int]:
    """Joints of a body and of all that hang on it."""
    bodies = set(subtree(m, body))
    return [j for j in range(m.njnt) if int(m.jnt_bodyid[j]) in bodies]


def find_structure(m: mujoco.MjModel, path: Path, stated: Sequence[str] = ()) -> Structure:
    """The serial chain from the base to where it branches into fingers (or to a last joint that is named like one).

    Args:
        stated: names of the arm's joints, base first, instead of what would be found.

    Raises:
        ConfigError: no joints, several mechanisms, a mobile base, or no chain.
    """
    roots = [b for b in _children(m, 0) if inside(m, b)]
    if not roots:
        raise ConfigError(f"model={path} has no joints; expected one arm")
    if len(roots) > 1:
        found = "; ".join(f"{m.body(b).name!r} ({len(inside(m, b))} joints)" for b in roots)
        raise ConfigError(f"model={path} holds {len(roots)} mechanisms: {found}; expected one arm and nothing movable")
    moving = [int(t) for t in m.jnt_type]
    if mujoco.mjtJoint.mjJNT_FREE.value in moving:
        free = m.joint(moving.index(mujoco.mjtJoint.mjJNT_FREE.value)).name
        raise ConfigError(f"model={path} has a mobile base (free joint {free!r}); expected an arm that stands fixed")
    arm, hand = _named(m, path, stated) if stated else _serial(m, roots[0])
    if len(arm) < 3:
        chain = ", ".join(m.joint(j).name for j in arm) or "none"
        names = ", ".join(m.joint(j).name for j in range(m.njnt))
        raise ConfigError(
            f"model={path}: the joints before the first branch are {chain}; expected an arm of three joints or more. "
            f"State its joints in the file beside the model (joints: [...]); the model has: {names}"
        )
    return Structure(tuple(arm), hand, tuple(j for j in inside(m, hand) if j not in arm))


def drive(spec: mujoco.MjSpec, m: mujoco.MjModel, joints: Sequence[int], reference: np.ndarray) -> dict[int, str]:
    """Name of the position servo of each joint, added where there is none (motors and other drives are replaced).

    An added servo is critically damped with natural frequency 40 rad/s at the pose ``reference [nq]``; its force is
    limited as the joint (``actuatorfrcrange``, URDF ``effort``) or the motor that it replaces; a joint without
    armature gets the inertia of a rotor that this force accelerates by 500 rad/s^2.
    """
    names = {}
    inertia = _inertia(m, reference)
    for j in joints:
        actuators = [
            a
            for a in range(m.nu)
            if m.actuator_trntype[a] == mujoco.mjtTrn.mjTRN_JOINT.value and m.actuator_trnid[a, 0] == j
        ]
        servo = next((a for a in actuators if _is_servo(m, a)), None)
        if servo is not None:
            names[j] = m.actuator(servo).name
            _soften(spec, m, servo, float(inertia[m.jnt_dofadr[j]]))
        else:
            force = _force(m, j, actuators, reference)
            for a in actuators:
                spec.delete(spec.actuator(m.actuator(a).name))
            names[j] = _add_servo(spec, m, j, force, float(inertia[m.jnt_dofadr[j]]))
    return names


def _children(m: mujoco.MjModel, body: int) -> list[int]:
    return [b for b in range(1, m.nbody) if m.body_parentid[b] == body]


def _serial(m: mujoco.MjModel, root: int) -> tuple[list[int], int]:
    """Joints from the root to the first branch, and the body there."""
    arm: list[int] = []
    body = root
    while True:
        arm += range(m.body_jntadr[body], m.body_jntadr[body] + m.body_jntnum[body]) if m.body_jntnum[body] else ()
        moving = [b for b in _children(m, body) if inside(m, b)]
        if len(moving) != 1:
            break
        body = moving[0]
    if len(arm) > 3 and not moving:  # a hand with one moving jaw does not branch
        owner = int(m.jnt_bodyid[arm[-1]])
        if _JAW_JOINT.search(m.joint(arm[-1]).name) or _JAW_BODY.search(m.body(owner).name):
            arm.pop()
            body = int(m.body_parentid[owner])
    return arm, body


def _named(m: mujoco.MjModel, path: Path, stated: Sequence[str]) -> tuple[list[int], int]:
    names = names_of(m, "joint")
    for name in stated:
        if name not in names:
            raise ConfigError(f"model={path} has no joint {name!r}. {nearest(name, [n for n in names if n])}")
    arm = [names.index(n) for n in stated]
    hand = int(m.jnt_bodyid[arm[-1]])
    while True:  # on to the body where the fingers begin
        moving = [b for b in _children(m, hand) if inside(m, b)]
        if len(moving) != 1 or m.body_jntnum[moving[0]]:
            return arm, hand
        hand = moving[0]


def _is_servo(m: mujoco.MjModel, a: int) -> bool:
    """A position servo of the joint itself: force = kp (input - position) - kv velocity, gear 1."""
    kp, bias = m.actuator_gainprm[a, 0], m.actuator_biasprm[a]
    fixed = m.actuator_gaintype[a] == mujoco.mjtGain.mjGAIN_FIXED.value
    affine = m.actuator_biastype[a] == mujoco.mjtBias.mjBIAS_AFFINE.value
    return bool(fixed and affine and kp > 0 and np.isclose(bias[1], -kp) and m.actuator_gear[a, 0] == 1.0)


def _inertia(m: mujoco.MjModel, qpos: np.ndarray) -> np.ndarray:
    """Diagonal ``[nv]`` of the mass matrix."""
    d = mujoco.MjData(m)
    d.qpos[:] = qpos
    mujoco.mj_forward(m, d)
    out = np.zeros(m.nv)
    unit = np.eye(m.nv)
    for i in range(m.nv):
        column = np.zeros(m.nv)
        mujoco.mj_mulM(m, d, column, unit[i])
        out[i] = column[i]
    return out


def _force(m: mujoco.MjModel, joint: int, actuators: Sequence[int], reference: np.ndarray) -> float:
    """Largest force of a joint's drive [N m or N]; three times its load by gravity where nothing says it."""
    if m.jnt_actfrclimited[joint]:
        return float(np.abs(m.jnt_actfrcrange[joint]).max())
    for a in actuators:
        if m.actuator_forcelimited[a]:
            return float(np.abs(m.actuator_forcerange[a]).max() * abs(m.actuator_gear[a, 0]))
        motor = m.actuator_biastype[a] == mujoco.mjtBias.mjBIAS_NONE.value
        if motor and m.actuator_ctrllimited[a]:
            most = np.abs(m.actuator_ctrlrange[a]).max() * abs(m.actuator_gear[a, 0]) * m.actuator_gainprm[a, 0]
            return float(most)
    d = mujoco.MjData(m)
    d.qpos[:] = reference
    mujoco.mj_forward(m, d)
    weight = float(m.body_subtreemass[m.jnt_bodyid[joint]]) * 9.81
    lever = float(np.linalg.norm(d.subtree_com[m.jnt_bodyid[joint]] - d.xanchor[joint]))
    return max(3.0 * weight * lever, 1.0)


def _soften(spec: mujoco.MjSpec, m: mujoco.MjModel, a: int, inertia: float) -> None:
    """Scale a servo's gains down to what the scene's timestep can integrate.

    At its force limit damping acts explicitly: ``kv * timestep`` above the joint's inertia then makes a limit cycle
    that shakes objects out of the hand. Models are often tuned for steps of 1 or 2 ms.
    """
    factor = inertia / (-m.actuator_biasprm[a, 2] * TIMESTEP) if m.actuator_biasprm[a, 2] < 0 else 1.0
    if factor < 1.0 and m.actuator_forcelimited[a]:
        servo = spec.actuator(m.actuator(a).name)
        servo.gainprm, servo.biasprm = factor * m.actuator_gainprm[a], factor * m.actuator_biasprm[a]


def _add_servo(spec: mujoco.MjSpec, m: mujoco.MjModel, j: int, force: float, inertia: float) -> str:
    joint = spec.joint(m.joint(j).name)
    if m.dof_armature[m.jnt_dofadr[j]] == 0.0:
        joint.armature = force / _ROTOR
        inertia += joint.armature
    name = f"{m.joint(j).name}_servo"
    servo = spec.add_actuator(name=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, target=m.joint(j).name)
    servo.set_to_position(kp=_OMEGA**2 * inertia, kv=2.0 * _OMEGA * inertia)
    servo.forcelimited, servo.forcerange = 1, [-force, force]
    if m.jnt_limited[j]:
        servo.ctrllimited, servo.ctrlrange = 1, list(m.jnt_range[j])
    return name
