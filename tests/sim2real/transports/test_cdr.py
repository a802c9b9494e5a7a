"""The codec against rosbags, an independent implementation: the same bytes both ways, and no bytes that crash it."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from visuomotor.sim2real import messages as m
from visuomotor.sim2real.transports.cdr import CdrError, decode, encode
from visuomotor.sim2real.transports.definitions import definition_text, ros1_checksum, ros1_name, type_hash

GROUP = "interbotix_xs_msgs/msg/JointGroupCommand"
ROS2 = get_typestore(Stores.ROS2_JAZZY)
ROS1 = get_typestore(Stores.ROS1_NOETIC)
ROS2.register(get_types_from_msg("string name\nfloat32[] cmd", GROUP))
ROS1.register(get_types_from_msg("string name\nfloat32[] cmd", GROUP))
ROS1.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", "tf2_msgs/msg/TFMessage"))

numbers = st.floats(width=64)
few = settings(max_examples=25, deadline=None)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)
times = st.integers(0, 2**31 * 10**9 - 1)


def vectors(size: int | st.SearchStrategy[int], dtype: str = "f8") -> st.SearchStrategy[np.ndarray]:
    return arrays(dtype, size, elements={"allow_nan": True} if dtype[0] == "f" else None)


@st.composite
def headed(draw: Any, kind: type[m.Message], **values: st.SearchStrategy[Any]) -> m.Message:
    drawn = {name: draw(value) for name, value in values.items()}
    return kind(stamp_ns=draw(times), frame_id=draw(texts), **drawn)


@st.composite
def joint_states(draw: Any) -> m.JointState:
    names = draw(st.lists(texts, max_size=5).map(tuple))
    full = vectors(len(names)) | vectors(0)
    return draw(headed(m.JointState, name=st.just(names), position=full, velocity=full, effort=full))


@st.composite
def images(draw: Any) -> m.Image:
    height, step = draw(st.integers(0, 5)), draw(st.integers(0, 17))
    return draw(
        headed(
            m.Image, height=st.just(height), step=st.just(step), width=st.integers(0, 9), encoding=texts,
            data=vectors(height * step, "u1"), is_bigendian=st.booleans(),
        )
    )  # fmt: skip


@st.composite
def transforms(draw: Any) -> m.Transforms:
    poses = draw(st.lists(pose, max_size=3).map(tuple))
    return m.Transforms(poses=poses, children=tuple(draw(texts) for _ in poses))


pose = headed(m.Pose, position=vectors(3), q_xyzw=vectors(4))
sizes = st.integers(0, 4)
point = st.builds(
    m.TrajectoryPoint, time_from_start_ns=times, positions=vectors(sizes), velocities=vectors(sizes),
    accelerations=vectors(sizes),
)  # fmt: skip
MESSAGES: dict[type[m.Message], st.SearchStrategy[Any]] = {
    m.JointState: joint_states(),
    m.Image: images(),
    m.CompressedImage: headed(m.CompressedImage, format=texts, data=vectors(sizes, "u1")),
    m.Pose: pose,
    m.Twist: headed(m.Twist, linear=vectors(3), angular=vectors(3)),
    m.Wrench: headed(m.Wrench, force=vectors(3), torque=vectors(3)),
    m.FloatArray: st.builds(m.FloatArray, data=vectors(sizes)),
    m.Boolean: st.builds(m.Boolean, data=st.booleans()),
    m.Text: st.builds(m.Text, data=texts),
    m.JointTrajectory: headed(
        m.JointTrajectory,
        joint_names=st.lists(texts, max_size=3).map(tuple),
        points=st.lists(point, max_size=3).map(tuple),
    ),
    m.JointCommand: st.builds(m.JointCommand, name=texts, command=vectors(sizes, "f4")),
    m.Transforms: transforms(),
}  # fmt: skip
KINDS = pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
VERSIONS = pytest.mark.parametrize("ros1", [False, True], ids=["ros2", "ros1"])


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, tuple) else a == b


def reread(kind: type[m.Message], data: bytes, ros1: bool) -> bytes:
    """The bytes, read and written by rosbags."""
    name = m.ROS_NAMES[kind]
    if ros1:
        return bytes(ROS1.serialize_ros1(ROS1.deserialize_ros1(data, name), name))
    return bytes(ROS2.serialize_cdr(ROS2.deserialize_cdr(data, name), name))


def test_every_message_has_a_strategy_and_a_ros_name() -> None:
    assert set(MESSAGES) == set(m.ROS_NAMES)


@VERSIONS
@KINDS
@few
@given(data=st.data())
def test_bytes_are_those_of_rosbags(kind: type[m.Message], ros1: bool, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    written = encode(message, ros1=ros1)
    assert reread(kind, written, ros1) == written
    assert same(decode(kind, written, ros1=ros1), message)


@KINDS
@few
@given(data=st.data())
def test_big_endian_is_read(kind: type[m.Message], data: st.DataObject) -> None:
    message, name = data.draw(MESSAGES[kind]), m.ROS_NAMES[kind]
    swapped = bytes(ROS2.serialize_cdr(ROS2.deserialize_cdr(encode(message), name), name, little_endian=False))
    assert swapped[:2] == b"\0\0"
    assert same(decode(kind, swapped), message)


@VERSIONS
@KINDS
@few
@given(data=st.data())
def test_truncated_bytes_are_refused(kind: type[m.Message], ros1: bool, data: st.DataObject) -> None:
    written = encode(data.draw(MESSAGES[kind]), ros1=ros1)
    with pytest.raises(CdrError):
        decode(kind, written[: data.draw(st.integers(0, len(written) - 1))], ros1=ros1)


@VERSIONS
@KINDS
@few
@given(data=st.data(), noise=st.binary(max_size=64), at=st.integers(0, 80))
def test_damaged_bytes_are_a_message_or_refused(
    kind: type[m.Message], ros1: bool, data: st.DataObject, noise: bytes, at: int
) -> None:
    written = bytearray(encode(data.draw(MESSAGES[kind]), ros1=ros1))
    written[at : at + len(noise)] = noise
    with contextlib.suppress(CdrError):
        assert isinstance(decode(kind, bytes(written), ros1=ros1), kind)


@pytest.mark.parametrize("count", [2**32 - 1, 2**31, 10**8])
@KINDS
def test_an_absurd_length_allocates_nothing(kind: type[m.Message], count: int) -> None:
    body = struct.pack("<I", count) * 6
    with pytest.raises(CdrError):
        decode(kind, b"\0\1\0\0" + body) if kind is not m.Boolean else decode(kind, b"\0\1\0\0")


@pytest.mark.parametrize("header", [b"", b"\0", b"\0\1\0", b"\0\6\0\0", b"\0\7\0\0", b"\1\1\0\0"])
def test_other_encapsulations_are_refused(header: bytes) -> None:
    with pytest.raises(CdrError, match="encapsulation"):
        decode(m.Boolean, header + b"\1" if len(header) == 4 else header)


def test_a_picture_is_a_view_of_the_bytes() -> None:
    picture = m.Image(height=2, width=2, encoding="rgb8", step=6, data=np.arange(12, dtype=np.uint8))
    data = encode(picture)
    got = decode(m.Image, data).data
    assert not got.flags.owndata
    assert not got.flags.writeable
    assert np.shares_memory(got, np.frombuffer(data, np.uint8))


def test_what_does_not_fit_is_refused() -> None:
    for bad in (
        m.FloatArray(data=np.zeros((2, 2))),
        m.Pose(position=np.zeros(2), q_xyzw=np.zeros(4)),
        m.JointTrajectory(stamp_ns=2**63, joint_names=(), points=()),
        m.Text(data="\ud800"),
    ):
        with pytest.raises(CdrError):
            encode(bad)
    with pytest.raises(CdrError):
        encode(m.Pose(stamp_ns=-1, position=np.zeros(3), q_xyzw=np.zeros(4)), ros1=True)


def test_contradicting_arrays_are_refused() -> None:
    good = m.JointState(name=("a", "b"), position=np.zeros(2))
    name = m.ROS_NAMES[m.JointState]
    raw: Any = ROS2.deserialize_cdr(encode(good), name)
    raw.position = np.zeros(3)
    with pytest.raises(CdrError, match="2 joints with 3"):
        decode(m.JointState, bytes(ROS2.serialize_cdr(raw, name)))


def test_padding_at_the_end() -> None:
    assert encode(m.Boolean(data=True)) == b"\0\1\0\0\1"
    assert encode(m.Boolean(data=True), multiple=4) == b"\0\1\0\0\1\0\0\0"
    assert decode(m.Boolean, b"\0\1\0\0\1\0\0\0").data


@KINDS
def test_hashes_checksums_and_texts_are_those_of_rosbags(kind: type[m.Message]) -> None:
    name = m.ROS_NAMES[kind]
    assert type_hash(name) == ROS2.hash_rihs01(name)
    assert ros1_checksum(name) == ROS1.generate_msgdef(name)[1]
    assert ROS1.generate_msgdef(name)[0].split() == definition_text(name, ros1=True).split()
    parsed = get_types_from_msg(definition_text(name), name)
    assert {t: ROS2.fielddefs[t] for t in parsed} == parsed
    assert ros1_name(name).count("/") == 1


def test_the_hash_that_rclpy_itself_reports() -> None:
    assert type_hash("sensor_msgs/msg/JointState") == (
        "RIHS01_a13ee3a330e346c9d87b5aa18d24e11690752bd33a0350f11c5882bc9179260e"
    )
