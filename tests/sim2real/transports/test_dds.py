"""DDS between two participants of our own: refusals, damaged bytes, leaving, and what others are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from ros_harness import free_domain, until

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.messages import FloatArray, Image, JointState, Text
from visuomotor.sim2real.transports.base import COMMAND, LATCHED, SENSOR, Transport
from visuomotor.sim2real.transports.buffers import Encoder
from visuomotor.sim2real.transports.cdr import CdrError, encode
from visuomotor.sim2real.transports.dds import DdsTransport
from visuomotor.sim2real.transports.graph import cyclone_settings, owners_from, owners_to_bytes, ros_topic, ros_type


@pytest.fixture
def domain() -> int:
    return free_domain()


@pytest.fixture
def pair(domain: int) -> Iterator[tuple[DdsTransport, DdsTransport]]:
    bridge, robot = DdsTransport("bridge", domain), DdsTransport("robot", domain)
    yield bridge, robot
    bridge.close()
    robot.close()


def test_qualities_that_do_not_fit_are_named_on_both_sides(pair: tuple[Transport, Transport]) -> None:
    bridge, robot = pair
    out = robot.advertise("/state", JointState, SENSOR)
    reliable = bridge.subscribe("/state", JointState, lambda m, t: None, COMMAND)
    latched = bridge.subscribe("/state", JointState, lambda m, t: None, LATCHED)
    until(lambda: "reliability" in reliable.incompatible, what="the refusal")
    until(lambda: latched.incompatible, what="the other refusal")
    assert out.incompatible
    assert out.matched() == 0


def test_latched_messages_wait_for_who_comes_late(pair: tuple[Transport, Transport]) -> None:
    bridge, robot = pair
    out, heard = robot.advertise("/description", Text, LATCHED), []
    out.publish(Text(data="old"))
    out.publish(Text(data="new"))
    bridge.subscribe("/description", Text, lambda m, t: heard.append(m.data), LATCHED)
    until(lambda: heard, what="the latched message")
    assert heard == ["new"]


def test_what_is_no_message_is_counted_and_the_stream_goes_on(pair: tuple[DdsTransport, DdsTransport]) -> None:
    bridge, robot = pair
    heard: list[list[float]] = []
    stream = bridge.subscribe("/x", JointState, lambda m, t: heard.append(m.position.tolist()), COMMAND)
    out = robot.advertise("/x", JointState)
    until(out.matched, what="the connection")
    good = encode(JointState(frame_id="base", name=("a",), position=np.array([1.0])))
    # Cyclone itself drops what does not have the structure; these have it
    two = Encoder()
    two.header(Text(data=""))
    two.strings(["a"])
    for size in (2, 0, 0):
        two.array(np.zeros(size))
    for damaged in (good.replace(b"base", b"\xff\xff\xff\xff"), two.finish(4)):
        out.send(damaged)  # type: ignore[attr-defined]
        time.sleep(0.02)
    out.send(good)  # type: ignore[attr-defined]
    until(lambda: heard, what="the good message")
    assert heard == [[1.0]]
    assert (stream.received, stream.undecodable) == (1, 2)


def test_what_does_not_fit_is_refused_when_published(pair: tuple[Transport, Transport]) -> None:
    with pytest.raises(CdrError):
        pair[0].advertise("/x", FloatArray).publish(FloatArray(data=np.zeros((2, 2))))


def test_pictures_arrive_whole(pair: tuple[Transport, Transport]) -> None:
    bridge, robot = pair
    heard: list[Image] = []
    bridge.subscribe("/camera/image_raw", Image, lambda m, t: heard.append(m))
    out = robot.advertise("/camera/image_raw", Image, SENSOR)
    until(out.matched, what="the connection")
    pixels = np.random.default_rng(0).integers(0, 256, 480 * 1920, dtype=np.uint8)
    for _ in range(20):
        out.publish(Image(stamp_ns=5, height=480, width=640, encoding="rgb8", step=1920, data=pixels))
        time.sleep(0.02)
    until(lambda: heard, what="a picture")
    assert np.array_equal(heard[-1].data, pixels)
    assert heard[-1].stamp_ns == 5


def test_who_leaves_is_gone_at_once_and_hears_nothing_more(domain: int) -> None:
    threads = threading.active_count()
    bridge, robot = DdsTransport("bridge", domain), DdsTransport("robot", domain)
    heard: list[str] = []
    bridge.subscribe("/x", Text, lambda m, t: heard.append(m.data), COMMAND)
    out = robot.advertise("/x", Text)
    until(out.matched, what="the connection")
    bridge.close()
    bridge.close()
    until(lambda: not out.matched(), timeout_s=3, what="leaving")
    assert not any(topic.subscribers for topic in robot.graph() if topic.topic == "/x")
    out.publish(Text(data="too late"))
    robot.close()
    out.publish(Text(data="from nobody"))
    assert (heard, out.matched()) == ([], 0)
    assert threading.active_count() == threads
    DdsTransport("again", domain).close()


def test_the_graph_shows_types_qualities_and_owners(pair: tuple[Transport, Transport]) -> None:
    bridge, robot = pair
    robot.advertise("/state", JointState, SENSOR)
    robot.subscribe("/command", FloatArray, lambda m, t: None, COMMAND)
    bridge.advertise("/command", Text)  # of another type: not connected, but seen

    def complete() -> bool:
        return {e.node for t in bridge.graph() for e in (*t.publishers, *t.subscribers)} == {"/bridge", "/robot"}

    until(complete, what="owners")
    command, state = bridge.graph()
    assert (command.topic, state.topic) == ("/command", "/state")
    assert [e.ros_type for e in command.publishers] == ["std_msgs/msg/String"]
    assert [e.ros_type for e in command.subscribers] == ["std_msgs/msg/Float64MultiArray"]
    assert state.publishers[0].qos is not None
    assert not state.publishers[0].qos.reliable


def test_another_publisher_of_the_same_topic_is_counted(pair: tuple[Transport, Transport]) -> None:
    bridge, other = pair
    out = bridge.advertise("/command", FloatArray)
    until(lambda: any(t.topic == "/command" for t in bridge.graph()), what="our own announcement")
    assert out.rivals() == 0
    other.advertise("/command", FloatArray)
    until(lambda: out.rivals() == 1, what="the other's announcement")
    other.close()
    until(lambda: out.rivals() == 0, what="leaving")


def test_domains_do_not_hear_each_other(domain: int) -> None:
    bridge, other = DdsTransport("bridge", domain), DdsTransport("robot", free_domain())
    heard: list[str] = []
    bridge.subscribe("/x", Text, lambda m, t: heard.append(m.data))
    out = other.advertise("/x", Text)
    for _ in range(20):
        out.publish(Text(data="a"))
        time.sleep(0.02)
    assert (heard, out.matched()) == ([], 0)
    bridge.close()
    other.close()


def test_settings_that_cannot_be_are_refused(pair: tuple[DdsTransport, DdsTransport], domain: int) -> None:
    with pytest.raises(ConfigError, match=r"eth99.*interfaces: .*lo"):
        DdsTransport("x", free_domain(), "eth99")
    with pytest.raises(ConfigError, match="already uses domain"):
        DdsTransport("x", domain, "lo", ["192.0.2.7"])
    with pytest.raises(ConfigError, match="joint_states' is no topic"):
        pair[0].advertise("joint_states", JointState)
    for bad in ("/", "/a b", "/a//b", "/1", "/a/", ""):
        with pytest.raises(ConfigError, match="no topic"):
            pair[0].subscribe(bad, JointState, lambda m, t: None)


def test_cyclone_settings() -> None:
    assert 'name="lo" multicast="false"' in cyclone_settings("lo", [])
    assert 'Address="127.0.0.1"' in cyclone_settings("lo", [])
    assert 'name="eth0"' in cyclone_settings("eth0", [])
    assert 'address="192.0.2.2"' in cyclone_settings("192.0.2.2", ["robot"])
    assert '<Peer Address="robot"/>' in cyclone_settings("192.0.2.2", ["robot"])
    assert '"a&quot;b"' in cyclone_settings("eth0", ['a"b']) or "'a\"b'" in cyclone_settings("eth0", ['a"b'])


def test_owners_and_names() -> None:
    a, b, c = (bytes([i] * 16) for i in (1, 2, 3))
    data = owners_to_bytes(a, "bridge", [b], [c])
    assert owners_from(data) == {b: "/bridge", c: "/bridge"}
    for size in range(4, len(data) - 3):
        with pytest.raises(CdrError):
            owners_from(data[:size])
    assert ros_topic("rt/a/b") == "/a/b"
    assert ros_topic("rq/a/bRequest") is None
    assert ros_type("std_msgs::msg::dds_::Bool_") == "std_msgs/msg/Bool"
    assert ros_type("Bool") == "Bool"
