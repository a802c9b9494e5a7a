"""What the manipulation tasks share: a table, light, cameras, arms on it, and the observations of the arms.

The table's surface is z = 0 of the world; the base of a single arm stands at the origin and faces +x.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import matrix_to_rot6d, quat_to_matrix
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.robots.arm import Arm, ControlConfig
from visuomotor.envs.robots.model import RobotModel
from visuomotor.envs.robots.registry import get_robot
from visuomotor.envs.sim.control import Control, JoinedControl
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import constant
from visuomotor.envs.sim.task import SimConfig, Task
from visuomotor.envs.sim.world import FreeBody, World, find

__all__ = [
    "Mount",
    "TabletopConfig",
    "TabletopTask",
    "add_box",
    "add_camera",
    "flat_yaw",
    "object_spec",
    "scatter",
    "uniform_xy",
    "yaw_quat",
]

_XML = """
<mujoco model="tabletop">
  <compiler angle="radian"/>
  <option timestep="0.005" integrator="implicitfast" cone="elliptic" impratio="10" iterations="20" ls_iterations="20"/>
  <visual>
    <global offwidth="1280" offheight="960"/>
    <quality shadowsize="0" offsamples="0"/>
    <headlight ambient=".35 .35 .35" diffuse=".3 .3 .3" specular=".1 .1 .1"/>
  </visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".75 .82 .9" rgb2=".95 .95 .97" width="64" height="64"/>
    <texture name="table" type="2d" builtin="checker" rgb1=".78 .72 .64" rgb2=".74 .68 .60" width="256" height="256"/>
    <material name="table" texture="table" texrepeat="10 10" reflectance="0" specular=".1"/>
  </asset>
  <worldbody>
    <light name="key" pos=".6 -.6 2" dir="-.25 .35 -1" directional="true" diffuse=".4 .4 .4" specular=".1 .1 .1"/>
    <geom name="table" type="plane" size="1.2 1.2 .05" material="table" friction="1 .005 .0001"/>
  </worldbody>
</mujoco>
"""


@dataclass(kw_only=True, slots=True)
class TabletopConfig(SimConfig):
    """Settings of every manipulation task.

    Attributes:
        robot: the arm; ``custom`` with ``model``.
        model: MJCF or URDF file of a custom arm.
        control: what an action means.
    """

    robot: str = "panda"
    model: str | None = None
    control: ControlConfig = field(default_factory=ControlConfig)


@dataclass(frozen=True, kw_only=True)
class Mount:
    """Where an arm stands, and the prefix of its names in the scene and of its observations."""

    pos: tuple[float, float, float] = (0.0, 0.0, 0.0)
    yaw: float = 0.0  # [rad]
    prefix: str = ""


class TabletopTask(Task):
    """A manipulation task. Subclasses add objects, place them, and judge.

    Attributes:
        mounts: one an arm.
        arms: of the bound scene.
        reach: distance from the base at which the (first) arm works comfortably [m]; lay tasks out by it.
        objects: free bodies of the bound scene that :meth:`privileged` tells about; filled by ``bind_objects``.
        needs_gripper: refuse arms without.

    Raises:
        ConfigError: an unknown robot, or one without a gripper where the task needs it.
    """

    fps = 20.0
    mounts: tuple[Mount, ...] = (Mount(),)
    needs_gripper = True

    def __init__(self, config: TabletopConfig) -> None:
        self.config = config
        self.robot: RobotModel = get_robot(config.robot, config.model)
        self.reach = self.robot.reach
        self.arms: list[Arm] = []
        self.objects: dict[str, FreeBody] = {}
        if self.needs_gripper and self.robot.gripper is None:
            raise ConfigError(f"task {self.name!r} needs a gripper; the robot {config.robot!r} has none")

    @property
    def grip_half(self) -> float:
        """Half the width of an object that the gripper takes easily [m]: 2 cm, or less for a small gripper."""
        g = self.robot.gripper
        return 0.02 if g is None else min(0.02, 0.25 * g.width)

    @abstractmethod
    def add_objects(self, spec: mujoco.MjSpec) -> None:
        """Add bodies, sites and cameras to the scene."""

    @abstractmethod
    def bind_objects(self, world: World) -> dict[str, ArraySpec]:
        """Look names up, keep handles; returns the specs of :meth:`observe_objects`."""

    @abstractmethod
    def observe_objects(self) -> dict[str, Tensor]:
        """Observations of the task's own, beside the arms'; float32 ``[N, ...]``."""

    def scene(self) -> mujoco.MjSpec:
        spec = mujoco.MjSpec.from_string(_XML)
        spec.option.iterations = self.robot.solver_iterations
        spec.option.ls_iterations = max(20, self.robot.solver_iterations // 2)
        for mount in self.mounts:
            half = mount.yaw / 2
            name, quat = _scene_prefix(mount) + "mount", [np.cos(half), 0, 0, np.sin(half)]
            body = spec.worldbody.add_body(name=name, pos=mount.pos, quat=quat)  # the base frame of every arm
            spec.attach(self.robot.spec(), prefix=_scene_prefix(mount), frame=body.add_frame())
        self.add_objects(spec)
        self._add_cameras(spec)
        self._add_home(spec)
        return spec

    def bind(self, world: World) -> Control:
        spec: dict[str, ArraySpec] = {}
        for mount in self.mounts:
            prefix = _scene_prefix(mount)
            base = _base_of(world.sim.model, prefix + self.robot.joints[0])
            arm = Arm(
                world,
                self.robot,
                prefix=prefix,
                base=base,
                config=self.config.control,
                dt=1.0 / self.fps,
                observation_prefix=mount.prefix,
            )
            self.arms.append(arm)
            spec |= arm.obs_spec
        self.obs_spec = spec | self.bind_objects(world)
        self.privileged_names = self.privileged_names or self._names_of_privileged()
        return self.arms[0] if len(self.arms) == 1 else JoinedControl(self.arms)

    def observe(self) -> dict[str, Tensor]:
        obs: dict[str, Tensor] = {}
        for arm in self.arms:
            obs |= arm.observe()
        return obs | self.observe_objects()

    def privileged(self) -> Tensor:
        """Commands of the arms, then pose (world frame), velocities and grasp flags of each of :attr:`objects`."""
        parts: list[Tensor] = []
        for arm in self.arms:
            parts += [arm.target, arm.grip]
        for body in self.objects.values():
            parts += [body.pos(), matrix_to_rot6d(quat_to_matrix(body.quat())), body.linvel(), body.angvel()]
            parts += [self.holds(body, k)[:, None].float() for k in range(len(self.arms))]
        return torch.cat(parts, 1)

    def holds(self, body: FreeBody, arm: int = 0) -> Tensor:
        """Bool ``[N]``: an object is between the fingers of an arm and keeps them from closing as commanded."""
        hand = self.arms[arm]
        if hand.model.gripper is None:
            return torch.zeros_like(hand.grip[:, 0], dtype=torch.bool)
        near = (hand.tcp.pos() - body.pos()).norm(dim=1) < 1.5 * self.grip_half
        return near & ((hand.opening() - hand.grip)[:, 0] > 0.1)

    def _names_of_privileged(self) -> tuple[str, ...]:
        names: list[str] = []
        for arm, mount in zip(self.arms, self.mounts, strict=True):
            names += [f"{mount.prefix}target_{j}" for j in arm.model.joints] + [f"{mount.prefix}target_gripper"]
        for o in self.objects:
            names += [*(f"{o}_{a}" for a in "xyz"), *(f"{o}_r{i}" for i in range(6))]
            names += [f"{o}_{v}{a}" for v in "vw" for a in "xyz"]
            names += [f"{mount.prefix}holds_{o}" for mount in self.mounts]
        return tuple(names)

    def _add_cameras(self, spec: mujoco.MjSpec) -> None:
        r = self.reach
        for name, pos, look in (
            ("front", [2.3 * r, 0.0, 0.9 * r], [0.85 * r, 0.0, 0.12 * r]),
            ("side", [0.95 * r, -1.5 * r, 0.8 * r], [0.85 * r, 0.0, 0.15 * r]),
            ("top", [1.4 * r, 0.0, 1.75 * r], [0.95 * r, 0.0, 0.0]),
        ):
            add_camera(spec, name, pos, look)
        add_camera(spec, "film", [2.7 * r, -1.8 * r, 1.8 * r], [0.5 * r, 0.0, 0.55 * r])  # the whole arm

    def _add_home(self, spec: mujoco.MjSpec) -> None:
        """Keyframe 0: objects as placed in the scene, arms at home with open grippers."""
        m = spec.compile()
        qpos, ctrl = np.array(m.qpos0), np.zeros(m.nu)
        for mount in self.mounts:
            prefix, g = _scene_prefix(mount), self.robot.gripper
            joints = list(zip(self.robot.joints, self.robot.home, strict=True))
            inputs = list(zip(self.robot.actuators, self.robot.home, strict=True))
            if g is not None:
                joints += list(zip(g.joints, g.joint_opened, strict=True))
                inputs += list(zip(g.actuators, g.opened, strict=True))
            for name, value in joints:
                qpos[m.jnt_qposadr[find(m, "joint", prefix + name)]] = value
            for name, value in inputs:
                ctrl[find(m, "actuator", prefix + name)] = value
        spec.add_key(name="home", qpos=qpos, ctrl=ctrl)


def _scene_prefix(mount: Mount) -> str:
    return f"{mount.prefix}robot/"


def add_box(
    spec: mujoco.MjSpec, name: str, half: Sequence[float], pos: Sequence[float], rgba: Sequence[float], *,
    mass: float = 0.1, friction: Sequence[float] = (1.0, 0.005, 0.0001),
) -> None:  # fmt: skip
    """A box that moves freely: body and geom ``name``, ``half`` its half sizes [m], ``mass`` [kg]."""
    body = spec.worldbody.add_body(name=name, pos=pos)
    body.add_freejoint(name=name)
    body.add_geom(
        name=name, type=mujoco.mjtGeom.mjGEOM_BOX, size=half, mass=mass, rgba=rgba, friction=friction, condim=4
    )


def add_camera(spec: mujoco.MjSpec, name: str, pos: Sequence[float], target: Sequence[float]) -> None:
    """A camera at ``pos`` that looks at ``target`` [m], its top up (towards -x if it looks down)."""
    spec.worldbody.add_camera(name=name, pos=pos, quat=_look_at(pos, target), fovy=45.0)


def object_spec(names: Sequence[str], unit: str | None = None) -> ArraySpec:
    """Spec of an observed vector."""
    return ArraySpec(shape=(len(names),), role="observation", names=tuple(names), unit=unit)


def uniform_xy(u: Tensor, centre: Sequence[float], half: Sequence[float], z: float) -> Tensor:
    """Positions ``[n, 3]`` from ``u [n, 2]`` in 0..1, uniform in a rectangle."""
    x, y = (c + (2.0 * u[:, i] - 1.0) * h for i, (c, h) in enumerate(zip(centre, half, strict=True)))
    return torch.stack([x, y, torch.full_like(x, z)], 1)


def scatter(draws: Draws, count: int, centre: Sequence[float], half: Sequence[float], gap: float) -> Tensor:
    """Places ``[n, count, 2]`` in a rectangle, ``gap`` [m] apart (centre to centre), by the draws alone.

    Each place is the first of 16 uniform candidates that is far enough from those before, else of the corners; if none
    is, the one that is farthest away. Two places are always apart if ``gap <= hypot(*half)``.
    """
    c, h = constant(tuple(centre), draws.device), constant(tuple(half), draws.device)
    corners = constant(((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)), draws.device)
    rows, order = torch.arange(draws.n, device=draws.device), torch.arange(20, 0, -1, device=draws.device)
    places = [c + h * (2.0 * draws.uniform((2,)) - 1.0)]
    for _ in range(count - 1):
        tried = torch.cat([2.0 * draws.uniform((16, 2)) - 1.0, corners.expand(draws.n, 4, 2)], 1)
        at = c + h * tried
        apart = torch.stack([torch.hypot(*(at - p[:, None]).unbind(2)) for p in places]).amin(0)  # [n, 20]
        good = apart >= apart.amax(1, keepdim=True).clamp(max=gap)
        places.append(at[rows, (good * order).argmax(1)])
    return torch.stack(places, 1)


def yaw_quat(yaw: Tensor) -> Tensor:
    """Quaternions ``[..., 4]`` (wxyz) of turns about z by ``yaw [...]``."""
    half, zero = yaw / 2, torch.zeros_like(yaw)
    return torch.stack([torch.cos(half), zero, zero, torch.sin(half)], -1)


def flat_yaw(quat: Tensor) -> Tensor:
    """Yaw ``[N]`` of a side of a box with ``quat [N, 4]`` (wxyz) that lies flat, whichever face it lies on."""
    mat = quat_to_matrix(quat)
    side = torch.where(mat[:, 2:, 0].abs() < 0.7, mat[:, :, 0], mat[:, :, 1])
    return torch.atan2(side[:, 1], side[:, 0])


def _base_of(model: mujoco.MjModel, joint: str) -> str:
    """Name of the body on which the tree of a joint stands: the last one before the world."""
    body = int(model.jnt_bodyid[find(model, "joint", joint)])
    while model.body_parentid[body] != 0:
        body = int(model.body_parentid[body])
    return str(model.body(body).name)


def _look_at(pos: Sequence[float], target: Sequence[float]) -> np.ndarray:
    """Quaternion of a camera at ``pos`` that looks at ``target`` with its top up (towards -x if it looks down)."""
    z = np.asarray(pos, float) - np.asarray(target, float)
    z /= np.linalg.norm(z)
    up = np.array([-1.0, 0.0, 0.0]) if abs(z[2]) > 0.99 else np.array([0.0, 0.0, 1.0])
    x = np.cross(up, z)
    x /= np.linalg.norm(x)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.stack([x, np.cross(z, x), z], 1).ravel())
    return quat
