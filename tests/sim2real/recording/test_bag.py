"""Bags of all topics, read back by readers that are not ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from visuomotor.data.errors import DataError, UserError
from visuomotor.data.importing.mcap_file import McapFile
from visuomotor.sim2real.messages import Boolean, FloatArray, Image, JointState, Text
from visuomotor.sim2real.recording import bag_process
from visuomotor.sim2real.recording.bag import BagRecorder, BagWriter
from visuomotor.sim2real.recording.bag_process import BagProcess
from visuomotor.sim2real.recording.session import recorded_lines
from visuomotor.sim2real.transports.base import LATCHED, Qos
from visuomotor.sim2real.transports.cdr import encode
from visuomotor.sim2real.transports.choose import TransportConfig, make_transport
from visuomotor.sim2real.transports.inproc import Bus

SECOND = 1_000_000_000
STATE = JointState(
    stamp_ns=5 * SECOND + 7, name=("a", "b"), position=np.array([1.0, -2.0]), velocity=np.array([0.5, 0.0])
)


def record(path):
    """A second of joint states at 100 Hz, commands at 10 Hz, a picture and a latched text; the bus and the counts."""
    bus = Bus(latency_ns=2_000_000)
    robot, bridge = bus.node("robot", clock_offset_ns=SECOND), bus.node("bridge")
    states = robot.advertise("/joint_states", JointState, Qos(reliable=False, depth=5))
    robot.advertise("/description", Text, LATCHED).publish(Text(data="<robot/>"))
    pictures = robot.advertise("/camera/image_raw", Image)
    commands = bridge.advertise("/commands", FloatArray)
    node = bus.node("bag")
    recorder = BagRecorder(node, BagWriter(path), patient=["/commands"])
    recorder.discover()
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8)
    for i in range(100):
        bus.advance(10_000_000)
        if i == 50:
            robot.subscribe("/commands", FloatArray, lambda *_: None)
            recorder.discover()
        states.publish(STATE)
        if i % 10 == 0:
            commands.publish(FloatArray(data=np.array([float(i)])))
        if i == 20:
            pictures.publish(Image(height=2, width=3, encoding="rgb8", step=9, data=pixels))
    bus.advance(SECOND)
    return bus, recorder.close()


def test_a_folder_is_a_bag_that_rosbags_reads(tmp_path):
    bus, counts = record(tmp_path / "take")
    assert counts.messages == {"/joint_states": 100, "/description": 1, "/camera/image_raw": 1, "/commands": 5}
    store = get_typestore(Stores.ROS2_JAZZY)
    with Reader(tmp_path / "take") as reader:
        assert {c.topic: c.msgcount for c in reader.connections} == counts.messages
        assert {c.topic: c.msgtype for c in reader.connections}["/camera/image_raw"] == "sensor_msgs/msg/Image"
        assert reader.message_count == 107
        times = [t for _, t, _ in reader.messages()]
        assert times == sorted(times)
        assert reader.start_time == times[0]
        # on the clock of the machine that recorded, when they came: 2 ms after they were sent
        assert times[-1] == bus.epoch_ns + SECOND + 2_000_000
        for connection, _, data in reader.messages():
            message: Any = store.deserialize_cdr(data, connection.msgtype)
            if connection.topic == "/joint_states":
                assert data == encode(STATE)
                assert (message.header.stamp.sec, message.header.stamp.nanosec) == (5, 7)
                np.testing.assert_array_equal(message.position, [1.0, -2.0])
            elif connection.topic == "/camera/image_raw":
                np.testing.assert_array_equal(message.data, np.arange(18))
            elif connection.topic == "/description":
                assert message.data == "<robot/>"


def test_a_file_alone_is_read_by_mcap_with_the_definitions_in_it(tmp_path):
    record(tmp_path / "take.mcap")
    with (tmp_path / "take.mcap").open("rb") as file:
        decoded = [
            (channel.topic, message)
            for _, channel, _, message in make_reader(
                file, decoder_factories=[DecoderFactory()]
            ).iter_decoded_messages()
        ]
    assert len(decoded) == 107
    assert [m.data for t, m in decoded if t == "/commands"] == [[50.0], [60.0], [70.0], [80.0], [90.0]]
    assert list(next(m for t, m in decoded if t == "/joint_states").name) == ["a", "b"]


def test_commands_are_listened_to_only_when_the_robot_does(tmp_path):
    bus = Bus()
    commands = bus.node("bridge").advertise("/commands", FloatArray)
    recorder = BagRecorder(bus.node("bag"), BagWriter(tmp_path / "a.mcap"), patient=["/commands"])
    recorder.discover()
    assert commands.matched() == 0  # a bridge must not take the bag for the robot
    bus.node("robot").subscribe("/commands", FloatArray, lambda *_: None)
    recorder.discover()
    assert commands.matched() == 2
    recorder.close()


def test_a_bag_that_was_not_closed_is_read_by_scanning(tmp_path):
    writer = BagWriter(tmp_path / "a.mcap")
    for i in range(5000):
        writer.add("/flag", "std_msgs/msg/Bool", encode(Boolean(data=i % 2 == 0)) + b"\0" * 400, SECOND + i)
    writer._file.flush()  # a killed process
    found = McapFile(tmp_path / "a.mcap")
    assert 1000 < found.topics["/flag"].count < 5000
    writer.close()


def test_a_full_disk_ends_the_bag_and_is_told(tmp_path, monkeypatch):
    bus = Bus()
    flags = bus.node("robot").advertise("/flag", Boolean)
    writer = BagWriter(tmp_path / "a.mcap")
    recorder = BagRecorder(bus.node("bag"), writer)
    recorder.discover()
    flags.publish(Boolean(data=True))
    bus.advance(SECOND)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "add", full)
        flags.publish(Boolean(data=True))
        bus.advance(SECOND)
    flags.publish(Boolean(data=True))  # after a gap nothing comes any more
    bus.advance(SECOND)
    counts = recorder.close().to_dict()
    assert counts["messages"] == {"/flag": 1}
    (line,) = recorded_lines({"bag": counts}, None, "a.mcap")
    assert line == "  a.mcap: 1 messages of 1 topics: the bag ends early: No space left on device"


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "a.mcap").write_text("precious")
    with pytest.raises(DataError, match="exists"):
        BagWriter(tmp_path / "a.mcap")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        BagWriter(tmp_path / "file" / "a.mcap")


# ---- over DDS, in a process of its own


@pytest.fixture
def dds():
    pytest.importorskip("cyclonedds")
    return TransportConfig(name="dds", node="test", domain=60 + os.getpid() % 40, interface="lo")


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_process_records_bytes_as_they_came(tmp_path, dds):
    robot = make_transport(dds)
    states, flags = robot.advertise("/joint_states", JointState), robot.advertise("/flag", Boolean)
    bag = BagProcess(tmp_path / "take", dds)
    wait_for(lambda: states.matched() == 1)
    for _ in range(100):  # on a busy machine both ends do not find each other at the same time
        states.publish(STATE)
        flags.publish(Boolean(data=True))
        time.sleep(0.02)
    time.sleep(0.3)
    counts = bag.close()
    robot.close()
    assert counts["messages"]["/joint_states"] >= 15
    with Reader(tmp_path / "take") as reader:
        data = [d for c, _, d in reader.messages() if c.topic == "/joint_states"]
    assert set(data) == {encode(STATE, multiple=4)}


def test_it_ends_with_its_parent_and_leaves_a_whole_bag(tmp_path, dds):
    code = (
        "import sys, time, json, pathlib\n"
        "from visuomotor.sim2real.recording.bag_process import BagProcess\n"
        "from visuomotor.sim2real.transports.choose import TransportConfig\n"
        "path, settings = sys.argv[1:]\n"
        "b = BagProcess(pathlib.Path(path), TransportConfig(**json.loads(settings)))\n"
        "print(b._process.pid, flush=True); time.sleep(60)"
    )
    robot = make_transport(dds)
    states = robot.advertise("/joint_states", JointState)
    settings = json.dumps({"name": "dds", "node": "x", "domain": dds.domain, "interface": "lo"})
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.mcap"), settings], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_for(lambda: states.matched() == 1)
    for _ in range(100):
        states.publish(STATE)
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not _alive(child))
    robot.close()
    with (tmp_path / "a.mcap").open("rb") as file:
        assert len(list(make_reader(file).iter_messages())) >= 5
        file.seek(0)
        assert make_reader(file).get_summary() is not None  # it has its index


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_that_hangs_does_not_hold_up_the_end(tmp_path, dds, monkeypatch):
    bag = BagProcess(tmp_path / "a.mcap", dds)
    monkeypatch.setattr(bag_process, "_END_S", 0.5)
    bag._process.send_signal(signal.SIGSTOP)
    assert "ended with status -9" in bag.close()["error"]


def test_what_cannot_begin_is_one_sentence(tmp_path, dds):
    (tmp_path / "a.mcap").write_text("")
    with pytest.raises(UserError, match="exists"):
        BagProcess(tmp_path / "a.mcap", dds)
