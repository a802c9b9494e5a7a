"""A policy of an own arm is deployed in the frames in which its simulation was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.configs.deploy_model import as_trained
from visuomotor.data.errors import ConfigError
from visuomotor.envs.robots.kinematics import Chain
from visuomotor.envs.robots.registry import get_robot
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.robots.config import RobotConfig

# six joints; it bends forward along +y
AXES = ("0 0 1", "1 0 0", "1 0 0", "0 0 1", "1 0 0", "0 0 1")
HOME = [0.1, -0.6, -1.2, 0.05, -1.2, 0.2]


def write(folder: Path) -> str:
    text = '<robot name="own"><link name="base"/>'
    for i, axis in enumerate(AXES):
        text += (
            f'<joint name="j{i}" type="revolute"><parent link="{f"l{i - 1}" if i else "base"}"/><child link="l{i}"/>'
        )
        text += f'<origin xyz="0 0 {0.2 if i in (1, 2, 4) else 0.1}"/><axis xyz="{axis}"/>'
        text += '<limit lower="-2.8" upper="2.8" effort="80" velocity="2"/></joint>'
        text += f'<link name="l{i}"><inertial><origin xyz="0 0 .05"/><mass value="1"/>'
        text += '<inertia ixx=".01" iyy=".01" izz=".01" ixy="0" ixz="0" iyz="0"/></inertial>'
        text += (
            '<collision><origin xyz="0 0 .05"/><geometry><cylinder radius=".03" length=".1"/></geometry></collision>'
        )
        text += "</link>"
    (folder / "own.urdf").write_text(text + "</robot>")
    (folder / "own.robot.yaml").write_text(f"home: {HOME}\nyaw: -90\ntcp: l5\nreach: 0.4\n")
    return str(folder / "own.urdf")


def test_the_bridge_moves_the_hand_as_the_simulation_did(tmp_path: Path) -> None:
    model = write(tmp_path)
    joints = [f"driver_{i}" for i in range(6)]
    robot = RobotConfig(name="own", joints=joints, model=model, model_joints=[f"j{i}" for i in range(6)])
    trained = as_trained(robot, {"robot": "custom"}, tmp_path)
    arm = Kinematics.load(trained.model, trained.model_joints, trained.tcp)
    assert arm.velocity.tolist() == [2.0] * 6
    assert arm.home is not None
    np.testing.assert_allclose(arm.home, HOME)
    assert arm.pose(arm.home)[0][0] > 0.1  # before the arm, as the simulator turned it
    own = get_robot("custom", model=model)
    m = own.spec().compile()
    chain = Chain(m, own.joints, own.tcp, "world", torch.device("cpu"))
    motion = np.array([0.02, -0.01, 0.01, 0.05, 0.1, -0.05])
    q, step, home = (torch.tensor(np.asarray(x), dtype=torch.float32)[None] for x in (HOME, motion, HOME))
    low, high = torch.full((6,), -2.8), torch.full((6,), 2.8)
    weight = own.rotation_weight
    want = chain.follow(q, step, low=low, high=high, rest=home[0], rotation_weight=weight)[0]
    np.testing.assert_allclose(arm.follow(np.array(HOME), motion, arm.home), want.numpy(), atol=1e-5)
    centres, radii = arm.spheres(arm.home)
    assert len(centres) == len(radii) > 5


def test_other_robots_stay_as_they_are(tmp_path: Path) -> None:
    for robot, about in (
        (RobotConfig(joints=["a"], model=write(tmp_path)), {"robot": "ur5e"}),
        (RobotConfig(joints=["a"], model=write(tmp_path)), {}),
        (RobotConfig(joints=["a"], model="ur5e"), {"robot": "custom"}),
    ):
        assert as_trained(robot, about, tmp_path) is robot


def test_a_saved_arm_of_other_joints_is_refused(tmp_path: Path) -> None:
    Kinematics.load("ur5e").save(tmp_path / "arm.npz")
    again = Kinematics.load(str(tmp_path / "arm.npz"))
    assert again.joints == Kinematics.load("ur5e").joints
    with pytest.raises(ConfigError, match=r"has the joints shoulder_pan, .*; expected a, b"):
        Kinematics.load(str(tmp_path / "arm.npz"), ["a", "b"])
    with pytest.raises(ConfigError, match="no such file"):
        Kinematics.load(str(tmp_path / "none.npz"))
