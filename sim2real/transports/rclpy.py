"""ROS 2 topics by rclpy (the only file that imports it), where a ROS 2 is installed and sourced.

rclpy hands over and takes bytes as they are on the wire, so that the same codec serves as over plain DDS; its message
classes are needed for their names and type support alone.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from visuomotor.data.errors import ConfigError, MissingExtraError
from visuomotor.sim2real.messages import ROS_NAMES, Message
from visuomotor.sim2real.transports.base import (
    COMMAND,
    SENSOR,
    Endpoint,
    Publisher,
    Qos,
    Subscription,
    TopicInfo,
    Transport,
    check_topic,
)
from visuomotor.sim2real.transports.cdr import encode
from visuomotor.sim2real.transports.inbox import Inbox

__all__ = ["RclpyTransport", "available"]

M = TypeVar("M", bound=Message)


def _rclpy() -> Any:
    try:
        import rclpy
        import rclpy.duration
        import rclpy.event_handler
        import rclpy.executors
        import rclpy.qos
        import rclpy.signals
    except ImportError as error:
        raise MissingExtraError(
            f"transport=rclpy needs a sourced ROS 2 whose Python is this one ({error}). "
            "Without ROS: pip install 'visuomotor[dds]' and transport=dds"
        ) from None
    return rclpy


def available() -> bool:
    """Whether rclpy can be imported."""
    try:
        _rclpy()
    except MissingExtraError:
        return False
    return True


def _message_class(ros_type: str) -> Any:
    package, _, name = ros_type.split("/")
    try:
        return getattr(import_module(f"{package}.msg"), name)
    except ImportError:
        raise MissingExtraError(
            f"transport=rclpy has no messages of {package}: install ros-<distribution>-{package.replace('_', '-')}"
        ) from None


def _ros_qos(qos: Qos) -> Any:
    rclpy = _rclpy()
    policies = rclpy.qos
    lifespan = {} if qos.lifespan_s is None else {"lifespan": rclpy.duration.Duration(seconds=qos.lifespan_s)}
    return policies.QoSProfile(
        **lifespan,
        depth=qos.depth,
        reliability=getattr(policies.ReliabilityPolicy, "RELIABLE" if qos.reliable else "BEST_EFFORT"),
        durability=getattr(policies.DurabilityPolicy, "TRANSIENT_LOCAL" if qos.transient_local else "VOLATILE"),
    )


def _plain_qos(profile: Any) -> Qos:
    policies = _rclpy().qos
    return Qos(
        reliable=profile.reliability == policies.ReliabilityPolicy.RELIABLE,
        depth=0,
        transient_local=profile.durability == policies.DurabilityPolicy.TRANSIENT_LOCAL,
    )


def _differs(event: Any) -> str:
    policy = _rclpy().qos.QoSPolicyKind(event.last_policy_kind).name.lower().replace("_", " ")
    return f"{policy}: what the publisher offers is less than what the subscriber asks for"


class _Writer(Publisher[Any]):
    def __init__(self, transport: RclpyTransport, topic: str, ros_type: str, qos: Qos) -> None:
        events = _rclpy().event_handler.PublisherEventCallbacks(incompatible_qos=self._refused)
        self._transport, self._topic = transport, topic
        self._ros = transport.node.create_publisher(
            _message_class(ros_type), topic, _ros_qos(qos), event_callbacks=events
        )

    def _refused(self, event: Any) -> None:
        self.incompatible = _differs(event)

    def publish(self, message: Message) -> None:
        data = encode(message)
        if not self._transport.closed:
            self._ros.publish(data)

    def matched(self) -> int:
        return 0 if self._transport.closed else int(self._ros.get_subscription_count())

    def rivals(self) -> int:
        return 0 if self._transport.closed else int(self._transport.node.count_publishers(self._topic)) - 1


class RclpyTransport(Transport):
    """A node of rclpy with a context of its own; callbacks run in the thread of its executor."""

    name = "rclpy"

    def __init__(self, node: str = "visuomotor", domain: int = 0) -> None:
        rclpy = _rclpy()
        self.closed = False
        self._context = rclpy.Context()
        try:
            rclpy.init(
                context=self._context, domain_id=domain, signal_handler_options=rclpy.signals.SignalHandlerOptions.NO
            )
            self.node = rclpy.create_node(
                node, context=self._context, enable_rosout=False, start_parameter_services=False
            )
        except RuntimeError as error:  # rclpy's own errors: an unknown RMW, a network that is not there
            raise ConfigError(f"rclpy does not start: {error}") from None
        self._executor = rclpy.executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name="rclpy", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _spin(self) -> None:
        while not self.closed:
            self._executor.spin_once(timeout_sec=0.2)

    def advertise(self, topic: str, message: type[M], qos: Qos = COMMAND) -> Publisher[M]:
        return _Writer(self, check_topic(topic), ROS_NAMES[message], qos)

    def subscribe(
        self, topic: str, message: type[M], callback: Callable[[M, int], None], qos: Qos = SENSOR
    ) -> Subscription:
        subscription = Subscription(check_topic(topic))
        inbox = Inbox(subscription, message, callback)

        def refused(event: Any) -> None:
            subscription.incompatible = _differs(event)

        def hear(data: bytes) -> None:
            if not self.closed:
                inbox.deliver(data, time.monotonic_ns())

        events = _rclpy().event_handler.SubscriptionEventCallbacks(incompatible_qos=refused)
        kind = _message_class(ROS_NAMES[message])
        self.node.create_subscription(kind, topic, hear, _ros_qos(qos), raw=True, event_callbacks=events)
        return subscription

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def stamp_ns(self) -> int:
        return time.time_ns()

    def graph(self) -> list[TopicInfo]:
        if self.closed:
            return []
        topics = []
        for topic, _ in sorted(self.node.get_topic_names_and_types()):
            publishers = map(_endpoint, self.node.get_publishers_info_by_topic(topic))
            subscribers = map(_endpoint, self.node.get_subscriptions_info_by_topic(topic))
            topics.append(TopicInfo(topic, tuple(publishers), tuple(subscribers)))
        return topics

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        atexit.unregister(self.close)
        self._executor.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()  # an executor that outlives the interpreter ends it with an abort
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        self._context.try_shutdown()


def _endpoint(info: Any) -> Endpoint:
    name = info.node_name
    node = f"{info.node_namespace.rstrip('/')}/{name}" if name and not name.startswith("_NODE_NAME_UNKNOWN") else "?"
    return Endpoint(node, info.topic_type, _plain_qos(info.qos_profile))
