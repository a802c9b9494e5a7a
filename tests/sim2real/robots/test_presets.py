"""Robots from presets, files and words; what is wrong with them is said in one sentence."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from visuomotor.configs.robots import load_robot, preset_names, take_robot
from visuomotor.data.errors import ConfigError
from visuomotor.envs.robots.registry import get_robot, robot_names
from visuomotor.sim2real.robots.config import (
    CommandConfig,
    GripperConfig,
    JointLimits,
    RobotConfig,
    ValueStream,
)


@pytest.mark.parametrize("name", [n for n in preset_names() if n != "generic"])
def test_every_preset_is_a_whole_robot_whose_figures_have_a_source(name: str) -> None:
    robot = load_robot(name)
    assert robot.name == name
    assert len(robot.joints) in (5, 6, 7)
    assert set(robot.limits) == set(robot.joints)
    assert all(x.velocity is not None and 0 < x.velocity <= 5.5 for x in robot.limits.values())
    if robot.model:
        assert len(robot.joints) == len(get_robot(robot.model).joints)
        assert robot.model in robot_names()
    else:  # then the file has to state where its joints end
        assert all(x.low is not None and x.high is not None for x in robot.limits.values())


def test_words_change_single_values_and_the_rest_stays() -> None:
    robot, rest = take_robot(
        ["checkpoint=run", "robot=ur5e", "robot.command.rate_hz=20", "robot.cameras.front.topic=/cam/image_raw",
         "robot.limits.elbow_joint.velocity=1.5", "minutes=3"]
    )  # fmt: skip
    assert rest == ["checkpoint=run", "minutes=3"]
    assert (robot.command.rate_hz, robot.command.mode) == (20, "joint_trajectory")
    assert robot.limits["elbow_joint"] == JointLimits(low=-3.1416, high=3.1416, velocity=1.5)
    assert robot.cameras["front"].topic == "/cam/image_raw"
    assert load_robot("ur5e", ["gripper=null"]).gripper is None


def test_a_gripper_can_be_given_to_an_arm_without() -> None:
    robot = load_robot("franka", ["gripper.topic=/hand/commands", "gripper.command_opened=0.08"])
    assert robot.gripper is not None
    assert (robot.gripper.topic, robot.gripper.command_opened) == ("/hand/commands", 0.08)


def test_a_preset_builds_on_another() -> None:
    twin, arm = load_robot("ur5e_twin"), load_robot("ur5e")
    assert twin.joints == arm.joints
    assert twin.limits == arm.limits
    assert (twin.state.rate_hz, twin.state.topic) == (200, arm.state.topic)
    assert twin.values["object"].fields == ["position", "rot6d"]
    assert not arm.values


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: so100\nname: mine\njoints: [a, b, c, d, e]\nlimits: null\n")
    with pytest.raises(ConfigError, match="limits"):
        load_robot(str(mine))
    mine.write_text("name: mine\nmodel: so100\njoints: [a, b, c, d, e]\nstate: {topic: /mine/joint_states}\n")
    assert load_robot(str(mine)).state.topic == "/mine/joint_states"
    mine.write_text(f"base: {mine}\n")
    with pytest.raises(ConfigError, match="circle"):
        load_robot(str(mine))
    mine.write_text("joints: [a, b\n")
    with pytest.raises(ConfigError, match=r"mine.yaml is no YAML"):
        load_robot(str(mine))
    mine.write_text("- a\n")
    with pytest.raises(ConfigError, match="expected settings"):
        load_robot(str(mine))


def test_the_generic_robot_takes_its_joints_from_a_file(tmp_path: Path) -> None:
    model = tmp_path / "arm, 2.xml"  # a comma and a blank mean something to Hydra's grammar
    links = "".join(
        f'<body name="l{i}" pos="0 0 .2"><joint name="j{i}" axis="0 {i % 2} {1 - i % 2}" range="-90 90"/>'
        '<geom size=".03 .1" type="capsule" pos="0 0 .1"/>'
        for i in range(4)
    )
    model.write_text(f"<mujoco><worldbody>{links}<site name='tcp' pos='0 0 .2'/>{'</body>' * 4}</worldbody></mujoco>")
    robot = load_robot("generic", [f"model={model}"])
    assert robot.joints == ["j0", "j1", "j2", "j3"]
    assert robot.model == str(model)
    assert load_robot("generic", ["model=ur5e"]).joints == list(get_robot("ur5e").joints)
    with pytest.raises(ConfigError, match=r"has no joints: give robot.model"):
        load_robot("generic")


@pytest.mark.parametrize(
    ("robot", "words", "message"),
    [
        ("ur5", [], "unknown robot 'ur5'.*'ur5e'"),
        ("no/such.yaml", [], "there is no such file"),
        ("ur5e", ["comand.rate_hz=3"], r"unknown setting comand\. .*'command'"),
        ("ur5e", ["command.rate=3"], r"unknown setting command\.rate\. .*'rate_hz'"),
        ("ur5e", ["cameras.front.topc=/a"], r"unknown setting cameras\.front\.topc\. .*'topic'"),
        ("ur5e", ["limits.elbow.velocity=1"], "limits of 'elbow', which is no joint.*'elbow_joint'"),
        ("ur5e", ["command.rate_hz=fast"], "fast"),
        ("ur5e", ["command.rate_hz=0"], "command.rate_hz=0: expected more than 0"),
        ("ur5e", ["command.mode=jtc"], "unknown command.mode 'jtc'"),
        ("ur5e", ["command.mode=twist", "command.group=base"], "without command.timeout_s: an arm whose bridge dies"),
        ("ur5e", ["command.mode=forward_velocity"], "without command.timeout_s"),
        ("ur5e", ["command.mode=pose"], "without command.group: give the frame"),
        ("ur5e", ["state.topic=joint_states"], "is no absolute topic"),
        ("ur5e", ["state.topic=/a//b"], "is no absolute topic"),
        ("ur5e", ["joints=[a,a,b,c,d,e]"], "names 'a' twice"),
        ("ur5e", ["home=[0,0]"], "home has 2 entries; expected 6"),
        ("ur5e", ["gripper.joint=elbow_joint"], "is also a joint of the arm"),
        ("ur5e", ["gripper.opened=1", "gripper.closed=1"], "expected two numbers"),
        ("ur5e", ["cameras.a.topic=/a", "values.a.topic=/b"], "both a camera and a value"),
        ("ur5e", ["values.a.topic=/b", "values.a.type=pose"], r"a pose has no field 'data'. Known: position"),
    ],
)
def test_mistakes_are_named(robot: str, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_robot(robot, words)


def test_a_command_needs_exactly_one_robot() -> None:
    for words in ([], ["robot="], ["robot=ur5e", "robot=so100"]):
        with pytest.raises(ConfigError, match="give one robot="):
            take_robot(words)


def test_parts_validate_themselves() -> None:
    with pytest.raises(ConfigError, match="expected low below high"):
        JointLimits(low=1.0, high=-1.0)
    with pytest.raises(ConfigError, match="expected numbers"):
        JointLimits(low=math.nan)
    with pytest.raises(ConfigError, match=r"gripper.topic is missing"):
        GripperConfig()
    with pytest.raises(ConfigError, match=r"without gripper\.joint"):
        GripperConfig(mode="with_arm")
    with pytest.raises(ConfigError, match="needs frame"):
        ValueStream(topic="/tf", type="transform", fields=["position"])
    with pytest.raises(ConfigError, match="model_joints has 1 entries; expected 2"):
        RobotConfig(joints=["a", "b"], model_joints=["x"])
    assert CommandConfig(mode="twist", group="base", timeout_s=0.1).timeout_s == 0.1
