"""What a bag holds, as a table and as a first mapping file to edit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.importing.bag_fields import FieldReader
from visuomotor.data.importing.bag_images import IMAGE_TYPES
from visuomotor.data.importing.bag_mapping import KeyMap
from visuomotor.data.importing.recording import Recording
from visuomotor.data.importing.ros_types import Decoder

__all__ = ["TopicSummary", "propose", "summarise", "table"]

_INTERNAL = ("/rosout", "/rosout_agg", "/parameter_events", "/clock", "/tf_static", "/diagnostics", "/events/")
_NOT_DATA = ("visualization_msgs/", "rcl_interfaces/", "rosgraph_msgs/", "diagnostic_msgs/")
_COMMANDS = ("cmd", "command", "action", "target", "goal", "setpoint")


@dataclass(frozen=True, kw_only=True)
class TopicSummary:
    """One topic: messages, usual rate [Hz] (1 / the median interval), longest pause [s], names of its components."""

    topic: str
    msgtype: str
    count: int
    rate: float | None
    longest: float | None
    fields: tuple[str, ...]
    joints: tuple[str, ...]


def summarise(recording: Recording, decoders: Mapping[str, Decoder]) -> list[TopicSummary]:
    """Every topic of a bag, by name. Reads all of it once, and decodes the first message of each topic."""
    times: dict[str, list[int]] = {name: [] for name in recording.topics}
    readers: dict[str, FieldReader | None] = {}
    for topic, received, raw in recording.messages(list(recording.topics)):
        times[topic].append(received)
        if topic not in readers:
            readers[topic] = _reader(topic, recording.topics[topic].msgtype, decoders.get(topic), raw)
    out = []
    for name, topic_info in sorted(recording.topics.items()):
        width = np.diff(np.sort(np.array(times[name], np.float64))) / 1e9
        reader = readers.get(name)
        out.append(
            TopicSummary(
                topic=name,
                msgtype=topic_info.msgtype,
                count=len(times[name]),
                rate=float(1 / np.median(width)) if len(width) and np.median(width) > 0 else None,
                longest=float(width.max()) if len(width) else None,
                fields=reader.paths if reader else (),
                joints=reader.joints or () if reader else (),
            )
        )
    return out


def _reader(topic: str, msgtype: str, decoder: Decoder | None, raw: memoryview) -> FieldReader | None:
    if decoder is None or msgtype in IMAGE_TYPES:
        return None
    try:
        return FieldReader("key", KeyMap(topic=topic), decoder.decode(msgtype, raw))
    except (ConfigError, DataError):
        return None  # nothing of numbers in it


def table(recording: Recording, topics: list[TopicSummary]) -> str:
    """Lines of text: topic, type, messages, rate, longest pause."""
    wide = max([5, *(len(t.topic) for t in topics)])
    lines = [f"{'topic':{wide}}  messages  usual rate  longest pause  type"]
    for t in topics:
        rate = "-" if t.rate is None else f"{t.rate:.4g} Hz"
        pause = "-" if t.longest is None else f"{t.longest:.3g} s"
        lines.append(f"{t.topic:{wide}}  {t.count:8d}  {rate:>10}  {pause:>13}  {t.msgtype}")
    lines += [f"{name:{wide}}  cannot be read: {why}" for name, why in recording.unreadable.items()]
    return "\n".join(lines)


def propose(topics: list[TopicSummary]) -> str:
    """A mapping file (YAML) with a key for every topic that has numbers or pictures."""
    used = [t for t in topics if t.count > 1 and not t.topic.startswith(_INTERNAL) and t.topic != "/tf"]
    used = [t for t in used if t.fields or t.msgtype in IMAGE_TYPES]
    used = [t for t in used if not t.msgtype.startswith(_NOT_DATA)]
    cameras = [t.rate for t in used if t.rate and t.msgtype in IMAGE_TYPES]
    rates = cameras or [t.rate for t in used if t.rate and t.rate >= 5] or [10.0]
    lines = [
        "# Which topics become which arrays; see docs/importing.md. Remove what is not needed, name what stays.",
        f"fps: {max(1, round(min(rates)))}",
        "# clock: header        # or receive; without it header, where every topic has stamps",
        "keys:",
    ]
    for t in used:
        key = re.sub(r"\W+", "_", t.topic).strip("_") or "key"
        role = "action" if any(word in t.topic.lower() for word in _COMMANDS) else "observation"
        lines += [f"  {key if key[0].isalpha() else 'k_' + key}:", f"    topic: {t.topic}"]
        if t.fields:
            lines.append(f"    field: [{', '.join(t.fields)}]")
        if t.joints:
            lines.append(f"    joints: [{', '.join(t.joints)}]")
        lines.append(f"    role: {role}")
        if t.msgtype in IMAGE_TYPES:
            lines.append("    # size: [240, 320]     # height, width")
    lines += ["# episodes: {gap: 5.0}   # or {topic: /recording, field: data}, or {times: [[0, 12.5], [20, 31]]}", ""]
    return "\n".join(lines)
