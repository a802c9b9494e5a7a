"""ROS 1 bags, ROS 2 bags (SQLite, MCAP): topics to arrays by a mapping, at a fixed rate.

Nothing in a bag is run: message definitions that it brings are interpreted, not compiled.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visuomotor.data.errors import ConfigError, DataError, UserError, nearest
from visuomotor.data.importing import resample as rs
from visuomotor.data.importing.bag_fields import FieldReader, field_kind, stamp
from visuomotor.data.importing.bag_images import IMAGE_TYPES, read_image
from visuomotor.data.importing.bag_mapping import BagMapping, KeyMap, load_mapping
from visuomotor.data.importing.bag_proposal import propose, summarise, table
from visuomotor.data.importing.bag_streams import BagIndex, KeyPlan, build_index, decoded, episode_arrays
from visuomotor.data.importing.recording import Recording, Topic
from visuomotor.data.importing.ros2_bag import find_recordings, open_recording
from visuomotor.data.importing.ros_types import Decoder, parse_definition, standard_types
from visuomotor.data.importing.source import EpisodeInfo, Source, SourceEpisode
from visuomotor.data.spec import ArraySpec
from visuomotor.data.validate import Finding

__all__ = ["BagSource"]

_OPTIONS = ("mapping", "template", "fps")
_KEPT = 2  # indices of bags in memory: what two threads work on
_FOREVER = (-(2**62), 2**62)
_KINDS = {str: "str", bool: "bool", int: "int64", float: "float64"}


class BagSource(Source):
    """One bag, or a folder of bags. Without a mapping it is refused, with a table of what is in it; files that
    ``visuomotor data export`` wrote bring their own.

    Options: ``mapping``: a YAML file, or its content (:class:`BagMapping`). ``fps``: steps per second, before the
    mapping's. ``template``: a file that gets a first mapping to edit.
    """

    format: ClassVar[str] = "bag"

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self.path, self.findings, self.columns = path, [], {}
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f"bags have no option {name!r}. {nearest(name, _OPTIONS)}")
        self._bags = find_recordings(path)
        if not self._bags:
            raise DataError(f"{path} holds no bag: neither .bag, .mcap, .db3, nor the folder of a ROS 2 bag")
        mapping = options.get("mapping")
        if mapping is None and options.get("template") is None:
            with _explained(self._bags[0]):
                mapping = open_recording(self._bags[0]).mapping
        if mapping is None:
            raise ConfigError(self._proposal(options.get("template")))
        self._mapping: BagMapping = load_mapping(mapping)
        fps = options.get("fps", self._mapping.fps)
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e6:
            raise ConfigError(f"fps is {fps!r}: give the steps per second, in the mapping or by options.fps")
        self.fps = float(fps)
        self._lock, self._indices = threading.Lock(), OrderedDict[Path, BagIndex]()
        with _explained(self._bags[0]):
            recording = open_recording(self._bags[0])
            self._plan(recording, _decoders(recording))
        self.specs = {key: plan.spec for key, plan in self._plans.items()}
        self.episodes = []
        self._windows: list[tuple[Path, tuple[int, int]]] = []
        for bag in self._bags:
            self._find_episodes(bag)
        if not self.episodes:
            raise DataError(f"{path}: no episode is in it, as episodes {self._mapping.episodes} are told apart")

    @classmethod
    def recognises(cls, path: Path) -> str | None:
        """See :meth:`Source.recognises`."""
        try:
            found = find_recordings(path)
        except OSError:
            return None
        return f"{len(found)} ROS bag{'s' if len(found) > 1 else ''} ({found[0].name})" if found else None

    def _proposal(self, template: Any) -> str:
        with _explained(self._bags[0]):
            recording = open_recording(self._bags[0])
            topics = summarise(recording, _decoders(recording))
        shown = f"{self._bags[0]} needs a mapping of its topics to arrays. It has\n{table(recording, topics)}\n"
        if template is None:
            return shown + "options.template=<file.yaml> writes a mapping to edit; options.mapping=<file.yaml> uses it"
        file = Path(str(template)).expanduser()
        if file.exists():
            raise ConfigError(f"{file} exists already: give another name for the template")
        try:
            file.write_text(propose(topics), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
        return shown + f"{file} was written: edit it, then import with options.mapping={file}"

    # ---------------------------------------------------------------- what each array is

    def _plan(self, recording: Recording, decoders: Mapping[str, Decoder]) -> None:
        keys = self._mapping.keys
        for name, spec in keys.items():
            _topic(recording, decoders, spec.topic, f"keys.{name}")
        first: dict[str, dict[str, Any]] = {}
        readers: dict[str, FieldReader] = {}
        reasons: dict[str, str] = {}
        for topic, received, raw in recording.messages({k.topic for k in keys.values()}):
            message = decoded(recording, decoders[topic], topic, received, raw)
            for name, spec in keys.items():
                if spec.topic != topic or name in first:
                    continue
                try:
                    if recording.topics[topic].msgtype not in IMAGE_TYPES:
                        readers[name] = FieldReader(name, spec, message)
                    first[name] = message
                except DataError as error:
                    reasons[name] = str(error)
            if len(first) == len(keys):
                break
        for name, spec in keys.items():
            if name not in first:
                raise ConfigError(reasons.get(name, f"keys.{name}: {recording.path} has no message of {spec.topic}"))
        self._choose_clock(first)
        self._plans = {
            name: self._key_plan(name, spec, recording.topics[spec.topic], first[name], readers.get(name))
            for name, spec in keys.items()
        }
        for name, column in self._mapping.columns.items():
            if column.topic is None:
                self.columns[name] = _KINDS[type(column.value)]
            else:
                topic_info = _topic(recording, decoders, column.topic, f"columns.{name}")
                self.columns[name] = field_kind(decoders[column.topic], topic_info.msgtype, column.field)
        for name, why in recording.unreadable.items():
            self.findings.append(Finding(severity="warning", message=f"topic {name} is not read: {why}"))
        self.findings += [Finding(severity="warning", message=f"{recording.path.name}: {n}") for n in recording.notes]

    def _choose_clock(self, first: Mapping[str, Mapping[str, Any]]) -> None:
        without = [name for name in first if stamp(first[name]) is None]
        if self._mapping.clock is not None:
            self._clock = self._mapping.clock
        else:  # clocks are never mixed unasked: the two may be far apart
            self._clock = "receive" if without else "header"
            if without and len(without) < len(first):
                message = f"times of receipt are used for all: {', '.join(without)} have no stamps in their messages"
                self.findings.append(Finding(severity="warning", message=message))
        for name in without:
            if (self._mapping.keys[name].clock or self._clock) == "header":
                raise ConfigError(f"keys.{name}: {self._mapping.keys[name].topic} has no stamps: use clock: receive")

    def _key_plan(
        self, name: str, given: KeyMap, topic: Topic, first: Mapping[str, Any], reader: FieldReader | None
    ) -> KeyPlan:
        role = given.role or ("action" if name.startswith("action") else "observation")
        clock = given.clock or self._clock
        if reader is None:
            image = read_image(topic.msgtype, first, given.size)
            shape, dtype, names = image.shape, image.dtype.name, None
            how = given.interpolation or "hold"
            unit = given.unit or {"uint16": "mm", "float32": "m"}.get(dtype)
        else:
            shape, dtype, unit = (reader.width,), given.dtype or "float32", given.unit
            names = given.names or reader.names or None
            if given.shape is not None:
                if np.prod(given.shape, dtype=np.int64) != reader.width:
                    raise ConfigError(f"keys.{name}: {reader.width} numbers are no array of shape {list(given.shape)}")
                shape, names = given.shape, given.names
            decimal = role == "observation" and not reader.integer and dtype.startswith("float")
            how = given.interpolation or ("linear" if decimal else "hold")
        if how in ("linear", "angle", "slerp") and (reader is None or not dtype.startswith("float")):
            raise ConfigError(f"keys.{name}: {how} needs decimal numbers; pictures and whole numbers: hold or nearest")
        if how == "slerp" and shape != (4,):
            raise ConfigError(f"keys.{name}: slerp is for quaternions of 4 components, {name} has {list(shape)}")
        fields = f" {', '.join(reader.paths)}" if reader else ""
        try:
            spec = ArraySpec(
                shape=shape, dtype=dtype, role=role, unit=unit, names=names,
                source=f"{given.topic}{fields} ({topic.msgtype}; {how}, {clock}{_shift(given)})",
            )  # fmt: skip
        except (DataError, TypeError) as error:
            raise ConfigError(f"keys.{name}: {error}") from None
        return KeyPlan(map=given, spec=spec, msgtype=topic.msgtype, reader=reader, clock=clock, how=how)

    # ---------------------------------------------------------------- episodes

    def _signals(self) -> list[tuple[str, str]]:
        cut = self._mapping.episodes
        out = [(c.topic, c.field) for c in self._mapping.columns.values() if c.topic is not None]
        return [*out, (cut.topic, cut.field)] if cut.topic is not None else out

    def _index(self, bag: Path) -> BagIndex:
        with self._lock:
            if bag in self._indices:
                self._indices.move_to_end(bag)
                return self._indices[bag]
        with _explained(bag):
            recording = open_recording(bag)
            index = build_index(recording, _decoders(recording), self._plans, self._signals())
        with self._lock:
            self._indices[bag] = index
            while len(self._indices) > _KEPT:
                self._indices.popitem(last=False)
        return index

    def _find_episodes(self, bag: Path) -> None:
        cut, name = self._mapping.episodes, bag.name
        if cut.topic is None and cut.gap is None and cut.times is None:
            self.episodes.append(EpisodeInfo(id=name))
            self._windows.append((bag, _FOREVER))
            return
        try:
            index = self._index(bag)
        except DataError as error:
            self.findings.append(Finding(severity="error", message=f"{name} is left out: {error}"))
            return
        for start, stop in self._cut(index):
            if (stop - start) / rs.SECOND < cut.min_length:
                continue
            begin, end = ((t - index.start) / rs.SECOND for t in (start, stop))
            self.episodes.append(EpisodeInfo(id=f"{name} {begin:.3f}-{end:.3f} s"))
            self._windows.append((bag, (start, stop)))

    def _cut(self, index: BagIndex) -> list[tuple[int, int]]:
        cut = self._mapping.episodes
        if cut.times is not None:
            return [(index.start + round(a * rs.SECOND), index.start + round(b * rs.SECOND)) for a, b in cut.times]
        if cut.gap is not None:
            streams = [
                s.received for k, s in index.streams.items() if cut.gap_topic in (None, self._plans[k].map.topic)
            ]
            if not streams:
                raise ConfigError(f"episodes.gap_topic {cut.gap_topic!r} is the topic of no key")
            return rs.split_at_gaps(np.unique(np.concatenate(streams)), cut.gap)
        times, values = index.signals[cut.topic or "", cut.field]
        order = np.argsort(times, kind="stable")
        stretches = rs.split_at_changes(times[order], [values[i] for i in order], index.stop)
        return [(a, b) for a, b, value in stretches if _is_episode(value)]

    def read(self, index: int) -> SourceEpisode:
        """See :meth:`Source.read`."""
        bag, window = self._windows[index]
        found = self._index(bag)
        with _explained(bag):
            arrays, findings = episode_arrays(found, self._plans, self.fps or 0.0, window, index)
            columns = {name: self._column(name, found, window) for name in self._mapping.columns}
        if window is _FOREVER:
            for key, stream in found.streams.items():
                if stream.skipped:
                    message = f"{stream.skipped} messages of {self._plans[key].map.topic} have no such components"
                    findings.append(Finding(severity="warning", array=key, episode=index, message=message))
        return SourceEpisode(arrays=arrays, columns=columns, findings=tuple(findings))

    def _column(self, name: str, index: BagIndex, window: tuple[int, int]) -> Any:
        column = self._mapping.columns[name]
        if column.topic is None:
            return column.value
        times, values = index.signals[column.topic, column.field]
        before = [k for k in np.argsort(times, kind="stable") if times[k] <= window[1]]
        if not before or values[before[-1]] is None:
            raise DataError(f"column {name!r}: no message of {column.topic} before the end of the episode")
        return values[before[-1]]


def _shift(given: KeyMap) -> str:
    text = f", shifted {given.shift:g} s" if given.shift else ""
    return text + (f", shifted {given.shift_steps} steps" if given.shift_steps else "")


def _is_episode(value: Any) -> bool:
    if isinstance(value, bool | str):
        return bool(value)
    return isinstance(value, int | float) and value >= 0


def _topic(recording: Recording, decoders: Mapping[str, Decoder], name: str, what: str) -> Topic:
    if name in recording.unreadable:
        raise ConfigError(f"{what}: topic {name} cannot be read: {recording.unreadable[name]}")
    if name not in recording.topics:
        raise ConfigError(f"{what}: {recording.path} has no topic {name!r}. {nearest(name, recording.topics)}")
    if name not in decoders:
        kind = recording.topics[name].msgtype
        raise ConfigError(f"{what}: {recording.path} does not define {kind}, and it is no standard type")
    return recording.topics[name]


def _decoders(recording: Recording) -> dict[str, Decoder]:
    """A decoder for every topic of which the types are known."""
    out, made = {}, dict[tuple[str | None, bool], Decoder]()
    for name, topic in recording.topics.items():
        key = (topic.definition, topic.ros1)
        if key not in made:
            try:
                types = (
                    standard_types()
                    if topic.definition is None
                    else parse_definition(topic.definition, topic.msgtype, topic.encoding)
                )
            except DataError:
                continue  # refused where it is asked for
            made[key] = Decoder(types, ros1=topic.ros1)
        if made[key].knows(topic.msgtype):
            out[name] = made[key]
    return out


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Damage that only shows in the depths, as one sentence that names the file."""
    try:
        yield
    except UserError as error:
        if isinstance(error, DataError) and path.name not in str(error):
            raise DataError(f"{path}: {error}") from None
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (struct.error, ValueError, KeyError, IndexError, OverflowError, TypeError, MemoryError) as error:
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}") from None
