"""Hopper: a planar leg with a foot hops forwards."""

from __future__ import annotations

import math
from dataclasses import dataclass

from visuomotor.envs.tasks.classic import ClassicConfig, Runner

__all__ = ["Hopper", "HopperConfig"]

_XML = """
<compiler angle="degree"/>
<option timestep="0.002" integrator="RK4"/>
<default>
  <joint armature="1" damping="1" limited="true"/>
  <geom type="capsule" condim="1" friction=".9" margin=".001" solimp=".8 .8 .01" solref=".02 1" material="link"/>
  <motor ctrllimited="true" ctrlrange="-1 1" gear="200"/>
  <default class="root"><joint armature="0" damping="0" limited="false"/></default>
</default>
<worldbody>
  <light type="directional" pos="0 0 4" dir=".2 .3 -1" diffuse=".4 .4 .4"/>
  <geom name="floor" type="plane" size="40 40 .1" condim="3" friction="1" material="floor"/>
  <body name="torso" pos="0 0 1.25">
    <camera name="film" mode="trackcom" pos="0 -3 -.2" xyaxes="1 0 0 0 0 1"/>
    <joint class="root" name="rootx" type="slide" axis="1 0 0"/>
    <joint class="root" name="rootz" type="slide" axis="0 0 1" ref="1.25"/>
    <joint class="root" name="rooty" type="hinge" axis="0 1 0"/>
    <geom name="torso" size=".05" fromto="0 0 .2 0 0 -.2"/>
    <body name="thigh" pos="0 0 -.2">
      <joint name="thigh_joint" type="hinge" axis="0 -1 0" range="-150 0"/>
      <geom name="thigh" size=".05" fromto="0 0 0 0 0 -.45" material="link2"/>
      <body name="leg" pos="0 0 -.45">
        <joint name="leg_joint" type="hinge" axis="0 -1 0" range="-150 0"/>
        <geom name="leg" size=".04" fromto="0 0 0 0 0 -.5"/>
        <body name="foot" pos="0 0 -.5">
          <joint name="foot_joint" type="hinge" axis="0 -1 0" range="-45 45"/>
          <geom name="foot" size=".06" fromto="-.13 0 0 .26 0 0" friction="2" material="link2"/>
        </body>
      </body>
    </body>
  </body>
</worldbody>
<actuator>
  <motor name="thigh" joint="thigh_joint"/>
  <motor name="leg" joint="leg_joint"/>
  <motor name="foot" joint="foot_joint"/>
</actuator>
"""
_JOINTS = ("thigh", "leg", "foot")


@dataclass(kw_only=True, slots=True)
class HopperConfig(ClassicConfig):
    """Settings of Hopper."""


class Hopper(Runner):
    """A leg of torso, thigh, leg and foot (0.4, 0.45, 0.5, 0.39 m) hops forwards (Erez, Tassa and Todorov 2011).

    Sizes, friction, gears, timestep 2 ms with four steps a control step, observations, reward and termination as
    Gymnasium documents for Hopper-v5 (gymnasium.farama.org/environments/mujoco/hopper): the body is healthy while the
    torso is above 0.7 m and within 0.2 rad, and all other components of ``state`` are within ±100. Action: torques
    [200 N m] of thigh, leg and foot, ±1. Where Gymnasium charges for the action as given, here it is the clipped one.
    """

    name = "hopper"
    xml, frame_skip = _XML, 4
    state_names = (
        "z", "angle", *_JOINTS, "x_velocity", "z_velocity", "angle_velocity", *(f"{j}_velocity" for j in _JOINTS),
    )  # fmt: skip
    healthy_height, healthy_angle, healthy_joints = (0.7, math.inf), 0.2, 100.0  # velocities are observed within ±10
