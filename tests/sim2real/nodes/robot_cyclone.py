# mypy: ignore-errors
# A robot on DDS by Cyclone's own types and codec, without ROS and without any code of the package: for machines that
# have no rclpy. No `from __future__ import annotations` here: Cyclone reads the annotations of its types,
# in a way that type checkers do not know.
#
# python robot_cyclone.py LOG MODE TOPIC [--rate HZ] [--command-durability transient_local] [--command-type JointState]

import argparse
import os
import sys
import threading
import time
from dataclasses import dataclass, field

from cyclonedds.core import InstanceState, Policy, Qos, ReadCondition, SampleState, ViewState, WaitSet
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.annotations import final
from cyclonedds.idl.types import float32, float64, int32, sequence, uint8, uint32
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from robot_arm import Arm, Log

LOCAL = """<CycloneDDS><Domain Id="any">
<General><Interfaces><NetworkInterface name="lo" multicast="false"/></Interfaces><AllowMulticast>false</AllowMulticast>
</General><Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>60</MaxAutoParticipantIndex>
<Peers><Peer Address="127.0.0.1"/></Peers></Discovery></Domain></CycloneDDS>"""
SECOND = 1_000_000_000


@dataclass
@final
class Time(IdlStruct, typename="builtin_interfaces.msg.dds_.Time_"):
    sec: int32 = 0
    nanosec: uint32 = 0


@dataclass
@final
class Duration(IdlStruct, typename="builtin_interfaces.msg.dds_.Duration_"):
    sec: int32 = 0
    nanosec: uint32 = 0


@dataclass
@final
class Header(IdlStruct, typename="std_msgs.msg.dds_.Header_"):
    stamp: Time = field(default_factory=Time)
    frame_id: str = ""


@dataclass
@final
class JointState(IdlStruct, typename="sensor_msgs.msg.dds_.JointState_"):
    header: Header
    name: sequence[str]
    position: sequence[float64]
    velocity: sequence[float64]
    effort: sequence[float64]


@dataclass
@final
class Image(IdlStruct, typename="sensor_msgs.msg.dds_.Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


@dataclass
@final
class CompressedImage(IdlStruct, typename="sensor_msgs.msg.dds_.CompressedImage_"):
    header: Header
    format: str
    data: sequence[uint8]


@dataclass
@final
class JointTrajectoryPoint(IdlStruct, typename="trajectory_msgs.msg.dds_.JointTrajectoryPoint_"):
    positions: sequence[float64]
    velocities: sequence[float64]
    accelerations: sequence[float64]
    effort: sequence[float64]
    time_from_start: Duration


@dataclass
@final
class JointTrajectory(IdlStruct, typename="trajectory_msgs.msg.dds_.JointTrajectory_"):
    header: Header
    joint_names: sequence[str]
    points: sequence[JointTrajectoryPoint]


@dataclass
@final
class MultiArrayDimension(IdlStruct, typename="std_msgs.msg.dds_.MultiArrayDimension_"):
    label: str
    size: uint32
    stride: uint32


@dataclass
@final
class MultiArrayLayout(IdlStruct, typename="std_msgs.msg.dds_.MultiArrayLayout_"):
    dim: sequence[MultiArrayDimension]
    data_offset: uint32


@dataclass
@final
class Float64MultiArray(IdlStruct, typename="std_msgs.msg.dds_.Float64MultiArray_"):
    layout: MultiArrayLayout
    data: sequence[float64]


@dataclass
@final
class JointGroupCommand(IdlStruct, typename="interbotix_xs_msgs.msg.dds_.JointGroupCommand_"):
    name: str
    cmd: sequence[float32]


@dataclass
@final
class Bool(IdlStruct, typename="std_msgs.msg.dds_.Bool_"):
    data: bool


@dataclass
@final
class String(IdlStruct, typename="std_msgs.msg.dds_.String_"):
    data: str


ECHOED = (JointState, Image, CompressedImage, Bool, Float64MultiArray, String, JointTrajectory, JointGroupCommand)


def seconds(stamp):
    return stamp.sec + stamp.nanosec / SECOND


class Node:
    def __init__(self, domain):
        os.environ.setdefault("CYCLONEDDS_URI", LOCAL)
        self.participant = DomainParticipant(domain)
        self.readers = []
        self.waitset = WaitSet(self.participant)

    def qos(self, durability="volatile"):
        volatile = durability == "volatile"
        return Qos(
            Policy.Reliability.Reliable(100_000_000),
            Policy.History.KeepLast(10),
            Policy.Durability.Volatile if volatile else Policy.Durability.TransientLocal,
            Policy.DataRepresentation(use_cdrv0_representation=True, use_xcdrv2_representation=False),
        )

    def publisher(self, kind, topic):
        return DataWriter(self.participant, Topic(self.participant, f"rt{topic}", kind), self.qos())

    def subscribe(self, kind, topic, callback, durability="volatile"):
        reader = DataReader(self.participant, Topic(self.participant, f"rt{topic}", kind), self.qos(durability))
        self.readers.append((reader, callback))
        self.waitset.attach(ReadCondition(reader, SampleState.Any | ViewState.Any | InstanceState.Any))

    def spin(self, stop):
        while not stop.is_set():
            self.waitset.wait(100_000_000)
            for reader, callback in self.readers:
                for sample in reader.take(N=10):
                    if isinstance(sample, IdlStruct):  # others only say that a writer has left
                        callback(sample)


def publish_states(arm, publisher, rate_hz, stop):
    following = time.monotonic()
    while not stop.is_set():
        arm.step(1 / rate_hz)
        state = arm.state()
        if state is not None:
            stamp = time.time() + arm.offset_s
            header = Header(Time(int(stamp), int(stamp % 1 * SECOND)), "")
            publisher.write(JointState(header, state[0], state[1], [], []))
        following = max(following, time.monotonic() - 1 / rate_hz) + 1 / rate_hz  # what is missed is missed
        time.sleep(max(0.0, following - time.monotonic()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("mode", choices=["forward_position", "joint_trajectory"])
    parser.add_argument("topic")
    parser.add_argument("--rate", type=float, default=250.0)
    parser.add_argument("--command-durability", default="volatile")
    parser.add_argument("--command-type", default="")
    options = parser.parse_args()
    log = Log(options.log)
    arm = Arm(log)
    node = Node(int(os.environ.get("ROS_DOMAIN_ID", "0")))

    def follow(message):
        points = [(seconds(p.time_from_start), list(p.positions), list(p.velocities)) for p in message.points]
        arm.follow(seconds(message.header.stamp), message.joint_names, points, time.time())

    durability = options.command_durability
    if options.command_type == "JointState":
        node.subscribe(JointState, options.topic, lambda m: log("wrong"), durability)
    elif options.mode == "forward_position":
        node.subscribe(Float64MultiArray, options.topic, lambda m: arm.forward(m.data), durability)
    else:
        node.subscribe(JointTrajectory, options.topic, follow, durability)
    for kind in ECHOED:
        back = node.publisher(kind, f"/echo/out/{kind.__name__}")
        node.subscribe(kind, f"/echo/in/{kind.__name__}", back.write)
    publisher, stop = node.publisher(JointState, "/joint_states"), threading.Event()
    threads = [
        threading.Thread(target=node.spin, args=(stop,)),
        threading.Thread(target=publish_states, args=(arm, publisher, options.rate, stop)),
    ]
    for thread in threads:
        thread.start()
    arm.listen(sys.stdin, lambda: log("graph", nodes=[], publishers=[]))
    stop.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
