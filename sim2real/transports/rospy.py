"""ROS 1 topics by rospy (the only file that imports it): a sourced Noetic, or the packages of Debian and Ubuntu.

Debian's rospy lies outside of virtual environments; its folder is put behind everything else, so that only what is
nowhere else comes from there. The messages' classes are made here: no package of messages has to be installed.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import importlib
import os
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
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
from visuomotor.sim2real.transports.definitions import definition_text, ros1_checksum, ros1_name
from visuomotor.sim2real.transports.inbox import Inbox

__all__ = ["RospyTransport", "available"]

M = TypeVar("M", bound=Message)
_DEBIAN = Path("/usr/lib/python3/dist-packages")
_BUFFER = 1 << 24  # bytes; with less, rospy collects a large picture in pieces and falls behind
_TIMEOUT_S = 3.0
_LOOK_S = 1.0


@cache
def _rospy() -> Any:
    try:
        return importlib.import_module("rospy")
    except ImportError:
        pass
    if _DEBIAN.is_dir() and str(_DEBIAN) not in sys.path:
        sys.path.append(str(_DEBIAN))
    try:
        return importlib.import_module("rospy")
    except ImportError as error:
        raise MissingExtraError(
            f"transport=rospy needs rospy ({error}): source ROS Noetic, or `apt install python3-rospy` and a Python "
            "of the same version as the system's"
        ) from None


def available() -> bool:
    """Whether rospy can be imported."""
    try:
        _rospy()
    except MissingExtraError:
        return False
    return True


class _TimeoutTransport(xmlrpc.client.Transport):
    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = super().make_connection(host)
        connection.timeout = _TIMEOUT_S
        return connection


def _call_master(method: str, *arguments: str) -> Any:
    """What the ROS master answers. ConfigError: it does not."""
    uri = os.environ.get("ROS_MASTER_URI", "")
    try:
        master = xmlrpc.client.ServerProxy(uri, transport=_TimeoutTransport())
        _, _, value = getattr(master, method)("/visuomotor", *arguments)
    except (OSError, http.client.HTTPException, xmlrpc.client.Error, ValueError, TypeError) as error:
        raise ConfigError(f"no ROS master answers at ROS_MASTER_URI={uri!r}: {error}") from None
    return value


@cache
def _wire_type(ros_type: str) -> Any:
    """A class that rospy takes for a message: bytes in, bytes out."""

    class Wire(_genpy().Message):  # type: ignore[misc]
        _type = ros1_name(ros_type)
        _md5sum = ros1_checksum(ros_type)
        _full_text = definition_text(ros_type, ros1=True)
        _has_header = False
        __slots__ = ("data",)
        _slot_types = ("uint8[]",)

        def __init__(self, data: bytes = b"") -> None:
            self.data = data

        def serialize(self, buff: BytesIO) -> None:
            buff.write(self.data)

        def deserialize(self, data: bytes) -> Any:
            self.data = bytes(data)
            return self

    return Wire


def _genpy() -> Any:
    _rospy()
    return importlib.import_module("genpy")


class _Writer(Publisher[Any]):
    def __init__(self, transport: RospyTransport, topic: str, ros_type: str, qos: Qos) -> None:
        self._transport, self._topic, self._wire = transport, topic, _wire_type(ros_type)
        self.ros = _rospy().Publisher(
            topic, self._wire, queue_size=qos.depth, latch=qos.transient_local, tcp_nodelay=True
        )

    def publish(self, message: Message) -> None:
        data = encode(message, ros1=True)
        if not _rospy().is_shutdown():
            self.ros.publish(self._wire(data))

    def matched(self) -> int:
        return int(self.ros.get_num_connections())

    def rivals(self) -> int:
        return self._transport.publishers.get(self._topic, 1) - 1


class RospyTransport(Transport):
    """The node of this process; there can be one, and none again after it is closed.

    Raises:
        ConfigError: no master answers; this process had a node before.
    """

    name = "rospy"

    def __init__(self, node: str = "visuomotor") -> None:
        rospy = _rospy()
        if rospy.core.is_initialized():
            raise ConfigError("rospy has one node for each process, and this one has had its")
        _call_master("getPid")  # without a master rospy itself would wait for ever
        rospy.init_node(node, disable_signals=True, anonymous=False)
        self._ends: list[Any] = []
        self.publishers: dict[str, int] = {}  # by topic, a second old at most
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look, name="rospy graph", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _look(self) -> None:
        """Asking the master takes milliseconds or, when it hangs, seconds: nothing for the loop of the bridge."""
        while not self._closing.wait(_LOOK_S):
            with contextlib.suppress(ConfigError):
                self.publishers = {topic: len(nodes) for topic, nodes in _call_master("getSystemState")[0]}

    def advertise(self, topic: str, message: type[M], qos: Qos = COMMAND) -> Publisher[M]:
        writer = _Writer(self, check_topic(topic), ROS_NAMES[message], qos)
        self._ends.append(writer.ros)
        return writer

    def subscribe(
        self, topic: str, message: type[M], callback: Callable[[M, int], None], qos: Qos = SENSOR
    ) -> Subscription:
        subscription = Subscription(check_topic(topic))
        inbox = Inbox(subscription, message, callback, ros1=True)

        def hear(wire: Any) -> None:
            inbox.deliver(wire.data, time.monotonic_ns())

        wire = _wire_type(ROS_NAMES[message])
        self._ends.append(
            _rospy().Subscriber(topic, wire, hear, queue_size=qos.depth, buff_size=_BUFFER, tcp_nodelay=True)
        )
        return subscription

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def stamp_ns(self) -> int:
        return time.time_ns()

    def graph(self) -> list[TopicInfo]:
        publishers, subscribers, _services = _call_master("getSystemState")
        types = {topic: kind.replace("/", "/msg/") for topic, kind in _call_master("getTopicTypes")}
        sides = [
            {t: tuple(Endpoint(node, types.get(t, "")) for node in nodes) for t, nodes in side}
            for side in (publishers, subscribers)
        ]
        return [TopicInfo(t, sides[0].get(t, ()), sides[1].get(t, ())) for t in sorted({*sides[0], *sides[1]})]

    def close(self) -> None:
        atexit.unregister(self.close)
        self._closing.set()
        self._thread.join()
        for end in self._ends:
            end.unregister()
        self._ends.clear()
        _rospy().signal_shutdown("closed")
