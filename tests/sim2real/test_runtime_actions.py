"""What actions do, and when chunks take over: against the simulator's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from arm_rig import JOINTS, MS, Rig, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.errors import CheckpointError
from visuomotor.data.rotations import matrix_to_rot6d
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.registry import make_env
from visuomotor.envs.robots.arm import ControlConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.tasks.lift import LiftConfig
from visuomotor.envs.tasks.tabletop import TabletopTask
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.runtime.actions import ActionMap, Arm, Control, control_of
from visuomotor.sim2real.runtime.build import make_bridge
from visuomotor.sim2real.runtime.scheduler import Scheduler
from visuomotor.sim2real.runtime.types import Chunk
from visuomotor.sim2real.transports.inproc import Bus

DT = 50 * MS


def arm(**others: Any) -> Arm:
    made: dict[str, Any] = {
        "joints": JOINTS, "driver_joints": tuple(f"arm_{j}" for j in JOINTS), "low": np.full(3, -3.0),
        "high": np.full(3, 3.0), "rest": np.zeros(3), "gripper": True, "kinematics": None,
    }  # fmt: skip
    return Arm(**{**made, **others})


def action(*names: str, unit: str | None = None) -> ArraySpec:
    return ArraySpec(shape=(len(names),), role="action", names=names, unit=unit)


# ---- what an action means


@pytest.mark.parametrize("mode", ["joint_pos", "joint_delta", "joint_vel", "ee_delta"])
def test_actions_do_what_they_do_in_the_simulation(mode: str) -> None:
    config = LiftConfig(robot="ur5e", control=ControlConfig(mode=mode))
    env = make_env(config, 1)
    assert isinstance(env, SimVecEnv)
    env.reset(seeds=[0])
    task = env.task
    assert isinstance(task, TabletopTask)
    simulated = task.arms[0]
    kinematics = Kinematics.load("ur5e")
    mine = arm(
        joints=kinematics.joints, driver_joints=tuple(f"{j}_joint" for j in kinematics.joints), low=kinematics.low,
        high=kinematics.high, rest=kinematics.home, kinematics=kinematics,
    )  # fmt: skip
    saved = {"mode": mode, "joint_step": 0.1, "pos_step": 0.03, "rot_step": 0.15}
    control = control_of(env.action_spec, saved, mine)
    assert control.mode == mode
    convert = ActionMap(env.action_spec, control, mine, dt_s=1 / env.fps)
    target, opening = simulated.target[0].double().numpy(), 1.0
    rng = np.random.default_rng(3)
    scale = {"joint_pos": 1.0, "joint_delta": 0.15, "joint_vel": 3.0, "ee_delta": 0.1}[mode]  # some beyond the bounds
    for _ in range(12):
        raw = rng.normal(0.0, scale, env.action_spec.size).astype(np.float32)
        if mode == "joint_pos":
            raw[:6] += target
        raw[-1] = rng.uniform(-0.5, 1.5)
        simulated.apply(torch.from_numpy(raw)[None], None)
        target, opening = convert.apply(target, opening, raw.astype(np.float64))
        np.testing.assert_allclose(target, simulated.target[0].numpy(), atol=3e-4)
        assert opening == pytest.approx(float(simulated.grip[0, 0]), abs=1e-6)
    env.close()


def test_poses_of_the_hand_are_reached_in_every_form_of_rotation() -> None:
    kinematics = Kinematics.load("ur5e")
    mine = arm(
        joints=kinematics.joints, low=kinematics.low, high=kinematics.high, rest=kinematics.home, kinematics=kinematics
    )
    assert kinematics.home is not None
    goal = kinematics.home + np.array([0.1, -0.1, 0.1, 0.05, 0.1, -0.2])
    pos, rot = kinematics.pose(goal)
    from visuomotor.data.rotations import matrix_to_quat, quat_to_axis_angle

    q = matrix_to_quat(rot)
    forms = {
        ("r0", "r1", "r2", "r3", "r4", "r5"): matrix_to_rot6d(rot),
        ("qx", "qy", "qz", "qw"): q[[1, 2, 3, 0]],
        ("rx", "ry", "rz"): quat_to_axis_angle(q),
    }
    for names, values in forms.items():
        described = action("x", "y", "z", *names)
        convert = ActionMap(described, control_of(described, None, mine), mine, dt_s=0.05)
        target = kinematics.home.copy()
        for _ in range(20):
            target, _ = convert.apply(target, 1.0, np.concatenate([pos, values]))
        reached, turned = kinematics.pose(target)
        np.testing.assert_allclose(reached, pos, atol=2e-3)
        np.testing.assert_allclose(turned, rot, atol=2e-2)


def test_joints_are_permuted_by_name_and_degrees_become_radians() -> None:
    described = action("arm_elbow", "arm_pan", "gripper", "arm_lift")
    convert = ActionMap(described, control_of(described, None, arm()), arm(), dt_s=0.05)
    target, opening = convert.apply(np.zeros(3), 1.0, np.array([0.3, 0.1, 0.7, 0.2]))
    np.testing.assert_allclose(target, [0.1, 0.2, 0.3])
    assert opening == 0.7
    degrees = action(*JOINTS, unit="deg")
    convert = ActionMap(degrees, Control(mode="joint_pos"), arm(), dt_s=0.05)
    np.testing.assert_allclose(
        convert.apply(np.zeros(3), 1.0, np.array([90.0, 0.0, -45.0]))[0], [np.pi / 2, 0, -np.pi / 4]
    )


@pytest.mark.parametrize(
    ("described", "others", "message"),
    [
        (ArraySpec(shape=(3,)), {}, "without names.*action_names="),
        (action("pan", "lift", "elbo"), {}, "'elbo' does not go with.*Did you mean 'elbow'"),
        (action("pan", "lift"), {}, "does not go with the others"),
        (action(*JOINTS, "gripper"), {"gripper": False}, "the robot has none"),
        (action("dx", "dy", "dz", "rx", "ry", "rz"), {}, "takes a model of the arm"),
        (action(*JOINTS, unit="m"), {}, "in 'm'; actions of mode joint_pos are in rad or deg"),
    ],
)
def test_actions_of_another_arm_are_refused(described: ArraySpec, others: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ActionMap(described, control_of(described, None, arm(**others)), arm(**others), dt_s=0.05)


# ---- chunks


def scheduler(mode: str = "joint_pos", fade_s: float = 0.2) -> Scheduler:
    suffix = {"joint_pos": "", "joint_delta": "_change"}[mode]
    described = action(*(j + suffix for j in JOINTS))
    control = Control(mode=mode)
    made = Scheduler(ActionMap(described, control, arm(gripper=False), dt_s=0.05), fade_s=fade_s, lead=0.5)
    made.reset(np.zeros(3), 1.0, 0)
    return made


def chunk(first_ns: int, actions: np.ndarray, sequence: int = 0) -> Chunk:
    return Chunk(observed_ns=first_ns, first_ns=first_ns, dt_ns=DT, actions=actions, sequence=sequence)


def along(values: np.ndarray) -> np.ndarray:
    return np.stack([values, 0 * values, -values], 1)


def test_targets_pass_through_the_actions_at_their_times_and_end_at_rest() -> None:
    s = scheduler(fade_s=0.0)
    path = np.array([0.0, 0.1, 0.25, 0.3, 0.2])
    assert s.accept(chunk(100 * MS, along(path)), 0, np.zeros(3)) == ""
    for k, value in enumerate(path):
        got = s.sample(100 * MS + k * DT)
        np.testing.assert_allclose(got.joints, [value, 0, -value], atol=1e-12)
    assert not got.starved
    np.testing.assert_array_equal(got.velocity, 0)
    assert s.sample(100 * MS + 5 * DT).starved


def test_actions_that_are_late_are_dropped() -> None:
    s = scheduler(fade_s=0.0)
    assert s.accept(chunk(0, along(np.arange(6.0) / 10)), 120 * MS, np.zeros(3)) == ""
    np.testing.assert_allclose(s.preview(120 * MS)[:, 0], [0.3, 0.4, 0.5][: len(s.preview(120 * MS))])
    assert "its last action is 0.050 s late" in s.accept(chunk(0, along(np.zeros(6)), 1), 300 * MS, np.zeros(3))
    assert s.sequence == 0


def test_the_action_in_force_is_held_from_half_a_step_before_its_time() -> None:
    s = scheduler()
    assert s.action(0) is None
    s.accept(chunk(100 * MS, along(np.arange(3.0))), 0, np.zeros(3))
    assert [float(s.action(t * MS)[0]) for t in (80, 124, 126, 176)] == [0.0, 0.0, 1.0, 2.0]  # type: ignore[index]
    assert s.action(226 * MS) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_chunk_with_a_value_that_is_no_number_is_not_followed(bad: float) -> None:
    s = scheduler()
    actions = along(np.zeros(4))
    actions[2, 1] = bad
    assert f"chunk 5: component 1 of action 2 is {bad}" in s.accept(chunk(0, actions, 5), 0, np.zeros(3))
    assert "expected [H, 3]" in s.accept(chunk(0, np.zeros((4, 2)), 6), 0, np.zeros(3))
    assert s.empty


def test_changes_continue_from_the_commanded_targets() -> None:
    """As in a simulation with a delay of two steps: the chunk made at step 4 takes over at step 6."""
    s = scheduler("joint_delta", fade_s=0.0)
    first = np.full((12, 3), 0.02)
    s.accept(chunk(0, first), -1, np.zeros(3))
    for t in range(0, 5 * 50, 10):
        s.sample(t * MS)
    second = np.full((12, 3), 0.03)
    s.accept(chunk(4 * DT, second, 1), 5 * DT + 10 * MS, s.sample(5 * DT).joints)
    assert s.sample(5 * DT + 10 * MS).joints[0] >= 0.12
    for k in range(6, 16):
        np.testing.assert_allclose(s.sample(k * DT).joints, 6 * 0.02 + (k - 5) * 0.03, atol=1e-9)


@pytest.mark.parametrize("damped", [False, True])
def test_a_correction_that_is_still_fading_in_is_carried_over_unless_it_is_damped(damped: bool) -> None:
    described = action(*(f"{j}_change" for j in JOINTS))
    s = Scheduler(
        ActionMap(described, Control(mode="joint_delta"), arm(gripper=False), dt_s=0.05),
        fade_s=0.35,
        lead=0.5,
        damped=damped,
    )
    s.reset(np.zeros(3), 1.0, 0)
    for k in range(0, 8, 2):  # each chunk asks for 0.01 a step for two steps, and had foreseen none: 0.08 in all
        s.accept(chunk(k * DT, np.full((2, 3), 0.01), k), k * DT - 1, s.sample(k * DT - 1).joints)
        assert s.sample(k * DT + 40 * MS).joints[0] >= 0.0
    for k in range(8, 20, 2):
        s.accept(chunk(k * DT, np.zeros((2, 3)), k), k * DT - 1, s.sample(k * DT - 1).joints)
    reached = float(s.sample(30 * DT).joints[0])
    assert reached < 0.079 if damped else reached == pytest.approx(0.08, abs=1e-9)


def test_a_policy_that_was_trained_with_delays_is_not_damped_unless_it_is_asked_for() -> None:
    rig = Rig(policy=spec(tuple(f"{j}_change" for j in JOINTS)))
    assert rig.setup.policy is not None
    knows = replace(rig.setup, policy=replace(rig.setup.policy, knows_delays=True))
    asked = replace(knows, runtime=replace(knows.runtime, damped=True))
    for setup, damped in ((rig.setup, True), (knows, False), (asked, True)):
        bridge = make_bridge(setup, Bus().node("bridge"), link=None, board=rig.board, requests=rig.box)
        assert bridge.parts.scheduler is not None
        assert bridge.parts.scheduler.damped is damped


def test_a_gripper_closes_when_a_chunk_says_so_however_slowly_the_arm_takes_it_up() -> None:
    described = action(*(f"{j}_change" for j in JOINTS), "gripper")
    s = Scheduler(ActionMap(described, Control(mode="joint_delta"), arm(), dt_s=0.05), fade_s=0.35, lead=0.5)
    s.reset(np.zeros(3), 1.0, 0)
    for k in range(0, 6, 2):  # a chunk every second step; the last one closes, which those before did not foresee
        actions = np.zeros((8, 4))
        actions[:, 3] = k < 4
        assert s.accept(chunk(k * DT + 25 * MS, actions, k), k * DT + 20 * MS, np.zeros(3)) == ""
        assert s.sample(k * DT + 20 * MS).opening > 0.0
    assert s.sample(4 * DT + 25 * MS).opening == pytest.approx(0.0, abs=1e-9)  # the step that its first action means


def test_changes_do_not_pile_up_ahead_of_an_arm_that_cannot_follow() -> None:
    described = action(*(f"{j}_change" for j in JOINTS))
    s = Scheduler(
        ActionMap(described, Control(mode="joint_delta"), arm(gripper=False), dt_s=0.05), fade_s=0.0, lead=0.1
    )
    s.reset(np.zeros(3), 1.0, 0)
    for k in range(20):  # a blocked arm: it stays at 0
        s.accept(chunk(k * DT, np.full((4, 3), 0.05), k), k * DT, np.zeros(3))
        s.sample(k * DT)
    assert s.sample(20 * DT).joints.max() <= 0.1 + 4 * 0.05 + 1e-9


@given(
    st.lists(st.tuples(st.integers(20, 300), st.floats(-0.1, 0.1), st.floats(-1.0, 1.0)), min_size=2, max_size=8),
    st.sampled_from(["joint_pos", "joint_delta"]),
)
@settings(max_examples=60, deadline=None)
def test_position_and_velocity_are_continuous_whatever_chunks_come(
    chunks: list[tuple[int, float, float]], mode: str
) -> None:
    s = scheduler(mode)
    now = 0
    for sequence, (gap, offset, speed) in enumerate(chunks):
        before = s.sample(now)
        k = np.arange(12) * 0.05
        actions = along(offset + speed * k) if mode == "joint_pos" else along(np.full(12, 0.05 * speed))
        s.accept(chunk(now - 60 * MS, actions, sequence), now, before.joints)
        after = s.sample(now)
        np.testing.assert_allclose(after.joints, before.joints, atol=1e-9)
        np.testing.assert_allclose(after.velocity, before.velocity, atol=1e-6)
        for _ in range(gap // 10):
            now += 10 * MS
            s.sample(now)


@given(st.lists(st.floats(-1.0, 1.0), min_size=4, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_curve_stays_between_the_actions_it_passes(values: list[float]) -> None:
    s = scheduler(fade_s=0.0)
    path = np.array([0.0, *values])
    s.accept(chunk(0, along(path)), -1, np.zeros(3))
    for k in range(len(path) - 1):
        low, high = sorted(path[k : k + 2])
        for t in np.linspace(0, 1, 7):
            got = s.sample(k * DT + int(t * DT)).joints[0]
            assert low - 1e-9 <= got <= high + 1e-9
