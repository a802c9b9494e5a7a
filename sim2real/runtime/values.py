"""Observations beside joints and cameras: poses of estimators, forces, numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from visuomotor.data.rotations import matrix_to_rot6d, quat_to_matrix
from visuomotor.data.spec import ArraySpec
from visuomotor.sim2real.messages import FloatArray, JointState, Message, Pose, Transforms, Twist, Wrench
from visuomotor.sim2real.robots.config import ValueStream
from visuomotor.sim2real.runtime.streams import HeaderClock, Inbox, Track
from visuomotor.sim2real.transports.base import Transport

__all__ = ["ValueReader", "restored"]

_TYPES: dict[str, type[Message]] = {
    "pose": Pose,
    "transform": Transforms,
    "twist": Twist,
    "wrench": Wrench,
    "numbers": FloatArray,
    "joint_state": JointState,
}


class ValueReader:
    """One stream of values.

    Args:
        key: of the observation.
        stream: where it comes from.
        spec: what the policy expects of it.
        transport: brings it.

    Attributes:
        inbox, track: what has come.
        trouble: why the newest message could not be used; empty: it could.
    """

    def __init__(self, key: str, stream: ValueStream, spec: ArraySpec, transport: Transport) -> None:
        self.key, self.stream, self._spec = key, stream, spec
        self.inbox: Inbox[Message] = Inbox()
        self.track, self.trouble = Track(), ""
        self.believed_ns = 0
        self._clock = HeaderClock(stream.latency_s)
        transport.subscribe(stream.topic, _TYPES[stream.type], self.inbox.put)

    def poll(self) -> None:
        """Take in what has come."""
        for message, received in self.inbox.take():
            found = self._pick(message)
            if found is None:
                continue
            self.trouble = self._judge(found)
            if self.trouble:
                continue
            value = np.concatenate([_field(found, name, self._spec.names) for name in self.stream.fields])
            self.trouble = self._judge_value(value)
            event = self._clock.event_ns(found.stamp_ns, received)
            if not self.trouble and self.track.put(event, value.astype(np.float64)):
                self.believed_ns = received

    def at(self, time_ns: int) -> np.ndarray:
        """The value at a time, in the policy's shape and type."""
        value = restored(self.track.at(time_ns), self.stream.fields)
        return value.astype(self._spec.dtype).reshape(self._spec.shape)

    def _pick(self, message: Message) -> Message | None:
        """The message itself; of transforms the one that is meant."""
        if not isinstance(message, Transforms):
            return message
        pairs = zip(message.poses, message.children, strict=True)
        return next((p for p, c in pairs if c == self.stream.child and p.frame_id == self.stream.frame), None)

    def _judge(self, message: Message) -> str:
        frame = self.stream.frame
        if frame and message.frame_id != frame:
            return f"{self.stream.topic} is given in frame {message.frame_id!r}, expected {frame!r}"
        return ""

    def _judge_value(self, value: np.ndarray) -> str:
        if value.size != self._spec.size:
            fields = "+".join(self.stream.fields)
            return f"{self.stream.topic} gives {value.size} values ({fields}), the policy expects {self._spec.size}"
        if not np.isfinite(value).all():
            return f"{self.stream.topic} gives {value[~np.isfinite(value)][0]}"
        return ""


def _field(message: Message, name: str, names: Sequence[str] | None) -> np.ndarray:
    if name in ("q_wxyz", "rot6d"):
        assert isinstance(message, Pose)
        q = np.asarray(message.q_xyzw, np.float64)[[3, 0, 1, 2]]
        return q if name == "q_wxyz" else np.asarray(matrix_to_rot6d(quat_to_matrix(q)))
    values = np.asarray(getattr(message, name), np.float64)
    if isinstance(message, JointState) and names is not None and set(names) <= set(message.name) and len(values):
        return values[[message.name.index(n) for n in names]]
    return values


def restored(value: np.ndarray, fields: Sequence[str]) -> np.ndarray:
    """``value`` with its rotations made rotations again: between two of them linear interpolation leaves the sphere."""
    sizes: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
        "q_wxyz": (4, _unit),
        "q_xyzw": (4, _unit),
        "rot6d": (6, _orthonormal),
    }
    if not set(fields) & set(sizes):
        return value
    out, at = value.copy(), 0
    for name in fields:
        size, repair = sizes.get(name, (3, np.asarray))
        out[at : at + size] = repair(out[at : at + size])
        at += size
    return out


def _unit(q: np.ndarray) -> np.ndarray:
    return q / max(1e-9, float(np.linalg.norm(q)))


def _orthonormal(rot6d: np.ndarray) -> np.ndarray:
    a = _unit(rot6d[:3])
    return np.concatenate([a, _unit(rot6d[3:] - (a @ rot6d[3:]) * a)])
