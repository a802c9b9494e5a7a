"""What is recorded when a person shows a task: observations and actions as a policy trained on them will have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visuomotor.data.actions import ActionConfig
from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.robots.config import FIELD_SIZES, RobotConfig, ValueStream
from visuomotor.sim2real.runtime.actions import ACTION_MODES, Arm

__all__ = ["ACTION_MODES", "observable", "shown_action", "shown_spec"]

_POSE9 = ("x", "y", "z", "r0", "r1", "r2", "r3", "r4", "r5")
_HAND6 = ("dx", "dy", "dz", "rx", "ry", "rz")


def shown_spec(
    robot: RobotConfig, arm: Arm, *, mode: str, fps: float, picture: Sequence[int], keys: Sequence[str],
    sizes: Mapping[str, int], store: Path | None,
) -> PolicySpec:  # fmt: skip
    """What is observed and shown; of a ``store`` that exists, what it holds.

    Args:
        robot: its cameras and values.
        arm: its joints.
        mode: of actions, one of ``ACTION_MODES``.
        fps: control steps per second.
        picture: height and width of pictures.
        keys: observations that are recorded; empty: all.
        sizes: by observation: how many numbers a message of type ``numbers`` or ``joint_state`` brings.
        store: that is added to.

    Raises:
        ConfigError: an observation that the robot does not have; a size that nobody knows.
        DataError: a store without observations or an action.
    """
    known = observable(robot, arm, picture=picture, sizes=sizes)
    if store is not None:
        return _spec_of(store)
    for key in keys:
        if key not in known:
            raise ConfigError(f"keys: the robot has no observation {key!r}. {nearest(key, known)}")
    obs = {k: s for k, s in known.items() if not keys or k in keys}
    return _as_policy(obs, shown_action(robot, arm, mode), fps)


def observable(
    robot: RobotConfig, arm: Arm, *, picture: Sequence[int], sizes: Mapping[str, int]
) -> dict[str, ArraySpec]:
    """Everything that can be observed, under the names that simulated tasks use too."""
    n, role = (len(arm.joints),), "observation"
    out = {
        "joint_pos": ArraySpec(shape=n, role=role, unit="rad", names=arm.joints),
        "joint_vel": ArraySpec(shape=n, role=role, unit="rad/s", names=arm.joints),
    }
    if arm.kinematics is not None:
        out["tcp_pos"] = ArraySpec(shape=(3,), role=role, unit="m", names=("x", "y", "z"))
        out["tcp_rot6d"] = ArraySpec(shape=(6,), role=role)
    if arm.gripper:
        out["gripper"] = ArraySpec(shape=(1,), role=role, names=("opening",))
    for key, camera in robot.cameras.items():
        out[key] = ArraySpec(shape=(*picture, 3), dtype="uint8", role=role, source=camera.topic)
    for key, value in robot.values.items():
        out[key] = ArraySpec(shape=(_size(key, value, sizes),), role=role, source=value.topic)
    return out


def shown_action(robot: RobotConfig, arm: Arm, mode: str) -> ArraySpec:
    """The action of ``mode`` for this arm, named as simulated arms name theirs."""
    joints: dict[str, tuple[tuple[str, ...], str | None]] = {
        "joint_pos": (arm.joints, "rad"),
        "joint_delta": (tuple(f"{j}_change" for j in arm.joints), "rad"),
        "joint_vel": (tuple(f"{j}_rate" for j in arm.joints), "rad/s"),
        "ee_delta": (_HAND6, None),
        "ee_pose": (_POSE9, None),
    }
    if mode not in joints:
        raise ConfigError(f"unknown action {mode!r}. {nearest(mode, ACTION_MODES)}")
    names, unit = joints[mode]
    if mode.startswith("ee_") and arm.kinematics is None:
        raise ConfigError(f"action={mode} takes a model of the arm: give robot.model=")
    if arm.gripper:
        names, unit = (*names, "gripper"), None
    return ArraySpec(shape=(len(names),), role="action", unit=unit, names=names, source=robot.name)


def _size(key: str, value: ValueStream, sizes: Mapping[str, int]) -> int:
    if value.type not in ("numbers", "joint_state"):
        return sum(FIELD_SIZES[name] for name in value.fields)
    if key not in sizes:
        raise ConfigError(f"nobody says how many numbers {value.topic} brings: give sizes.{key}=")
    return sizes[key]


def _spec_of(path: Path) -> PolicySpec:
    with DemoStore.open(path) as store:
        obs = {k: s for k, s in store.specs.items() if s.role == "observation"}
        actions = [k for k, s in store.specs.items() if s.role == "action"]
        if not obs or len(actions) != 1 or store.fps is None:
            raise DataError(
                f"{path} cannot be added to: it has {len(obs)} observations, {len(actions)} actions and "
                f"{'no' if store.fps is None else 'a'} rate; expected some, one and a rate"
            )
        return _as_policy(obs, store.specs[actions[0]], store.fps, key=actions[0])


def _as_policy(obs: Mapping[str, ArraySpec], action: ArraySpec, fps: float, key: str = "action") -> PolicySpec:
    window: dict[str, Any] = {"n_obs": 1, "horizon": 1, "n_exec": 1}
    return PolicySpec(
        obs=dict(obs),
        action_key=key,
        action=action,
        fps=fps,
        window=WindowConfig(**window),
        action_config=ActionConfig(),
    )
