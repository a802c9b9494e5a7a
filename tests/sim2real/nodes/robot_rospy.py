"""A robot on ROS 1: plain rospy with the messages of Debian, no code of the package.

python robot_rospy.py LOG MODE TOPIC [--rate HZ]
"""

from __future__ import annotations

import argparse
import sys
import threading
import time

import genpy.dynamic
import rospy
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from robot_arm import Arm, Log
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

GROUP = "interbotix_xs_msgs/JointGroupCommand"
ECHOED = (
    JointState, Image, CompressedImage, PoseStamped, TwistStamped, WrenchStamped, Bool, Float64MultiArray, String,
    JointTrajectory, genpy.dynamic.generate_dynamic(GROUP, "string name\nfloat32[] cmd\n")[GROUP],
)  # fmt: skip
SECOND = 1_000_000_000


def follow(arm, message):
    points = [(p.time_from_start.to_sec(), list(p.positions), list(p.velocities)) for p in message.points]
    arm.follow(message.header.stamp.to_sec(), message.joint_names, points, time.time())


def publish_states(arm, publisher, rate_hz, stop):
    following = time.monotonic()
    while not stop.is_set():
        arm.step(1 / rate_hz)
        state = arm.state()
        if state is not None:
            message = JointState(name=state[0], position=state[1])
            stamp = time.time() + arm.offset_s
            message.header.stamp = rospy.Time(int(stamp), int(stamp % 1 * SECOND))
            publisher.publish(message)
        following = max(following, time.monotonic() - 1 / rate_hz) + 1 / rate_hz  # what is missed is missed
        time.sleep(max(0.0, following - time.monotonic()))


def log_graph(log, topic):
    sides = rospy.get_master().getSystemState()[2]
    types = dict(rospy.get_published_topics())
    owners = [n for t, nodes in sides[0] if t == topic for n in nodes]
    log(
        "graph",
        nodes=sorted({n for side in sides[:2] for _, nodes in side for n in nodes}),
        publishers=[{"node": n.lstrip("/"), "type": types.get(topic, ""), "hash": ""} for n in owners],
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("mode", choices=["forward_position", "joint_trajectory"])
    parser.add_argument("topic")
    parser.add_argument("--rate", type=float, default=250.0)
    options = parser.parse_args()
    log = Log(options.log)
    arm = Arm(log)
    rospy.init_node("robot", disable_signals=True)
    if options.mode == "forward_position":
        rospy.Subscriber(options.topic, Float64MultiArray, lambda m: arm.forward(m.data), tcp_nodelay=True)
    else:
        rospy.Subscriber(options.topic, JointTrajectory, lambda m: follow(arm, m), tcp_nodelay=True)
    for kind in ECHOED:
        name = kind._type.split("/")[-1]
        back = rospy.Publisher(f"/echo/out/{name}", kind, queue_size=10, tcp_nodelay=True)
        rospy.Subscriber(f"/echo/in/{name}", kind, back.publish, tcp_nodelay=True)
    publisher = rospy.Publisher("/joint_states", JointState, queue_size=10, tcp_nodelay=True)
    stop = threading.Event()
    states = threading.Thread(target=publish_states, args=(arm, publisher, options.rate, stop))
    states.start()
    arm.listen(sys.stdin, lambda: log_graph(log, options.topic))
    stop.set()
    states.join()
    rospy.signal_shutdown("done")


if __name__ == "__main__":
    main()
