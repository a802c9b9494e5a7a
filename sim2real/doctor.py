"""What is wrong with a robot's interface before anything moves: one sentence each, with what is there instead.

It listens and looks at the graph; it publishes nothing, so that it can be run beside a bridge at work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from visuomotor.data.errors import UserError, nearest
from visuomotor.sim2real.listening import Heard
from visuomotor.sim2real.messages import (
    ROS_NAMES,
    CompressedImage,
    FloatArray,
    Image,
    JointState,
    Message,
    Pose,
    Transforms,
)
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.robots.topics import commanded_topics, sensor_topics
from visuomotor.sim2real.runtime.build import PolicyFacts, check_policy, describe_arm
from visuomotor.sim2real.runtime.images import pixels
from visuomotor.sim2real.runtime.observer import Observer
from visuomotor.sim2real.safety.config import ArmLimits
from visuomotor.sim2real.transports.base import COMMAND, TopicInfo, Transport
from visuomotor.sim2real.transports.inproc import mismatch

__all__ = ["Finding", "examine"]

_SETTLE_S = 1.5  # discovery comes before data: what is lost in between says nothing
_SLOW, _OTHER = 0.5, 0.2  # share of the stated rate below which it is wrong, and by which it is worth a note
_APART_S = 0.5  # clocks that differ by more are worth a note
_JITTER_S = 0.03
_NEAR = 0.02  # [rad]: as the safety filter's own margin


@dataclass(frozen=True)
class Finding:
    """One thing found. ``kind`` is ``ok``, ``note`` (works, but should be known) or ``bad`` (must not run so)."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind:<5} {self.text}"


def examine(
    robot: RobotConfig, transport: Transport, seconds: float, wait: Callable[[float], None], *,
    policy: PolicyFacts | None = None,
) -> list[Finding]:  # fmt: skip
    """Everything found in ``seconds`` of listening.

    Args:
        robot: the interface as it should be.
        transport: where to listen.
        seconds: of listening, after connections were given time to be made.
        wait: lets so many seconds pass.
        policy: that is to run on it: what it does not read is not asked for.
    """
    findings: list[Finding] = []
    arm, limits = describe_arm(robot)
    needed = None if policy is None else {*policy.step_obs, *(p for ps in policy.sources.values() for p in ps)}
    streams = {
        key: Heard(transport, topic, kind)
        for key, (topic, kind) in sensor_topics(robot).items()
        if needed is None or key == "state" or key in needed
    }
    observer: Observer | None = None
    if policy is not None:
        try:
            check_policy(policy, arm)
            observer = Observer(
                robot, arm, policy.step_obs, limits.velocity, transport, sources=policy.sources, threaded=False
            )
        except UserError as e:
            findings.append(Finding("bad", str(e)))
    wait(_SETTLE_S)
    for heard in streams.values():
        heard.restart()
    wait(seconds)
    graph = {info.topic: info for info in transport.graph()}
    for key, heard in streams.items():
        findings += _stream(key, heard, graph, _rate_of(robot, key), _max_age_of(robot, key))
    if isinstance(streams["state"].newest, JointState):
        findings += _joints(robot, limits, streams["state"].newest)
    for key, heard in streams.items():
        findings += _content(robot, key, heard.newest)
    findings += _commands(robot, graph)
    findings += _others(robot, graph)
    if observer is not None:
        observer.poll()
        said = " ".join(f.text for f in findings)
        findings += [Finding("bad", t) for t in observer.missing() if t.split(":")[0] not in said]
        observer.close()
        if not any(f.kind == "bad" for f in findings):
            findings.append(
                Finding("ok", "everything that the policy observes is there, and its actions are this arm's")
            )
    return findings


def _rate_of(robot: RobotConfig, key: str) -> float | None:
    return robot.state.rate_hz if key == "state" else robot.cameras[key].rate_hz if key in robot.cameras else None


def _max_age_of(robot: RobotConfig, key: str) -> float:
    if key in robot.cameras:
        return robot.cameras[key].max_age_s
    return robot.values[key].max_age_s if key in robot.values else robot.state.max_age_s


def _stream(
    key: str, heard: Heard, graph: dict[str, TopicInfo], rate_hz: float | None, max_age_s: float
) -> Iterator[Finding]:
    topic, kind = heard.topic, ROS_NAMES[heard.kind]
    if heard.subscription.undecodable:
        yield Finding("bad", f"{topic}: {heard.subscription.undecodable} messages are no {kind}")
    if not heard.count:
        yield Finding("bad", _silent(key, heard, graph))
        return
    publishers = graph[topic].publishers if topic in graph else ()
    if len(publishers) > 1 and key == "state":
        nodes = ", ".join(sorted({p.node for p in publishers}))
        yield Finding(
            "note", f"{topic} has {len(publishers)} publishers ({nodes}): messages without our joints are skipped"
        )
    text = f"{topic}: {heard.count} messages, {heard.rate_hz:.1f} Hz, longest gap {1e3 * heard.longest_gap_s:.0f} ms"
    if heard.longest_gap_s > max_age_s:
        yield Finding("bad", f"{text}; it counts as lost after {1e3 * max_age_s:.0f} ms (max_age_s of {key})")
    elif rate_hz is not None and heard.rate_hz < _SLOW * rate_hz:
        yield Finding("bad", f"{text}; expected {rate_hz:g} Hz (rate_hz of {key})")
    elif rate_hz is not None and abs(heard.rate_hz - rate_hz) > _OTHER * rate_hz:
        yield Finding("note", f"{text}; expected {rate_hz:g} Hz (rate_hz of {key})")
    else:
        yield Finding("ok", text)
    yield from _clock(heard)


def _clock(heard: Heard) -> Iterator[Finding]:
    if not heard.has_stamps:
        if not isinstance(heard.newest, (FloatArray, Transforms)):  # which have no header of their own
            yield Finding("note", f"{heard.topic}: headers without a time; a message counts as true when it comes")
        return
    if not heard.stamps_increase:
        yield Finding(
            "bad", f"{heard.topic}: times in its headers do not increase; is it played back, or published twice?"
        )
    offset = heard.clock_offset_s
    if abs(offset) > _APART_S:
        side = "behind" if offset > 0 else "ahead of"
        yield Finding(
            "note",
            f"{heard.topic}: the clock of its headers is {abs(offset):.3f} s {side} ours; the bridge allows for it",
        )
    if heard.jitter_s > _JITTER_S:
        yield Finding(
            "note", f"{heard.topic}: 1 in 20 messages comes {1e3 * heard.jitter_s:.0f} ms later than the others"
        )


def _silent(key: str, heard: Heard, graph: dict[str, TopicInfo]) -> str:
    """Why nothing has come."""
    topic, kind = heard.topic, ROS_NAMES[heard.kind]
    publishers = graph[topic].publishers if topic in graph else ()
    if heard.subscription.incompatible:
        return f"{topic} ({key}) could not be connected: {heard.subscription.incompatible}"
    if not publishers:
        return f"nobody publishes {topic} ({key}). {_nearest_topic(topic, kind, graph, 'publishers')}"
    types = sorted({p.ros_type for p in publishers})
    if kind not in types:
        return f"{topic} ({key}) is {', '.join(types)}; expected {kind}"
    return f"{topic} ({key}): {publishers[0].node} is there, but nothing has come"


def _nearest_topic(topic: str, kind: str, graph: dict[str, TopicInfo], side: str) -> str:
    same = [t for t, info in graph.items() if any(e.ros_type == kind for e in getattr(info, side)) and t != topic]
    if not same:
        return f"Nor is there any other topic of {kind}" + (
            " with a publisher." if side == "publishers" else " that is read."
        )
    return f"Of {kind}: {nearest(topic, same)}"


def _joints(robot: RobotConfig, limits: ArmLimits, m: JointState) -> Iterator[Finding]:
    g = robot.gripper
    wanted = [*robot.joints, *([g.joint] if g is not None and g.joint else [])]
    missing = [j for j in wanted if j not in m.name]
    for joint in missing:
        yield Finding("bad", f"{robot.state.topic} has no joint {joint!r}. {nearest(joint, m.name)}")
    if missing or len(m.position) != len(m.name):
        if not missing:
            yield Finding("bad", f"{robot.state.topic}: {len(m.position)} positions for {len(m.name)} names")
        return
    places = [m.name.index(j) for j in robot.joints]
    q = m.position[places]
    shown = ", ".join(f"{j} {x:.3f}" for j, x in zip(robot.joints, q, strict=True))
    if not np.isfinite(q).all():
        yield Finding("bad", f"{robot.state.topic}: positions that are no numbers: {shown}")
        return
    if np.allclose(q, -math.pi, atol=1e-3):
        yield Finding(
            "bad", f"{robot.state.topic}: every joint is at -pi, as a driver says that cannot read its servos"
        )
    for i, joint in enumerate(robot.joints):
        if not limits.low[i] - _NEAR <= q[i] <= limits.high[i] + _NEAR:
            yield Finding(
                "bad",
                f"joint {joint!r} is at {q[i]:.3f}, beyond its limits {limits.low[i]:.3f} to {limits.high[i]:.3f}",
            )
    order = "in our order" if places == sorted(places) else "in another order than ours"
    yield Finding("ok", f"joints found by name, {order}, among {len(m.name)}: {shown}")
    if not len(m.velocity):
        yield Finding("note", f"{robot.state.topic} has no velocities; they are worked out from positions")


def _content(robot: RobotConfig, key: str, message: Message | None) -> Iterator[Finding]:
    """Of cameras and values."""
    if isinstance(message, (Image, CompressedImage)) and key in robot.cameras:
        topic = robot.cameras[key].topic
        try:
            picture = pixels(message)
        except UserError as e:
            yield Finding("bad", f"{topic}: {e}")
            return
        how = message.encoding if isinstance(message, Image) else message.format
        yield Finding("ok", f"{topic}: {picture.shape[1]} x {picture.shape[0]} px, {how}")
        if picture.max() == picture.min():
            yield Finding("note", f"{topic}: every pixel is {picture.max()}; is the lens covered?")
    if key in robot.values and isinstance(message, (Pose, Transforms)):
        stream = robot.values[key]
        poses: Sequence[Pose] = [message] if isinstance(message, Pose) else message.poses
        frames = sorted({p.frame_id for p in poses})
        if stream.frame and stream.frame not in frames:
            yield Finding(
                "bad", f"{stream.topic} is given in {', '.join(frames) or 'no frame'}; expected {stream.frame!r}"
            )
        children = message.children if isinstance(message, Transforms) else (stream.child,)
        if stream.child not in children:
            yield Finding(
                "bad", f"{stream.topic} has no transform of {stream.child!r}. {nearest(stream.child, children)}"
            )
        if not all(np.isfinite(p.position).all() and np.isfinite(p.q_xyzw).all() for p in poses):
            yield Finding("bad", f"{stream.topic}: a pose that is no number")


def _commands(robot: RobotConfig, graph: dict[str, TopicInfo]) -> Iterator[Finding]:
    for key, (topic, message) in commanded_topics(robot).items():
        kind = ROS_NAMES[message]
        info = graph.get(topic, TopicInfo(topic, (), ()))
        readers = [e for e in info.subscribers if e.ros_type == kind]
        if not info.subscribers:
            yield Finding(
                "bad",
                f"nobody listens to {topic} ({key}): is the controller active? "
                + _nearest_topic(topic, kind, graph, "subscribers"),
            )
        elif not readers:
            yield Finding("bad", f"{topic} ({key}) is read as {info.subscribers[0].ros_type}; expected {kind}")
        for reader in readers:
            why = "" if reader.qos is None else mismatch(COMMAND, reader.qos)
            yield (
                Finding("bad", f"{topic}: {reader.node}: {why}")
                if why
                else Finding("ok", f"{topic} is read by {reader.node}")
            )
        if info.publishers:
            nodes = ", ".join(sorted({p.node for p in info.publishers}))
            yield Finding("bad", f"{topic} is already published by {nodes}: two who command one arm")


def _others(robot: RobotConfig, graph: dict[str, TopicInfo]) -> Iterator[Finding]:
    """What may be there and need not."""
    for name in ("teleop_topic", "success_topic"):
        topic = getattr(robot, name)
        if topic and not (topic in graph and graph[topic].publishers):
            yield Finding("note", f"nobody publishes {topic} ({name})")
    if robot.reset_topic and not (robot.reset_topic in graph and graph[robot.reset_topic].subscribers):
        yield Finding("note", f"nobody listens to {robot.reset_topic} (reset_topic)")
