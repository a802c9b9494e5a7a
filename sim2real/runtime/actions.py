"""From raw actions of a policy to joint targets, as the simulation does it (``envs/robots/arm.py``). Without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visuomotor.data.errors import CheckpointError, nearest
from visuomotor.data.rotations import (
    axis_angle_to_quat,
    matrix_to_quat,
    matrix_to_rot6d,
    quat_to_axis_angle,
    quat_to_matrix,
    rot6d_to_matrix,
)
from visuomotor.data.spec import ArraySpec
from visuomotor.sim2real.kinematics import Kinematics

__all__ = ["ACTION_MODES", "ActionMap", "Arm", "Control", "control_of"]

ACTION_MODES = ("joint_pos", "joint_delta", "joint_vel", "ee_delta", "ee_pose")
_SUFFIX = {"joint_pos": "", "joint_delta": "_change", "joint_vel": "_rate"}
_HAND = ("dx", "dy", "dz", "rx", "ry", "rz")
_GRIPPER = "gripper"
_ROTATIONS = {
    "rot6d": ("r0", "r1", "r2", "r3", "r4", "r5"),
    "q_wxyz": ("qw", "qx", "qy", "qz"),
    "axis_angle": ("rx", "ry", "rz"),
}


@dataclass(frozen=True, kw_only=True)
class Control:
    """What an action means, and how far one may go (see ``ControlConfig`` of the simulated arm).

    Attributes:
        mode: one of ``ACTION_MODES``; ``ee_pose`` is an absolute pose of the hand in the frame of the base.
        joint_step: largest change of a joint target in one control step [rad]; infinite: only the robot's limits.
        pos_step, rot_step: of the hand's pose, in each direction [m, rad].
    """

    mode: str
    joint_step: float = math.inf
    pos_step: float = math.inf
    rot_step: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What actions are turned into targets for.

    Attributes:
        joints: names of the joints as the policy knows them (those of the model), in our order.
        driver_joints: names of the same joints as the driver knows them.
        low, high: limits that the policy was trained with ``[n]`` [rad or m].
        rest: where redundant joints drift, ``[n]``.
        gripper: whether there is one.
        kinematics: None: no actions of the hand.
    """

    joints: tuple[str, ...]
    driver_joints: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    rest: np.ndarray
    gripper: bool
    kinematics: Kinematics | None


def control_of(action: ArraySpec, saved: Mapping[str, Any] | None, arm: Arm) -> Control:
    """What the actions of a checkpoint mean, from the names of their components.

    Args:
        action: as the checkpoint has it.
        saved: ``env.control`` of the simulated task that it was trained in; None: it was trained on recorded data.
        arm: what it shall move.

    Raises:
        CheckpointError: components without names, or whose names are of no joint of this arm.
    """
    if action.names is None:
        raise CheckpointError(
            f"the policy's action has {action.size} components without names, so nobody knows which joint is which: "
            "give action_names=[...], the joints' names in the action's order"
        )
    names = [n for n in action.names if n != _GRIPPER]
    mode = _mode(names, arm)
    if mode is None:
        known = [*arm.joints, *(f"{j}_change" for j in arm.joints), *(f"{j}_rate" for j in arm.joints), *_HAND, "x"]
        odd = next((n for n in names if n not in known), names[0] if names else _GRIPPER)
        raise CheckpointError(
            f"the policy's action has the components {', '.join(action.names)}: {odd!r} does not go with the others, "
            f"or with the joints {', '.join(arm.joints)}. {nearest(odd, known)}"
        )
    if saved is None or mode == "ee_pose":
        return Control(mode=mode)
    return Control(mode=mode, **{k: float(saved[k]) for k in ("joint_step", "pos_step", "rot_step") if k in saved})


def _mode(names: Sequence[str], arm: Arm) -> str | None:
    for mode, suffix in _SUFFIX.items():
        if any(set(names) == {j + suffix for j in joints} for joints in (arm.joints, arm.driver_joints)):
            return mode
    if set(names) == set(_HAND):
        return "ee_delta"
    if any(set(names) == {"x", "y", "z", *rotation} for rotation in _ROTATIONS.values()):
        return "ee_pose"
    return None


class ActionMap:
    """Applies actions to joint targets, one control step each.

    Args:
        action: shape, names and unit of an action.
        control: what it means.
        arm: what it moves.
        dt_s: duration of a control step.

    Raises:
        CheckpointError: a unit that does not go with the mode, a gripper that the robot does not have, or actions of
            the hand for an arm without a model.
    """

    def __init__(self, action: ArraySpec, control: Control, arm: Arm, *, dt_s: float) -> None:
        self.control, self._arm, self._dt = control, arm, dt_s
        self.size = action.size
        names = list(action.names or ())
        self._gripper = names.index(_GRIPPER) if _GRIPPER in names else None
        if self._gripper is not None and not arm.gripper:
            raise CheckpointError("the policy commands a gripper; the robot has none (robot.gripper)")
        self._scale = _scale(action, control)
        if control.mode in _SUFFIX:
            suffix = _SUFFIX[control.mode]
            joints = arm.joints if arm.joints[0] + suffix in names else arm.driver_joints
            self._index = [names.index(j + suffix) for j in joints]
        else:
            if arm.kinematics is None:
                raise CheckpointError("the policy moves the hand, which takes a model of the arm: give robot.model=")
            self._rotation = _rotation_of(names, control)
            hand = _HAND if control.mode == "ee_delta" else ("x", "y", "z", *_ROTATIONS[self._rotation])
            self._index = [names.index(n) for n in hand]
        self._bound = self._bounds()

    @property
    def absolute(self) -> bool:
        """Whether an action says where to be, whatever was before."""
        return self.control.mode in ("joint_pos", "ee_pose")

    def apply(self, target: np.ndarray, opening: float, action: np.ndarray) -> tuple[np.ndarray, float]:
        """Joint targets ``[n]`` and the opening after ``action [Da]``, from those before it."""
        a = action[self._index] * self._scale
        mode, arm = self.control.mode, self._arm
        if self._gripper is not None:
            opening = min(1.0, max(0.0, float(action[self._gripper])))
        if mode == "ee_pose":
            moved = self._to_pose(target, a)
        else:
            low, high = self._bound
            a = np.clip(a, low, high)
            moved = self._moved(target, a)
        return np.clip(moved, arm.low, arm.high), opening

    def inverse(self, before: np.ndarray, after: np.ndarray, opening: float) -> np.ndarray:
        """The action ``[Da]`` that leads from joint targets ``before`` to ``after [n]``, as nearly as bounds allow."""
        mode = self.control.mode
        if mode == "ee_pose":
            a = self._from_pose(after)
        else:
            low, high = self._bound
            a = np.clip(self._motion(before, after), low, high)
        out = np.zeros(self.size)
        out[self._index] = a / self._scale
        if self._gripper is not None:
            out[self._gripper] = min(1.0, max(0.0, opening))
        return out

    def _motion(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        if self.control.mode == "joint_pos":
            return after
        if self.control.mode != "ee_delta":
            return (after - before) / (self._dt if self.control.mode == "joint_vel" else 1.0)
        assert self._arm.kinematics is not None
        pos0, rot0 = self._arm.kinematics.pose(before)
        pos1, rot1 = self._arm.kinematics.pose(after)
        return np.concatenate([pos1 - pos0, quat_to_axis_angle(matrix_to_quat(rot1 @ rot0.T))])

    def _from_pose(self, joints: np.ndarray) -> np.ndarray:
        assert self._arm.kinematics is not None
        pos, rot = self._arm.kinematics.pose(joints)
        if self._rotation == "rot6d":
            turn = matrix_to_rot6d(rot)
        else:
            q_wxyz = matrix_to_quat(rot)
            turn = q_wxyz if self._rotation == "q_wxyz" else quat_to_axis_angle(q_wxyz)
        return np.concatenate([pos, turn])

    def _moved(self, target: np.ndarray, a: np.ndarray) -> np.ndarray:
        step = self.control.joint_step
        if self.control.mode == "joint_pos":
            return target + np.clip(a - target, -step, step)
        if self.control.mode == "joint_delta":
            return target + a
        if self.control.mode == "joint_vel":
            return target + a * self._dt
        assert self._arm.kinematics is not None
        return self._arm.kinematics.follow(target, a, self._arm.rest)

    def _to_pose(self, target: np.ndarray, a: np.ndarray) -> np.ndarray:
        assert self._arm.kinematics is not None
        turn = a[3:]
        if self._rotation == "rot6d":
            rot = rot6d_to_matrix(turn)
        else:
            rot = quat_to_matrix(turn if self._rotation == "q_wxyz" else axis_angle_to_quat(turn))
        return self._arm.kinematics.solve(target, a[:3], rot, self._arm.rest)

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        c, n = self.control, len(self._arm.joints)
        if c.mode == "joint_pos":
            return self._arm.low, self._arm.high
        if c.mode == "ee_delta":
            high = np.array([c.pos_step] * 3 + [c.rot_step] * 3)
        else:
            high = np.full(n, c.joint_step if c.mode == "joint_delta" else c.joint_step / self._dt)
        return -high, high


def _scale(action: ArraySpec, control: Control) -> float:
    """Factor from the action's unit to ours."""
    unit = action.unit
    expected = {"joint_pos": "rad", "joint_delta": "rad", "joint_vel": "rad/s"}.get(control.mode)
    if unit is None or unit == expected:
        return 1.0
    if expected is not None and unit == expected.replace("rad", "deg"):
        return math.pi / 180.0
    raise CheckpointError(
        f"the policy's action is in {unit!r}; actions of mode {control.mode} are "
        f"{f'in rad or deg ({expected})' if expected else 'of metres and radians, so they have no one unit'}"
    )


def _rotation_of(names: Sequence[str], control: Control) -> str:
    if control.mode == "ee_delta":
        return "axis_angle"
    return next(kind for kind, parts in _ROTATIONS.items() if set(parts) <= set(names))
