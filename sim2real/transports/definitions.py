"""Definitions of the ROS types that the bridge speaks, and what is derived from them: hashes, checksums, full texts.

The fields are those of ROS's common_interfaces, geometry2, rmw_dds_common and interbotix_xs_msgs, which both versions
of ROS share but for the header.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache

__all__ = ["Field", "definition_text", "fields_of", "ros1_checksum", "ros1_name", "type_hash"]

_XYZ = "float64 x\nfloat64 y\nfloat64 z"
_DEFINITIONS = {
    "builtin_interfaces/msg/Time": "int32 sec\nuint32 nanosec",
    "builtin_interfaces/msg/Duration": "int32 sec\nuint32 nanosec",
    "std_msgs/msg/Header": "builtin_interfaces/Time stamp\nstring frame_id",
    "std_msgs/msg/Bool": "bool data",
    "std_msgs/msg/String": "string data",
    "std_msgs/msg/MultiArrayDimension": "string label\nuint32 size\nuint32 stride",
    "std_msgs/msg/MultiArrayLayout": "std_msgs/MultiArrayDimension[] dim\nuint32 data_offset",
    "std_msgs/msg/Float64MultiArray": "std_msgs/MultiArrayLayout layout\nfloat64[] data",
    "geometry_msgs/msg/Point": _XYZ,
    "geometry_msgs/msg/Vector3": _XYZ,
    "geometry_msgs/msg/Quaternion": f"{_XYZ}\nfloat64 w",
    "geometry_msgs/msg/Pose": "geometry_msgs/Point position\ngeometry_msgs/Quaternion orientation",
    "geometry_msgs/msg/PoseStamped": "std_msgs/Header header\ngeometry_msgs/Pose pose",
    "geometry_msgs/msg/Twist": "geometry_msgs/Vector3 linear\ngeometry_msgs/Vector3 angular",
    "geometry_msgs/msg/TwistStamped": "std_msgs/Header header\ngeometry_msgs/Twist twist",
    "geometry_msgs/msg/Wrench": "geometry_msgs/Vector3 force\ngeometry_msgs/Vector3 torque",
    "geometry_msgs/msg/WrenchStamped": "std_msgs/Header header\ngeometry_msgs/Wrench wrench",
    "geometry_msgs/msg/Transform": "geometry_msgs/Vector3 translation\ngeometry_msgs/Quaternion rotation",
    "geometry_msgs/msg/TransformStamped": (
        "std_msgs/Header header\nstring child_frame_id\ngeometry_msgs/Transform transform"
    ),
    "tf2_msgs/msg/TFMessage": "geometry_msgs/TransformStamped[] transforms",
    "sensor_msgs/msg/JointState": (
        "std_msgs/Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\nfloat64[] effort"
    ),
    "sensor_msgs/msg/Image": (
        "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\n"
        "uint8[] data"
    ),
    "sensor_msgs/msg/CompressedImage": "std_msgs/Header header\nstring format\nuint8[] data",
    "trajectory_msgs/msg/JointTrajectoryPoint": (
        "float64[] positions\nfloat64[] velocities\nfloat64[] accelerations\nfloat64[] effort\n"
        "builtin_interfaces/Duration time_from_start"
    ),
    "trajectory_msgs/msg/JointTrajectory": (
        "std_msgs/Header header\nstring[] joint_names\ntrajectory_msgs/JointTrajectoryPoint[] points"
    ),
    "interbotix_xs_msgs/msg/JointGroupCommand": "string name\nfloat32[] cmd",
    "rmw_dds_common/msg/Gid": "uint8[16] data",
    "rmw_dds_common/msg/NodeEntitiesInfo": (
        "string<=256 node_namespace\nstring<=256 node_name\n"
        "rmw_dds_common/Gid[] reader_gid_seq\nrmw_dds_common/Gid[] writer_gid_seq"
    ),
    "rmw_dds_common/msg/ParticipantEntitiesInfo": (
        "rmw_dds_common/Gid gid\nrmw_dds_common/NodeEntitiesInfo[] node_entities_info_seq"
    ),
}
_ROS1 = {
    "builtin_interfaces/Time": "time",
    "builtin_interfaces/Duration": "duration",
    "std_msgs/Header": "uint32 seq\ntime stamp\nstring frame_id",
}
_TYPE_IDS = {"int32": 6, "uint8": 3, "uint32": 7, "float32": 10, "float64": 11, "bool": 15, "string": 17}
_BOUNDED_STRING, _FIXED, _SEQUENCE = 4, 48, 144  # added to a type's id: string<=n (21), T[n], T[]
_FIELD = re.compile(r"([\w/]+?)(?:<=(\d+))?(\[(\d*)\])? (\w+)")


@dataclass(frozen=True)
class Field:
    """A field: ``base`` is a primitive's name or a type such as ``std_msgs/msg/Header``.

    Attributes:
        length: None for one value, 0 for a sequence, else of a fixed array.
        bound: longest string, 0 without.
    """

    name: str
    base: str
    length: int | None
    bound: int

    @property
    def is_primitive(self) -> bool:
        """Whether ``base`` is no type with fields of its own."""
        return "/" not in self.base


@cache
def fields_of(ros_type: str) -> tuple[Field, ...]:
    """Fields of a type such as ``sensor_msgs/msg/JointState``. KeyError: none that is spoken here."""
    return tuple(_parse(line) for line in _DEFINITIONS[ros_type].split("\n"))


def _parse(line: str) -> Field:
    match = _FIELD.fullmatch(line)
    assert match is not None, line
    base, bound, array, length, name = match.groups()
    if "/" in base:
        base = base.replace("/", "/msg/")
    return Field(name, base, int(length or 0) if array else None, int(bound or 0))


def _nested(ros_type: str) -> list[str]:
    """All types inside of it, each once, without itself."""
    found: dict[str, None] = {}
    for field in fields_of(ros_type):
        if not field.is_primitive:
            found |= dict.fromkeys([field.base, *_nested(field.base)])
    return list(found)


def _description(ros_type: str) -> dict[str, object]:
    fields = []
    for field in fields_of(ros_type):
        type_id = (_TYPE_IDS[field.base] if field.is_primitive else 1) + (_BOUNDED_STRING if field.bound else 0)
        if field.length is not None:
            type_id += _FIXED if field.length else _SEQUENCE
        kind = {
            "type_id": type_id, "capacity": field.length or 0, "string_capacity": field.bound,
            "nested_type_name": "" if field.is_primitive else field.base,
        }  # fmt: skip
        fields.append({"name": field.name, "type": kind})
    return {"type_name": ros_type, "fields": fields}


@cache
def type_hash(ros_type: str) -> str:
    """``RIHS01_`` and 64 hexadecimal digits: SHA-256 of the type's description (REP 2011, ROS 2 Iron and later)."""
    text = json.dumps(
        {
            "type_description": _description(ros_type),
            "referenced_type_descriptions": [_description(t) for t in sorted(_nested(ros_type))],
        }
    )
    return f"RIHS01_{hashlib.sha256(text.encode()).hexdigest()}"


def ros1_name(ros_type: str) -> str:
    """``sensor_msgs/JointState`` of ``sensor_msgs/msg/JointState``."""
    return ros_type.replace("/msg/", "/")


def _lines(ros_type: str, ros1: bool) -> list[str]:
    short = ros1_name(ros_type)
    if not ros1:
        return _DEFINITIONS[ros_type].split("\n")
    lines = _ROS1.get(short, _DEFINITIONS[ros_type]).split("\n")
    return [re.sub(r"^builtin_interfaces/\w+", lambda m: _ROS1[m[0]], line) for line in lines]


@cache
def ros1_checksum(ros_type: str) -> str:
    """MD5 by which two ROS 1 nodes check that they mean the same type (genmsg): nested types by their own checksum."""
    out = []
    for line in _lines(ros_type, ros1=True):
        base, _, name = line.partition(" ")
        base, bracket, rest = base.partition("[")
        if "/" in base:
            base, bracket, rest = ros1_checksum(base.replace("/", "/msg/")), "", ""
        out.append(f"{base}{bracket}{rest} {name}")
    return hashlib.md5("\n".join(out).encode(), usedforsecurity=False).hexdigest()


@cache
def definition_text(ros_type: str, *, ros1: bool = False) -> str:
    """The type's definition and those of all types inside, as bags and ROS 1 connections carry them."""
    parts = ["\n".join(_lines(ros_type, ros1))]
    nested = [t for t in _nested(ros_type) if not (ros1 and t.startswith("builtin_interfaces/"))]
    parts += [f"MSG: {ros1_name(t)}\n" + "\n".join(_lines(t, ros1)) for t in nested]
    return f"\n{'=' * 80}\n".join(parts) + "\n"
