"""The twin as others see it: what it publishes, when, and what it does with commands. On a simulated clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from visuomotor.configs.robots import load_robot
from visuomotor.configs.twin import TwinCommand, build_twin
from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import matrix_to_rot6d, quat_to_matrix
from visuomotor.envs.registry import make_env
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.tasks.lift import LiftConfig
from visuomotor.sim2real.messages import (
    Boolean,
    FloatArray,
    Image,
    JointState,
    JointTrajectory,
    Message,
    Pose,
    Text,
    TrajectoryPoint,
)
from visuomotor.sim2real.transports.inproc import Bus
from visuomotor.sim2real.twin.node import Twin
from visuomotor.sim2real.twin.plant import Plant

MS = 1_000_000
HOME = np.array([0.0, 0.1, 0.0, -2.3, 0.0, 2.4, 0.785])


@dataclass
class Stage:
    """A twin and somebody who listens to it."""

    twin: Twin
    plant: Plant
    bus: Bus
    heard: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)

    def run(self, ms: int) -> None:
        for _ in range(ms // 5):
            self.twin.tick()
            self.bus.advance(5 * MS)

    def last(self, topic: str) -> Any:
        return self.heard[topic][-1][1]

    def measured(self) -> np.ndarray:
        m = self.last("/joint_states")
        return np.array([m.position[m.name.index(f"panda_joint{i}")] for i in range(1, 8)])


TOPICS: dict[str, Any] = {
    "/joint_states": JointState,
    "/object_pose": Pose,
    "/front/image_raw": Image,
    "/visuomotor/twin/success": Boolean,
    "/visuomotor/twin/status": Text,
}


def make_stage(words: list[str] | None = None, **settings: Any) -> Stage:
    bus = Bus()
    robot = load_robot("panda_twin", words or [])
    twin, plant = build_twin(robot, TwinCommand(**settings), bus.node("twin"))
    stage, listener = Stage(twin, plant, bus), bus.node("listener")
    for topic, kind in TOPICS.items():
        listener.subscribe(topic, kind, partial(_hear, stage.heard.setdefault(topic, [])))
    return stage


def _hear(box: list[tuple[int, Any]], message: Message, received_ns: int) -> None:
    box.append((received_ns, message))


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = make_stage(noise=0.0)
    yield made
    made.plant.close()


def test_joint_states_are_permuted_among_others_and_hold_the_gripper(stage: Stage) -> None:
    stage.run(100)
    message = stage.last("/joint_states")
    arm = [n for n in message.name if n.startswith("panda_joint")]
    assert len(message.name) == 9
    assert arm != sorted(arm)
    np.testing.assert_allclose(stage.measured(), HOME, atol=1e-3)
    assert message.position[message.name.index("panda_finger_joint1")] == pytest.approx(0.04, abs=1e-3)
    assert len(stage.heard["/joint_states"]) == 20  # 200 Hz


def test_the_first_episode_is_that_of_an_evaluation(stage: Stage) -> None:
    env = make_env(LiftConfig(), 1)
    assert isinstance(env, SimVecEnv)
    expected = env.reset(seeds=[100_000])["object"][0].numpy()
    stage.run(10)
    pose = stage.last("/object_pose")
    got = np.concatenate([pose.position, matrix_to_rot6d(quat_to_matrix(pose.q_xyzw[[3, 0, 1, 2]]))])
    np.testing.assert_allclose(got, expected, atol=2e-3)  # the cube settles in 10 ms
    assert pose.frame_id == "base"
    env.close()


def test_the_twin_moves_as_the_simulation_does_under_the_same_targets() -> None:
    """One action of joint targets at 20 Hz, and the same targets by topic: the same motion, bit by bit or nearly so."""
    settings = LiftConfig()
    settings.control.mode = "joint_pos"
    settings.control.joint_step = 10.0
    env = make_env(settings, 1)
    assert isinstance(env, SimVecEnv)
    env.reset(seeds=[100_000])
    made = make_stage(noise=0.0)
    commands = made.bus.node("policy").advertise("/forward_position_controller/commands", FloatArray)
    made.run(5)
    for k in range(10):
        target = HOME + 0.02 * (k + 1) * np.array([1, -1, 1, 1, -1, 1, 1])
        commands.publish(FloatArray(data=target))
        made.bus.advance(0)
        step = env.step(torch.tensor([[*target, 1.0]], dtype=torch.float32))
        for _ in range(10):
            made.twin.tick()
            made.bus.advance(5 * MS)
    np.testing.assert_allclose(made.plant.measured()[0], step.obs["joint_pos"][0].numpy(), atol=2e-4)
    made.plant.close()
    env.close()


def test_latency_delays_the_message_and_not_its_stamp() -> None:
    made = make_stage(noise=0.0, latency_ms=20, command_latency_ms=30)
    made.run(200)
    received, message = made.heard["/joint_states"][0]
    assert received - (message.stamp_ns - made.bus.epoch_ns) == 20 * MS
    commands = made.bus.node("policy").advertise("/forward_position_controller/commands", FloatArray)
    commands.publish(FloatArray(data=HOME + 0.2))
    made.bus.advance(0)
    sent = made.bus.now_ns
    before = made.measured()
    made.run(150)
    moved = [t for t, m in made.heard["/joint_states"] if t > sent and _away(m, before) > 1e-4]
    assert 50 * MS <= moved[0] - sent <= 70 * MS  # there and back, and a period of each
    made.plant.close()


def _away(message: JointState, q: np.ndarray) -> float:
    index = [message.name.index(f"panda_joint{i}") for i in range(1, 8)]
    return float(np.abs(message.position[index] - q).max())


def test_commands_are_watched_and_refused_ones_told(stage: Stage) -> None:
    stage.run(20)
    commands = stage.bus.node("policy").advertise("/forward_position_controller/commands", FloatArray)
    for data in (HOME, HOME + 0.5, np.full(7, np.nan), np.zeros(3)):
        commands.publish(FloatArray(data=np.asarray(data)))
        stage.run(10)
    counts = stage.twin.violations.count
    assert counts["velocity"] == 1
    assert counts["not finite"] == 1
    assert counts["refused"] == 1
    assert stage.twin.status.commands == 4
    assert stage.twin.status.refused == 2
    assert stage.twin.status.refusal == "3 values for 7 joints"
    stage.run(500)
    assert '"refused": 2' in stage.last("/visuomotor/twin/status").data


def test_a_reset_begins_the_episode_that_is_asked_for(stage: Stage) -> None:
    node = stage.bus.node("policy")
    commands = node.advertise("/forward_position_controller/commands", FloatArray)
    reset = node.advertise("/visuomotor/twin/reset", Text)
    commands.publish(FloatArray(data=HOME + 0.1))
    stage.run(300)
    first = stage.last("/object_pose").position
    assert _away(stage.last("/joint_states"), HOME) > 0.05
    for text, seed in (("100007", 100_007), ("", 100_008), ("next, please", 100_009)):
        reset.publish(Text(data=text))
        stage.run(50)
        assert stage.twin.status.seed == seed
        np.testing.assert_allclose(stage.measured(), HOME, atol=2e-3)
        assert np.abs(stage.last("/object_pose").position - first).max() > 5e-3
    assert stage.twin.status.episode == 3
    reset.publish(Text(data="100000"))
    stage.run(50)
    np.testing.assert_allclose(stage.last("/object_pose").position, first, atol=2e-3)


def test_noise_offsets_and_losses_are_functions_of_the_seed() -> None:
    def heard(**settings: Any) -> list[Any]:
        made = make_stage(**settings)
        made.run(100)
        made.plant.close()
        return [m.position.tolist() for _, m in made.heard["/joint_states"]]

    settings = {"noise": 1.0, "drop": 0.3, "encoder_offset": 0.02}
    once = heard(**settings, seed=3)
    assert once == heard(**settings, seed=3)
    assert once != heard(**settings, seed=4)
    assert 8 <= len(once) < 20  # 20 were sent
    made = make_stage(noise=0.0, encoder_offset=0.02)
    made.run(400)
    np.testing.assert_allclose(made.measured() - made.twin.sensors.offset, HOME, atol=2e-3)
    assert np.abs(made.twin.sensors.offset).max() > 5e-3  # it holds where it is, by the encoders that it has
    made.plant.close()


def test_success_of_an_episode_is_published() -> None:
    """The expert's own joint targets, sent as a policy's would be, lift the cube."""
    made = make_stage(noise=0.0)
    node = made.bus.node("policy")
    commands = node.advertise("/forward_position_controller/commands", FloatArray)
    gripper = node.advertise("/gripper_position_controller/commands", FloatArray)
    env = make_env(LiftConfig(end_on_success=False), 1)
    assert isinstance(env, SimVecEnv)
    env.reset(seeds=[100_000])
    expert = env.task.expert()
    expert.reset(Selection.all(1, env.device), Draws(torch.tensor([7])))
    made.run(5)
    for _ in range(80):
        env.step(expert.act())
        target, grip = env.task.arms[0].target[0], env.task.arms[0].grip[0]  # type: ignore[attr-defined]
        commands.publish(FloatArray(data=target.double().numpy()))
        gripper.publish(FloatArray(data=0.04 * grip.double().numpy()))
        made.bus.advance(0)
        made.run(50)
    assert made.twin.status.reached
    assert made.last("/visuomotor/twin/success").data
    assert made.twin.status.score == pytest.approx(1.0)
    made.plant.close()
    env.close()


def test_trajectories_reach_the_arm_and_the_gripper() -> None:
    words = ["command.mode=joint_trajectory", "command.topic=/jtc/joint_trajectory", "gripper.mode=joint_trajectory"]
    made = make_stage([*words, "gripper.topic=/hand/joint_trajectory"], noise=0.0)
    node = made.bus.node("policy")
    arm = node.advertise("/jtc/joint_trajectory", JointTrajectory)
    hand = node.advertise("/hand/joint_trajectory", JointTrajectory)
    names = tuple(f"panda_joint{i}" for i in range(7, 0, -1))
    rest = np.zeros(7)
    points = tuple(
        TrajectoryPoint(time_from_start_ns=t * MS, positions=(HOME + q)[::-1], velocities=rest)
        for t, q in ((0, 0.0), (500, 0.1))
    )
    arm.publish(JointTrajectory(joint_names=names, points=points))
    close = TrajectoryPoint(time_from_start_ns=100 * MS, positions=np.array([0.01]))
    hand.publish(JointTrajectory(joint_names=("panda_finger_joint1",), points=(close,)))
    made.bus.advance(0)
    made.run(1500)
    np.testing.assert_allclose(made.measured(), HOME + 0.1, atol=5e-3)
    assert made.plant.opening() == pytest.approx(0.25, abs=0.03)
    assert made.twin.violations.total == 0
    made.plant.close()


def test_pictures_come_at_their_rate_in_their_encoding() -> None:
    made = make_stage(noise=0.0, cameras=["front"], encoding="bgr8", height=48, width=64)
    try:
        made.run(200)
    finally:
        made.plant.close()
    frames = [m for _, m in made.heard["/front/image_raw"]]
    assert 5 <= len(frames) <= 7  # 30 Hz for 0.2 s
    assert (frames[0].height, frames[0].width, frames[0].step, frames[0].encoding) == (48, 64, 192, "bgr8")
    assert frames[0].data.std() > 10


def test_a_camera_of_an_arm_that_stands_still_does_not_look_frozen() -> None:
    made = make_stage(cameras=["front"], height=48, width=64)
    try:
        made.run(200)
    finally:
        made.plant.close()
    first, second = (m.data.astype(np.int16) for _, m in made.heard["/front/image_raw"][-2:])
    assert 1.0 < (first - second).std() < 4.0


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        ([], {"task": "handover"}, "with one arm"),
        ([], {"task": "cartpole"}, "has no arm"),
        ([], {"rate_hz": 110}, "expected a multiple of the task's 20 Hz"),
        ([], {"cameras": ["font"]}, r"no camera 'font'.*'front'"),
        (["values.object.fields=[position]"], {}, "observes 9 numbers, a pose of position has 3"),
        (["model=ur5e", "model_joints=[]"], {}, "has 7 joints, its model 'ur5e' 6"),
        (["model=''"], {}, "has no model to simulate"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_stage(words, **settings)


def test_a_finer_rate_makes_physics_finer() -> None:
    made = make_stage(noise=0.0, rate_hz=500)
    assert made.twin.rate_hz == 500
    for _ in range(100):
        made.twin.tick()
        made.bus.advance(2 * MS)
    np.testing.assert_allclose(made.measured(), HOME, atol=1e-3)
    assert len(made.heard["/joint_states"]) == 40  # 200 Hz for 0.2 s all the same
    made.plant.close()
