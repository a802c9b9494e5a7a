"""Any arm by its MJCF or URDF file: what the framework needs of it is found, or stated in a small file beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import pairwise
from pathlib import Path

import mujoco
import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.robots.fingers import Grip, find_grip, finger_inputs, tune_grip
from visuomotor.envs.robots.importing import compile_spec, read_model
from visuomotor.envs.robots.kinematics import Chain
from visuomotor.envs.robots.model import GripperModel, RobotModel
from visuomotor.envs.robots.posing import Posing, find_posing
from visuomotor.envs.robots.structure import Structure, drive, find_structure, subtree

__all__ = ["CustomConfig", "load_robot"]

_GRASP = ("tcp", "grasp", "grasptarget", "pinch")  # words in names of a point between the fingertips
_FLANGE = (*_GRASP, "ee", "eef", "tool0", "tool", "attachment", "flange")


@dataclass(kw_only=True, slots=True)
class CustomConfig:
    """What a user may state of an own arm, in ``<model>.robot.yaml`` beside the model; the rest is found.

    Attributes:
        joints: names of the arm's joints, base first. Found: the chain from the base to the first branch, without a
            last joint that is named like a jaw.
        tcp: site or body whose position is the hand's. Found: one whose name says so (tcp, grasp, pinch; without a
            gripper also ee, tool0, attachment, flange), else the point between the fingertips.
        gripper: false for an arm whose fingers are not used.
        gripper_opened, gripper_closed: inputs of the gripper's actuators, in the model's order, when open and closed.
            Found: the ends of their ranges, the one with the fingertips further apart being open.
        gripper_gain: factor on the stiffness of the gripper's position servos. Found: 1, or more if they would press
            with less than a quarter of their force limit when half closed.
        home: joint positions at the beginning of an episode [rad]. Found: keyframe ``home``, else the hand pointing
            down before the arm.
        yaw: turn about z that makes the arm face +x [degrees]. Found: from home, else where the joints bend least.
        reach: distance at which the arm works comfortably [m]. Found: the middle of where its hand can point down.
        rotation_weight: see ``RobotModel``.
        gravcomp: the weight of the links is carried for the servos, as most arms' controllers do.
    """

    joints: list[str] = field(default_factory=list)
    tcp: str | None = None
    gripper: bool = True
    gripper_opened: list[float] | None = None
    gripper_closed: list[float] | None = None
    gripper_gain: float | None = None
    home: list[float] | None = None
    yaw: float | None = None
    reach: float | None = None
    rotation_weight: float | None = None
    gravcomp: bool = True

    def __post_init__(self) -> None:
        if (self.gripper_opened is None) != (self.gripper_closed is None):
            raise ConfigError("gripper_opened and gripper_closed go together: state both or none")
        if self.reach is not None and self.reach <= 0:
            raise ConfigError(f"reach={self.reach}: expected more than 0")


def load_robot(model: str) -> RobotModel:
    """The arm in the file ``model``.

    Raises:
        ConfigError: a file that is missing or no single fixed arm, or a statement beside it that does not fit.
    """
    path = Path(model).expanduser()
    beside = path.with_suffix(".robot.yaml")
    stamps = tuple(p.stat().st_mtime_ns if p.is_file() else 0 for p in (path, beside))
    return _load(path, stamps)


@cache
def _load(path: Path, stamps: tuple[int, ...]) -> RobotModel:
    config = _read_config(path.with_suffix(".robot.yaml"))
    spec, keyframe = read_model(path)
    m = compile_spec(spec.copy(), path)
    structure = find_structure(m, path, config.joints)
    keyframe = None if keyframe is None or len(keyframe) != m.nq else keyframe
    qpos = _middle(m) if keyframe is None else keyframe
    actuators = drive(spec, m, structure.arm, qpos)
    if structure.fingers and not finger_inputs(m, structure):
        drive(spec, m, _independent(m, structure.fingers), qpos)
    for a in finger_inputs(m, structure):
        gains, actuator = tune_grip(m, a, config.gripper_gain), spec.actuator(m.actuator(a).name)
        if gains is not None:
            gain, bias = m.actuator_gainprm[a].copy(), m.actuator_biasprm[a].copy()
            gain[0], bias[1], bias[2] = gain[0] * gains[0] / -bias[1], -gains[0], -gains[1]
            actuator.gainprm, actuator.biasprm = gain, bias
    _prepare(spec, m, structure, config)
    m = compile_spec(spec.copy(), path)
    grip = find_grip(m, structure, qpos) if config.gripper else None
    gripper = None if grip is None else _stated_ends(grip.model, config, path)
    home = _home(m, structure, config, keyframe, path)
    tcp = _add_tcp(spec, m, structure, grip, config.tcp, qpos, path)
    posing = _pose(spec, structure, config, tcp, home, path)
    _turn(spec, tcp, posing)
    joints = tuple(m.joint(j).name for j in structure.arm)
    if home is None:
        home = posing.home or tuple(float(qpos[m.jnt_qposadr[j]]) for j in structure.arm)
    weight = 0.3 if len(joints) >= 6 else 0.05
    return RobotModel(
        name=path.stem,
        spec=spec.copy,
        joints=joints,
        actuators=tuple(actuators[j] for j in structure.arm),
        home=home,
        tcp=tcp,
        gripper=gripper,
        reach=config.reach or posing.reach or 0.5 * _length(m, structure),
        rotation_weight=weight if config.rotation_weight is None else config.rotation_weight,
        solver_iterations=100,
    )


def _read_config(path: Path) -> CustomConfig:
    if not path.is_file():
        return CustomConfig()
    try:
        stated = OmegaConf.load(path)
        if not OmegaConf.is_dict(stated):
            raise ConfigError(f"{path}: expected settings as 'name: value', one a line")
        known = [f.name for f in fields(CustomConfig)]
        for key in stated:
            if key not in known:
                raise ConfigError(f"{path}: unknown setting {key!r}. {nearest(str(key), known)}")
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CustomConfig), stated))
    except ConfigError as e:
        raise ConfigError(str(e) if str(path) in str(e) else f"{path}: {e}") from None
    except (OmegaConfBaseException, YAMLError) as e:
        raise ConfigError(f"{path}: {str(e).splitlines()[0]}") from None
    assert isinstance(config, CustomConfig)
    return config


def _middle(m: mujoco.MjModel) -> np.ndarray:
    """Joints in the middle of their ranges, ``[nq]``."""
    qpos = np.array(m.qpos0)
    for j in range(m.njnt):
        if m.jnt_limited[j]:
            qpos[m.jnt_qposadr[j]] = m.jnt_range[j].mean()
    return qpos


def _independent(m: mujoco.MjModel, joints: tuple[int, ...]) -> list[int]:
    """Joints that no equality (URDF ``mimic``) makes follow another."""
    follow = {
        int(m.eq_obj1id[e])
        for e in range(m.neq)
        if m.eq_type[e] == mujoco.mjtEq.mjEQ_JOINT.value and m.eq_obj2id[e] >= 0
    }
    return [j for j in joints if j not in follow]


def _prepare(spec: mujoco.MjSpec, m: mujoco.MjModel, structure: Structure, config: CustomConfig) -> None:
    """Weight compensated; no collisions of what stands on the table: the base and the first link."""
    for body in list(spec.bodies)[1:]:
        body.gravcomp = 1.0 if config.gravcomp else body.gravcomp
    first = int(m.jnt_bodyid[structure.arm[1]])
    beyond = set(subtree(m, first))
    for index in range(m.nbody):
        if index not in beyond:
            body = spec.worldbody if index == 0 else spec.body(m.body(index).name)
            for geom in body.geoms:
                geom.contype = geom.conaffinity = 0


def _stated_ends(gripper: GripperModel, config: CustomConfig, path: Path) -> GripperModel:
    if config.gripper_opened is None or config.gripper_closed is None:
        return gripper
    count = len(gripper.actuators)
    if len(config.gripper_opened) != count or len(config.gripper_closed) != count:
        raise ConfigError(
            f"{path}: gripper_opened has {len(config.gripper_opened)} and gripper_closed {len(config.gripper_closed)} "
            f"inputs; expected {count}, for {', '.join(gripper.actuators)}"
        )
    opened, closed = tuple(config.gripper_opened), tuple(config.gripper_closed)
    ends = (gripper.joint_opened, gripper.joint_closed)
    swapped = (opened[0] - closed[0]) * (gripper.opened[0] - gripper.closed[0]) < 0
    joint_opened, joint_closed = ends[::-1] if swapped else ends
    return GripperModel(
        joints=gripper.joints,
        actuators=gripper.actuators,
        opened=opened,
        closed=closed,
        joint_opened=joint_opened,
        joint_closed=joint_closed,
        width=gripper.width,
    )


def _home(
    m: mujoco.MjModel, s: Structure, config: CustomConfig, keyframe: np.ndarray | None, path: Path
) -> tuple[float, ...] | None:
    names = [m.joint(j).name for j in s.arm]
    if config.home is not None:
        if len(config.home) != len(names):
            raise ConfigError(f"{path}: home has {len(config.home)} positions; expected {len(names)}: {names}")
        return tuple(config.home)
    return None if keyframe is None else tuple(float(keyframe[m.jnt_qposadr[j]]) for j in s.arm)


def _add_tcp(
    spec: mujoco.MjSpec, m: mujoco.MjModel, s: Structure, grip: Grip | None, stated: str | None, qpos: np.ndarray,
    path: Path,
) -> str:  # fmt: skip
    """Add the hand's frame as a site; returns its name."""
    d = mujoco.MjData(m)
    d.qpos[:] = qpos
    mujoco.mj_forward(m, d)
    hand_pos, hand_rot = d.xpos[s.hand], d.xmat[s.hand].reshape(3, 3)
    bodies = set(subtree(m, int(m.jnt_bodyid[s.arm[-1]]))) - {b for j in s.fingers for b in subtree(m, m.jnt_bodyid[j])}
    frames = {m.body(b).name: (d.xpos[b], d.xmat[b].reshape(3, 3)) for b in sorted(bodies)}
    for i in range(m.nsite):
        if int(m.site_bodyid[i]) in bodies and m.site(i).name:
            frames[m.site(i).name] = (d.site_xpos[i], d.site_xmat[i].reshape(3, 3))
    if stated is not None and stated not in frames:
        raise ConfigError(f"{path}: tcp: the hand has no site or body {stated!r}. {nearest(stated, frames)}")
    name = stated or _named_frame(list(frames), _FLANGE if grip is None else _GRASP)
    pos, rot = frames[name] if name is not None else (hand_pos, hand_rot)
    pos, rot = hand_rot.T @ (pos - hand_pos), hand_rot.T @ rot
    if grip is not None:
        pos, rot = (grip.pos if name is None else pos), grip.rot
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, rot.ravel())
    site = "tcp" if "tcp" not in [x.name for x in spec.sites] else "visuomotor_tcp"
    spec.body(m.body(s.hand).name).add_site(name=site, pos=pos, quat=quat, group=4)
    return site


def _named_frame(names: list[str], words: tuple[str, ...]) -> str | None:
    """The name that holds the first of ``words``."""
    for word in words:
        for name in reversed(names):
            if word in name.lower().replace("-", "_").split("_"):
                return name
    return None


def _length(m: mujoco.MjModel, s: Structure) -> float:
    """Length of the stretched arm from its second joint on [m]."""
    d = mujoco.MjData(m)
    mujoco.mj_forward(m, d)
    points = [d.xanchor[j] for j in s.arm[1:]] + [d.xpos[s.hand]]
    return float(sum(np.linalg.norm(b - a) for a, b in pairwise(points)))


def _pose(
    spec: mujoco.MjSpec, s: Structure, config: CustomConfig, tcp: str, home: tuple[float, ...] | None, path: Path
) -> Posing:
    m = compile_spec(spec.copy(), path)
    chain = Chain(m, [m.joint(j).name for j in s.arm], tcp, "world", torch.device("cpu"))
    limited = m.jnt_limited[list(s.arm)].astype(bool)[:, None]
    limits = np.where(limited, m.jnt_range[list(s.arm)], np.array([-np.inf, np.inf]))
    low, high = (torch.tensor(x, dtype=torch.float32) for x in limits.T)
    middle = torch.tensor(np.where(limited[:, 0], m.jnt_range[list(s.arm)].mean(1), 0.0), dtype=torch.float32)
    rest = middle if home is None else torch.tensor(home, dtype=torch.float32)
    quarter = math.pi / 2
    yaws = [0.0, quarter, -quarter, math.pi]
    if config.yaw is not None:
        yaws = [math.radians(config.yaw)]
    elif home is not None:
        ahead = (chain.forward(rest[None])[0] - chain.origins(rest[None])[:, 0])[0]
        if float(ahead[:2].norm()) > 0.1 * _length(m, s):
            yaws = [-quarter * round(math.atan2(float(ahead[1]), float(ahead[0])) / quarter)]
    return find_posing(chain, low, high, rest, 1.1 * _length(m, s), yaws)


def _turn(spec: mujoco.MjSpec, tcp: str, posing: Posing) -> None:
    """Turn the model about z, and the hand's frame by half a turn."""
    half = posing.yaw / 2
    frame = spec.worldbody.add_frame(quat=[math.cos(half), 0.0, 0.0, math.sin(half)])
    for thing in (*spec.worldbody.bodies, *spec.worldbody.geoms, *spec.worldbody.sites, *spec.worldbody.cameras):
        if thing.parent == spec.worldbody:
            thing.set_frame(frame)
    if posing.flip:
        site = spec.site(tcp)
        w, x, y, z = site.quat
        site.quat = [-z, y, -x, w]
