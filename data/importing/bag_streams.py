"""The messages of one bag as streams of samples, one for each array; and episodes resampled out of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.importing import resample as rs
from visuomotor.data.importing.bag_fields import FieldReader, find, stamp
from visuomotor.data.importing.bag_images import read_image
from visuomotor.data.importing.bag_mapping import KeyMap
from visuomotor.data.importing.recording import Recording
from visuomotor.data.importing.ros_types import Decoder
from visuomotor.data.spec import ArraySpec
from visuomotor.data.validate import Finding

__all__ = ["BagIndex", "KeyPlan", "Stream", "build_index", "decoded", "episode_arrays", "period"]

SECOND = 1_000_000_000
_MAX_STEPS_PER_SAMPLE = 1000
Signal = tuple[str, str]  # topic, field


@dataclass(frozen=True, kw_only=True)
class KeyPlan:
    """How one array is read: what the mapping says, completed from a first message.

    Attributes:
        map: what the mapping says.
        spec: of the array.
        msgtype: of the topic.
        reader: of its components; None for pictures.
        clock: ``"header"`` or ``"receive"``.
        how: interpolation.
    """

    map: KeyMap
    spec: ArraySpec
    msgtype: str
    reader: FieldReader | None
    clock: str
    how: str


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Samples of one array in order of ``times`` (of its clock, int64 ns ``[N]``).

    Attributes:
        received: when each came, int64 ns ``[N]``.
        values: float64 ``[N, D]``; None for pictures, which are decoded when they are needed.
        same: which of several pictures received at one instant it is, int64 ``[N]``.
        skipped: messages without these components.
    """

    times: np.ndarray
    received: np.ndarray
    values: np.ndarray | None
    same: np.ndarray
    skipped: int = 0

    def within(self, start: int, stop: int) -> Stream:
        """Samples received from ``start`` to ``stop``."""
        keep = (self.received >= start) & (self.received <= stop)
        values = None if self.values is None else self.values[keep]
        return Stream(times=self.times[keep], received=self.received[keep], values=values, same=self.same[keep])


@dataclass(frozen=True, kw_only=True)
class BagIndex:
    """What one pass over a bag gives: streams, and the signals that cut it or describe episodes."""

    recording: Recording
    decoders: Mapping[str, Decoder]
    streams: dict[str, Stream]
    signals: dict[Signal, tuple[np.ndarray, list[Any]]]
    start: int
    stop: int


@dataclass
class _Samples:
    times: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    same: list[int] = field(default_factory=list)
    skipped: int = 0

    def stream(self, key: str, plan: KeyPlan) -> Stream:
        if not self.times:
            raise DataError(f"no message of {plan.map.topic} can be used for {key!r}")
        times, received = np.array(self.times, np.int64), np.array(self.received, np.int64)
        order = rs.in_order(times)
        values = np.stack(self.values)[order] if plan.reader is not None else None
        same = np.array(self.same, np.int64)[order]
        return Stream(times=times[order], received=received[order], values=values, same=same, skipped=self.skipped)


def build_index(
    recording: Recording, decoders: Mapping[str, Decoder], plans: Mapping[str, KeyPlan], signals: Iterable[Signal]
) -> BagIndex:
    """Read a bag once; of pictures only the times are kept.

    Raises:
        DataError: a topic is absent or without usable messages; damaged.
    """
    topics = {p.map.topic for p in plans.values()} | {topic for topic, _ in signals}
    for topic in topics:
        if topic not in recording.topics:
            raise DataError(f"{recording.path} has no topic {topic}")
    samples = {key: _Samples() for key in plans}
    found: dict[Signal, tuple[list[int], list[Any]]] = {s: ([], []) for s in signals}
    by_topic = {t: [(k, p) for k, p in plans.items() if p.map.topic == t] for t in topics}
    seen: Counter[tuple[str, int]] = Counter()
    low, high = 2**63, -(2**63)
    for topic, received, raw in recording.messages(topics):
        if not -(2**62) < received < 2**62:
            raise DataError(f"{recording.path}: a message of {topic} received at {received} ns")
        low, high = min(low, received), max(high, received)
        message = decoded(recording, decoders[topic], topic, received, raw)
        for key, plan in by_topic[topic]:
            _add(samples[key], plan, message, received, seen[topic, received])
        if any(p.reader is None for _, p in by_topic[topic]):
            seen[topic, received] += 1
        for signal, (times, values) in found.items():
            if signal[0] == topic:
                times.append(received)
                values.append(find(message, signal[1]))
    streams = {key: samples[key].stream(key, plan) for key, plan in plans.items()}
    arrays = {s: (np.array(times, np.int64), values) for s, (times, values) in found.items()}
    return BagIndex(
        recording=recording, decoders=decoders, streams=streams, signals=arrays, start=low, stop=high
    )  # fmt: skip


def decoded(recording: Recording, decoder: Decoder, topic: str, received: int, raw: memoryview) -> dict[str, Any]:
    """One message; damage is named with the file, the topic and the time of receipt."""
    try:
        return decoder.decode(recording.topics[topic].msgtype, raw)
    except DataError as error:
        raise DataError(f"{recording.path}: {topic} at {received} ns: {error}") from None


def _add(samples: _Samples, plan: KeyPlan, message: Mapping[str, Any], received: int, same: int) -> None:
    time = stamp(message) if plan.clock == "header" else received
    values = plan.reader(message) if plan.reader is not None else None
    if time is None or (plan.reader is not None and values is None):
        samples.skipped += 1
        return
    samples.times.append(time)
    samples.received.append(received)
    samples.same.append(same)
    if values is not None:
        samples.values.append(values)


def period(times: np.ndarray) -> float:
    """Usual interval of a stream [s]: the median; infinite for a single sample."""
    return float(np.median(np.diff(times))) / SECOND if len(times) > 1 else float("inf")


def episode_arrays(
    index: BagIndex, plans: Mapping[str, KeyPlan], fps: float, window: tuple[int, int], number: int
) -> tuple[dict[str, np.ndarray], list[Finding]]:
    """One episode at a fixed rate: arrays ``{key: [L, *shape]}``, and what was missing in it.

    It begins when every stream has begun and ends when the first one ends (latched ones hold on); each array is shifted
    as its mapping says.

    Args:
        index: of the bag.
        plans: how each array is read.
        fps: steps per second.
        window: from when to when [ns of receipt].
        number: of the episode, for the findings.

    Raises:
        DataError: the streams have no time in common, or a value cannot be stored.
    """
    streams, offsets = {}, {}
    for key, plan in plans.items():
        whole = index.streams[key]
        low = -(2**62) if plan.map.latched else window[0]
        streams[key] = whole.within(low, window[1])
        if not len(streams[key].times):
            raise DataError(f"{index.recording.path}: no message of {plan.map.topic} is in this episode ({key!r})")
        offsets[key] = round((plan.map.shift + plan.map.shift_steps / fps) * SECOND)
    at = _steps(streams, offsets, plans, fps, window)
    arrays, findings = {}, []
    for key, plan in plans.items():
        stream, when = streams[key], at + offsets[key]
        if stream.values is None:
            arrays[key] = _pictures(index, plan, stream, when)
        else:
            values = _cast(key, rs.resample(stream.times, stream.values, when, plan.how), plan)
            arrays[key] = values.reshape(len(at), *plan.spec.shape)
        findings += _report(key, plan, stream, when, fps, number)
    return arrays, findings


def _steps(
    streams: Mapping[str, Stream], offsets: Mapping[str, int], plans: Mapping[str, KeyPlan], fps: float,
    window: tuple[int, int],
) -> np.ndarray:  # fmt: skip
    shifted = {key: s.times - offsets[key] for key, s in streams.items()}
    start, stop = rs.intersection(list(shifted.values()))
    ends = [t for key, t in shifted.items() if not plans[key].map.latched]
    if ends and len(ends) < len(shifted):
        stop = min(int(t[-1]) for t in ends)
        if all(p.clock == "receive" for p in plans.values()):
            start = max(start, window[0])
        else:
            start = max(start, max(int(t[0]) for t in ends))
    elif not ends:
        stop = window[1]
    if stop < start:
        late = max(shifted, key=lambda k: int(shifted[k][0]))
        early = min(shifted, key=lambda k: int(shifted[k][-1]))
        raise DataError(
            f"the streams have no time in common: {late!r} begins {(start - stop) / SECOND:.3g} s after the end of "
            f"{early!r} (clocks: {', '.join(f'{k} {p.clock}' for k, p in plans.items())})"
        )
    most = _MAX_STEPS_PER_SAMPLE * max(len(t) for t in shifted.values())
    if (stop - start) / SECOND * fps > most:
        raise DataError(f"an episode of {(stop - start) / SECOND:.6g} s from {most // 1000} messages: times are wrong")
    return rs.grid(start, stop, fps)


def _cast(key: str, values: np.ndarray, plan: KeyPlan) -> np.ndarray:
    dtype = np.dtype(plan.spec.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        out = values.astype(dtype)
    whole = dtype.kind != "f" or (plan.reader is not None and plan.reader.integer and plan.how in ("hold", "nearest"))
    if whole and not np.array_equal(out.astype(np.float64), values):
        bad = values[out.astype(np.float64) != values]
        raise DataError(f"{key!r}: {dtype.name} does not hold {bad.flat[0]:.17g}: give keys.{key}.dtype")
    return out


def _pictures(index: BagIndex, plan: KeyPlan, stream: Stream, when: np.ndarray) -> np.ndarray:
    pick = rs.nearest_index if plan.how == "nearest" else rs.hold_index
    chosen = np.maximum(pick(stream.times, when), 0)
    rows: dict[tuple[int, int], np.ndarray] = {}
    for sample in np.unique(chosen):
        rows[int(stream.received[sample]), int(stream.same[sample])] = np.flatnonzero(chosen == sample)
    out = np.zeros((len(when), *plan.spec.shape), plan.spec.dtype)
    topic, seen, done = plan.map.topic, Counter[int](), 0
    low, high = min(r for r, _ in rows), max(r for r, _ in rows)
    for _, received, raw in index.recording.messages([topic], low, high):
        where = rows.get((received, seen[received]))
        seen[received] += 1
        if where is None:
            continue
        message = decoded(index.recording, index.decoders[topic], topic, received, raw)
        try:
            image = read_image(plan.msgtype, message, plan.map.size)
        except DataError as error:
            raise DataError(f"{index.recording.path}: {topic} at {received} ns: {error}") from None
        if (image.shape, image.dtype) != (plan.spec.shape, out.dtype):
            raise DataError(
                f"a picture of {topic} is {image.dtype} {list(image.shape)}, the first one was {plan.spec.dtype} "
                f"{list(plan.spec.shape)}: give its size"
            )
        out[where] = image
        done += 1
    if done != len(rows):
        raise DataError(f"{index.recording.path}: {len(rows) - done} pictures of {topic} were not found again")
    return out


def _report(key: str, plan: KeyPlan, stream: Stream, when: np.ndarray, fps: float, number: int) -> list[Finding]:
    """Pauses, lost samples and old values of one stream, as one warning; latched ones may be silent."""
    if plan.map.latched:
        return []
    usual = period(stream.times)
    limit = plan.map.max_age or max(3 * usual, 1.5 / fps)
    if not np.isfinite(limit):
        return [Finding(severity="warning", array=key, episode=number, message=f"{plan.map.topic}: a single message")]
    pauses, lost = rs.gaps(stream.times, limit), rs.missing_samples(stream.times)
    old = rs.ages(stream.times, when) > limit
    if not pauses and not lost and not old.any():
        return []
    text = f"{plan.map.topic}: {len(stream.times)} messages, usually at {1 / usual:.4g} Hz, about {lost} missing"
    if pauses:
        where, longest = max(pauses, key=lambda p: p[1])
        at = (int(stream.times[where]) - int(stream.times[0])) / SECOND
        text += f"; {len(pauses)} pauses over {limit:.3g} s, the longest {longest:.3g} s after {at:.3g} s"
    if old.any():
        text += f"; {int(old.sum())} of {len(when)} steps have a value older than {limit:.3g} s"
    row = int(np.flatnonzero(old)[0]) if old.any() else None
    return [Finding(severity="warning", array=key, episode=number, row=row, message=text)]
