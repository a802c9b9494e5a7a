"""The bridge's kinematics are the simulator's, and load without torch."""

from __future__ import annotations

import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.envs.robots.kinematics import Approach, Chain
from visuomotor.envs.robots.registry import get_robot
from visuomotor.sim2real.kinematics import Kinematics

ROBOTS = ("panda", "ur5e", "so100")
MOTION = np.array([0.03] * 3 + [0.15] * 3)  # of one control step
# a slide, joints off their body's origin, a joint whose reference is not zero
ODD = """
<mujoco><compiler angle="radian"/><worldbody><body name="base">
  <body pos=".1 0 .2"><joint name="a" axis="1 1 0" pos=".02 .03 0" range="-2 2" ref=".3"/><geom size=".01"/>
    <body pos="0 .1 .1" quat=".6 0 .8 0"><joint name="b" type="slide" axis="0 1 1" range="-.5 .5"/><geom size=".01"/>
      <body name="end" pos=".2 0 0"><joint name="c" axis="0 0 1" pos="0 0 .1" range="-2 2"/><geom size=".01"/>
        <site name="tip" pos=".1 .1 0" quat=".5 .5 .5 .5"/></body></body></body></body></worldbody></mujoco>"""
URDF = """
<robot name="own"><link name="base"/>
  <joint name="turn" type="revolute"><parent link="base"/><child link="arm"/><axis xyz="0 0 1"/>
    <limit lower="-1" upper="1" velocity="2.5" effort="9"/></joint>
  <link name="arm"><inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/>
  </inertial></link>
  <joint name="bend" type="continuous"><parent link="arm"/><child link="hand"/><origin xyz="0.3 0 0"/>
    <axis xyz="0 1 0"/><limit velocity="3" effort="9"/></joint>
  <link name="hand"><inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/>
  </inertial></link>
</robot>"""


@cache
def chain_of(name: str, dtype: torch.dtype) -> tuple[Chain, Approach]:
    robot = get_robot(name)
    m = robot.spec().compile()
    ids = [m.joint(j).id for j in robot.joints]
    low, high = torch.tensor(m.jnt_range[ids], dtype=dtype).T
    chain = Chain(m, robot.joints, robot.tcp, "world", torch.device("cpu"))
    for part in ("_first", "_factors", "_zero", "_hinge"):
        setattr(chain, part, getattr(chain, part).to(dtype))
    home = torch.tensor(robot.home, dtype=dtype)
    return chain, Approach(low=low, high=high, rest=home, rotation_weight=robot.rotation_weight)


def simulated(name: str, q: np.ndarray, motion: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Joints after the motion, by the simulator's chain."""
    chain, settings = chain_of(name, dtype)
    after: np.ndarray = chain.follow(
        torch.tensor(q, dtype=dtype), torch.tensor(motion, dtype=dtype), **settings
    ).numpy()
    return after


@pytest.mark.parametrize("name", ROBOTS)
def test_the_numbers_are_the_simulators(name: str) -> None:
    """The simulator computes in single precision, which poses near singular ones amplify; in double it is the same."""
    k, rng = Kinematics.load(name), np.random.default_rng(0)
    assert k.home is not None
    near = np.clip(k.home + rng.normal(size=(200, k.n)) * 0.4, k.low, k.high)
    q = np.concatenate([near, rng.uniform(k.low, k.high, (200, k.n))])
    motion = rng.normal(size=(400, 6)) * MOTION
    pos, rot, jac = (x.numpy() for x in chain_of(name, torch.float32)[0].jacobian(torch.tensor(q, dtype=torch.float32)))
    for i in range(400):
        np.testing.assert_allclose(k.pose(q[i])[0], pos[i], atol=1e-6)
        np.testing.assert_allclose(k.pose(q[i])[1], rot[i], atol=2e-6)
        np.testing.assert_allclose(k.jacobian(q[i]), jac[i], atol=2e-6)
    got = np.stack([k.follow(q[i], motion[i], k.home) for i in range(400)])
    error = np.abs(got - simulated(name, q, motion)).max(1)
    assert np.quantile(error[:200], 0.98) < 1e-5
    assert error.max() < 2e-4
    np.testing.assert_allclose(got, simulated(name, q, motion, torch.float64), atol=2e-6)  # its constants are single


@pytest.mark.parametrize("name", ROBOTS)
def test_long_motions_do_not_drift_apart(name: str) -> None:
    """Two hundred control steps one after the other, each from the result of the last."""
    k, rng = Kinematics.load(name), np.random.default_rng(1)
    assert k.home is not None
    ours = theirs = k.home
    for _ in range(200):
        motion = rng.normal(size=6) * MOTION * 0.3
        ours = k.follow(ours, motion, k.home)
        theirs = simulated(name, theirs[None], motion[None])[0]
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_a_pose_is_reached() -> None:
    k = Kinematics.load("ur5e")
    assert k.home is not None
    pos, rot = k.pose(k.home + 0.1)
    q = k.home
    for _ in range(30):
        q = k.solve(q, pos, rot, k.home)
    np.testing.assert_allclose(k.pose(q)[0], pos, atol=1e-4)
    np.testing.assert_allclose(k.pose(q)[1], rot, atol=1e-3)


def test_an_odd_chain_is_mujocos(tmp_path: Path) -> None:
    path = tmp_path / "odd.xml"
    path.write_text(ODD)
    k = Kinematics.load(str(path), tcp="tip")
    assert k.joints == ("a", "b", "c")
    m = mujoco.MjModel.from_xml_string(ODD)
    d = mujoco.MjData(m)
    for q in np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3)):
        d.qpos[:] = q
        mujoco.mj_forward(m, d)
        jac = np.zeros((6, 3))
        mujoco.mj_jacSite(m, d, jac[:3], jac[3:], 0)
        np.testing.assert_allclose(k.pose(q)[0], d.site_xpos[0], atol=1e-9)
        np.testing.assert_allclose(k.pose(q)[1].ravel(), d.site_xmat[0], atol=1e-9)
        np.testing.assert_allclose(k.jacobian(q), jac, atol=1e-9)
        body = Kinematics.load(str(path), tcp="end").pose(q)[0]
        np.testing.assert_allclose(body, d.body("end").xpos, atol=1e-9)


def test_a_urdf_brings_its_limits_of_velocity(tmp_path: Path) -> None:
    path = tmp_path / "own.urdf"
    path.write_text(URDF)
    k = Kinematics.load(str(path), ["turn", "bend"], "hand")
    np.testing.assert_array_equal(k.velocity, [2.5, 3.0])
    np.testing.assert_array_equal(k.low, [-1.0, -np.inf])
    np.testing.assert_allclose(k.pose(np.array([np.pi / 2, 0.0]))[0], [0.0, 0.3, 0.0], atol=1e-12)
    assert Kinematics.load("panda").velocity.tolist() == [np.inf] * 7


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.urdf"
    path.write_text(URDF)
    for args, message in (
        (("ur5",), "'ur5' is no registered robot. Did you mean 'ur5e'"),
        ((str(tmp_path / "none.xml"), [], "x"), "there is no such file"),
        ((str(path),), "state tcp"),
        ((str(path), ["turn", "bned"], "hand"), "no joint 'bned'. Did you mean 'bend'"),
        ((str(path), ["turn", "bend"], "finger"), "no site or body 'finger'. It has: base, arm, hand"),
        ((str(path), ["bend", "turn"], "hand"), r"in order, \['turn', 'bend'\]; expected \['bend', 'turn'\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            Kinematics.load(*args)


def test_it_goes_to_another_process() -> None:
    k = Kinematics.load("panda")
    other = pickle.loads(pickle.dumps(k))
    assert k.home is not None
    np.testing.assert_array_equal(other.pose(k.home)[0], k.pose(k.home)[0])


def test_the_safety_layer_runs_without_torch(tmp_path: Path) -> None:
    code = """
import sys; sys.modules["torch"] = None
import numpy as np
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.safety.config import ArmLimits, SafetyConfig
from visuomotor.sim2real.safety.filter import SafetyFilter
from visuomotor.sim2real.safety import monitors, supervisor, tank
k = Kinematics.load("ur5e")
one = np.ones(6)
limits = ArmLimits(low=k.low, high=k.high, velocity=one, acceleration=one, jerk=9 * one)
f = SafetyFilter(limits, .01, SafetyConfig(), k)
f.start(k.home); assert f.step(k.home + .01).following
assert np.isfinite(k.follow(k.home, .01 * one, k.home)).all()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
