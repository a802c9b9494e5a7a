"""A Panda-like arm: seven joints, parallel gripper, primitive geometry.

Link frames, joint limits and torque limits from Franka Robotics' public specification (Denavit-Hartenberg parameters
and limits, frankarobotics.github.io/docs/control_parameters.html); link masses as identified by Gaz et al. 2019,
"Dynamic Identification of the Franka Emika Panda Robot". The shapes are capsules and boxes of about the links' size.
At home the hand's frame (``tcp``) is turned by half a turn about z against Franka's own end effector frame: y then
points to the left of the robot, as in the other arms.
"""

from __future__ import annotations

import mujoco

from visuomotor.envs.robots.model import GripperModel, RobotModel

__all__ = ["PANDA"]

_JOINTS = tuple(f"joint{i}" for i in range(1, 8))
# Servo gains: where a force limit holds, damping acts explicitly, and kv * timestep above the inertia (0.15 kg m^2
# at the wrist) makes a limit cycle that shakes objects out of the hand. Stiffer servos would also reach each target
# long before the next one comes and go in jerks at the control rate. A finger's armature is large against its damping
# times the timestep: the contact solver does not know of implicit damping, and a light finger would bounce off what it
# holds.
_XML = """
<mujoco model="panda">
  <compiler angle="radian"/>
  <default>
    <default class="link"><geom type="capsule" contype="2" conaffinity="1" rgba=".93 .94 .95 1"/></default>
    <default class="still"><geom type="capsule" contype="0" conaffinity="0" rgba=".93 .94 .95 1"/></default>
    <default class="trim"><geom type="cylinder" contype="0" conaffinity="0" mass="0" rgba=".30 .31 .34 1"/></default>
    <default class="big"><joint damping="1" armature="0.1"/>
      <position kp="1000" kv="100" forcerange="-87 87"/></default>
    <default class="small"><joint damping="1" armature="0.1"/>
      <position kp="200" kv="15" forcerange="-12 12"/></default>
    <default class="finger"><joint type="slide" axis="0 1 0" range="0 0.04" damping="1" armature="0.5"/>
      <position kp="400" kv="25" ctrlrange="0 0.04" forcerange="-70 70"/>
      <geom contype="2" conaffinity="1" rgba=".25 .25 .28 1"/></default>
  </default>
  <worldbody>
    <body name="base" gravcomp="1">
      <geom class="still" type="box" pos="-.04 0 .035" size=".095 .075 .035" mass="1.4"/>
      <geom class="still" type="cylinder" fromto="0 0 0 0 0 .14" size=".075" mass="1.4"/>
      <geom class="trim" fromto="0 0 .14 0 0 .148" size=".07"/>
      <body name="link1" pos="0 0 .333" gravcomp="1">
        <joint name="joint1" class="big" axis="0 0 1" range="-2.8973 2.8973"/>
        <geom class="still" fromto="0 0 -.13 0 0 -.02" size=".066" mass="3.2"/>
        <geom class="still" type="cylinder" fromto="0 -.06 0 0 .06 0" size=".066" mass="1.77"/>
        <body name="link2" quat=".70710678 -.70710678 0 0" gravcomp="1">
          <joint name="joint2" class="big" axis="0 0 1" range="-1.7628 1.7628"/>
          <geom class="trim" fromto="0 0 -.068 0 0 -.06" size=".058"/>
          <geom class="trim" fromto="0 0 .06 0 0 .068" size=".058"/>
          <geom class="still" fromto="0 0 0 0 -.14 0" size=".06" mass=".647"/>
          <body name="link3" pos="0 -.316 0" quat=".70710678 .70710678 0 0" gravcomp="1">
            <joint name="joint3" class="big" axis="0 0 1" range="-2.8973 2.8973"/>
            <geom class="trim" fromto="0 0 -.135 0 0 -.128" size=".059"/>
            <geom class="link" fromto="0 0 -.13 0 0 -.07" size=".057" mass="1.6"/>
            <geom class="link" fromto="0 0 -.08 .0825 0 0" size=".05" mass="1.628"/>
            <body name="link4" pos=".0825 0 0" quat=".70710678 .70710678 0 0" gravcomp="1">
              <joint name="joint4" class="big" axis="0 0 1" range="-3.0718 -.0698"/>
              <geom class="link" type="cylinder" fromto="0 0 -.058 0 0 .058" size=".056" mass="2"/>
              <geom class="trim" fromto="0 0 -.066 0 0 -.058" size=".048"/>
              <geom class="trim" fromto="0 0 .058 0 0 .066" size=".048"/>
              <geom class="link" fromto="0 .01 0 -.0825 .09 0" size=".05" mass="1.588"/>
              <body name="link5" pos="-.0825 .384 0" quat=".70710678 -.70710678 0 0" gravcomp="1">
                <joint name="joint5" class="small" axis="0 0 1" range="-2.8973 2.8973"/>
                <geom class="trim" fromto="0 0 -.26 0 0 -.253" size=".053"/>
                <geom class="link" fromto="0 0 -.27 0 .03 -.14" size=".05" mass=".7"/>
                <geom class="link" fromto="0 .03 -.14 0 .025 -.02" size=".042" mass=".526"/>
                <body name="link6" quat=".70710678 .70710678 0 0" gravcomp="1">
                  <joint name="joint6" class="small" axis="0 0 1" range="-.0175 3.7525"/>
                  <geom class="link" type="cylinder" fromto="0 0 -.055 0 0 .055" size=".048" mass=".9"/>
                  <geom class="trim" fromto="0 0 -.063 0 0 -.055" size=".041"/>
                  <geom class="trim" fromto="0 0 .055 0 0 .063" size=".041"/>
                  <geom class="link" fromto="0 0 0 .088 0 0" size=".044" mass=".767"/>
                  <body name="link7" pos=".088 0 0" quat=".70710678 .70710678 0 0" gravcomp="1">
                    <joint name="joint7" class="small" axis="0 0 1" range="-2.8973 2.8973"/>
                    <geom class="link" type="cylinder" fromto="0 0 -.045 0 0 .085" size=".043" mass=".735"/>
                    <geom class="trim" fromto="0 0 .085 0 0 .107" size=".035"/>
                    <body name="hand" pos="0 0 .107" quat=".92387953 0 0 -.38268343" gravcomp="1">
                      <geom type="box" pos="0 0 .035" size=".03 .1 .03" mass=".73" contype="2" conaffinity="1"
                            rgba=".9 .9 .92 1"/>
                      <site name="tcp" pos="0 0 .1034" quat="0 0 0 1" size=".005" group="4"/>
                      <camera name="wrist" pos=".07 0 .03" xyaxes="0 1 0 .839 0 .545" fovy="70"/>
                      <body name="left_finger" pos="0 0 .0584" gravcomp="1">
                        <joint name="finger_left" class="finger"/>
                        <geom class="finger" type="box" pos="0 .012 .02" size=".009 .007 .02" mass=".01"/>
                        <geom name="left_pad" class="finger" type="box" pos="0 .0075 .045" size=".011 .0075 .011"
                              mass=".005" friction="1.5 .05 .001" solref=".01 1" condim="4" priority="1"/>
                      </body>
                      <body name="right_finger" pos="0 0 .0584" quat="0 0 0 1" gravcomp="1">
                        <joint name="finger_right" class="finger"/>
                        <geom class="finger" type="box" pos="0 .012 .02" size=".009 .007 .02" mass=".01"/>
                        <geom name="right_pad" class="finger" type="box" pos="0 .0075 .045" size=".011 .0075 .011"
                              mass=".005" friction="1.5 .05 .001" solref=".01 1" condim="4" priority="1"/>
                      </body>
                    </body>
                  </body>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="joint1" joint="joint1" class="big" ctrlrange="-2.8973 2.8973"/>
    <position name="joint2" joint="joint2" class="big" ctrlrange="-1.7628 1.7628"/>
    <position name="joint3" joint="joint3" class="big" ctrlrange="-2.8973 2.8973"/>
    <position name="joint4" joint="joint4" class="big" ctrlrange="-3.0718 -.0698"/>
    <position name="joint5" joint="joint5" class="small" ctrlrange="-2.8973 2.8973"/>
    <position name="joint6" joint="joint6" class="small" ctrlrange="-.0175 3.7525"/>
    <position name="joint7" joint="joint7" class="small" ctrlrange="-2.8973 2.8973"/>
    <position name="finger_left" joint="finger_left" class="finger"/>
    <position name="finger_right" joint="finger_right" class="finger"/>
  </actuator>
</mujoco>
"""


def _spec() -> mujoco.MjSpec:
    return mujoco.MjSpec.from_string(_XML)


PANDA = RobotModel(
    name="panda",
    spec=_spec,
    joints=_JOINTS,
    actuators=_JOINTS,
    home=(0.0, 0.1, 0.0, -2.3, 0.0, 2.4, 0.785),
    tcp="tcp",
    gripper=GripperModel(
        joints=("finger_left", "finger_right"),
        actuators=("finger_left", "finger_right"),
        opened=(0.04, 0.04),
        closed=(0.0, 0.0),
        joint_opened=(0.04, 0.04),
        joint_closed=(0.0, 0.0),
        width=0.08,
    ),
    reach=0.5,
)
"""The arm of the framework's demonstrations and tests."""
