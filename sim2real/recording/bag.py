"""All topics of a robot into a ROS 2 bag: an MCAP file of messages as they came, with their definitions.

Runs in a process of its own (:mod:`~visuomotor.sim2real.recording.bag_process`): neither its disk nor its decoding
costs the bridge's loop anything.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visuomotor.data.errors import DataError, MissingExtraError
from visuomotor.sim2real.messages import ROS_NAMES, Message
from visuomotor.sim2real.transports.base import LATCHED, SENSOR, Endpoint, Qos, Subscription, TopicInfo, Transport
from visuomotor.sim2real.transports.cdr import encode
from visuomotor.sim2real.transports.definitions import definition_text

__all__ = ["BagCounts", "BagRecorder", "BagWriter"]

_KINDS = {name: kind for kind, name in ROS_NAMES.items()}
_DEPTH = 200
_HIDDEN = ("/rosout", "/parameter_events")
_METADATA = "metadata.yaml"


@dataclass
class BagCounts:
    """Messages by topic, the topics of types that this package does not speak, and why the bag ends early, if so."""

    messages: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    trouble: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"messages": dict(self.messages), "left_out": dict(self.left_out), "trouble": self.trouble}


class BagWriter:
    """A bag: one ``.mcap`` file, or a folder of it and ``metadata.yaml``, as ``ros2 bag record`` makes them.

    A file that was not closed (a killed process) lacks its index only; readers find its messages by scanning.

    Args:
        path: ending in ``.mcap`` for a file alone, else of the folder.

    Raises:
        DataError: something is there already, or it cannot be written.
        MissingExtraError: mcap is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            from mcap.writer import CompressionType, Writer
        except ImportError:
            raise MissingExtraError("bags need the package mcap: pip install 'visuomotor[ros]'") from None
        if path.exists():
            raise DataError(f"{path} exists: give another bag=")
        self._folder = None if path.suffix == ".mcap" else path
        self.path = path if self._folder is None else path / f"{path.name}_0.mcap"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb")
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror or error}") from None
        self._writer = Writer(self._file, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library="visuomotor")
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, tuple[int, str, str]] = {}  # topic to channel, type and qualities of service
        self._first = self._last = 0
        self.counts = BagCounts()

    def add(self, topic: str, ros_type: str, data: bytes, stamp_ns: int, offered: Sequence[Qos] = ()) -> None:
        """One message of CDR bytes, received at ``stamp_ns`` [ns since 1970]."""
        if topic not in self._channels:
            self._add_channel(topic, ros_type, offered)
        number = self.counts.messages[topic]
        self._writer.add_message(self._channels[topic][0], stamp_ns, data, stamp_ns, number)
        self.counts.messages[topic] = number + 1
        self._first, self._last = min(self._first or stamp_ns, stamp_ns), max(self._last, stamp_ns)

    def _add_channel(self, topic: str, ros_type: str, offered: Sequence[Qos]) -> None:
        if ros_type not in self._schemas:
            text = definition_text(ros_type).encode()
            self._schemas[ros_type] = self._writer.register_schema(ros_type, "ros2msg", text)
        qos = "\n".join(_profile(q) for q in offered)
        channel = self._writer.register_channel(
            topic, "cdr", self._schemas[ros_type], {"offered_qos_profiles": qos} if qos else {}
        )
        self._channels[topic] = (channel, ros_type, qos)
        self.counts.messages[topic] = 0

    def close(self) -> None:
        """Write the index, and what ``ros2 bag`` wants to know of the folder."""
        self._writer.finish()
        self._file.close()
        if self._folder is not None:
            (self._folder / _METADATA).write_text(self._describe(), encoding="utf-8")

    def _describe(self) -> str:
        """``metadata.yaml`` of rosbag2, version 5 (Humble and later). JSON is YAML."""
        topics = [
            {
                "topic_metadata": {
                    "name": topic, "type": ros_type, "serialization_format": "cdr", "offered_qos_profiles": qos,
                },
                "message_count": self.counts.messages[topic],
            }
            for topic, (_, ros_type, qos) in self._channels.items()
        ]  # fmt: skip
        duration = {"nanoseconds": self._last - self._first}
        start = {"nanoseconds_since_epoch": self._first}
        total = sum(self.counts.messages.values())
        file = {"path": self.path.name, "starting_time": start, "duration": duration, "message_count": total}
        information = {
            "version": 5, "storage_identifier": "mcap", "duration": duration, "starting_time": start,
            "message_count": total, "topics_with_message_count": topics, "compression_format": "",
            "compression_mode": "", "relative_file_paths": [self.path.name], "files": [file],
        }  # fmt: skip
        return json.dumps({"rosbag2_bagfile_information": information}, indent=1)


def _profile(qos: Qos) -> str:
    """An entry of the list that rosbag2 keeps of each topic: numbers of rmw_qos_*_policy_t."""
    reliability, durability = (1 if qos.reliable else 2), (1 if qos.transient_local else 2)
    zero = "{sec: 0, nsec: 0}"
    return (
        f"- {{history: 1, depth: {max(1, qos.depth)}, reliability: {reliability}, durability: {durability}, "
        f"deadline: {zero}, lifespan: {zero}, liveliness: 1, liveliness_lease_duration: {zero}, "
        "avoid_ros_namespace_conventions: false}"
    )


class BagRecorder:
    """Listens to every topic that somebody publishes, and to those that appear later.

    Args:
        transport: whose topics.
        writer: where they go.
        patient: topics that are listened to only once somebody else does: a bridge takes a listener on the topic of its
            commands for the robot.
    """

    def __init__(self, transport: Transport, writer: BagWriter, patient: Collection[str] = ()) -> None:
        self._transport, self._writer, self._patient = transport, writer, frozenset(patient)
        self._subscriptions: dict[str, Subscription] = {}
        self._lock = threading.Lock()
        self._closed = False
        # what a transport of ROS 1 brings are other bytes; those of a bag are written anew from the message
        self._raw = transport.name != "rospy"

    def discover(self) -> None:
        """Subscribe to topics that are new. Call it again and again."""
        for info in self._transport.graph():
            if info.topic not in self._subscriptions and info.topic not in _HIDDEN and self._wanted(info):
                self._subscribe(info)

    def _wanted(self, info: TopicInfo) -> bool:
        return bool(info.publishers) and (info.topic not in self._patient or bool(info.subscribers))

    def _subscribe(self, info: TopicInfo) -> None:
        ros_type = info.publishers[0].ros_type
        kind = _KINDS.get(ros_type)
        if kind is None:
            self._writer.counts.left_out[info.topic] = ros_type
            return
        offered = [e.qos for e in info.publishers if e.qos is not None]

        def raw(data: bytes, received_ns: int) -> None:
            self._write(info.topic, ros_type, data, received_ns, offered)

        def again(message: Message, received_ns: int) -> None:
            self._write(info.topic, ros_type, encode(message), received_ns, offered)

        listen = _ignore if self._raw else again
        subscription = self._transport.subscribe(info.topic, kind, listen, _requested(info.publishers))
        if self._raw:
            subscription.tap = raw
        self._subscriptions[info.topic] = subscription

    def _write(self, topic: str, ros_type: str, data: bytes, received_ns: int, offered: Sequence[Qos]) -> None:
        stamp_ns = self._transport.stamp_ns() - (self._transport.now_ns() - received_ns)
        with self._lock:
            if self._closed:
                return
            try:
                self._writer.add(topic, ros_type, data, stamp_ns, offered)
            except OSError as error:  # a full disk, in the transport's thread: nobody there would tell
                self._closed = True
                self._tell(error)

    def _tell(self, error: OSError) -> None:
        counts = self._writer.counts
        counts.trouble = counts.trouble or f"the bag ends early: {error.strerror or error}"

    def close(self) -> BagCounts:
        """Finish the bag. The transport stays open."""
        with self._lock:
            self._closed = True
            try:
                self._writer.close()
            except OSError as error:
                self._tell(error)
        return self._writer.counts


def _ignore(message: Message, received_ns: int) -> None:
    """Its bytes were taken before."""


def _requested(publishers: Sequence[Endpoint]) -> Qos:
    """The strictest quality that all offer: reliable loses less, transient local brings what was said before."""
    known = [e.qos or SENSOR for e in publishers]
    return Qos(
        reliable=all(q.reliable for q in known),
        depth=_DEPTH,
        transient_local=LATCHED.transient_local and all(q.transient_local and q.reliable for q in known),
    )
