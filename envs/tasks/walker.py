"""Walker: a planar biped walks forwards."""

from __future__ import annotations

from dataclasses import dataclass

from visuomotor.envs.tasks.classic import ClassicConfig, Runner

__all__ = ["Walker", "WalkerConfig"]


def _leg(suffix: str, material: str) -> str:
    return f"""
    <body name="thigh{suffix}" pos="0 0 -.2">
      <joint name="thigh{suffix}_joint" type="hinge" axis="0 -1 0" range="-150 0"/>
      <geom name="thigh{suffix}" size=".05" fromto="0 0 0 0 0 -.45" material="{material}"/>
      <body name="leg{suffix}" pos="0 0 -.45">
        <joint name="leg{suffix}_joint" type="hinge" axis="0 -1 0" range="-150 0"/>
        <geom name="leg{suffix}" size=".04" fromto="0 0 0 0 0 -.5" material="{material}"/>
        <body name="foot{suffix}" pos="0 0 -.5">
          <joint name="foot{suffix}_joint" type="hinge" axis="0 -1 0" range="-45 45"/>
          <geom name="foot{suffix}" size=".06" fromto="0 0 0 .2 0 0" friction="1.9 .1 .1" material="{material}"/>
        </body>
      </body>
    </body>"""


_XML = f"""
<compiler angle="degree"/>
<option timestep="0.002" integrator="RK4"/>
<default>
  <joint armature=".01" damping=".1" limited="true"/>
  <geom type="capsule" contype="1" conaffinity="0" condim="3" friction=".9 .1 .1"/>
  <motor ctrllimited="true" ctrlrange="-1 1" gear="100"/>
  <default class="root"><joint armature="0" damping="0" limited="false"/></default>
</default>
<worldbody>
  <light type="directional" pos="0 0 4" dir=".2 .3 -1" diffuse=".4 .4 .4"/>
  <geom name="floor" type="plane" size="40 40 .1" conaffinity="1" friction=".7 .1 .1" material="floor"/>
  <body name="torso" pos="0 0 1.25">
    <camera name="film" mode="trackcom" pos="0 -3 -.2" xyaxes="1 0 0 0 0 1"/>
    <joint class="root" name="rootx" type="slide" axis="1 0 0"/>
    <joint class="root" name="rootz" type="slide" axis="0 0 1" ref="1.25"/>
    <joint class="root" name="rooty" type="hinge" axis="0 1 0"/>
    <geom name="torso" size=".05" fromto="0 0 .2 0 0 -.2" material="link"/>{_leg("", "link")}{_leg("_left", "link2")}
  </body>
</worldbody>
<actuator>
  <motor name="thigh" joint="thigh_joint"/>
  <motor name="leg" joint="leg_joint"/>
  <motor name="foot" joint="foot_joint"/>
  <motor name="thigh_left" joint="thigh_left_joint"/>
  <motor name="leg_left" joint="leg_left_joint"/>
  <motor name="foot_left" joint="foot_left_joint"/>
</actuator>
"""
_JOINTS = ("thigh", "leg", "foot", "thigh_left", "leg_left", "foot_left")


@dataclass(kw_only=True, slots=True)
class WalkerConfig(ClassicConfig):
    """Settings of Walker."""


class Walker(Runner):
    """Two legs of thigh, leg and foot (0.45, 0.5, 0.2 m) on one torso (0.4 m) walk forwards.

    Sizes, friction, gears, timestep 2 ms with four steps a control step, observations, reward and termination as
    Gymnasium documents for Walker2d-v5 (gymnasium.farama.org/environments/mujoco/walker2d): the body is healthy while
    the torso is between 0.8 and 2 m and within 1 rad. Action: torques [100 N m] of thigh, leg and foot, right then
    left, ±1; the clipped action is charged for.
    """

    name = "walker"
    xml, frame_skip = _XML, 4
    state_names = (
        "z", "angle", *_JOINTS, "x_velocity", "z_velocity", "angle_velocity", *(f"{j}_velocity" for j in _JOINTS),
    )  # fmt: skip
    healthy_height, healthy_angle = (0.8, 2.0), 1.0
