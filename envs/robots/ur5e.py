"""A UR5e-like arm: six joints, parallel gripper, primitive geometry.

Link frames from Universal Robots' public Denavit-Hartenberg parameters of the UR5e (d1 .1625, a2 -.425, a3 -.3922,
d4 .1333, d5 .0997, d6 .0996 m; support article "DH parameters for calculations of kinematics and dynamics"), link
masses from the same page, joint and torque limits from the UR5e's technical specification. The base is turned by half
a turn about z against the table's frame, so that the arm reaches forward (+x) as in ROS. Joints turn by one turn, not
two, to either side: twice as many ways to the same pose help nobody in a simulation. The gripper has the stroke
(85 mm) and about the size of a Robotiq 2F-85. The shapes are capsules, cylinders and boxes of about the links' size.
"""

from __future__ import annotations

import mujoco

from visuomotor.envs.robots.model import GripperModel, RobotModel

__all__ = ["UR5E"]

_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
_XML = """
<mujoco model="ur5e">
  <compiler angle="radian"/>
  <default>
    <default class="tube"><geom type="capsule" contype="2" conaffinity="1" rgba=".80 .82 .85 1"/></default>
    <default class="drive"><geom type="cylinder" contype="2" conaffinity="1" rgba=".80 .82 .85 1"/></default>
    <default class="cap"><geom type="cylinder" contype="0" conaffinity="0" mass="0" rgba=".20 .45 .68 1"/></default>
    <default class="big"><joint damping="2" armature=".3" axis="0 0 1"/>
      <position kp="4000" kv="300" forcerange="-150 150"/></default>
    <default class="small"><joint damping="1" armature=".1" axis="0 0 1"/>
      <position kp="500" kv="25" forcerange="-28 28"/></default>
    <default class="finger"><joint type="slide" axis="0 1 0" range="0 .0425" damping="10" armature=".05"/>
      <position kp="600" kv="30" ctrlrange="0 .0425" forcerange="-60 60"/>
      <geom type="box" contype="2" conaffinity="1" rgba=".15 .15 .17 1"/></default>
  </default>
  <worldbody>
    <body name="base" gravcomp="1">
      <geom class="drive" fromto="0 0 0 0 0 .03" size=".09" mass="2" contype="0" conaffinity="0" rgba=".4 .4 .42 1"/>
      <geom class="drive" fromto="0 0 .03 0 0 .1" size=".066" mass="2" contype="0" conaffinity="0"/>
      <body name="shoulder" pos="0 0 .1625" quat="0 0 0 1" gravcomp="1">
        <joint name="shoulder_pan" class="big" range="-3.1416 3.1416"/>
        <geom class="drive" fromto="0 0 -.0625 0 0 .055" size=".06" mass="3.761" contype="0" conaffinity="0"/>
        <geom class="cap" fromto="0 0 .055 0 0 .062" size=".052"/>
        <body name="upper_arm" quat=".70710678 .70710678 0 0" gravcomp="1">
          <joint name="shoulder_lift" class="big" range="-3.1416 3.1416"/>
          <geom class="drive" fromto="0 0 .05 0 0 .195" size=".06" mass="2.6" contype="0" conaffinity="0"/>
          <geom class="cap" fromto="0 0 .195 0 0 .202" size=".052"/>
          <geom class="tube" fromto="-.03 0 .138 -.395 0 .138" size=".045" mass="3.4"/>
          <geom class="drive" fromto="-.425 0 .075 -.425 0 .195" size=".052" mass="2.058"/>
          <geom class="cap" fromto="-.425 0 .195 -.425 0 .202" size=".045"/>
          <body name="forearm" pos="-.425 0 0" gravcomp="1">
            <joint name="elbow" class="big" range="-3.1416 3.1416"/>
            <geom class="drive" fromto="0 0 -.045 0 0 .075" size=".05" mass=".9"/>
            <geom class="cap" fromto="0 0 -.052 0 0 -.045" size=".043"/>
            <geom class="tube" fromto="-.03 0 .007 -.365 0 .007" size=".037" mass="1.446"/>
            <geom class="drive" fromto="-.3922 0 -.045 -.3922 0 .065" size=".042" mass=".5"/>
            <geom class="cap" fromto="-.3922 0 -.052 -.3922 0 -.045" size=".036"/>
            <body name="wrist_1" pos="-.3922 0 0" gravcomp="1">
              <joint name="wrist_1" class="small" range="-3.1416 3.1416"/>
              <geom class="drive" fromto="0 0 .065 0 0 .175" size=".042" mass="1.37"/>
              <geom class="cap" fromto="0 0 .175 0 0 .182" size=".036"/>
              <body name="wrist_2" pos="0 0 .1333" quat=".70710678 .70710678 0 0" gravcomp="1">
                <joint name="wrist_2" class="small" range="-3.1416 3.1416"/>
                <geom class="drive" fromto="0 0 .035 0 0 .142" size=".042" mass="1.3"/>
                <geom class="cap" fromto="0 0 .142 0 0 .149" size=".036"/>
                <body name="wrist_3" pos="0 0 .0997" quat=".70710678 -.70710678 0 0" gravcomp="1">
                  <joint name="wrist_3" class="small" range="-3.1416 3.1416"/>
                  <geom class="drive" fromto="0 0 .035 0 0 .0996" size=".038" mass=".365"/>
                  <body name="hand" pos="0 0 .0996" gravcomp="1">
                    <geom class="drive" fromto="0 0 0 0 0 .05" size=".036" mass=".5" rgba=".15 .15 .17 1"/>
                    <geom type="box" pos="0 0 .07" size=".022 .07 .022" mass=".4" contype="2" conaffinity="1"
                          rgba=".22 .22 .25 1"/>
                    <site name="tcp" pos="0 0 .15" size=".005" group="4"/>
                    <camera name="wrist" pos="-.075 0 .04" xyaxes="0 -1 0 -.839 0 .545" fovy="70"/>
                    <body name="left_finger" pos="0 0 .092" gravcomp="1">
                      <joint name="finger_left" class="finger"/>
                      <geom class="finger" pos="0 .013 .022" size=".01 .007 .024" mass=".02"/>
                      <geom name="left_pad" class="finger" pos="0 .0075 .058" size=".012 .0075 .0125" mass=".01"
                            friction="1.5 .05 .001" solref=".01 1" condim="4" priority="1"/>
                    </body>
                    <body name="right_finger" pos="0 0 .092" quat="0 0 0 1" gravcomp="1">
                      <joint name="finger_right" class="finger"/>
                      <geom class="finger" pos="0 .013 .022" size=".01 .007 .024" mass=".02"/>
                      <geom name="right_pad" class="finger" pos="0 .0075 .058" size=".012 .0075 .0125" mass=".01"
                            friction="1.5 .05 .001" solref=".01 1" condim="4" priority="1"/>
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
    <position name="shoulder_pan" joint="shoulder_pan" class="big" inheritrange="1"/>
    <position name="shoulder_lift" joint="shoulder_lift" class="big" inheritrange="1"/>
    <position name="elbow" joint="elbow" class="big" inheritrange="1"/>
    <position name="wrist_1" joint="wrist_1" class="small" inheritrange="1"/>
    <position name="wrist_2" joint="wrist_2" class="small" inheritrange="1"/>
    <position name="wrist_3" joint="wrist_3" class="small" inheritrange="1"/>
    <position name="finger_left" joint="finger_left" class="finger"/>
    <position name="finger_right" joint="finger_right" class="finger"/>
  </actuator>
</mujoco>
"""


def _spec() -> mujoco.MjSpec:
    return mujoco.MjSpec.from_string(_XML)


UR5E = RobotModel(
    name="ur5e",
    spec=_spec,
    joints=_JOINTS,
    actuators=_JOINTS,
    home=(-0.301, -1.696, 1.913, -1.788, -1.571, 1.27),
    tcp="tcp",
    gripper=GripperModel(
        joints=("finger_left", "finger_right"),
        actuators=("finger_left", "finger_right"),
        opened=(0.0425, 0.0425),
        closed=(0.0, 0.0),
        joint_opened=(0.0425, 0.0425),
        joint_closed=(0.0, 0.0),
        width=0.085,
    ),
    reach=0.45,
)
"""Six joints: every pose in few ways, no redundancy."""
