"""Forward kinematics against MuJoCo's, and what inverse kinematics promises."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import axis_angle_to_quat, quat_to_matrix
from visuomotor.envs.robots.kinematics import Approach, Chain, _turn_between, rotation_error
from visuomotor.envs.robots.model import RobotModel
from visuomotor.envs.robots.registry import get_robot
from visuomotor.envs.sim import arrays

CPU = torch.device("cpu")
ROBOTS = ("panda", "ur5e", "so100")
# a slide, joints off their body's origin, a joint whose reference is not zero, and a base that stands askew
ODD = """
<mujoco><compiler angle="radian"/><worldbody><body name="base" pos="1 2 3" quat=".8 .6 0 0">
  <body pos=".1 0 .2"><joint name="a" axis="1 1 0" pos=".02 .03 0" range="-2 2" ref=".3"/><geom size=".01"/>
    <body pos="0 .1 .1" quat=".6 0 .8 0"><joint name="b" type="slide" axis="0 1 1" range="-.5 .5"/><geom size=".01"/>
      <body pos=".2 0 0"><joint name="c" axis="0 0 1" pos="0 0 .1" range="-2 2"/><geom size=".01"/>
        <site name="tip" pos=".1 .1 0" quat=".5 .5 .5 .5"/></body></body></body></body></worldbody></mujoco>"""


@cache
def chain_of(name: str) -> tuple[RobotModel, mujoco.MjModel, Chain, Tensor, Tensor]:
    robot = get_robot(name)
    m = robot.spec().compile()
    ids = [m.joint(j).id for j in robot.joints]
    low, high = torch.tensor(m.jnt_range[ids], dtype=torch.float32).T
    return robot, m, Chain(m, robot.joints, robot.tcp, "world", CPU), low, high


def mujoco_says(m: mujoco.MjModel, joints: Any, site: str, base: str, q: np.ndarray) -> tuple[np.ndarray, ...]:
    d = mujoco.MjData(m)
    d.qpos[[m.joint(j).qposadr[0] for j in joints]] = q
    mujoco.mj_forward(m, d)
    jac = np.zeros((6, m.nv))
    mujoco.mj_jacSite(m, d, jac[:3], jac[3:], m.site(site).id)
    turn, origin = d.body(base).xmat.reshape(3, 3), d.body(base).xpos
    columns = jac[:, [m.joint(j).dofadr[0] for j in joints]]
    columns = np.concatenate([turn.T @ columns[:3], turn.T @ columns[3:]])
    return turn.T @ (d.site(site).xpos - origin), turn.T @ d.site(site).xmat.reshape(3, 3), columns


@pytest.mark.parametrize("name", [*ROBOTS, "odd"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_pose_and_jacobian_are_mujocos(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    if name == "odd":
        m = mujoco.MjModel.from_xml_string(ODD)
        joints: tuple[str, ...] = ("a", "b", "c")
        site, base = "tip", "base"
        chain = Chain(m, joints, site, base, CPU)
        q = rng.uniform(-0.5, 0.5, (3, 3))
    else:
        robot, m, chain, low, high = chain_of(name)
        joints, site, base = robot.joints, robot.tcp, "world"
        q = rng.uniform(low.numpy(), high.numpy(), (3, len(joints)))
    pos, rot, jac = chain.jacobian(torch.tensor(q, dtype=torch.float32))
    for i in range(3):
        for got, want in zip((pos[i], rot[i], jac[i]), mujoco_says(m, joints, site, base, q[i]), strict=True):
            np.testing.assert_allclose(got.numpy(), want, atol=3e-5)
    torch.testing.assert_close(chain.forward(torch.tensor(q, dtype=torch.float32))[0], pos)


@pytest.mark.parametrize("name", ["panda", "ur5e"])
def test_six_joints_or_more_reach_poses_nearby(name: str) -> None:
    robot, _, chain, low, high = chain_of(name)
    rng = torch.Generator().manual_seed(1)
    home = torch.tensor(robot.home)
    goal = torch.clamp(home + 0.2 * torch.randn(64, chain.n, generator=rng), low, high)
    pos, rot = chain.forward(goal)
    q = chain.solve(
        home.repeat(64, 1), pos, rot, low=low, high=high, rest=home, rotation_weight=0.3, iterations=40, rest_gain=0.0
    )
    got, turned = chain.forward(q)
    assert float((got - pos).norm(dim=1).max()) < 5e-4
    assert float(rotation_error(rot, turned).norm(dim=1).max()) < 2e-3


def test_a_redundant_arm_drifts_to_its_rest_without_moving_the_hand() -> None:
    robot, _, chain, low, high = chain_of("panda")
    home = torch.tensor([robot.home])
    pos, rot = chain.forward(home)
    away = torch.clamp(home + 0.3 * torch.tensor([[1.0, -1, 1, -1, 1, 1, 1]]), low, high)
    q = chain.solve(away, pos, rot, low=low, high=high, rest=home[0], rotation_weight=0.3, iterations=30)
    later = chain.solve(q, pos, rot, low=low, high=high, rest=home[0], rotation_weight=0.3, iterations=100)
    assert float((later - home).norm()) < 0.6 * float((q - home).norm())
    assert float((chain.forward(later)[0] - pos).norm()) < 1e-3


@pytest.mark.parametrize("name", ROBOTS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_pose_drives_joints_beyond_limits_or_makes_them_jump(name: str, seed: int) -> None:
    robot, _, chain, low, high = chain_of(name)
    rng = torch.Generator().manual_seed(seed)
    q = low + (high - low) * torch.rand(16, chain.n, generator=rng)
    q[0] = 0.0  # stretched: singular in all three arms
    q = torch.clamp(q, low, high)
    pos = 3.0 * torch.randn(16, 3, generator=rng)  # mostly out of reach
    rot = quat_to_matrix(torch.randn(16, 4, generator=rng))
    out = chain.solve(q, pos, rot, low=low, high=high, rest=q[0], rotation_weight=robot.rotation_weight, iterations=3)
    assert bool(torch.isfinite(out).all())
    assert bool((out >= low).all())
    assert bool((out <= high).all())
    assert float((out - q).abs().max()) <= 3 * 0.3 + 1e-5


def test_a_joint_at_its_limit_leaves_the_rest_to_the_others() -> None:
    _, _m, chain, low, high = chain_of("panda")
    q = torch.tensor([get_robot("panda").home])
    high = high.clone()
    high[3] = q[0, 3]  # the elbow may not stretch: reaching forward is left to shoulder and wrist
    pos, rot = chain.forward(q)
    goal = pos + torch.tensor([[0.08, 0.0, -0.05]])
    out = chain.solve(q, goal, rot, low=low, high=high, rest=q[0], rotation_weight=0.05, iterations=60, rest_gain=0.0)
    assert float(out[0, 3]) <= float(high[3])
    assert float((chain.forward(out)[0] - goal).norm()) < 0.01


def test_five_joints_follow_in_position_and_turn_as_far_as_they_can() -> None:
    robot, _, chain, low, high = chain_of("so100")
    home = torch.tensor([robot.home])
    pos, rot = chain.forward(home)
    yaw = quat_to_matrix(axis_angle_to_quat(torch.tensor([[0.0, 0.0, 0.5]])))  # the roll joint can do this
    tilt = quat_to_matrix(axis_angle_to_quat(torch.tensor([[0.5, 0.0, 0.0]])))  # no joint can do this

    def solve(goal: Tensor) -> Tensor:
        weight = robot.rotation_weight
        return chain.solve(home, pos, goal, low=low, high=high, rest=home[0], rotation_weight=weight, iterations=60)

    easy, hard = solve(yaw @ rot), solve(tilt @ rot)
    assert float(rotation_error(yaw @ rot, chain.forward(easy)[1]).norm()) < 0.02
    assert float((chain.forward(hard)[0] - pos).norm()) < 0.003
    assert 0.2 < float(rotation_error(tilt @ rot, chain.forward(hard)[1]).norm()) <= 0.51


@pytest.mark.parametrize("name", ROBOTS)
def test_following_a_motion_is_solving_for_the_moved_pose(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With numpy (CPU) as with torch (other devices), and to the last bit in any number of worlds."""
    robot, _, chain, low, high = chain_of(name)
    rng = torch.Generator().manual_seed(2)
    home = torch.tensor(robot.home)
    q = torch.clamp(home + 0.2 * torch.randn(13, chain.n, generator=rng), low, high)
    motion = torch.randn(13, 6, generator=rng) * torch.tensor([0.03] * 3 + [0.1] * 3)
    motion[0] = 0.0
    settings = Approach(low=low, high=high, rest=home, rotation_weight=robot.rotation_weight)
    pos, rot = chain.forward(q)
    turned = quat_to_matrix(axis_angle_to_quat(motion[:, 3:])) @ rot
    followed = chain.follow(q, motion, **settings)
    torch.testing.assert_close(followed, chain.solve(q, pos + motion[:, :3], turned, **settings), atol=1e-5, rtol=0)
    assert torch.equal(chain.follow(q[4:7], motion[4:7], **settings), followed[4:7])
    monkeypatch.setattr(arrays, "_NUMPY", False)
    torch.testing.assert_close(chain.follow(q, motion, **settings), followed, atol=2e-5, rtol=0)
    torch.testing.assert_close(chain.jacobian(q)[0], pos, atol=1e-6, rtol=0)


def test_rotation_errors_agree_and_are_exact_at_half_a_turn() -> None:
    axis = torch.nn.functional.normalize(torch.randn(32, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    for angle in (0.0, 1e-4, 0.5, 2.0, 3.1):
        target = quat_to_matrix(axis_angle_to_quat(axis * angle))
        eye = torch.eye(3).repeat(32, 1, 1)
        fast = _turn_between(eye.permute(2, 1, 0), target.permute(2, 1, 0)).T
        torch.testing.assert_close(rotation_error(target, eye), axis * angle, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(fast, axis * angle, atol=1e-3, rtol=1e-3)
    half = torch.diag(torch.tensor([1.0, -1.0, -1.0]))[None]
    assert float(rotation_error(half, torch.eye(3)[None]).norm()) == pytest.approx(math.pi, abs=1e-5)


def test_joints_out_of_order_are_named() -> None:
    m = mujoco.MjModel.from_xml_string(ODD)
    with pytest.raises(ConfigError, match=r"in order, \['a', 'b', 'c'\]; expected \['b', 'a', 'c'\]"):
        Chain(m, ["b", "a", "c"], "tip", "base", CPU)
