"""An SO-100-like arm: five joints and a gripper with one moving jaw, of a hand's size; primitive geometry.

About the dimensions of the SO-ARM100 (github.com/TheRobotStudio/SO-ARM100, published drawings): shoulder 0.12 m above
the table, upper arm 0.116 m, forearm 0.135 m, wrist to roll 0.06 m, jaws of about 0.1 m. Torques of the STS3215 servo
(datasheet, 30 kg cm at 12 V: 2.9 Nm). At zero the upper arm points up and the forearm and the hand forward; joints
turn positive downward. The shapes are boxes, cylinders and capsules of about the links' size.

Five joints cannot turn the hand about the vertical plane of the arm: it follows in position, and in rotation as far as
it can.
"""

from __future__ import annotations

import mujoco

from visuomotor.envs.robots.model import GripperModel, RobotModel

__all__ = ["SO100"]

_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
_CLOSED, _OPEN = 0.0, 1.1  # of the jaw [rad]
_XML = """
<mujoco model="so100">
  <compiler angle="radian"/>
  <default>
    <joint damping=".1" armature=".03"/>
    <position kp="100" kv="6" forcerange="-2.9 2.9" inheritrange="1"/>
    <default class="part"><geom type="box" contype="2" conaffinity="1" rgba=".95 .62 .15 1"/></default>
    <default class="motor"><geom type="box" contype="2" conaffinity="1" rgba=".12 .12 .13 1"/></default>
    <default class="still"><geom type="box" contype="0" conaffinity="0" rgba=".95 .62 .15 1"/></default>
    <default class="jaw"><geom type="box" contype="2" conaffinity="1" friction="1.5 .05 .001" solref=".01 1"
      condim="4" priority="1" rgba=".95 .62 .15 1"/></default>
  </default>
  <worldbody>
    <body name="base" gravcomp="1">
      <geom class="still" pos="-.02 0 .006" size=".055 .055 .006" mass=".15"/>
      <geom class="still" pos="-.045 0 .03" size=".02 .03 .024" mass=".1"/>
      <geom class="still" pos="0 0 .034" size=".023 .023 .022" mass=".1" rgba=".12 .12 .13 1"/>
      <body name="shoulder" pos="0 0 .056" gravcomp="1">
        <joint name="shoulder_pan" axis="0 0 1" range="-1.92 1.92"/>
        <geom class="still" type="cylinder" fromto="0 0 0 0 0 .01" size=".028" mass=".02"/>
        <geom class="still" pos=".006 .026 .04" size=".022 .003 .036" mass=".02"/>
        <geom class="still" pos=".006 -.026 .04" size=".022 .003 .036" mass=".02"/>
        <geom class="still" pos=".012 0 .046" size=".014 .022 .03" mass=".06" rgba=".12 .12 .13 1"/>
        <body name="upper_arm" pos=".02 0 .062" gravcomp="1">
          <joint name="shoulder_lift" axis="0 1 0" range="-1.75 1.75"/>
          <geom class="motor" type="cylinder" fromto="0 -.032 0 0 .032 0" size=".011" mass=".02"/>
          <geom class="part" pos="0 .031 .058" size=".011 .003 .066" mass=".03"/>
          <geom class="part" pos="0 -.031 .058" size=".011 .003 .066" mass=".03"/>
          <geom class="part" pos="0 0 .06" size=".008 .03 .022" mass=".02"/>
          <geom class="motor" pos="0 0 .104" size=".013 .024 .022" mass=".06"/>
          <body name="forearm" pos="0 0 .116" gravcomp="1">
            <joint name="elbow_flex" axis="0 1 0" range="-1.75 1.75"/>
            <geom class="motor" type="cylinder" fromto="0 -.036 0 0 .036 0" size=".01" mass=".02"/>
            <geom class="part" pos=".062 .0365 0" size=".072 .0025 .011" mass=".02"/>
            <geom class="part" pos=".062 -.0365 0" size=".072 .0025 .011" mass=".02"/>
            <geom class="part" pos=".07 0 0" size=".03 .0345 .006" mass=".02"/>
            <geom class="motor" pos=".12 0 0" size=".022 .02 .013" mass=".06"/>
            <body name="wrist" pos=".135 0 0" gravcomp="1">
              <joint name="wrist_flex" axis="0 1 0" range="-1.75 1.75"/>
              <geom class="motor" type="cylinder" fromto="0 -.034 0 0 .034 0" size=".009" mass=".01"/>
              <geom class="part" pos=".016 .0295 0" size=".025 .0025 .01" mass=".01"/>
              <geom class="part" pos=".016 -.0295 0" size=".025 .0025 .01" mass=".01"/>
              <geom class="motor" pos=".042 0 0" size=".016 .032 .015" mass=".05"/>
              <body name="hand" pos=".06 0 0" quat=".70710678 0 .70710678 0" gravcomp="1">
                <joint name="wrist_roll" axis="0 0 1" range="-2.79 2.79"/>
                <geom class="part" type="cylinder" fromto="0 0 -.004 0 0 .008" size=".018" mass=".02"/>
                <geom class="motor" pos="0 .004 .022" size=".013 .022 .016" mass=".06"/>
                <geom class="part" pos="0 -.0265 .028" size=".014 .0055 .024" mass=".01"/>
                <geom name="fixed_jaw" class="jaw" pos="0 -.029 .075" size=".011 .003 .025" mass=".01"/>
                <site name="tcp" pos="0 0 .088" size=".004" group="4"/>
                <camera name="wrist" pos="-.055 0 .01" xyaxes="0 -1 0 -.839 0 .545" fovy="75"/>
                <body name="jaw" pos="0 .024 .024" quat=".947647 .319327 0 0" gravcomp="1">
                  <joint name="gripper" axis="-1 0 0" range="0 1.1" damping=".05" armature=".02"/>
                  <geom class="motor" type="cylinder" fromto="-.016 0 0 .016 0 0" size=".008" mass=".005"/>
                  <geom class="part" pos="0 0 .014" size=".014 .004 .014" mass=".005"/>
                  <geom name="moving_jaw" class="jaw" pos="0 -.001 .051" size=".011 .003 .025" mass=".01"/>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="shoulder_pan" joint="shoulder_pan"/>
    <position name="shoulder_lift" joint="shoulder_lift"/>
    <position name="elbow_flex" joint="elbow_flex"/>
    <position name="wrist_flex" joint="wrist_flex"/>
    <position name="wrist_roll" joint="wrist_roll"/>
    <position name="gripper" joint="gripper" kp="8" kv=".5" forcerange="-1.5 1.5"/>
  </actuator>
</mujoco>
"""


def _spec() -> mujoco.MjSpec:
    return mujoco.MjSpec.from_string(_XML)


SO100 = RobotModel(
    name="so100",
    spec=_spec,
    joints=_JOINTS,
    actuators=_JOINTS,
    home=(0.0, 0.25, -0.42, 1.7, 0.0),
    tcp="tcp",
    gripper=GripperModel(
        joints=("gripper",),
        actuators=("gripper",),
        opened=(_OPEN,),
        closed=(_CLOSED,),
        joint_opened=(_OPEN,),
        joint_closed=(_CLOSED,),
        width=0.08,
    ),
    reach=0.22,
    rotation_weight=0.04,
)
"""Five joints and small: what a desk holds."""
