"""What an action does to an arm: four modes and their inverse, limits, bases that are turned, worlds that wait."""

from __future__ import annotations

import math
from functools import cache

import mujoco
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import axis_angle_to_quat, quat_to_matrix
from visuomotor.envs.robots.arm import ACTION_MODES, Arm, ControlConfig
from visuomotor.envs.robots.kinematics import rotation_error
from visuomotor.envs.robots.registry import get_robot
from visuomotor.envs.sim.batch import BatchSimulator
from visuomotor.envs.sim.random import WorldRandom
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world import World

DT = 0.05


def make_arm(robot: str = "panda", mode: str = "ee_delta", n: int = 2, yaw: float = 0.0) -> tuple[Arm, World]:
    """An arm at home on a base at (0.3, -0.2, 0.1), turned by ``yaw``."""
    model = get_robot(robot)
    spec = mujoco.MjSpec()
    spec.option.timestep = 0.005
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    quat = [math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]
    body = spec.worldbody.add_body(name="mount", pos=[0.3, -0.2, 0.1], quat=quat)
    spec.attach(model.spec(), prefix="r/", frame=body.add_frame())
    m = spec.compile()
    sim = BatchSimulator(m, n, threads=1)
    world = World(sim, WorldRandom(n, sim.device, 0))
    everyone = Selection.all(n, sim.device)
    sim.forward(everyone)
    arm = Arm(world, model, prefix="r/", base="mount", config=ControlConfig(mode=mode), dt=DT)
    arm.joints.set_pos(everyone, torch.tensor(model.home).repeat(n, 1))
    sim.forward(everyone)
    arm.reset(everyone)
    return arm, world


@cache
def shared_arm(robot: str, mode: str) -> tuple[Arm, torch.Tensor]:
    """An arm for many examples, and its targets at home."""
    arm, _ = make_arm(robot, mode)
    return arm, arm.target.clone()


@pytest.mark.parametrize("robot", ["panda", "ur5e", "so100"])
@pytest.mark.parametrize("mode", ACTION_MODES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_encode_is_the_inverse_of_apply(robot: str, mode: str, seed: int) -> None:
    arm, start = shared_arm(robot, mode)
    arm.target.copy_(start)
    g = torch.Generator().manual_seed(seed)
    n = start.shape[1]
    # a pose that one step reaches: a small motion of the joints
    goal = torch.clamp(start + 0.02 * (2 * torch.rand(2, n, generator=g) - 1), arm.joints.low, arm.joints.high)
    pos, rot = arm.to_world(*arm.chain.forward(goal))
    grip = torch.rand(2, 1, generator=g)
    action = arm.encode(pos, rot, grip)
    assert bool((action >= arm.low).all())
    assert bool((action <= arm.high).all())
    arm.apply(action, None)
    got, turned = arm.to_world(*arm.chain.forward(arm.target))
    assert float((got - pos).norm(dim=1).max()) < 1e-3
    if n > 5:
        assert float(rotation_error(rot, turned).norm(dim=1).max()) < 5e-3
    torch.testing.assert_close(arm.grip, grip)


def test_hand_motions_are_in_the_frame_of_a_turned_base() -> None:
    arm, _ = make_arm(yaw=math.pi / 2)
    before, rot = arm.to_world(*arm.chain.forward(arm.target))
    action = torch.tensor([[0.02, 0.0, 0.0, 0.0, 0.0, 0.1, 1.0]]).repeat(2, 1)
    arm.apply(action, None)
    after, turned = arm.to_world(*arm.chain.forward(arm.target))
    torch.testing.assert_close(after - before, torch.tensor([[0.0, 0.02, 0.0]]).repeat(2, 1), atol=5e-4, rtol=0)
    torch.testing.assert_close(
        rotation_error(turned, rot), torch.tensor([[0.0, 0.0, 0.1]]).repeat(2, 1), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(arm.to_base(*arm.to_world(before, rot))[0], before)


def test_the_hand_measures_what_the_chain_computes() -> None:
    arm, _ = make_arm("ur5e", yaw=0.7)
    pos, rot = arm.tcp_pose()
    want_pos, want_rot = arm.chain.forward(arm.joints.pos())
    torch.testing.assert_close(pos, want_pos, atol=1e-5, rtol=0)
    torch.testing.assert_close(rot, want_rot, atol=1e-5, rtol=0)
    assert set(arm.observe()) == set(arm.obs_spec)
    assert {k: tuple(v.shape[1:]) for k, v in arm.observe().items()} == {k: s.shape for k, s in arm.obs_spec.items()}


@pytest.mark.parametrize("mode", ["joint_delta", "joint_vel", "ee_delta"])
def test_targets_do_not_wind_up_beyond_limits(mode: str) -> None:
    arm, _ = make_arm(mode=mode)
    push = arm.high.repeat(2, 1)
    for _ in range(80):
        arm.apply(push, None)
        assert bool((arm.target <= arm.joints.high).all())
        assert bool((arm.target >= arm.joints.low).all())
    at_end = arm.target.clone()
    if mode != "ee_delta":
        torch.testing.assert_close(at_end, arm.joints.high.repeat(2, 1))
        arm.apply(-push, None)  # and come back at once
        step = arm.high[:-1] * (DT if mode == "joint_vel" else 1.0)
        torch.testing.assert_close(arm.target, torch.clamp(at_end - step, arm.joints.low, arm.joints.high))


def test_absolute_targets_are_approached_by_bounded_steps() -> None:
    arm, _ = make_arm(mode="joint_pos")
    home = arm.target.clone()
    goal = torch.cat([home + 0.25, torch.ones(2, 1)], 1)
    goal = torch.clamp(goal, arm.low, arm.high)
    arm.apply(goal, None)
    assert float((arm.target - home).abs().max()) == pytest.approx(0.1, abs=1e-6)
    for _ in range(3):
        arm.apply(goal, None)
    torch.testing.assert_close(arm.target, goal[:, :-1])


def test_rates_are_radians_per_second() -> None:
    arm, _ = make_arm(mode="joint_vel")
    before = arm.target.clone()
    action = torch.zeros(2, 8)
    action[:, 0] = 1.5
    arm.apply(action, None)
    assert float(arm.target[0, 0] - before[0, 0]) == pytest.approx(1.5 * DT)


def test_waiting_worlds_keep_their_targets_and_inputs() -> None:
    arm, world = make_arm()
    ctrl = world.sim.field("ctrl").clone()
    target = arm.target.clone()
    arm.apply(0.5 * arm.high.repeat(2, 1), torch.tensor([True, False]))
    assert torch.equal(arm.target[1], target[1])
    assert torch.equal(world.sim.field("ctrl")[1], ctrl[1])
    assert not torch.equal(arm.target[0], target[0])
    assert not torch.equal(world.sim.field("ctrl")[0], ctrl[0])


def test_buffers_bring_an_arm_back() -> None:
    arm, _ = make_arm()
    saved = {k: v.clone() for k, v in arm.buffers().items()}
    arm.apply(arm.high.repeat(2, 1), None)
    first = arm.target.clone()
    for k, v in arm.buffers().items():
        v.copy_(saved[k])
    arm.apply(arm.high.repeat(2, 1), None)
    assert torch.equal(arm.target, first)


def test_the_gripper_opens_and_closes_and_says_so() -> None:
    arm, world = make_arm("so100", n=1)
    action = torch.zeros(1, 7)
    for command in (0.0, 1.0):
        action[:, -1] = command
        arm.apply(action, None)
        world.sim.step(200)
        assert float(arm.opening()) == pytest.approx(command, abs=0.02)


def test_five_joints_take_the_same_hand_motions() -> None:
    arm, _ = make_arm("so100")
    before = arm.chain.forward(arm.target)[0]
    for _ in range(3):
        arm.apply(torch.tensor([[0.0, 0.01, 0.0, 0.1, 0.0, 0.0, 1.0]]).repeat(2, 1), None)
    moved = (arm.chain.forward(arm.target)[0] - before)[0].numpy()
    np.testing.assert_allclose(moved, [0.0, 0.03, 0.0], atol=0.006)


def test_unknown_modes_name_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'joint_vel'"):
        ControlConfig(mode="joint_velo")
    with pytest.raises(ConfigError, match="pos_step=0"):
        ControlConfig(pos_step=0.0)
    with pytest.raises(ConfigError, match="joint_step=nan"):
        ControlConfig(joint_step=math.nan)


def test_turns_of_the_hand_compose_on_the_left() -> None:
    arm, _ = make_arm()
    rot = arm.chain.forward(arm.target)[1]
    turn = torch.tensor([[0.1, 0.0, 0.0]]).repeat(2, 1)
    arm.apply(torch.cat([torch.zeros(2, 3), turn, torch.ones(2, 1)], 1), None)
    want = quat_to_matrix(axis_angle_to_quat(turn)) @ rot
    assert float(rotation_error(want, arm.chain.forward(arm.target)[1]).norm(dim=1).max()) < 2e-3
