"""Demonstrations of a person on an arm, and recorded motions shown again by one, on a simulated clock."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from arm_rig import JOINTS, MS, FakeArm, robot
from rich.console import Console

from visuomotor.configs import record, replay_motion
from visuomotor.configs.cli import main
from visuomotor.configs.record import RecordConfig, record_setup
from visuomotor.configs.replay_motion import ReplayConfig, replay_setup
from visuomotor.configs.robots import load_robot
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.sim2real.messages import JointState
from visuomotor.sim2real.recording.bag import BagWriter
from visuomotor.sim2real.recording.motion import Motion, MotionSource, read_bag, read_store
from visuomotor.sim2real.recording.tape import EpisodeTape
from visuomotor.sim2real.remote.source import PlanRequest
from visuomotor.sim2real.robots.config import ValueStream
from visuomotor.sim2real.runtime.board import RequestBox, StatusBoard
from visuomotor.sim2real.runtime.build import check_policy, describe_arm, make_bridge, make_rhythm
from visuomotor.sim2real.runtime.link import DirectLink
from visuomotor.sim2real.runtime.pilot import Pilot
from visuomotor.sim2real.runtime.streamer import loop_hz
from visuomotor.sim2real.runtime.types import Request, State
from visuomotor.sim2real.transports.cdr import encode
from visuomotor.sim2real.transports.inproc import Bus

SECOND = 1_000_000_000


class Stage:
    """A bridge of any setup, an arm, and perhaps a device that is led."""

    def __init__(self, setup, link=None, listeners=()):
        self.bus = Bus()
        self.arm = FakeArm(self.bus, setup.robot)
        self.board, self.box = StatusBoard(), RequestBox()
        quiet = replace(setup, runtime=replace(setup.runtime, decode_threads=False))
        node = self.bus.node("bridge")
        self.bridge = make_bridge(quiet, node, link=link, board=self.board, requests=self.box, listeners=listeners)
        self.device = self.bus.node("device").advertise("/device", JointState)
        self.led = None
        self.period_ns = round(1e9 / loop_hz(setup.robot))

    def run(self, seconds):
        for _ in range(round(seconds * 1e9 / self.period_ns)):
            if self.led is not None:
                self.device.publish(JointState(name=JOINTS, position=self.led(self.bus.now_ns * 1e-9)))
            for _ in range(self.period_ns // MS):
                self.bus.advance(MS)
                self.arm.tick(self.bus.now_ns)
            self.bridge.tick(self.bus.now_ns)


def show(where, **settings):
    """Two seconds of a person's motion, recorded; the store's path."""
    config = robot(teleop_topic="/device")
    setup = record_setup(RecordConfig(store=str(where), task="wave", **settings), config)
    arm, _ = describe_arm(config)
    policy = setup.policy
    assert policy is not None
    tape = EpisodeTape(where, policy.spec, policy.fps, JOINTS, check_policy(policy, arm)[1], gripper=False, task="wave")
    stage = Stage(setup, listeners=[tape])
    begin = stage.arm.q.copy()
    stage.led = lambda t: begin + np.array([0.3 * np.sin(max(0.0, t - 1.0)), 0.0, 0.1 * min(1.0, max(0.0, t - 1.0))])
    stage.run(0.5)
    assert stage.bridge.state is State.READY, stage.bridge.log.shown
    stage.box.put(Request.START)  # without a policy the person starts
    stage.run(2.5)
    assert stage.bridge.state is State.HUMAN
    stage.box.put(Request.SUCCESS)
    stage.run(1.0)
    assert stage.bridge.state is State.READY
    assert tape.close().episodes == 1
    return stage


def test_a_person_shows_a_task(tmp_path):
    stage = show(tmp_path / "a.zarr")
    assert not stage.bridge.faults
    with DemoStore.open(tmp_path / "a.zarr") as store:
        arrays = store.episode(0)
        assert {k for k, s in store.specs.items() if s.role == "observation"} == {"joint_pos", "joint_vel"}
        assert store.specs["action"].names == JOINTS
        assert store.fps == 20.0
        assert store.episode_columns["task"].tolist() == ["wave"]
        assert arrays["is_intervention"].all()
    # each action is where the arm is at the next step
    np.testing.assert_allclose(arrays["action"][:-1], arrays["joint_pos"][1:], atol=0.02)
    show(tmp_path / "a.zarr", fps=7.0)  # the store decides
    with DemoStore.open(tmp_path / "a.zarr") as store:
        assert (store.n_episodes, store.fps) == (2, 20.0)


def replayed(config):
    setup, source = replay_setup(config, robot())
    horizon = source.spec.window.horizon
    pilot = Pilot(source, make_rhythm(setup, n_exec=horizon, delay=0, ensemble=False, decay=0.0))
    stage = Stage(setup, link=DirectLink(pilot, latency_s=0.01))
    stage.arm.q = np.zeros(3)  # far from where it begins
    return stage


def test_what_was_shown_is_shown_again_by_the_arm(tmp_path):
    first = show(tmp_path / "a.zarr")
    with DemoStore.open(tmp_path / "a.zarr") as store:
        sent = store.episode(0)["sent"]
    stage = replayed(ReplayConfig(store=str(tmp_path / "a.zarr"), start="auto"))
    stage.run(12.0)
    assert stage.bridge.done
    assert not stage.bridge.faults
    q = np.stack([p for _, p in stage.arm.received])
    v = np.diff(q, axis=0) / (stage.period_ns * 1e-9)
    assert np.abs(v).max() <= 2.0 + 1e-6
    began = np.argmin(np.abs(q - sent[0]).max(1) > 0.02)
    np.testing.assert_allclose(q[-1], sent[-1], atol=2e-3)
    for k in range(0, len(sent), 5):  # it comes past everything that was sent before
        assert np.abs(q[began:] - sent[k]).max(1).min() < 0.01
    assert np.abs(np.diff(v, axis=0)).max() < 8.0 * stage.period_ns * 1e-9 * 1.01
    assert first.arm.q == pytest.approx(stage.arm.q, abs=5e-3)


def test_after_a_hold_a_replay_does_not_begin_anew_in_the_midst(tmp_path):
    show(tmp_path / "a.zarr")
    stage = replayed(ReplayConfig(store=str(tmp_path / "a.zarr")))
    stage.run(0.5)
    stage.box.put(Request.START)
    while stage.bridge.state is not State.RUN:
        stage.run(0.1)
    stage.run(1.0)
    stage.box.put(Request.HOLD)
    stage.run(1.0)
    there = stage.arm.q.copy()
    stage.box.put(Request.START)
    stage.run(1.0)
    np.testing.assert_allclose(stage.arm.q, there, atol=1e-6)


def test_the_measured_positions_of_a_bag_are_followed(tmp_path):
    writer = BagWriter(tmp_path / "take")
    for i in range(400):
        t = i * 0.01
        position = np.array([99.0, 0.4 * np.sin(t), 0.1, -0.2 * t])  # another joint, another order
        message = JointState(name=("wheel", "lift", "pan", "elbow"), position=position)
        writer.add("/joint_states", "sensor_msgs/msg/JointState", encode(message), SECOND + round(t * SECOND))
    writer.close()
    motion = read_bag(tmp_path / "take", "/joint_states", JOINTS, 50.0)
    assert motion.actions.shape[1] == 3
    np.testing.assert_allclose(motion.actions[100], [0.1, 0.4 * np.sin(2.0), -0.4], atol=1e-3)
    stage = replayed(ReplayConfig(bag=str(tmp_path / "take"), start="auto", speed=2.0))
    stage.run(10.0)
    assert stage.bridge.done
    np.testing.assert_allclose(stage.arm.q, motion.actions[-1], atol=2e-3)
    with pytest.raises(DataError, match="no joint 'hip'"):
        read_bag(tmp_path / "take", "/joint_states", ["hip"], 50.0)
    with pytest.raises(DataError, match=r"no topic '/joint_state'.*Did you mean '/joint_states'"):
        read_bag(tmp_path / "take", "/joint_state", JOINTS, 50.0)


def test_a_simulated_demonstration_can_be_shown(tmp_path):
    """Actions that are changes of joint positions, as simulated arms have them, without a record of what was sent."""
    specs = {
        "joint_pos": ArraySpec(shape=(3,), role="observation", names=JOINTS),
        "action": ArraySpec(shape=(3,), role="action", unit="rad", names=tuple(f"{j}_change" for j in JOINTS)),
    }
    path = np.cumsum(np.full((40, 3), 0.005), 0).astype(np.float32)
    with DemoStore.create(tmp_path / "a.zarr", specs, fps=20) as store:
        store.append_episode({"joint_pos": path - 0.005, "action": np.full((40, 3), 0.005, np.float32)})
    stage = replayed(ReplayConfig(store=str(tmp_path / "a.zarr"), start="auto"))
    stage.run(8.0)
    assert stage.bridge.done
    np.testing.assert_allclose(stage.arm.q, path[-1], atol=5e-3)


def test_a_motion_is_given_out_once_an_episode():
    motion = Motion(
        actions=np.arange(6, dtype=np.float32).reshape(3, 2), spec=ArraySpec(shape=(2,), names=("a", "b")), fps=10.0,
        action_time=0.5, begin={},
    )  # fmt: skip
    source = MotionSource(motion.faster(2.0))
    assert source.spec.fps == 20.0
    ask = PlanRequest(obs={}, previous=None, seed=4, plan=0)
    np.testing.assert_array_equal(source.plan(ask), motion.actions)
    np.testing.assert_array_equal(source.plan(replace(ask, plan=1)), [[4, 5]] * 3)
    assert source.plan(ask) is None
    names = ("pan_rate", "gripper")
    rates = MotionSource(replace(motion, spec=ArraySpec(shape=(2,), names=names)).faster(2.0))
    np.testing.assert_array_equal(rates.plan(ask), [[0, 1], [4, 3], [8, 5]])
    np.testing.assert_array_equal(rates.plan(replace(ask, plan=1)), [[0, 5]] * 3)
    assert source.plan(replace(ask, seed=5)) is not None


@pytest.mark.parametrize("action", ["joint_pos", "joint_delta", "joint_vel", "ee_delta", "ee_pose"])
def test_what_a_real_preset_records(tmp_path, action):
    config = load_robot("ur5e", ["teleop_topic=/leader", "cameras.front.topic=/camera/image_raw"])
    setup = record_setup(RecordConfig(store=str(tmp_path / "a.zarr"), action=action, picture=[96, 128]), config)
    policy = setup.policy
    assert policy is not None
    assert policy.spec.action.names is not None
    spec, names = policy.spec, policy.spec.action.names
    assert set(spec.obs) == {"joint_pos", "joint_vel", "tcp_pos", "tcp_rot6d", "gripper", "front"}
    assert spec.obs["front"].shape == (96, 128, 3)
    assert names[-1] == "gripper"
    assert not policy.acts
    arm, _ = describe_arm(config)
    actions = check_policy(policy, arm)[1]
    q0 = np.array([0.1, -1.4, 1.5, -1.6, -1.5, 0.2])
    q1 = q0 + np.array([0.01, -0.02, 0.015, 0.0, 0.01, -0.01])
    a = actions.inverse(q0, q1, 0.25)
    back, opening = actions.apply(q0, 1.0, a)
    assert opening == 0.25
    np.testing.assert_allclose(back, q1, atol=2e-3)  # by inverse kinematics of two iterations for actions of the hand


def test_mistakes_are_one_sentence(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no teleoperating device"):
        record_setup(RecordConfig(store=str(tmp_path / "a.zarr")), robot())
    led = robot(teleop_topic="/device")
    with pytest.raises(ConfigError, match=r"no observation 'joint_poss'.*joint_pos"):
        record_setup(RecordConfig(store=str(tmp_path / "a.zarr"), keys=["joint_poss"]), led)
    numbers = robot(teleop_topic="/device", values={"load": ValueStream(topic="/load")})
    with pytest.raises(ConfigError, match=r"give sizes\.load="):
        record_setup(RecordConfig(store=str(tmp_path / "a.zarr")), numbers)
    with pytest.raises(ConfigError, match="takes a model of the arm"):
        record_setup(RecordConfig(store=str(tmp_path / "a.zarr"), action="ee_delta"), led)
    assert not (tmp_path / "a.zarr").exists()
    show(tmp_path / "b.zarr")
    with pytest.raises(DataError, match="there is no episode 7"):
        read_store(tmp_path / "b.zarr", 7)
    with pytest.raises(DataError, match=r"no array 'snt'.*sent"):
        read_store(tmp_path / "b.zarr", 0, "snt")
    for words, text in (
        (["replay", "robot=ur5e"], "give store=<zarr> or bag="),
        (["replay", "robot=ur5e", f"store={tmp_path / 'b.zarr'}"], "'pan' does not go with"),
        (["record", "robot=ur5e", "store=x", "action=joint"], "unknown action 'joint'"),
        (["record", "store=x"], "robot="),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert text in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(("command", "config"), [(record, RecordConfig), (replay_motion, ReplayConfig)])
def test_a_summary_goes_into_a_folder_that_is_made(command, config, tmp_path):
    out = tmp_path / "new" / "summary.json"
    result = {"episodes": [], "successes": 0, "faults": [], "recorded": {}}
    assert command._finish(config(store="a.zarr", out=str(out)), result, Console(quiet=True)) == 0
    assert json.loads(out.read_text()) == result
