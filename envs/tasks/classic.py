"""Classic control: small mechanisms on which to check that reinforcement learning learns. No arm, no expert."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import mujoco
from torch import Tensor

from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.arrays import namespace, tensor, words
from visuomotor.envs.sim.control import ActuatorControl, Control
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.task import Outcome, SimConfig, Task
from visuomotor.envs.sim.world import World

__all__ = ["ClassicConfig", "ClassicTask", "Runner"]

_FLOOR_AND_LIGHT = """
<visual>
  <global offwidth="1280" offheight="960"/>
  <quality shadowsize="1024" offsamples="0"/>
  <headlight ambient=".35 .35 .35" diffuse=".25 .25 .25" specular="0 0 0"/>
</visual>
<asset>
  <texture name="sky" type="skybox" builtin="gradient" rgb1=".75 .82 .9" rgb2=".95 .95 .97" width="64" height="64"/>
  <texture name="floor" type="2d" builtin="checker" rgb1=".80 .80 .78" rgb2=".72 .73 .74" width="256" height="256"/>
  <material name="floor" texture="floor" texrepeat="1 1" texuniform="true"/>
  <material name="link" rgba=".25 .45 .70 1"/>
  <material name="link2" rgba=".85 .45 .25 1"/>
  <material name="mark" rgba=".80 .15 .15 1"/>
</asset>
"""


@dataclass(kw_only=True, slots=True)
class ClassicConfig(SimConfig):
    """Settings of classic control.

    Attributes:
        end_on_success: an episode ends when the goal holds.
    """

    end_on_success: bool = False


class ClassicTask(Task):
    """A mechanism whose action is the input of its motors and whose observation is one vector, ``state``.

    Attributes:
        fps: from the timestep of :attr:`xml` and :attr:`frame_skip`.
        xml: what stands in the ``<mujoco>`` element besides light and materials.
        frame_skip: physics steps in a control step.
        state_names: of the components of ``state``.
    """

    xml: str
    frame_skip: int
    state_names: tuple[str, ...]

    def __init__(self, config: ClassicConfig) -> None:
        self.config = config
        self.fps = 1.0 / (self.frame_skip * self.scene().option.timestep)
        self.obs_spec = {"state": ArraySpec(shape=(len(self.state_names),), role="observation", names=self.state_names)}

    @abstractmethod
    def state(self) -> Tensor:
        """Float ``[N, k]``: what is observed, named by :attr:`state_names`."""

    def scene(self) -> mujoco.MjSpec:
        return mujoco.MjSpec.from_string(f"<mujoco>{_FLOOR_AND_LIGHT}{self.xml}</mujoco>")

    def bind(self, world: World) -> Control:
        sim = world.sim
        self.qpos, self.qvel, self.ctrl = sim.field("qpos"), sim.field("qvel"), sim.field("ctrl")
        self.dt = 1.0 / self.fps
        return ActuatorControl(world)

    def observe(self) -> dict[str, Tensor]:
        return {"state": self.state().float()}

    def jitter(self, worlds: Selection, draws: Draws, scale: float, *, gaussian: bool = False) -> None:
        """Add numbers in ``±scale`` to positions and velocities; with ``gaussian`` velocities get normal ones."""
        q, v = self.qpos.shape[1:], self.qvel.shape[1:]
        worlds.put(self.qpos, worlds.take(self.qpos) + draws.uniform(q, -scale, scale))
        speed = scale * draws.normal(v) if gaussian else draws.uniform(v, -scale, scale)
        worlds.put(self.qvel, worlds.take(self.qvel) + speed)


class Runner(ClassicTask):
    """A planar body that is to run forwards: joints ``rootx``, ``rootz``, ``rooty``, then those with motors.

    Reward as Gymnasium documents it: ``healthy_reward + velocity of the torso [m/s] - control_cost |action|^2``, the
    first only while it is healthy; a body that is not loses. Success: eight metres forwards, a metre a second over the
    time limit; the score is the share of them.

    Attributes:
        control_cost: weight of the squared action.
        healthy_reward: for each step on its feet.
        healthy_height: least and greatest height of the torso [m].
        healthy_angle: greatest inclination of the torso [rad].
        healthy_joints: greatest position of the other joints [rad].
    """

    reads_outputs = False
    max_episode_steps = 1000
    control_cost = 1e-3
    healthy_reward = 1.0
    healthy_height: tuple[float, float]
    healthy_angle: float
    healthy_joints = math.inf
    reset_noise = 5e-3
    goal = 8.0  # [m]

    def bind(self, world: World) -> Control:
        control = super().bind(world)
        self._before = self.qpos[:, 0].clone()
        (low, high), angle = self.healthy_height, self.healthy_angle
        joints = [self.healthy_joints] * (self.qpos.shape[1] - 3)
        self._low = self.qpos.new_tensor([low, -angle, *(-x for x in joints)])
        self._high = self.qpos.new_tensor([high, angle, *joints])
        return control

    def reset(self, worlds: Selection, draws: Draws) -> None:
        self.jitter(worlds, draws, self.reset_noise)

    def before_step(self) -> None:
        words(self._before)[:] = words(self.qpos)[:, 0]

    def state(self) -> Tensor:
        """Positions without x, and velocities clipped to ±10."""
        qpos, qvel = words(self.qpos), words(self.qvel)
        return tensor(namespace(qpos).concatenate([qpos[:, 1:], qvel.clip(-10.0, 10.0)], 1))

    def outcome(self) -> Outcome:
        qpos, ctrl = words(self.qpos), words(self.ctrl)
        x, posture = qpos[:, 0], qpos[:, 1:]
        healthy = ((posture > words(self._low)) & (posture < words(self._high))).all(1)
        reward = self.healthy_reward * healthy + (x - words(self._before)) / self.dt
        reward = reward - self.control_cost * (ctrl * ctrl).sum(1)
        return Outcome(
            reward=tensor(reward).float(),
            success=tensor(x >= self.goal),
            failure=tensor(~healthy),
            score=tensor((x / self.goal).clip(0.0, 1.0)).float(),
        )
