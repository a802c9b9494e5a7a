"""What the doctor says of a twin that is well, and of one after the other thing that is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from visuomotor.configs.robots import load_robot
from visuomotor.configs.twin import TwinCommand, build_twin
from visuomotor.data.actions import ActionConfig
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.doctor import Finding, examine
from visuomotor.sim2real.messages import FloatArray, Image, JointState, JointTrajectory, Pose
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.runtime.build import PolicyFacts
from visuomotor.sim2real.transports.base import LATCHED, SENSOR, Transport
from visuomotor.sim2real.transports.inproc import Bus

MS = 1_000_000
HOME = np.array([0.0, 0.1, 0.0, -2.3, 0.0, 2.4, 0.785])
NAMES = tuple(f"panda_joint{i}" for i in (3, 1, 2, 7, 5, 6, 4))  # in another order than the arm's
LIFT = PolicySpec(
    obs={
        "tcp_pos": ArraySpec(shape=(3,), role="observation", unit="m", names=("x", "y", "z")),
        "gripper": ArraySpec(shape=(1,), role="observation", names=("opening",)),
        "object": ArraySpec(shape=(9,), role="observation"),
    },
    action_key="action",
    action=ArraySpec(shape=(7,), role="action", names=("dx", "dy", "dz", "rx", "ry", "rz", "gripper")),
    fps=20.0,
    window=WindowConfig(n_obs=1, horizon=8, n_exec=2),
    action_config=ActionConfig(),
)


class Robot:
    """A driver that only publishes, so that a test can spoil each of its habits."""

    def __init__(self, bus: Bus, robot: RobotConfig, *, offset_s: float = 0.0) -> None:
        self.bus, self.node = bus, bus.node("driver", clock_offset_ns=round(offset_s * 1e9))
        self.states = self.node.advertise(robot.state.topic, JointState, SENSOR)
        self.poses = self.node.advertise("/object_pose", Pose, SENSOR)
        self.images = self.node.advertise("/front/image_raw", Image, SENSOR)
        self.names: tuple[str, ...] = (*NAMES, "panda_finger_joint1")
        order = [int(n[-1]) - 1 for n in NAMES]
        self.position = np.array([*HOME[order], 0.04])
        self.every_ms, self.stamps, self.frame, self.encoding = 5, True, "base", "rgb8"
        self.picture = np.arange(48 * 64 * 3, dtype=np.uint8)
        for topic in (robot.command.topic, "/gripper_position_controller/commands"):
            self.node.subscribe(topic, FloatArray, lambda m, t: None)

    def wait(self, seconds: float) -> None:
        for i in range(round(seconds * 200)):
            self.bus.advance(5 * MS)
            stamp = self.node.stamp_ns() if self.stamps else 0
            if i % (self.every_ms // 5) == 0:
                v = np.zeros(len(self.names))
                self.states.publish(JointState(stamp_ns=stamp, name=self.names, position=self.position, velocity=v))
            if i % 6 == 0:
                q = np.array([0.0, 0.0, 0.0, 1.0])
                self.poses.publish(Pose(stamp_ns=stamp, frame_id=self.frame, position=np.ones(3), q_xyzw=q))
                self.images.publish(
                    Image(stamp_ns=stamp, height=48, width=64, encoding=self.encoding, step=192, data=self.picture)
                )


ROBOT = load_robot("panda_twin")
ROBOT.cameras = {"front": ROBOT.cameras["front"]}


def found(
    robot: RobotConfig = ROBOT, spoil: Callable[[Robot], None] = lambda r: None, policy: PolicyFacts | None = None,
    offset_s: float = 0.0,
) -> dict[str, list[str]]:  # fmt: skip
    bus = Bus()
    driver = Robot(bus, ROBOT, offset_s=offset_s)
    spoil(driver)
    findings = examine(robot, bus.node("doctor"), 1.0, driver.wait, policy=policy)
    kinds: dict[str, list[str]] = {"ok": [], "note": [], "bad": []}
    for f in findings:
        kinds[f.kind].append(f.text)
    return kinds


def facts(spec: PolicySpec = LIFT) -> PolicyFacts:
    return PolicyFacts(spec=spec, fps=20.0, saved_control={"mode": "ee_delta", "pos_step": 0.03, "rot_step": 0.15})


def test_a_healthy_robot_has_nothing_in_the_way() -> None:
    kinds = found(policy=facts())
    assert kinds["bad"] == []
    text = "\n".join(kinds["ok"])
    assert "/joint_states: 200 messages, 200.0 Hz, longest gap 5 ms" in text
    assert "joints found by name, in another order than ours, among 8: panda_joint1 0.000" in text
    assert "/forward_position_controller/commands is read by /driver" in text
    assert "everything that the policy observes is there" in text


def test_a_twin_is_a_healthy_robot() -> None:
    bus = Bus()
    robot = load_robot("panda_twin", ["command.mode=joint_trajectory", "command.topic=/jtc/joint_trajectory"])
    robot.cameras = {}
    twin, plant = build_twin(robot, TwinCommand(latency_ms=20), bus.node("twin"))

    def wait(seconds: float) -> None:
        for _ in range(round(seconds * 200)):
            twin.tick()
            bus.advance(5 * MS)

    findings = examine(robot, bus.node("doctor"), 0.5, wait, policy=facts())
    plant.close()
    assert [f.text for f in findings if f.kind != "ok"] == []
    assert bus.topics["/jtc/joint_trajectory"][1][0].kind is JointTrajectory


def _set(**values: Any) -> Callable[[Robot], None]:
    def spoil(robot: Robot) -> None:
        for name, value in values.items():
            setattr(robot, name, value)

    return spoil


def _publish_commands_too(robot: Robot) -> None:
    robot.bus.node("other_policy").advertise("/forward_position_controller/commands", FloatArray)


def _want_latched_commands(robot: Robot) -> None:
    robot.bus.node("relay").subscribe("/forward_position_controller/commands", FloatArray, lambda m, t: None, LATCHED)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_set(names=(*NAMES, "hand_joint")), "/joint_states has no joint 'panda_finger_joint1'"),
        (_set(names=("panda_joint8", *NAMES[1:], "panda_finger_joint1")), "has no joint 'panda_joint3'. Did you mean"),
        (_set(position=np.full(8, -math.pi)), "every joint is at -pi"),
        (_set(position=np.array([np.nan, *HOME[:7]])), "positions that are no numbers"),
        (
            _set(position=np.array([*HOME[[2, 0, 1, 6, 4, 5]], 0.5, 0.04])),
            "'panda_joint4' is at 0.500, beyond its limits",
        ),
        (_set(every_ms=15), "66.7 Hz, longest gap 15 ms; expected 200 Hz (rate_hz of state)"),
        (_set(every_ms=150), "it counts as lost after 100 ms (max_age_s of state)"),
        (_set(frame="camera"), "/object_pose is given in camera; expected 'base'"),
        (_set(encoding="rgb88"), "unknown encoding 'rgb88'"),
        (_publish_commands_too, "is already published by /other_policy: two who command one arm"),
        (_want_latched_commands, "/relay: durability"),
    ],
)
def test_what_is_wrong_with_a_driver(spoil: Callable[[Robot], None], message: str) -> None:
    bad = found(spoil=spoil)["bad"]
    assert any(message in text for text in bad), bad


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["state.topic=/joint_state"], "nobody publishes /joint_state (state). Of sensor_msgs/msg/JointState: "),
        (["state.topic=/object_pose"], "/object_pose (state) is geometry_msgs/msg/PoseStamped; expected sensor_msgs"),
        (["cameras.front.compressed=true"], "is sensor_msgs/msg/Image; expected sensor_msgs/msg/CompressedImage"),
        (
            ["command.topic=/forward_controller/commands"],
            "nobody listens to /forward_controller/commands (arm): is the",
        ),
        (["command.mode=joint_trajectory"], "is read as std_msgs/msg/Float64MultiArray; expected trajectory_msgs"),
        (["values.goal.topic=/goal"], "nobody publishes /goal (goal)"),
    ],
)
def test_what_is_wrong_with_the_settings(words: list[str], message: str) -> None:
    robot = load_robot("panda_twin", words)
    robot.cameras.pop("wrist")
    bad = found(robot)["bad"]
    assert any(message in text for text in bad), bad


def test_what_is_wrong_with_the_policy() -> None:
    image = {"wrist": ArraySpec(shape=(48, 64, 3), dtype="uint8", role="observation")}
    bad = found(policy=facts(replace(LIFT, obs={**LIFT.obs, **image})))["bad"]
    assert any("observes 'wrist', which robot 'panda_twin' does not have" in text for text in bad), bad
    action = ArraySpec(shape=(6,), role="action", names=tuple(f"elbow_{i}" for i in range(6)))
    bad = found(policy=facts(replace(LIFT, action=action)))["bad"]
    assert any("elbow_0" in text for text in bad), bad


def test_what_the_policy_does_not_read_may_be_missing() -> None:
    robot = load_robot("panda_twin")  # with a camera that nobody publishes
    assert any("/wrist/image_raw" in text for text in found(robot)["bad"])
    assert found(robot, policy=facts())["bad"] == []


def test_a_clock_that_is_an_hour_off_is_told_and_allowed_for() -> None:
    kinds = found(offset_s=3600.0, policy=facts())
    assert kinds["bad"] == []
    assert any("3600.000 s ahead of ours" in text for text in kinds["note"])
    assert any("headers without a time" in text for text in found(spoil=_set(stamps=False))["note"])


def test_nothing_is_published() -> None:
    bus = Bus()
    driver = Robot(bus, ROBOT)
    doctor: Transport = bus.node("doctor")
    examine(ROBOT, doctor, 0.2, driver.wait, policy=facts())
    assert not any(e.node == "/doctor" for info in doctor.graph() for e in info.publishers)
    assert str(Finding("bad", "x")) == "bad   x"
