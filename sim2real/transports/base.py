"""What a transport is: topics in and out, and nothing else. The bridge is written against this alone.

A callback is given a message and when it was received [ns, the transport's own monotonic clock]; it runs in a thread of
the transport (``inproc``: in whoever advances the clock), has to return at once and never raises. Whether a stream is
alive is judged by those times: the middleware notices a dead peer after twenty seconds (measured), far too late.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.messages import Message

__all__ = [
    "COMMAND",
    "LATCHED",
    "SENSOR",
    "Endpoint",
    "Publisher",
    "Qos",
    "Subscription",
    "TopicInfo",
    "Transport",
    "check_topic",
]

M = TypeVar("M", bound=Message)
_TOPIC = re.compile(r"(/[A-Za-z_]\w*)+", re.ASCII)


def check_topic(topic: str) -> str:
    """The topic as it came.

    Raises:
        ConfigError: it is no full name of ROS.
    """
    if not _TOPIC.fullmatch(topic):
        raise ConfigError(
            f"{topic!r} is no topic; expected a full name of letters, digits and _, such as /joint_states"
        )
    return topic


@dataclass(frozen=True)
class Qos:
    """How a topic is delivered (ROS 2's names; ROS 1 knows only ``depth`` and latching).

    Attributes:
        lifespan_s: what could not be delivered for so long is dropped; null: it waits for as long as it takes. A
            reliable connection that comes back after a cut would otherwise deliver an old command.
    """

    reliable: bool
    depth: int = 10
    transient_local: bool = False
    lifespan_s: float | None = None


SENSOR = Qos(reliable=False, depth=5)  # matches drivers that publish reliably as well
COMMAND = Qos(reliable=True, depth=1, lifespan_s=0.1)
LATCHED = Qos(reliable=True, depth=1, transient_local=True)


@dataclass(frozen=True)
class Endpoint:
    """A publisher or a subscriber of a topic as the graph shows it.

    Attributes:
        node: with its namespace, or ``?`` where the middleware does not say whose it is.
        ros_type: as ROS 2 names it, ``sensor_msgs/msg/JointState``; of ROS 1 as well.
        qos: None where the middleware hides it; its ``depth`` is 0 where only the owner knows it.
    """

    node: str
    ros_type: str
    qos: Qos | None = None


@dataclass(frozen=True)
class TopicInfo:
    """Who publishes and who subscribes to a topic, ourselves included."""

    topic: str
    publishers: tuple[Endpoint, ...]
    subscribers: tuple[Endpoint, ...]


class Publisher(ABC, Generic[M]):
    """One topic out.

    Attributes:
        incompatible: why a subscriber could not be connected: the policy of quality of service that differs.
    """

    incompatible: str = ""

    @abstractmethod
    def publish(self, message: M) -> None:
        """Send it. Never blocks longer than a control step; a peer that is slow loses messages instead."""

    @abstractmethod
    def matched(self) -> int:
        """How many subscribers the middleware has connected."""

    def rivals(self) -> int:
        """How many others publish on this topic, as far as is known now; asking takes microseconds."""
        return 0


@dataclass
class Subscription:
    """What has come in on a topic. ``undecodable`` counts bytes that were no such message (they are dropped)."""

    topic: str
    received: int = 0
    undecodable: int = 0
    incompatible: str = ""  # why a publisher could not be connected: the policy of quality of service that differs
    tap: Callable[[bytes, int], None] | None = None  # is given the bytes as they came, and when


class Transport(ABC):
    """Topics in and out.

    Attributes:
        name: ``dds``, ``rclpy``, ``rospy`` or ``inproc``.
    """

    name: str

    @abstractmethod
    def advertise(self, topic: str, message: type[M], qos: Qos = COMMAND) -> Publisher[M]:
        """A topic to send on; ``topic`` starts with ``/``."""

    @abstractmethod
    def subscribe(
        self, topic: str, message: type[M], callback: Callable[[M, int], None], qos: Qos = SENSOR
    ) -> Subscription:
        """A topic to listen to: ``callback(message, received_ns)``."""

    @abstractmethod
    def now_ns(self) -> int:
        """The monotonic clock of ``received_ns`` [ns]."""

    @abstractmethod
    def stamp_ns(self) -> int:
        """The clock of headers [ns since 1970]: what a stamp of this machine would be now."""

    @abstractmethod
    def graph(self) -> list[TopicInfo]:
        """Every topic in sight, with ROS names and types."""

    @abstractmethod
    def close(self) -> None:
        """Leave the middleware; no callback runs afterwards. A second call does nothing."""
