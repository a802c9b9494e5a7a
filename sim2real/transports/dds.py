"""ROS 2 topics over DDS without a ROS installation, by Eclipse Cyclone DDS (the only file that imports it).

Other nodes see a ROS 2 node: names are mangled and types hashed as ROS does it, bytes are XCDR1, and
``ros_discovery_info`` says which endpoints are its own. Topics only: services differ between vendors of DDS.
"""

from __future__ import annotations

import atexit
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from visuomotor.data.errors import ConfigError, MissingExtraError
from visuomotor.sim2real.messages import ROS_NAMES, Message
from visuomotor.sim2real.transports.base import (
    COMMAND,
    LATCHED,
    SENSOR,
    Publisher,
    Qos,
    Subscription,
    TopicInfo,
    Transport,
    check_topic,
)
from visuomotor.sim2real.transports.cdr import CdrError, encode
from visuomotor.sim2real.transports.definitions import fields_of, type_hash
from visuomotor.sim2real.transports.graph import (
    DISCOVERY_TOPIC,
    DISCOVERY_TYPE,
    assemble,
    cyclone_settings,
    dds_topic,
    owners_from,
    owners_to_bytes,
)
from visuomotor.sim2real.transports.inbox import Inbox

try:
    from cyclonedds import core, idl
    from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication, BuiltinTopicDcpsSubscription
    from cyclonedds.core import DDSException, InstanceState, Policy, ReadCondition, SampleState, ViewState
    from cyclonedds.domain import Domain, DomainParticipant
    from cyclonedds.idl import types as idl_types
    from cyclonedds.idl.annotations import final
    from cyclonedds.pub import DataWriter
    from cyclonedds.sub import DataReader
    from cyclonedds.topic import Topic
except ImportError:
    raise MissingExtraError("transport=dds needs the package cyclonedds: pip install 'visuomotor[dds]'") from None

__all__ = ["DdsTransport"]

M = TypeVar("M", bound=Message)
_MS = 1_000_000
_ANY = SampleState.Any | ViewState.Any | InstanceState.Any
_MAX_ENDPOINTS = 4096
_OWNERS = Qos(reliable=True, depth=100, transient_local=True)  # one topic for the owners of all participants
_BLOCKING_NS = 2 * _MS  # longer than that, a full queue to a slow subscriber loses the message
_POLICIES = {2: "durability", 4: "deadline", 8: "liveliness", 11: "reliability", 23: "data representation"}
_PRIMITIVES = {
    "bool": bool, "string": str, "uint8": idl_types.uint8, "int32": idl_types.int32, "uint32": idl_types.uint32,
    "float32": idl_types.float32, "float64": idl_types.float64,
}  # fmt: skip
_Endpoint = tuple[str, str, Qos]  # names of topic and type as DDS has them
_domains: WeakValueDictionary[int, _SharedDomain] = WeakValueDictionary()


class _SharedDomain(Domain):
    """Cyclone has one configuration for each domain of a process: transports of the same domain share it."""

    config: str = ""


class _Wire:
    """A sample as bytes: Cyclone's own codec takes 13 ms for a small picture."""

    __slots__ = ("data", "sample_info")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.sample_info: Any = None

    def serialize(self, buffer: Any = None, endianness: Any = None, use_version_2: Any = None) -> bytes:
        return self.data

    @classmethod
    def deserialize(cls, data: bytes, has_header: bool = True, use_version_2: Any = None) -> _Wire:
        return cls(data)

    @classmethod
    def deserialize_key(cls, data: bytes, has_header: bool = True, use_version_2: Any = None) -> _Wire:
        return cls(b"")  # of a writer that leaves: there is no payload


@cache
def _idl_struct(ros_type: str) -> Any:
    fields = {}
    for field in fields_of(ros_type):
        kind = _PRIMITIVES[field.base] if field.is_primitive else _idl_struct(field.base)
        if field.bound:
            kind = idl_types.bounded_str[field.bound]
        if field.length is not None:
            kind = idl_types.array[kind, field.length] if field.length else idl_types.sequence[kind]
        fields[field.name] = kind
    package, _, name = ros_type.split("/")
    return final(idl.make_idl_struct(f"{name}_", f"{package}.msg.dds_.{name}_", fields))


@cache
def _wire_type(ros_type: str) -> type[_Wire]:
    struct = _idl_struct(ros_type)
    return type(struct.__name__, (_Wire,), {n: getattr(struct, n) for n in ("__idl__", "__idl_typename__")})


def _dds_qos(qos: Qos, ros_type: str | None = None) -> Any:
    policies = [
        Policy.Reliability.Reliable(_BLOCKING_NS) if qos.reliable else Policy.Reliability.BestEffort,
        Policy.Durability.TransientLocal if qos.transient_local else Policy.Durability.Volatile,
        Policy.History.KeepLast(qos.depth),
        Policy.DataRepresentation(use_cdrv0_representation=True, use_xcdrv2_representation=False),
        Policy.WriterDataLifecycle(autodispose=False),
    ]
    if qos.lifespan_s is not None:
        policies.append(Policy.Lifespan(round(qos.lifespan_s * 1000 * _MS)))
    if ros_type is not None:
        policies.append(Policy.Userdata(data=f"typehash={type_hash(ros_type)};".encode()))
    return core.Qos(*policies)


def _plain_qos(qos: Any) -> Qos:
    """Of another participant's endpoint; how many messages it keeps is nobody's business but its own."""
    return Qos(
        reliable=Policy.Reliability.BestEffort not in qos,
        depth=0,
        transient_local=Policy.Durability.TransientLocal in qos,
    )


def _differs(status: Any) -> str:
    policy = _POLICIES.get(status.last_policy_id, f"policy {status.last_policy_id}")
    return f"{policy}: what the publisher offers is less than what the subscriber asks for"


class _Writer(Publisher[Any]):
    def __init__(self, transport: DdsTransport, topic: str, ros_type: str, qos: Qos) -> None:
        listener = core.Listener(on_offered_incompatible_qos=self._refused)
        self._transport, self._topic, self._wire = transport, topic, _wire_type(ros_type)
        hashed = None if topic == DISCOVERY_TOPIC else ros_type
        self.dds = DataWriter(
            transport.participant, transport.topic(topic, ros_type), _dds_qos(qos, hashed), listener=listener
        )

    def _refused(self, _writer: Any, status: Any) -> None:
        self.incompatible = _differs(status)

    def publish(self, message: Message) -> None:
        self.send(encode(message, multiple=4))

    def send(self, data: bytes) -> None:
        if self._transport.closed:
            return
        try:
            self.dds.write(self._wire(data))
        except DDSException as error:
            if error.code != DDSException.DDS_RETCODE_TIMEOUT and not self._transport.closed:
                raise

    def matched(self) -> int:
        return 0 if self._transport.closed else len(self.dds.get_matched_subscriptions())

    def rivals(self) -> int:
        return max(0, self._transport.writers_on(self._topic) - 1)  # our own is announced to us as well


class DdsTransport(Transport):
    """A ROS 2 node on DDS.

    Args:
        node: its name.
        domain: ``ROS_DOMAIN_ID``.
        interface: name or address of a network interface, ``auto`` for the one that Cyclone chooses, ``lo`` for this
            machine alone; empty: as ``CYCLONEDDS_URI`` says.
        peers: hosts that are asked directly, where the network has no multicast.

    Raises:
        ConfigError: there is no such interface; or this process already uses the domain with other settings.
    """

    name = "dds"

    def __init__(
        self, node: str = "visuomotor", domain: int = 0, interface: str = "lo", peers: Sequence[str] = ()
    ) -> None:
        self.node = node
        self._domain: Any = _domain(domain, interface, peers)
        self.participant = DomainParticipant(domain, qos=core.Qos(Policy.Userdata(data=b"enclave=/;")))
        self._topics: dict[tuple[str, str], Any] = {}
        self._writers: list[_Writer] = []
        self._readers: list[tuple[Any, int, Callable[[bytes, int], None]]] = []
        self._owners: dict[bytes, str] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._waitset, self._guard = core.WaitSet(self.participant), core.GuardCondition(self.participant)
        self._waitset.attach(self._guard)
        kinds = (BuiltinTopicDcpsPublication, BuiltinTopicDcpsSubscription)
        self._endpoints = [(BuiltinDataReader(self.participant, kind), dict[bytes, _Endpoint]()) for kind in kinds]
        for reader, _ in self._endpoints:
            self._waitset.attach(ReadCondition(reader, _ANY))
        self._announcer = _Writer(self, DISCOVERY_TOPIC, DISCOVERY_TYPE, LATCHED)
        self._listen_to(DISCOVERY_TOPIC, DISCOVERY_TYPE, _OWNERS, self._hear_owners, None)
        self._announce()
        self._thread = threading.Thread(target=self._run, name="dds", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def topic(self, name: str, ros_type: str) -> Any:
        if (name, ros_type) not in self._topics:
            self._topics[name, ros_type] = Topic(self.participant, name, _wire_type(ros_type))
        return self._topics[name, ros_type]

    def writers_on(self, name: str) -> int:
        """How many of all participants write on this topic, by its name on DDS."""
        return sum(endpoint[0] == name for endpoint in list(self._endpoints[0][1].values()))

    def advertise(self, topic: str, message: type[M], qos: Qos = COMMAND) -> Publisher[M]:
        writer = _Writer(self, dds_topic(check_topic(topic)), ROS_NAMES[message], qos)
        self._writers.append(writer)
        self._announce()
        return writer

    def subscribe(
        self, topic: str, message: type[M], callback: Callable[[M, int], None], qos: Qos = SENSOR
    ) -> Subscription:
        subscription = Subscription(check_topic(topic))

        def refused(_reader: Any, status: Any) -> None:
            subscription.incompatible = _differs(status)

        inbox = Inbox(subscription, message, callback)
        listener = core.Listener(on_requested_incompatible_qos=refused)
        self._listen_to(dds_topic(topic), ROS_NAMES[message], qos, inbox.deliver, listener)
        self._announce()
        return subscription

    def _listen_to(
        self, name: str, ros_type: str, qos: Qos, deliver: Callable[[bytes, int], None], listener: Any
    ) -> None:
        hashed = None if name == DISCOVERY_TOPIC else ros_type
        reader = DataReader(self.participant, self.topic(name, ros_type), _dds_qos(qos, hashed), listener=listener)
        with self._lock:
            self._readers.append((reader, qos.depth, deliver))
            self._waitset.attach(ReadCondition(reader, _ANY))

    def _run(self) -> None:
        while not self.closed:
            self._waitset.wait(200 * _MS)
            self._follow_endpoints()
            with self._lock:
                readers = list(self._readers)
            for reader, depth, deliver in readers:
                for sample in reader.take(N=depth):
                    if self.closed:
                        return
                    if isinstance(sample, _Wire):  # others only say that a writer has left
                        deliver(sample.data, time.monotonic_ns())

    def _follow_endpoints(self) -> None:
        for reader, known in self._endpoints:
            for sample in reader.take(N=_MAX_ENDPOINTS):
                if sample.sample_info.valid_data:
                    known[sample.key.bytes] = (sample.topic_name, sample.type_name, _plain_qos(sample.qos))
                else:
                    known.pop(sample.key.bytes, None)

    def _hear_owners(self, data: bytes, _received_ns: int) -> None:
        try:
            self._owners |= owners_from(data)  # a new dictionary's content at once: graph() reads it in another thread
        except CdrError:
            return  # before Iron Gids had 24 bytes; endpoints of such nodes stay without a name

    def _announce(self) -> None:
        readers = [reader.guid.bytes for reader, _, _ in self._readers[1:]]
        writers = [writer.dds.guid.bytes for writer in self._writers]
        self._announcer.send(owners_to_bytes(self.participant.guid.bytes, self.node, readers, writers))

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def stamp_ns(self) -> int:
        return time.time_ns()

    def graph(self) -> list[TopicInfo]:
        if self.closed:
            return []
        publishers, subscribers = (
            [(name, key, kind, qos) for key, (name, kind, qos) in list(known.items())] for _, known in self._endpoints
        )
        return assemble(publishers, subscribers, dict(self._owners))

    def close(self) -> None:
        if self.closed:
            return
        self._closing.set()
        atexit.unregister(self.close)
        self._guard.set(True)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        # Cyclone deletes an entity with its Python object, which others may still hold: the announcements go out now
        readers, writers = [reader for reader, _, _ in self._readers], [self._announcer, *self._writers]
        entities = [
            self._waitset,
            self._guard,
            *(reader for reader, _ in self._endpoints),
            *readers,
            *(w.dds for w in writers),
        ]
        for entity in [*entities, *self._topics.values(), self.participant]:
            entity.__del__()
        self._domain = None


def _domain(domain: int, interface: str, peers: Sequence[str]) -> _SharedDomain:
    config = cyclone_settings(interface, peers) if interface else os.environ.get("CYCLONEDDS_URI", "")
    shared = _domains.get(domain)
    if shared is not None and shared.config != config:
        raise ConfigError(f"this process already uses domain {domain} with other interfaces or peers")
    if shared is None:
        try:
            shared = _SharedDomain(domain, config)
        except DDSException:
            known = ", ".join(name for _, name in socket.if_nameindex())
            raise ConfigError(
                f"Cyclone DDS does not start with interface {interface!r} and peers {list(peers)}; interfaces: {known}"
            ) from None
        shared.config = config
        _domains[domain] = shared
    return shared
