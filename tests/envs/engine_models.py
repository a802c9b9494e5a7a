"""A small model with all that the engines' contract speaks of: contact, delays, activations, mocap, sensors."""

from __future__ import annotations

import mujoco

XML = """
<mujoco>
  <compiler angle="radian"/>
  <option timestep="0.004" cone="elliptic" integrator="implicitfast"/>
  <default><geom friction="1 .005 .0001"/></default>
  <worldbody>
    <light name="l" pos="0 0 3"/>
    <body name="table"><geom name="table" type="plane" size="1 1 .1"/></body>
    <body name="box" pos="0 0 .3"><freejoint/>
      <geom name="box" type="box" size=".1 .08 .06" mass="1"/><site name="box" size=".2"/></body>
    <body name="arm" pos="1 0 2"><joint name="arm" axis="0 1 0" range="-1 1" damping=".1"/>
      <geom type="capsule" size=".03" fromto="0 0 0 0 0 -.3" mass=".5"/><site name="tip" pos="0 0 -.3"/>
      <camera name="c" pos="0 0 .1"/>
      <body name="hand" pos="0 0 -.3"><joint name="hand" axis="0 1 0"/>
        <geom type="capsule" size=".02" fromto="0 0 0 .2 0 0" mass=".2"/></body></body>
    <body name="goal" mocap="true" pos="0 1 1"><site name="goal"/></body>
  </worldbody>
  <actuator>
    <position name="late" joint="arm" kp="5" kv=".5" delay=".02" nsample="8"/>
    <general name="slow" joint="hand" dyntype="filterexact" dynprm=".1" gainprm="2" biastype="affine"
             biasprm="0 -2 -.2"/>
  </actuator>
  <sensor><touch site="box"/><framepos objtype="site" objname="tip"/><jointvel joint="arm"/></sensor>
  <keyframe><key qpos="0 0 .3 1 0 0 0 .4 -.2" ctrl=".2 .1" act=".05"/></keyframe>
</mujoco>
"""


def model(extra: str = "") -> mujoco.MjModel:
    """The model; ``extra`` goes in front of the bodies."""
    return mujoco.MjModel.from_xml_string(XML.replace("<worldbody>", extra + "<worldbody>", 1))
