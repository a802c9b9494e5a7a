"""Small bags for tests, written by rosbags."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

ROS1 = get_typestore(Stores.ROS1_NOETIC)
ROS2 = get_typestore(Stores.ROS2_HUMBLE)
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
KINDS = ("bag", "bag-bz2", "bag-lz4", "db3", "mcap")
Sample = tuple[str, float, str, dict[str, Any]]  # topic, seconds of receipt, type, fields


def header(seconds: float, *, ros1: bool = False) -> dict[str, Any]:
    ns = START + round(seconds * SECOND)
    stamp = {"sec": ns // SECOND, "nanosec": ns % SECOND}
    return {"stamp": stamp, "frame_id": "f", **({"seq": 0} if ros1 else {})}


def message(store: Any, msgtype: str, values: Any) -> Any:
    """A message of nested dicts."""
    out = {}
    for name, (kind, inner) in store.fielddefs[msgtype][1]:
        value = values[name]
        if kind.name == "NAME":
            value = message(store, inner, value)
        elif kind.name == "SEQUENCE" and inner[0][0].name == "NAME":
            value = [message(store, inner[0][1], v) for v in value]
        out[name] = value
    return store.types[msgtype](**out)


def write_bag(folder: Path, kind: str, samples: Iterable[Sample], name: str = "x") -> Path:
    """A bag of one of :data:`KINDS`; returns the file."""
    rows = list(samples)
    if kind.startswith("bag"):
        path = folder / f"{name}.bag"
        with_writer: Any = Writer1(path)
        if kind != "bag":
            with_writer.set_compression(getattr(Writer1.CompressionFormat, kind[4:].upper()))
        store, serialize = ROS1, ROS1.serialize_ros1
    else:
        path = folder / name / f"{name}.{kind}"
        plugin = StoragePlugin.MCAP if kind == "mcap" else StoragePlugin.SQLITE3
        with_writer = Writer2(folder / name, version=8, storage_plugin=plugin)
        store, serialize = ROS2, ROS2.serialize_cdr
    with with_writer as writer:
        connections = {}
        for topic, seconds, msgtype, values in rows:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=store)
            raw = serialize(message(store, msgtype, values), msgtype)
            writer.write(connections[topic], START + round(seconds * SECOND), raw)
    return path


def joints(seconds: float, names: list[str], position: list[float], *, ros1: bool = False) -> dict[str, Any]:
    none = np.zeros(0)
    return {
        "header": header(seconds, ros1=ros1), "name": names, "position": np.array(position), "velocity": none,
        "effort": none,
    }  # fmt: skip


def twist(x: float, turn: float) -> dict[str, Any]:
    return {"linear": {"x": x, "y": 0.0, "z": 0.0}, "angular": {"x": 0.0, "y": 0.0, "z": turn}}


def drive(kind: str, n: int = 40) -> list[Sample]:
    """Joint states at 20 Hz (a = seconds, b = -seconds, in changing order) and commands at 10 Hz (x = seconds)."""
    ros1, out = kind.startswith("bag"), list[Sample]()
    for i in range(n):
        t = i / 20
        names, values = (["a", "b"], [t, -t]) if i % 3 else (["b", "a"], [-t, t])
        out.append(("/joint_states", t, "sensor_msgs/msg/JointState", joints(t - 0.001, names, values, ros1=ros1)))
        if i % 2 == 0:
            out.append(("/cmd", t, "geometry_msgs/msg/Twist", twist(t, 1.0)))
    return out
