"""What the twin's controllers do with commands, and what is held against them."""

from __future__ import annotations

import numpy as np

from visuomotor.data.rotations import matrix_to_quat
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.messages import FloatArray, JointCommand, JointTrajectory, Pose, TrajectoryPoint, Twist
from visuomotor.sim2real.robots.config import CommandConfig
from visuomotor.sim2real.safety.config import ArmLimits
from visuomotor.sim2real.twin.cartesian import HandPose, HandTwist
from visuomotor.sim2real.twin.controllers import ForwardPosition, ForwardVelocity, JointGroup, Trajectory
from visuomotor.sim2real.twin.trajectory import sorted_knots
from visuomotor.sim2real.twin.watch import CommandWatch

MS = 1_000_000
ZERO = np.zeros(2)
LIMITS = ArmLimits(
    low=np.array([-1.0, -1.0]), high=np.array([1.0, 1.0]), velocity=np.array([1.0, 2.0]),
    acceleration=np.array([10.0, 10.0]), jerk=np.array([100.0, 100.0]),
)  # fmt: skip


def line(*positions: float, dt_ms: int = 100, first_ms: int = 0, speed: float = 0.0) -> JointTrajectory:
    last = len(positions) - 1
    return JointTrajectory(
        joint_names=("a", "b"),
        points=tuple(
            TrajectoryPoint(
                time_from_start_ns=(first_ms + i * dt_ms) * MS,
                positions=np.array([p, 0.0]),
                velocities=np.array([0.0 if i == last else speed, 0.0]),
            )
            for i, p in enumerate(positions)
        ),
    )


def test_a_forward_controller_jumps_and_holds() -> None:
    c = ForwardPosition(("a", "b"))
    c.reset(np.array([0.5, 0.5]))
    assert c.sample(0).tolist() == [0.5, 0.5]
    assert c.receive(FloatArray(data=np.array([1.0, 9.0])), 0, 0, ZERO, ZERO) == ""
    assert c.sample(10**12).tolist() == [1, 9]
    assert "2 joints" in c.receive(FloatArray(data=np.zeros(3)), 0, 0, ZERO, ZERO)
    assert "not finite" in c.receive(FloatArray(data=np.array([0, np.nan])), 0, 0, ZERO, ZERO)
    assert c.sample(10**12).tolist() == [1, 9]


def test_a_joint_group_takes_its_own_group_only() -> None:
    c = JointGroup(("a", "b"), "arm")
    assert c.receive(JointCommand(name="legs", command=ZERO), 0, 0, ZERO, ZERO) == "group 'legs'; there is 'arm'"
    assert c.receive(JointCommand(name="arm", command=np.ones(2, np.float32)), 0, 0, ZERO, ZERO) == ""
    assert c.sample(0).tolist() == [1, 1]


def test_velocities_stop_after_the_timeout() -> None:
    c = ForwardVelocity(("a", "b"), timeout_s=0.05)
    c.reset(ZERO)
    c.sample(1)
    c.receive(FloatArray(data=np.array([1.0, -2.0])), 1, 0, ZERO, ZERO)
    for t in range(10, 210, 10):
        q = c.sample(1 + t * MS)
    np.testing.assert_allclose(q, [0.05, -0.1], atol=1e-9)  # 50 ms of both


def test_a_trajectory_replaces_the_running_one_at_once() -> None:
    c = Trajectory(("a", "b"))
    c.reset(ZERO)
    c.receive(line(0.0, 1.0, speed=10.0), 0, 0, ZERO, ZERO)
    assert 0.4 < c.sample(50 * MS)[0] < 0.9
    c.receive(line(0.7, 0.7), 50 * MS, 0, ZERO, ZERO)
    assert c.sample(50 * MS)[0] == 0.7
    assert c.sample(10_000 * MS)[0] == 0.7


def test_a_trajectory_that_begins_later_is_joined_to_the_measured_position() -> None:
    c = Trajectory(("a", "b"))
    c.reset(ZERO)
    measured = np.array([0.2, 0.0])
    assert c.receive(line(1.0, first_ms=100), 0, 0, measured, ZERO) == ""
    np.testing.assert_allclose(c.sample(0), measured)
    np.testing.assert_allclose(c.sample(50 * MS), [0.6, 0.0])  # half of the way, from rest to rest
    np.testing.assert_allclose(c.sample(100 * MS), [1.0, 0.0])
    later = line(0.0, 1.0)
    later.stamp_ns = 1_000_000 * MS + 300 * MS  # the headers' clock is at 1000 s
    c.receive(later, 0, 1_000_000 * MS, measured, ZERO)
    assert c.sample(300 * MS)[0] == 0.0
    np.testing.assert_allclose(c.sample(350 * MS), [0.5, 0.0])


def test_the_hand_goes_where_it_is_told() -> None:
    kinematics = Kinematics.load("ur5e")
    assert kinematics.home is not None
    config = CommandConfig(mode="pose", group="base")
    pose = HandPose(kinematics.joints, config, kinematics)
    pose.reset(kinematics.home)
    pos, rot = kinematics.pose(kinematics.home)
    half = np.sqrt(0.5)
    goal = Pose(frame_id="base", position=pos + 0.05, q_xyzw=matrix_to_quat(rot)[[1, 2, 3, 0]])
    assert pose.receive(goal, 0, 0, ZERO, ZERO) == ""
    for _ in range(50):
        q = pose.sample(0)
    np.testing.assert_allclose(kinematics.pose(q)[0], pos + 0.05, atol=1e-4)
    goal.frame_id = "tool0"
    assert pose.receive(goal, 0, 0, ZERO, ZERO) == "frame 'tool0'; expected 'base'"
    long = Pose(frame_id="base", position=pos, q_xyzw=np.array([half, half, half, 0.0]))
    assert "has length 1.2" in pose.receive(long, 0, 0, ZERO, ZERO)
    twist = HandTwist(kinematics.joints, CommandConfig(mode="twist", group="base", timeout_s=0.1), kinematics)
    twist.reset(kinematics.home)
    twist.sample(1)
    twist.receive(Twist(frame_id="base", linear=np.array([0.0, 0.0, 0.1]), angular=np.zeros(3)), 1, 0, ZERO, ZERO)
    for t in range(5, 505, 5):
        q = twist.sample(1 + t * MS)
    np.testing.assert_allclose(kinematics.pose(q)[0] - pos, [0, 0, 0.01], atol=2e-4)  # 0.1 s of it
    bad = Twist(frame_id="base", linear=np.array([0.0, 0.0, np.nan]), angular=np.zeros(3))
    assert "not finite" in twist.receive(bad, 1, 0, ZERO, ZERO)


def watched(*commands: float, every_ms: int = 10, period_s: float = 0.01) -> dict[str, int]:
    watch = CommandWatch(LIMITS, period_s)
    for i, q in enumerate(commands):
        watch.position(np.array([q, 0.0]), i * every_ms * MS)
    return watch.violations.count


def test_positions_rates_and_what_is_lost() -> None:
    ramp = [0.0, 0.0005, 0.0015, 0.003, 0.005]  # 1, 2, 3, 4 steps of 5 rad/s^2
    assert watched(*ramp) == {}
    assert watched(0.0, 0.009, 0.018) == {}  # 0.9 rad/s of 1
    assert watched(0.0, 0.011) == {"velocity": 1}  # 1.1
    assert watched(0.0, 0.0, 0.0015) == {"acceleration": 1}  # 15 rad/s^2 of 10
    assert watched(1.0, 1.001) == {"position": 1}
    assert watched(0.0, 0.018, every_ms=20) == {}  # one between them was lost
    assert watched(0.0, 0.018, every_ms=12) == {}  # the same, after one that was read late
    assert watched(0.0, 0.009, 0.018, every_ms=1) == {}  # a late one arrives with the next
    assert watched(0.0, 0.009, 0.018, every_ms=17) == {}  # all are late: none was lost


def test_the_worst_is_a_multiple_of_the_limit() -> None:
    watch = CommandWatch(LIMITS, 0.01)
    watch.position(ZERO, 0)
    watch.position(np.array([0.0, 0.05]), 10 * MS)  # 5 rad/s of 2
    np.testing.assert_allclose(watch.violations.worst["velocity"], 2.5)
    assert str(watch.violations) == "1 x velocity (at worst 2.5 of the limit)"
    assert watch.violations.total == 1


def test_a_trajectory_is_judged_between_its_points_and_where_it_begins() -> None:
    def judged(message: JointTrajectory, desired: float = 0.0) -> dict[str, int]:
        watch = CommandWatch(LIMITS, 0.02)
        knots = sorted_knots(message, ("a", "b"))
        watch.trajectory(knots, knots.positions[0], np.array([desired, 0.0]))
        return watch.violations.count

    assert judged(line(0.0, 0.1, dt_ms=400)) == {}  # 0.375 rad/s, 3.75 rad/s^2
    assert judged(line(0.0, 0.5, dt_ms=400)) == {"velocity": 1, "acceleration": 1}  # 1.9 rad/s, 19 rad/s^2
    assert judged(line(0.0, 0.018, 0.036, 0.045, dt_ms=50, speed=0.36)) == {}  # 7.2 rad/s^2 at its end
    assert judged(line(0.0, 0.03, 0.045, dt_ms=50, speed=0.6)) == {"acceleration": 1}  # 12 rad/s^2
    assert judged(line(0.0, 0.1, dt_ms=400), desired=0.019) == {}
    assert judged(line(0.0, 0.1, dt_ms=400), desired=0.03) == {"jump": 1}  # more than 1 rad/s x 20 ms
    assert judged(line(0.95, 1.05, dt_ms=400), desired=0.95) == {"position": 1}
