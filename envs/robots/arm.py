"""An arm in a scene: what it measures, and what an action means to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.rotations import matrix_to_rot6d
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.robots.kinematics import Approach, Chain, rotation_error
from visuomotor.envs.robots.model import RobotModel
from visuomotor.envs.sim.control import Control
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world import World, find

__all__ = ["ACTION_MODES", "Arm", "ControlConfig"]

ACTION_MODES = ("joint_pos", "joint_delta", "joint_vel", "ee_delta")


@dataclass(kw_only=True, slots=True)
class ControlConfig:
    """What an action means.

    Attributes:
        mode: ``joint_pos`` (joint targets [rad]), ``joint_delta`` (changes of the targets in one control step [rad]),
            ``joint_vel`` (rates of the targets [rad/s]) or ``ee_delta`` (change of the hand's target pose in one
            control step, in the frame of the robot's base: position [m], rotation vector [rad]). A gripper adds one
            component: 0 closed, 1 open.
        joint_step: largest change of a joint target in one control step [rad].
        pos_step: largest change of the hand's position in one control step, in each direction [m].
        rot_step: largest rotation of the hand in one control step, about each axis [rad].
    """

    mode: str = "ee_delta"
    joint_step: float = 0.1
    pos_step: float = 0.03
    rot_step: float = 0.15

    def __post_init__(self) -> None:
        if self.mode not in ACTION_MODES:
            raise ConfigError(f"unknown action mode {self.mode!r}. {nearest(self.mode, ACTION_MODES)}")
        for name in ("joint_step", "pos_step", "rot_step"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"control.{name}={getattr(self, name)}: expected more than 0, and finite")


class Arm(Control):
    """One arm of a bound scene.

    Its targets are joint positions, whatever the mode: hand motions become joint targets by damped least squares from
    the targets before, so that a hand held still does not sink and unreachable commands do not wind up. Targets do not
    follow an arm that something blocks: they run ahead of it up to the joints' limits, and the servos press.

    Args:
        world: where it is.
        model: what it is.
        prefix: of its names in the scene.
        base: body of the scene that is its base frame.
        config: what an action means.
        dt: duration of a control step [s].
        observation_prefix: of the keys of :meth:`observe`.

    Attributes:
        by_encoders: the pose of the hand is computed from the joint positions that are read, as a real arm does it;
            else it is where the hand is. They differ where encoders are off.
    """

    by_encoders: bool = False

    def __init__(
        self, world: World, model: RobotModel, *, prefix: str, base: str, config: ControlConfig, dt: float,
        observation_prefix: str = "",
    ) -> None:  # fmt: skip
        m, device = world.sim.model, world.sim.device
        self.model, self._config, self._dt, self._key = model, config, dt, observation_prefix
        self.joints = world.joints([prefix + j for j in model.joints])
        self.tcp = world.site(prefix + model.tcp)
        self.chain = Chain(m, self.joints.names, prefix + model.tcp, base, device)
        self._base_pos, self._base_mat = _fixed_frame(world, base)
        self._aligned = bool((self._base_mat == torch.eye(3, device=device)).all())  # with the world frame
        self._home = torch.tensor(model.home, dtype=torch.float32, device=device)
        self._reaching = Approach(
            low=self.joints.low, high=self.joints.high, rest=self._home, rotation_weight=model.rotation_weight
        )
        self._ctrl = world.sim.field("ctrl")
        self._arm_inputs = torch.tensor([find(m, "actuator", prefix + a) for a in model.actuators], device=device)
        self.target = self._home.repeat(world.sim.num_envs, 1)  # joint targets [N, n]
        self.grip = torch.ones(world.sim.num_envs, 1, device=device)  # commanded opening [N, 1]
        g = model.gripper
        if g is not None:
            self.fingers = world.joints([prefix + j for j in g.joints])
            self._grip_inputs = torch.tensor([find(m, "actuator", prefix + a) for a in g.actuators], device=device)
            self._grip_open, self._grip_closed = (torch.tensor(x, device=device) for x in (g.opened, g.closed))
            self._finger_open, self._finger_closed = (
                torch.tensor(x, device=device) for x in (g.joint_opened, g.joint_closed)
            )
        self.spec, self.low, self.high = self._bounds()

    # ---- measured

    @property
    def obs_spec(self) -> dict[str, ArraySpec]:
        """What :meth:`observe` gives."""
        n, names = len(self.model.joints), self.model.joints
        role, source = "observation", self.model.name
        spec = {
            "joint_pos": ArraySpec(shape=(n,), role=role, unit="rad", names=names, source=source),
            "joint_vel": ArraySpec(shape=(n,), role=role, unit="rad/s", names=names, source=source),
            "tcp_pos": ArraySpec(shape=(3,), role=role, unit="m", names=("x", "y", "z"), source=source),
            "tcp_rot6d": ArraySpec(shape=(6,), role=role, source=source),
        }
        if self.model.gripper is not None:
            spec["gripper"] = ArraySpec(shape=(1,), role=role, names=("opening",), source=source)
        return {self._key + k: v for k, v in spec.items()}

    def observe(self) -> dict[str, Tensor]:
        """Joint positions and velocities, the hand's pose in the base frame, and the opening of the gripper (0..1)."""
        pos, mat = self.tcp_pose()
        obs = {
            "joint_pos": self.joints.pos(),
            "joint_vel": self.joints.vel(),
            "tcp_pos": pos,
            "tcp_rot6d": matrix_to_rot6d(mat),
        }
        if self.model.gripper is not None:
            obs["gripper"] = self.opening()
        return {self._key + k: v for k, v in obs.items()}

    def tcp_pose(self) -> tuple[Tensor, Tensor]:
        """Measured position ``[N, 3]`` and matrix ``[N, 3, 3]`` of the hand in the base frame."""
        if self.by_encoders:
            return self.chain.forward(self.joints.pos())
        return self.to_base(self.tcp.pos(), self.tcp.matrix())

    def to_base(self, pos: Tensor, mat: Tensor) -> tuple[Tensor, Tensor]:
        """A pose of the world frame in the base frame."""
        pos = pos - self._base_pos
        if self._aligned:  # the same numbers without the products
            return pos, mat
        return pos @ self._base_mat, self._base_mat.T @ mat

    def to_world(self, pos: Tensor, mat: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of :meth:`to_base`."""
        return pos @ self._base_mat.T + self._base_pos, self._base_mat @ mat

    def opening(self) -> Tensor:
        """Measured opening of the gripper ``[N, 1]``: 0 closed, 1 open."""
        span = self._finger_open - self._finger_closed
        return ((self.fingers.pos() - self._finger_closed) / span).mean(1, keepdim=True)

    # ---- commanded

    def reset(self, worlds: Selection) -> None:
        worlds.put(self.target, worlds.take(self.joints.pos()))
        worlds.put(self.grip, 1.0)
        self._write()

    def apply(self, action: Tensor, active: Tensor | None) -> None:
        action = torch.clamp(action, self.low, self.high)
        n = self.target.shape[1]
        target, mode = self.target, self._config.mode
        if mode == "joint_pos":
            target = target + (action[:, :n] - target).clamp(-self._config.joint_step, self._config.joint_step)
        elif mode == "joint_delta":
            target = target + action[:, :n]
        elif mode == "joint_vel":
            target = target + action[:, :n] * self._dt
        else:
            target = self.chain.follow(target, action[:, :6], **self._reaching)
        target = torch.clamp(target, self.joints.low, self.joints.high)
        grip = action[:, -1:] if self.model.gripper is not None else self.grip
        self.target.copy_(target if active is None else torch.where(active[:, None], target, self.target))
        self.grip.copy_(grip if active is None else torch.where(active[:, None], grip, self.grip))
        self._write()

    def encode(self, pos: Tensor, rot: Tensor, grip: Tensor) -> Tensor:
        """Action ``[N, Da]`` that moves the hand's target to a pose of the world frame: inverse of :meth:`apply`.

        Exact while the pose is within one step's reach; else each component goes as far as its bounds allow.

        Args:
            pos: ``[N, 3]`` [m].
            rot: ``[N, 3, 3]``.
            grip: opening ``[N, 1]``, 0..1.
        """
        pos, rot = self.to_base(pos, rot)
        if self._config.mode == "ee_delta":
            now_pos, now_rot = self.chain.forward(self.target)
            motion = torch.cat([pos - now_pos, rotation_error(rot, now_rot)], 1)
        else:
            q = self.chain.solve(self.target, pos, rot, **self._reaching)
            motion = {
                "joint_pos": lambda: q,
                "joint_delta": lambda: q - self.target,
                "joint_vel": lambda: (q - self.target) / self._dt,
            }[self._config.mode]()
        action = motion if self.model.gripper is None else torch.cat([motion, grip], 1)
        return torch.clamp(action, self.low, self.high)

    def buffers(self) -> dict[str, Tensor]:
        return {"target": self.target, "grip": self.grip}

    def _write(self) -> None:
        self._ctrl[:, self._arm_inputs] = self.target.to(self._ctrl.dtype)
        if self.model.gripper is not None:
            ctrl = self._grip_closed + self.grip * (self._grip_open - self._grip_closed)
            self._ctrl[:, self._grip_inputs] = ctrl.to(self._ctrl.dtype)

    def _bounds(self) -> tuple[ArraySpec, Tensor, Tensor]:
        c, low, high = self._config, self.joints.low, self.joints.high
        names: tuple[str, ...] = self.model.joints
        unit = {"joint_pos": "rad", "joint_delta": "rad", "joint_vel": "rad/s", "ee_delta": None}[c.mode]
        if c.mode in ("joint_delta", "joint_vel"):  # a policy of one mode must be refused in another
            names = tuple(f"{n}_{'change' if c.mode == 'joint_delta' else 'rate'}" for n in names)
        if c.mode == "joint_delta":
            high = torch.full_like(high, c.joint_step)
        elif c.mode == "joint_vel":
            high = torch.full_like(high, c.joint_step / self._dt)
        elif c.mode == "ee_delta":
            high = torch.tensor([c.pos_step] * 3 + [c.rot_step] * 3, device=low.device)
            names = ("dx", "dy", "dz", "rx", "ry", "rz")
        low = low if c.mode == "joint_pos" else -high
        if self.model.gripper is not None:
            names, unit = (*names, "gripper"), None
            low, high = torch.cat([low, low.new_zeros(1)]), torch.cat([high, high.new_ones(1)])
        names = tuple(self._key + n for n in names)
        spec = ArraySpec(shape=(len(names),), role="action", unit=unit, names=names, source=self.model.name)
        return spec, low, high


def _fixed_frame(world: World, body: str) -> tuple[Tensor, Tensor]:
    """Pose of a body that does not move: position ``[3]`` and matrix ``[3, 3]``."""
    index = find(world.sim.model, "body", body)
    pos, mat = world.sim.field("xpos")[0, index], world.sim.field("xmat")[0, index]
    return pos.float().clone(), mat.reshape(3, 3).float().clone()
