"""Reacher: a planar arm of two links brings its fingertip to a point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.envs.sim.control import Control
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.task import Outcome
from visuomotor.envs.sim.world import World
from visuomotor.envs.tasks.classic import ClassicConfig, ClassicTask

__all__ = ["Reacher", "ReacherConfig"]

_XML = """
<compiler angle="radian"/>
<option timestep="0.01" integrator="RK4"/>
<default>
  <joint type="hinge" axis="0 0 1" armature="1" damping="1"/>
  <geom contype="0" conaffinity="0"/>
  <motor ctrllimited="true" ctrlrange="-1 1" gear="200"/>
</default>
<worldbody>
  <light type="directional" pos="0 0 1.5" dir=".2 .3 -1" diffuse=".4 .4 .4"/>
  <camera name="film" pos="0 0 .75" xyaxes="1 0 0 0 1 0"/>
  <geom name="floor" type="plane" size=".35 .35 .1" material="floor"/>
  <body name="upper" pos="0 0 .01">
    <joint name="joint0"/>
    <geom name="upper" type="capsule" size=".01" fromto="0 0 0 .1 0 0" material="link"/>
    <body name="lower" pos=".1 0 0">
      <joint name="joint1" limited="true" range="-3 3"/>
      <geom name="lower" type="capsule" size=".01" fromto="0 0 0 .1 0 0" material="link2"/>
      <geom name="fingertip" type="sphere" size=".01" pos=".11 0 0" material="link"/>
      <site name="fingertip" pos=".11 0 0" size=".002"/>
    </body>
  </body>
  <body name="target" mocap="true" pos=".1 -.1 .01">
    <geom name="target" type="sphere" size=".009" material="mark"/>
  </body>
</worldbody>
<actuator>
  <motor name="joint0" joint="joint0"/>
  <motor name="joint1" joint="joint1"/>
</actuator>
"""
_NEAR = 0.02  # distance at which the target counts as reached [m]
_RADIUS = 0.2  # of the disc in which targets lie [m]


@dataclass(kw_only=True, slots=True)
class ReacherConfig(ClassicConfig):
    """Settings of Reacher."""


class Reacher(ClassicTask):
    """Two links of 0.1 m turn in a plane; the fingertip goes to a point of a disc of 0.2 m.

    Sizes, gears, timestep 10 ms with two steps a control step, observations and reward as Gymnasium documents for
    Reacher-v5 (gymnasium.farama.org/environments/mujoco/reacher): ``-distance - 0.1 |action|^2``, never terminated, 50
    steps. Action: torques [200 N m] of both joints, ±1. Success: the fingertip within 2 cm of the target.
    """

    name = "reacher"
    max_episode_steps = 50
    xml, frame_skip = _XML, 2
    state_names = (
        "cos_0", "cos_1", "sin_0", "sin_1", "target_x", "target_y", "velocity_0", "velocity_1", "to_target_x",
        "to_target_y",
    )  # fmt: skip

    def bind(self, world: World) -> Control:
        control = super().bind(world)
        self._tip, self._target = world.site("fingertip"), world.sim.field("mocap_pos")
        return control

    def reset(self, worlds: Selection, draws: Draws) -> None:
        worlds.put(self.qpos, draws.uniform((2,), -0.1, 0.1))
        worlds.put(self.qvel, draws.uniform((2,), -0.005, 0.005))
        radius, angle = _RADIUS * draws.uniform().sqrt(), draws.uniform((), -math.pi, math.pi)
        height = torch.full_like(radius, 0.01)
        target = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle), height], 1)
        worlds.put(self._target, target[:, None])

    def state(self) -> Tensor:
        target = self._target[:, 0, :2]
        parts = [torch.cos(self.qpos), torch.sin(self.qpos), target, self.qvel, self._tip.pos()[:, :2] - target]
        return torch.cat(parts, 1)

    def outcome(self) -> Outcome:
        distance = (self._tip.pos() - self._target[:, 0]).norm(dim=1)
        reward = -distance - 0.1 * self.ctrl.square().sum(1)
        score = (1.0 - distance / _RADIUS).clamp(0.0, 1.0)
        return Outcome(reward=reward.float(), success=distance < _NEAR, score=score.float())
