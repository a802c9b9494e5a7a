"""How ROS 2 shows itself on DDS: mangled names, the topic that says which node owns which endpoint, Cyclone's settings.

Sources: rmw_dds_common (ParticipantEntitiesInfo on ``ros_discovery_info``, 16-byte Gids since Iron), design.ros2.org
"Topic and Service name mapping to DDS", Cyclone DDS's configuration reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from xml.sax.saxutils import quoteattr

from visuomotor.sim2real.transports.base import Endpoint, Qos, TopicInfo
from visuomotor.sim2real.transports.buffers import Bytes, Decoder, Encoder

__all__ = [
    "DISCOVERY_TOPIC",
    "DISCOVERY_TYPE",
    "assemble",
    "cyclone_settings",
    "dds_topic",
    "owners_from",
    "owners_to_bytes",
    "ros_topic",
    "ros_type",
]

DISCOVERY_TOPIC = "ros_discovery_info"
DISCOVERY_TYPE = "rmw_dds_common/msg/ParticipantEntitiesInfo"
LOCALHOST = ("lo", "localhost", "127.0.0.1")
_GID = 16
# Fast DDS 3 (ROS 2 Kilted and later) announces type information that Cyclone refuses; 1.15 is its vendor
_COMPATIBLE = "<Compatibility><IgnoreTypeInformation>1.15</IgnoreTypeInformation></Compatibility>"
_DDS_TYPE = re.compile(r"(\w+)::(\w+)::dds_::(\w+)_")


def dds_topic(topic: str) -> str:
    """``rt/joint_states`` of ``/joint_states``."""
    return f"rt{topic}"


def ros_topic(name: str) -> str | None:
    """``/joint_states`` of ``rt/joint_states``; None: no topic of ROS (a service, or another program's)."""
    return name[2:] if name.startswith("rt/") else None


def ros_type(name: str) -> str:
    """``sensor_msgs/msg/JointState`` of ``sensor_msgs::msg::dds_::JointState_``; others as they are."""
    match = _DDS_TYPE.fullmatch(name)
    return "/".join(match.groups()) if match else name


def owners_to_bytes(participant: bytes, node: str, readers: Iterable[bytes], writers: Iterable[bytes]) -> bytes:
    """A ParticipantEntitiesInfo of one node: the Gids ``[16]`` of its participant, readers and writers."""
    out = Encoder()
    out.put(participant, 1)
    out.uint(1)
    out.string("/")
    out.string(node)
    for gids in (list(readers), list(writers)):
        out.uint(len(gids))
        for gid in gids:
            out.put(gid, 1)
    return out.finish(4)


def owners_from(data: Bytes) -> dict[bytes, str]:
    """Who owns which endpoint: full names of nodes by Gid, out of a ParticipantEntitiesInfo.

    Raises:
        CdrError: these bytes are none.
    """
    decoder, owners = Decoder(data), {}
    decoder.view(_GID)
    for _ in range(decoder.length(16)):
        namespace, name = decoder.string(), decoder.string()
        for _kind in ("readers", "writers"):
            for _ in range(decoder.length(_GID)):
                owners[bytes(decoder.view(_GID))] = f"{namespace.rstrip('/')}/{name}"
    return owners


def assemble(
    publishers: Iterable[tuple[str, bytes, str, Qos]],
    subscribers: Iterable[tuple[str, bytes, str, Qos]],
    owners: Mapping[bytes, str],
) -> list[TopicInfo]:
    """Topics by name, from endpoints as DDS announces them: name of the topic, Gid, name of the type, qualities."""
    topics: dict[str, tuple[list[Endpoint], list[Endpoint]]] = {}
    for side, endpoints in enumerate((publishers, subscribers)):
        for name, gid, type_name, qos in endpoints:
            if (topic := ros_topic(name)) is not None:
                found = topics.setdefault(topic, ([], []))
                found[side].append(Endpoint(owners.get(gid, "?"), ros_type(type_name), qos))
    return [TopicInfo(t, tuple(pubs), tuple(subs)) for t, (pubs, subs) in sorted(topics.items())]


def cyclone_settings(interface: str, peers: Sequence[str]) -> str:
    """Cyclone's XML for an interface (name, address, ``auto``, or ``lo``) and hosts that are asked directly.

    On ``lo``, hosts are found by asking 127.0.0.1, as rmw_cyclonedds does it: it works in containers without
    multicast. Elsewhere by multicast, and the given hosts; data always goes to who listens, never to all.
    """
    local = interface in LOCALHOST
    attributes = 'autodetermine="true"'
    if local:
        attributes = 'name="lo" multicast="false"'
    elif interface != "auto":
        attributes = f"{'address' if _is_address(interface) else 'name'}={quoteattr(interface)}"
    hosts = [*peers, "127.0.0.1"] if local else peers
    return (
        f'<CycloneDDS><Domain Id="any"><General><Interfaces><NetworkInterface {attributes}/></Interfaces>'
        f"<AllowMulticast>{'false' if local else 'spdp'}</AllowMulticast></General>"
        "<Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>60</MaxAutoParticipantIndex>"
        f"<Peers>{''.join(f'<Peer Address={quoteattr(host)}/>' for host in hosts)}</Peers></Discovery>"
        f"{_COMPATIBLE}</Domain></CycloneDDS>"
    )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
