"""The bus within a process: order, time, loss and duplication are the same in every run."""

from __future__ import annotations

import numpy as np
import pytest

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.messages import Boolean, FloatArray, JointState, Text
from visuomotor.sim2real.transports.base import COMMAND, LATCHED, SENSOR, Qos
from visuomotor.sim2real.transports.cdr import CdrError
from visuomotor.sim2real.transports.inproc import Bus

MS = 1_000_000


def numbers(bus: Bus, count: int, *, qos: Qos = SENSOR) -> list[tuple[float, int]]:
    """What one node hears of ``count`` numbers that another sends, one each millisecond."""
    heard: list[tuple[float, int]] = []
    bus.node("robot").subscribe("/x", FloatArray, lambda m, t: heard.append((float(m.data[0]), t)), qos)
    out = bus.node("bridge").advertise("/x", FloatArray, qos)
    for i in range(count):
        out.publish(FloatArray(data=np.array([i])))
        bus.advance(MS)
    bus.advance(1000 * MS)
    return heard


def test_messages_arrive_while_the_clock_advances() -> None:
    bus, heard = Bus(latency_ns=20 * MS), []
    bus.node("robot").subscribe("/x", Text, lambda m, t: heard.append((m.data, t)))
    out = bus.node("bridge").advertise("/x", Text)
    assert out.matched() == 1
    out.publish(Text(data="a"))
    bus.advance(19 * MS)
    assert heard == []
    bus.advance(5 * MS)
    assert heard == [("a", 20 * MS)]
    assert bus.now_ns == 24 * MS


def test_an_answer_without_latency_comes_in_the_same_advance() -> None:
    bus, heard = Bus(), []
    robot, bridge = bus.node("robot"), bus.node("bridge")
    answer = robot.advertise("/answer", Text)
    robot.subscribe("/question", Text, lambda m, _: answer.publish(Text(data=m.data + "!")))
    bridge.subscribe("/answer", Text, lambda m, _: heard.append(m.data))
    bridge.advertise("/question", Text).publish(Text(data="a"))
    assert heard == []
    bus.advance(0)
    assert heard == ["a!"]


def test_the_same_seed_is_the_same_run() -> None:
    def run(seed: int) -> list[tuple[float, int]]:
        return numbers(Bus(latency_ns=MS, jitter_ns=9 * MS, loss=0.3, duplication=0.2, seed=seed), 400)

    first = run(3)
    assert first == run(3)
    assert first != run(4)
    values, arrivals = zip(*first, strict=True)
    assert list(values) == sorted(values)  # nothing overtakes
    assert list(arrivals) == sorted(arrivals)
    lost, twice = 400 - len(set(values)), len(values) - len(set(values))
    assert 80 < lost < 160
    assert 30 < twice < 90


def test_reliable_messages_are_not_lost() -> None:
    assert [v for v, _ in numbers(Bus(loss=0.9), 100, qos=COMMAND)] == list(range(100))


def test_nothing_is_shared_between_sender_and_receiver() -> None:
    bus, heard = Bus(), []
    bus.node("robot").subscribe("/x", JointState, lambda m, _: heard.append(m))
    sent = JointState(stamp_ns=7, frame_id="base", name=("a",), position=np.array([1.0]))
    out = bus.node("bridge").advertise("/x", JointState)
    out.publish(sent)
    sent.position[0] = 2.0
    bus.advance(0)
    assert heard[0].position.tolist() == [1.0]
    assert (heard[0].stamp_ns, heard[0].frame_id, heard[0].name) == (7, "base", ("a",))
    with pytest.raises(CdrError):
        out.publish(JointState(stamp_ns=2**80, name=()))


def test_qualities_that_do_not_fit_are_named_on_both_sides() -> None:
    bus = Bus()
    out = bus.node("robot").advertise("/x", Boolean, SENSOR)
    heard: list[bool] = []
    bridge = bus.node("bridge")
    reliable = bridge.subscribe("/x", Boolean, lambda m, _: heard.append(m.data), COMMAND)
    assert "reliability" in reliable.incompatible
    assert "reliability" in out.incompatible
    assert out.matched() == 0
    latched = bridge.subscribe("/y", Boolean, lambda m, _: heard.append(m.data), LATCHED)
    bus.node("robot").advertise("/y", Boolean, COMMAND)
    assert "durability" in latched.incompatible
    out.publish(Boolean(data=True))
    bus.advance(MS)
    assert heard == []


def test_another_type_is_not_connected_but_seen() -> None:
    bus, heard = Bus(), []
    out = bus.node("robot").advertise("/x", Text)
    bus.node("bridge").subscribe("/x", FloatArray, lambda m, _: heard.append(m))
    out.publish(Text(data="a"))
    bus.advance(MS)
    assert (heard, out.matched()) == ([], 0)
    (topic,) = bus.node("doctor").graph()
    assert (topic.publishers[0].node, topic.publishers[0].ros_type) == ("/robot", "std_msgs/msg/String")
    assert (topic.subscribers[0].node, topic.subscribers[0].ros_type) == ("/bridge", "std_msgs/msg/Float64MultiArray")


def test_a_latched_message_waits_for_who_comes_late() -> None:
    bus, heard = Bus(), []
    out = bus.node("robot").advertise("/x", Text, LATCHED)
    for text in "ab":
        out.publish(Text(data=text))
    bus.advance(MS)
    bus.node("bridge").subscribe("/x", Text, lambda m, _: heard.append(m.data), LATCHED)
    bus.advance(0)
    assert heard == ["b"]


def test_nothing_is_heard_after_close() -> None:
    bus, heard = Bus(latency_ns=MS), []
    bridge, robot = bus.node("bridge"), bus.node("robot")
    bridge.subscribe("/x", Text, lambda m, _: heard.append(m))
    out = robot.advertise("/x", Text)
    out.publish(Text(data="on its way"))
    bridge.close()
    bridge.close()
    bus.advance(2 * MS)
    assert (heard, out.matched()) == ([], 0)
    robot.close()
    assert bus.node("doctor").graph() == []


def test_clocks_of_headers_may_differ() -> None:
    bus = Bus(epoch_ns=10**18)
    bus.advance(5)
    assert bus.node("robot", clock_offset_ns=3_600 * 10**9).stamp_ns() - bus.node("bridge").stamp_ns() == 3_600 * 10**9
    assert bus.node("bridge").stamp_ns() == 10**18 + 5


def test_settings_that_cannot_be_are_refused() -> None:
    for bad in ({"loss": 1.5}, {"duplication": -0.1}, {"latency_ns": -1}):
        with pytest.raises(ConfigError):
            Bus(**bad)
    with pytest.raises(ValueError, match="backwards"):
        Bus().advance(-1)


def test_another_publisher_of_the_same_topic_is_counted() -> None:
    bus = Bus()
    out = bus.node("bridge").advertise("/x", Text)
    assert out.rivals() == 0
    other = bus.node("other")
    other.advertise("/x", Text)
    assert out.rivals() == 1
    other.close()
    assert out.rivals() == 0
