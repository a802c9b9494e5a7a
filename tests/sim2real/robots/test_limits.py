"""Limits of joints: stated ones, those of the model, and the defaults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from visuomotor.configs.robots import load_robot, preset_names
from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.robots.limits import arm_limits, load_kinematics

_LINK = (
    '<link name="{}"><inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>'
    "</link>"
)
URDF = f"""
<robot name="two">
  <link name="base"/>{_LINK.format("a")}{_LINK.format("b")}
  <joint name="j1" type="revolute"><parent link="base"/><child link="a"/><axis xyz="0 0 1"/>
    <limit lower="-1" upper="2" velocity="1.5" effort="10"/></joint>
  <joint name="j2" type="continuous"><parent link="a"/><child link="b"/><axis xyz="0 1 0"/><origin xyz="0 0 1"/>
    <limit velocity="3" effort="10"/></joint>
</robot>
"""


@pytest.fixture
def urdf(tmp_path: Path) -> str:
    path = tmp_path / "two.urdf"
    path.write_text(URDF)
    return str(path)


def test_a_urdf_says_it_all(urdf: str) -> None:
    robot = load_robot("generic", [f"model={urdf}", "joints=[j1,j2]", "tcp=b"])
    limits = arm_limits(robot, load_kinematics(robot))
    assert limits.names == ("j1", "j2")
    assert limits.low.tolist() == [-1, -np.inf]
    assert limits.high.tolist() == [2, np.inf]
    assert limits.velocity.tolist() == [1.5, 3]
    np.testing.assert_allclose(limits.acceleration, [3, 6])  # full speed in 0.5 s
    np.testing.assert_allclose(limits.jerk, [30, 60])  # full acceleration in 0.1 s


def test_what_is_stated_goes_before_the_model(urdf: str) -> None:
    words = ["joints=[a1,a2]", "model_joints=[j1,j2]", "tcp=b", "limits.a1.velocity=1", "limits.a1.acceleration=8"]
    robot = load_robot("generic", [f"model={urdf}", *words])
    limits = arm_limits(robot, load_kinematics(robot))
    assert limits.velocity.tolist() == [1, 3]
    assert limits.acceleration.tolist() == [8, 6]
    assert limits.jerk.tolist() == [80, 60]
    assert limits.low.tolist() == [-1, -np.inf]


@pytest.mark.parametrize("name", [n for n in preset_names() if n != "generic"])
def test_every_preset_has_limits_and_its_home_is_within_them(name: str) -> None:
    robot = load_robot(name)
    kinematics = load_kinematics(robot)
    limits = arm_limits(robot, kinematics)
    assert (limits.velocity > 0.5).all()
    assert (limits.acceleration >= limits.velocity).all()
    if kinematics is not None and kinematics.home is not None:
        assert (limits.low < kinematics.home).all()
        assert (kinematics.home < limits.high).all()


def test_what_nobody_says_is_asked_for(urdf: str) -> None:
    robot = load_robot("ur10e", ["limits.elbow_joint.high=null"])
    with pytest.raises(ConfigError, match=r"how far joint 'elbow_joint' may turn.*robot\.limits\.elbow_joint\.low="):
        arm_limits(robot, None)
    robot = load_robot("generic", ["model=so100"])
    with pytest.raises(ConfigError, match="how fast joint 'shoulder_pan' may be"):
        arm_limits(robot, load_kinematics(robot))
    robot = load_robot("ur10e", ["model=so100"])
    with pytest.raises(ConfigError, match="has 6 joints, its model 'so100' 5"):
        load_kinematics(robot)
    assert load_kinematics(load_robot("ur10e")) is None
