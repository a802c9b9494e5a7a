"""Streams, clocks, pictures and observations."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from arm_rig import MS, robot
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.errors import CheckpointError, DataError
from visuomotor.data.rotations import rot6d_to_matrix
from visuomotor.data.spec import ArraySpec
from visuomotor.sim2real.messages import CompressedImage, FloatArray, Image, JointState, Pose, Transforms
from visuomotor.sim2real.robots.config import CameraStream, GripperConfig, ValueStream
from visuomotor.sim2real.runtime.build import describe_arm
from visuomotor.sim2real.runtime.camera import CameraReader
from visuomotor.sim2real.runtime.images import fitted, pixels
from visuomotor.sim2real.runtime.observer import Observer
from visuomotor.sim2real.runtime.streams import HeaderClock, Inbox, JointHistory, Track
from visuomotor.sim2real.transports.inproc import Bus, InprocTransport

HOUR = 3600 * 1_000_000_000


@given(st.lists(st.integers(0, 20 * MS), min_size=5, max_size=40), st.sampled_from([0, HOUR, -HOUR]))
@settings(max_examples=50, deadline=None)
def test_the_clock_of_headers_is_found_by_the_fastest_message(delays: list[int], offset: int) -> None:
    clock = HeaderClock()
    for i, delay in enumerate(delays):
        true = 10**12 + i * 10 * MS
        event = clock.event_ns(true + offset, true + delay)
        assert event - true == min(delays[: i + 1])  # what the fastest way took cannot be told from the offset


def test_an_offset_is_forgotten_after_half_a_minute_and_latency_is_taken_off() -> None:
    clock = HeaderClock(latency_s=0.05)
    clock.event_ns(10**12, 10**12 + MS)
    later = 10**12 + 31 * 1_000_000_000
    assert clock.event_ns(later, later + 5 * MS) == later + 5 * MS - 50 * MS
    assert clock.event_ns(0, later) == later - 50 * MS


def test_a_track_interpolates_and_holds_at_its_ends() -> None:
    track = Track()
    assert track.put(10, np.array([0.0]))
    assert track.put(20, np.array([1.0]))
    assert not track.put(20, np.array([5.0]))
    assert not track.put(15, np.array([5.0]))
    assert [float(track.at(t)[0]) for t in (5, 10, 12, 20, 99)] == [0.0, 0.0, 0.2, 1.0, 1.0]
    track.put(20 + 3_000_000_000, np.array([2.0]))
    assert float(track.at(0)[0]) == 2.0  # the others are too old to be kept


def history(speed: float = 2.0) -> JointHistory:
    return JointHistory(("a", "b"), np.full(2, speed), HeaderClock(), 0.5)


def test_joints_by_name_and_velocities_from_differences_where_none_come() -> None:
    h = history()
    names, none = ("b", "x", "a"), np.zeros(0)
    assert h.put(names, np.array([2.0, 9.0, 1.0]), none, 100 * MS, 100 * MS) == ""
    assert h.put(names, np.array([2.01, 9.0, 1.0]), none, 110 * MS, 110 * MS) == ""
    np.testing.assert_allclose(h.track.newest, [1.0, 2.01, 0.0, 1.0])
    assert h.put(names, np.array([2.0, 9.0, 1.0]), np.array([0.2, 0.0, 0.1]), 120 * MS, 120 * MS) == ""
    np.testing.assert_allclose(h.track.newest, [1.0, 2.0, 0.1, 0.2])


def test_what_is_not_believed() -> None:
    h = history()
    names, none = ("a", "b"), np.zeros(0)
    assert h.put(("other",), np.zeros(1), none, 1, 1) == ""  # of another node: no complaint, and no state
    assert not h.track.newest_ns
    assert "no joint 'b'" in h.put(("a", "c"), np.zeros(2), none, MS, MS)
    assert h.put(names, np.zeros(2), none, 100 * MS, 100 * MS) == ""
    assert "a jump: b by 1.000 rad in 10.0 ms" in h.put(names, np.array([0.0, 1.0]), none, 110 * MS, 110 * MS)
    assert "no number: a" in h.put(names, np.array([np.nan, 0.0]), none, 120 * MS, 120 * MS)
    assert "does not increase" in h.put(names, np.zeros(2), none, 100 * MS, 130 * MS)
    assert h.believed_ns == 100 * MS
    assert h.put(names, np.ones(2), none, 700 * MS, 700 * MS) == ""  # it is there, and nothing else has come
    assert sum(h.refused.values()) == 4


def test_an_inbox_counts_the_rate_of_the_last_second() -> None:
    inbox: Inbox[FloatArray] = Inbox()
    for i in range(30):
        inbox.put(FloatArray(data=np.zeros(1)), i * 50 * MS)
    assert inbox.rate_hz(1450 * MS) == 20.0
    assert len(inbox.take()) == 30
    assert inbox.take() == []


# ---- pictures


def image(encoding: str, rows: np.ndarray, padding: int = 0, **others: Any) -> Image:
    flat = rows.reshape(rows.shape[0], -1).view(np.uint8)
    data = np.pad(flat, ((0, 0), (0, padding)))
    width = others.pop("width", rows.shape[1])
    return Image(height=len(rows), width=width, encoding=encoding, step=data.shape[1], data=data.reshape(-1), **others)


COLOURS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("padding", [0, 5])
def test_colours_come_out_in_the_order_of_rgb(padding: int) -> None:
    alpha = np.full((6, 8, 1), 9, np.uint8)
    for encoding, rows in {
        "rgb8": COLOURS,
        "bgr8": COLOURS[..., ::-1],
        "rgba8": np.concatenate([COLOURS, alpha], 2),
        "bgra8": np.concatenate([COLOURS[..., ::-1], alpha], 2),
    }.items():
        np.testing.assert_array_equal(pixels(image(encoding, np.ascontiguousarray(rows), padding)), COLOURS)
    grey = COLOURS[..., 0].copy()
    np.testing.assert_array_equal(pixels(image("mono8", grey, padding)), np.repeat(grey[..., None], 3, 2))


def test_yuv_422_of_a_grey_picture_is_grey() -> None:
    y = np.full((4, 8), 126, np.uint8)
    for encoding, order in (("yuv422", (1, 0)), ("yuv422_yuy2", (0, 1))):
        rows = np.zeros((4, 8, 2), np.uint8)
        rows[..., order[0]], rows[..., order[1]] = y, 128
        got = pixels(image(encoding, rows, width=8))
        assert got.shape == (4, 8, 3)
        assert np.ptp(got) <= 1  # BT.601: 1.164 (126 - 16) = 128
        assert abs(int(got[0, 0, 0]) - 128) <= 1


def test_compressed_pictures_and_bytes_that_are_none() -> None:
    smooth = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    data = cv2.imencode(".jpg", smooth[..., ::-1])[1].reshape(-1)
    got = pixels(CompressedImage(format="jpeg", data=data))
    assert np.abs(got.astype(int) - smooth).max() <= 3
    with pytest.raises(DataError, match="are no picture"):
        pixels(CompressedImage(format="jpeg", data=np.zeros(20, np.uint8)))
    with pytest.raises(DataError, match=r"unknown encoding 'rgb9'\. Did you mean 'rgb8'"):
        pixels(image("rgb9", COLOURS))
    with pytest.raises(DataError, match="too few for 9 x 6"):
        pixels(image("rgb8", COLOURS, width=9))


def test_a_picture_of_nothing_does_not_end_the_thread_that_decodes() -> None:
    bus, empty = Bus(), np.zeros(0, np.uint8)
    spec = ArraySpec(shape=(4, 6, 3), role="observation", dtype="uint8")
    for compressed in (False, True):
        topic = f"/camera{int(compressed)}"
        stream = CameraStream(topic=topic, compressed=compressed)
        camera = CameraReader("front", stream, spec, bus.node("bridge"), threaded=False)
        node = bus.node("camera")
        if compressed:
            node.advertise(topic, CompressedImage).publish(CompressedImage(stamp_ns=1, format="jpeg", data=empty))
        else:
            node.advertise(topic, Image).publish(
                Image(stamp_ns=1, height=0, width=0, encoding="bgr8", step=0, data=empty)
            )
        bus.advance(5 * MS)
        assert camera.received == 1
        assert camera.believed_ns == 0
        assert topic in camera.trouble


def test_depth_comes_in_metres_and_millimetres_in_either_byte_order() -> None:
    mm = np.arange(64, dtype=np.uint16).reshape(8, 8) * 100
    metres = ArraySpec(shape=(8, 8, 1), unit="m")
    np.testing.assert_allclose(fitted(pixels(image("16UC1", mm)), metres)[..., 0], mm / 1000, rtol=1e-6)
    swapped = image("16UC1", mm.astype(">u2"), is_bigendian=True)
    np.testing.assert_array_equal(pixels(swapped), mm)
    floats = (mm / 1000).astype(np.float32)
    in_mm = ArraySpec(shape=(8, 8, 1), unit="mm")
    np.testing.assert_allclose(fitted(pixels(image("32FC1", floats)), in_mm)[..., 0], mm, rtol=1e-5)
    with pytest.raises(DataError, match="the policy sees distances, the camera sends colours"):
        fitted(COLOURS, metres)


def test_pictures_are_cropped_to_the_proportions_and_resized() -> None:
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 200
    spec = ArraySpec(shape=(20, 20, 3), dtype="uint8")
    assert (fitted(wide, spec) == 200).all()  # the middle
    assert (fitted(wide, spec, [0, 0, 20, 20]) == 0).all()
    grey = ArraySpec(shape=(20, 20, 1), dtype="uint8")
    assert fitted(wide, grey).shape == (20, 20, 1)


# ---- observations


def listening(obs: dict[str, ArraySpec], **others: Any) -> tuple[Bus, InprocTransport, Observer]:
    bus = Bus()
    sources = others.pop("sources", None)
    config = robot(**others)
    arm, limits = describe_arm(config)
    observer = Observer(config, arm, obs, limits.velocity, bus.node("bridge"), sources=sources, threaded=False)
    return bus, bus.node("robot"), observer


def say(bus: Bus, node: InprocTransport, q: float, at_ns: int) -> None:
    bus.advance(at_ns - bus.now_ns)
    names = ("lift", "pan", "elbow", "finger")
    position = np.array([q, q, q, 0.02])
    publisher = node.advertise("/joint_states", JointState)
    publisher.publish(JointState(stamp_ns=node.stamp_ns(), name=names, position=position, velocity=np.zeros(4)))
    bus.advance(0)


def test_joints_are_interpolated_to_the_time_of_the_camera() -> None:
    obs = {"joint_pos": ArraySpec(shape=(3,)), "front": ArraySpec(shape=(8, 8, 3), dtype="uint8")}
    bus, node, observer = listening(obs, cameras={"front": CameraStream(topic="/front", frozen_s=0.2)})
    pictures = node.advertise("/front", Image)
    rows = np.full((8, 8, 3), 7, np.uint8)
    say(bus, node, 0.0, 100 * MS)
    assert "/front: no message yet" in observer.missing()
    stamp = node.stamp_ns() + 5 * MS  # taken between two joint states, received after the second
    say(bus, node, 0.02, 110 * MS)
    pictures.publish(Image(stamp_ns=stamp, height=8, width=8, encoding="rgb8", step=24, data=rows.reshape(-1)))
    bus.advance(0)
    observer.poll()
    assert observer.missing() == []
    seen = observer.observe(bus.now_ns, step=3, episode=1, seed=9)
    assert (seen.step, seen.episode, seen.seed) == (3, 1, 9)
    np.testing.assert_array_equal(seen.values["front"], rows)
    # a single picture: its way is taken to be instant, so it counts as taken when it came
    np.testing.assert_allclose(seen.values["joint_pos"], 0.02, atol=1e-6)
    stamp += 20 * MS
    say(bus, node, 0.04, 120 * MS)
    say(bus, node, 0.08, 140 * MS)
    pictures.publish(Image(stamp_ns=stamp, height=8, width=8, encoding="rgb8", step=24, data=rows.reshape(-1)))
    bus.advance(0)
    observer.poll()
    # 5 ms of delay more than the fastest: taken at 130 ms, between 0.04 and 0.08
    seen = observer.observe(bus.now_ns, step=0, episode=0, seed=0)
    np.testing.assert_allclose(seen.values["joint_pos"], 0.06, atol=1e-6)
    age, limit = observer.ages(bus.now_ns + 150 * MS)["front (change of the picture)"]
    assert (round(age, 3), limit) == (0.18, 0.2)  # the same picture twice: frozen since 110 ms
    assert observer.rates_hz(bus.now_ns) == {"state": 4.0, "front": 2.0}


def test_values_of_an_estimator_in_the_frame_that_was_asked_for() -> None:
    obs = {"object": ArraySpec(shape=(9,))}
    stream = ValueStream(topic="/object", type="pose", fields=["position", "rot6d"], frame="base")
    bus, node, observer = listening(obs, values={"object": stream})
    poses = node.advertise("/object", Pose)
    say(bus, node, 0.0, 10 * MS)
    half = np.array([0.0, 0.0, 1.0, 0.0])  # half a turn about z
    for frame, expected in (("world", "is given in frame 'world', expected 'base'"), ("base", "")):
        message = Pose(stamp_ns=node.stamp_ns(), frame_id=frame, position=np.array([1.0, 2.0, 3.0]), q_xyzw=half)
        poses.publish(message)
        bus.advance(MS)
        observer.poll()
        assert expected in "".join(observer.missing())
    got = observer.observe(bus.now_ns, step=0, episode=0, seed=0).values["object"]
    np.testing.assert_allclose(got, [1, 2, 3, -1, 0, 0, 0, -1, 0], atol=1e-6)
    assert got.dtype == np.float32


def test_a_rotation_between_two_messages_is_a_rotation() -> None:
    obs = {"object": ArraySpec(shape=(6,))}
    stream = ValueStream(topic="/tf", type="transform", fields=["rot6d"], frame="base", child="cube")
    bus, node, observer = listening(obs, values={"object": stream})
    tf = node.advertise("/tf", Transforms)
    for at, angle in ((10 * MS, 0.0), (30 * MS, 1.0)):
        bus.advance(at - bus.now_ns)
        q = np.array([0, 0, np.sin(angle / 2), np.cos(angle / 2)])
        other = Pose(frame_id="base", position=np.zeros(3), q_xyzw=np.array([0, 0, 0, 1.0]))
        mine = Pose(stamp_ns=node.stamp_ns(), frame_id="base", position=np.zeros(3), q_xyzw=q)
        tf.publish(Transforms(poses=(other, mine), children=("table", "cube")))
        bus.advance(0)
    say(bus, node, 0.0, 40 * MS)
    observer.poll()
    value = observer._values["object"].at(20 * MS)
    R = rot6d_to_matrix(value.astype(np.float64))
    np.testing.assert_allclose(value[:3], [np.cos(0.5), -np.sin(0.5), 0], atol=1e-6)
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-6)


def test_the_gripper_is_measured_by_its_own_joint_or_taken_as_commanded() -> None:
    grip = GripperConfig(joint="finger", opened=0.04, closed=0.0, topic="/grip")
    bus, node, observer = listening({"gripper": ArraySpec(shape=(1,))}, gripper=grip)
    say(bus, node, 0.0, 10 * MS)
    observer.poll()
    assert observer.observe(bus.now_ns, step=0, episode=0, seed=0).values["gripper"] == pytest.approx([0.5])
    blind = GripperConfig(topic="/grip")
    bus, node, observer = listening({"gripper": ArraySpec(shape=(1,))}, gripper=blind)
    say(bus, node, 0.0, 10 * MS)
    observer.poll()
    observer.note_opening(0.25)
    assert observer.observe(bus.now_ns, step=0, episode=0, seed=0).values["gripper"] == pytest.approx([0.25])


def test_observations_made_of_several() -> None:
    grip = GripperConfig(joint="finger", opened=0.04, closed=0.0, topic="/grip")
    sources = {"qpos": ["joint_pos", "gripper"]}
    bus, node, observer = listening({"qpos": ArraySpec(shape=(4,))}, gripper=grip, sources=sources)
    say(bus, node, 0.3, 10 * MS)
    observer.poll()
    got = observer.observe(bus.now_ns, step=0, episode=0, seed=0).values["qpos"]
    np.testing.assert_allclose(got, [0.3, 0.3, 0.3, 0.5])


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ({"joint_poss": ArraySpec(shape=(3,))}, "'joint_poss', which robot 'rig' does not have. .*'joint_pos'"),
        ({"gripper": ArraySpec(shape=(1,))}, "'gripper', which robot 'rig' does not have"),
        ({"tcp_pos": ArraySpec(shape=(3,))}, "takes a model of the arm"),
        ({"joint_pos": ArraySpec(shape=(7,))}, "expects 7 joints, the robot has 3"),
        ({"joint_pos": ArraySpec(shape=(3,), names=("a", "b", "c"))}, "expects the joints a, b, c"),
        ({"joint_vel": ArraySpec(shape=(3,), names=("pan", "lift", "elbow"), unit="deg/s")}, "expects deg/s"),
    ],
)
def test_what_the_robot_cannot_show_is_refused_at_the_start(obs: dict[str, ArraySpec], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        listening(obs)
