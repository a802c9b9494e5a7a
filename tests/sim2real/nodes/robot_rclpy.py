"""A robot on ROS 2: plain rclpy, no code of the package. Runs in an environment that has rclpy.

python robot_rclpy.py LOG MODE TOPIC [--rate HZ] [--command-durability transient_local] [--command-type JointState]
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time

import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from robot_arm import Arm, Log
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

ECHOED = (
    JointState, Image, CompressedImage, PoseStamped, TwistStamped, WrenchStamped, Bool, Float64MultiArray, String,
    JointTrajectory,
)  # fmt: skip
SECOND = 1_000_000_000
GARBAGE = b"\0\1\0\0" + b"\xff" * 60


def seconds(stamp):
    return stamp.sec + stamp.nanosec / SECOND


def follow(arm, node, message):
    points = [(seconds(p.time_from_start), list(p.positions), list(p.velocities)) for p in message.points]
    now = node.get_clock().now().nanoseconds / SECOND
    arm.follow(seconds(message.header.stamp), message.joint_names, points, now)


def publish_states(arm, node, publisher, rate_hz, stop):
    following = time.monotonic()
    while not stop.is_set():
        arm.step(1 / rate_hz)
        state = arm.state()
        if arm.garbage:
            publisher.publish(GARBAGE)
        elif state is not None:
            message = JointState(name=state[0], position=state[1])
            stamp = time.time() + arm.offset_s
            message.header.stamp.sec, message.header.stamp.nanosec = int(stamp), int(stamp % 1 * SECOND)
            publisher.publish(message)
        following = max(following, time.monotonic() - 1 / rate_hz) + 1 / rate_hz  # what is missed is missed
        time.sleep(max(0.0, following - time.monotonic()))


def log_graph(log, node, topic):
    nodes = ["/".join((space.rstrip("/"), name)) for name, space in node.get_node_names_and_namespaces()]
    publishers = [
        {"node": i.node_name, "type": i.topic_type, "hash": str(getattr(i, "topic_type_hash", ""))}
        for i in node.get_publishers_info_by_topic(topic)
    ]
    owned = node.get_publisher_names_and_types_by_node("bridge", "/") if "/bridge" in nodes else []
    log("graph", nodes=nodes, publishers=publishers, owned=[name for name, _ in owned])


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
    rclpy.init()
    node = rclpy.create_node("robot")
    reliable = ReliabilityPolicy.RELIABLE
    command_qos = QoSProfile(
        depth=10, reliability=reliable, durability=DurabilityPolicy[options.command_durability.upper()]
    )
    if options.command_type == "JointState":
        node.create_subscription(JointState, options.topic, lambda m: log("wrong"), command_qos)
    elif options.mode == "forward_position":
        node.create_subscription(Float64MultiArray, options.topic, lambda m: arm.forward(m.data), command_qos)
    else:
        node.create_subscription(JointTrajectory, options.topic, lambda m: follow(arm, node, m), command_qos)
    for kind in ECHOED:
        name = kind.__name__
        back = node.create_publisher(kind, f"/echo/out/{name}", 10)
        node.create_subscription(kind, f"/echo/in/{name}", back.publish, 10)
    publisher = node.create_publisher(JointState, "/joint_states", 10)
    executor, stop = SingleThreadedExecutor(), threading.Event()
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    states = threading.Thread(target=publish_states, args=(arm, node, publisher, options.rate, stop))
    spinning.start()
    states.start()
    arm.listen(sys.stdin, lambda: log_graph(log, node, options.topic))
    stop.set()
    states.join()
    executor.shutdown(timeout_sec=2)
    sys.stdout.flush()
    os._exit(0)  # what rclpy leaves behind may end the interpreter with an abort


if __name__ == "__main__":
    main()
