"""Recorded motions, to be shown again by an arm: read from a store or a bag, and given out as one long chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.actions import ActionConfig
from visuomotor.data.errors import DataError, nearest
from visuomotor.data.importing.resample import grid, resample
from visuomotor.data.importing.ros2_bag import open_recording
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.messages import JointState
from visuomotor.sim2real.remote.source import PlanRequest
from visuomotor.sim2real.transports.cdr import CdrError, decode

__all__ = ["Motion", "MotionSource", "read_bag", "read_store"]

_SENT, _GRIPPER = "sent", "gripper"
_MOVES, _HAND = ("_change", "_rate"), ("dx", "dy", "dz", "rx", "ry", "rz")  # actions that are motions, not places


@dataclass(frozen=True, kw_only=True)
class Motion:
    """A motion in steps of the same duration.

    Attributes:
        actions: ``[T, Da]``, each component named in ``spec``.
        spec: what they are.
        fps: steps per second.
        action_time: when in its step an action is reached, as a share of the step.
        begin: joint positions that it begins at ``[n]`` by joint name; empty where nobody knows.
    """

    actions: NDArray[np.float32]
    spec: ArraySpec
    fps: float
    action_time: float
    begin: dict[str, float]

    def faster(self, speed: float) -> Motion:
        """The same in ``1 / speed`` of the time."""
        rates = np.array([name.endswith("_rate") for name in self.spec.names or ()])
        return Motion(
            actions=np.where(rates, np.float32(speed), np.float32(1)) * self.actions,
            spec=self.spec,
            fps=self.fps * speed,
            action_time=self.action_time,
            begin=self.begin,
        )


def read_store(path: Path, episode: int, key: str | None = None) -> Motion:
    """One episode of a store: of what was recorded on an arm the commands that were sent, else the actions.

    Raises:
        DataError: no such episode or array, actions without names, or no rate.
    """
    with DemoStore.open(path) as store:
        if not 0 <= episode < store.n_episodes:
            raise DataError(f"{path} has {store.n_episodes} episodes, from 0 on: there is no episode {episode}")
        actions = [k for k, s in store.specs.items() if s.role == "action"]
        key = key or next((k for k in (_SENT, *actions) if k in store.specs), None)
        if key is None or key not in store.specs:
            raise DataError(f"{path} has no array {key or 'of role action'!r}. {nearest(key or _SENT, store.specs)}")
        spec, arrays = store.specs[key], store.episode(episode)
        if spec.names is None or len(spec.shape) != 1 or store.fps is None:
            raise DataError(
                f"{path}: {key!r} has steps of shape {list(spec.shape)}, {'no' if spec.names is None else 'known'} "
                f"names and {'no' if store.fps is None else 'a known'} rate; an arm needs a named vector and a rate"
            )
        found, names = np.asarray(arrays[key], np.float32), spec.names
        if key == _SENT and "sent_gripper" in arrays:
            found, names = np.concatenate([found, arrays["sent_gripper"]], 1, dtype=np.float32), (*names, _GRIPPER)
        begin = {}
        for place in ("measured_joints", "joint_pos"):
            positions = store.specs.get(place)
            if positions is not None and positions.names is not None:
                begin = dict(zip(positions.names, map(float, arrays[place][0]), strict=True))
                break
        # what was sent was reached at the end of its step; actions are held for theirs
        return Motion(
            actions=found,
            spec=ArraySpec(shape=(len(names),), role="action", names=names, unit=None if key == _SENT else spec.unit),
            fps=store.fps,
            action_time=1.0 if key == _SENT else 0.5,
            begin=begin,
        )


def read_bag(path: Path, topic: str, joints: Sequence[str], fps: float) -> Motion:
    """The positions of ``joints`` on ``topic`` (JointState) of a bag, at ``fps``.

    Raises:
        DataError: no such topic or joint, or fewer than two messages.
    """
    recording = open_recording(path)
    if topic not in recording.topics:
        raise DataError(f"{path} has no topic {topic!r}. {nearest(topic, recording.topics)}")
    ros1, times, rows = recording.topics[topic].ros1, [], []
    names: tuple[str, ...] = ()
    for _, time, data in recording.messages([topic]):
        try:
            message = decode(JointState, data, ros1=ros1)
        except CdrError as error:
            raise DataError(f"{path}: {topic} has messages that are no joint states: {error}") from None
        names = names or message.name
        if set(joints) <= set(message.name) and len(message.position) == len(message.name):
            times.append(time)
            rows.append([message.position[message.name.index(j)] for j in joints])
    if len(times) < 2:
        missing = [j for j in joints if j not in names]
        why = f"no joint {missing[0]!r}. {nearest(missing[0], names)}" if missing else f"{len(times)} messages"
        raise DataError(f"{path}: {topic} has {why}")
    order = np.argsort(times, kind="stable")
    stamps, values = np.array(times)[order], np.array(rows, np.float64)[order]
    at = grid(int(stamps[0]), int(stamps[-1]), fps)
    positions = resample(stamps, values, at, "linear").astype(np.float32)
    return Motion(
        actions=positions,
        spec=ArraySpec(shape=(len(joints),), role="action", names=tuple(joints), unit="rad"),
        fps=fps,
        action_time=0.0,
        begin=dict(zip(joints, map(float, positions[0]), strict=True)),
    )


class MotionSource:
    """A :class:`~visuomotor.sim2real.remote.source.ChunkSource` that gives out a motion as a whole, once an episode.

    Args:
        motion: what is shown.
    """

    def __init__(self, motion: Motion) -> None:
        steps = len(motion.actions)
        self._actions = motion.actions
        moves = np.array([n.endswith(_MOVES) or n in _HAND for n in motion.spec.names or ()])
        self._rest = np.where(moves, np.float32(0), motion.actions[-1:]).repeat(steps, 0)
        self._begun: set[int] = set()
        self.spec = PolicySpec(
            obs={},
            action_key="action",
            action=motion.spec,
            fps=motion.fps,
            window=WindowConfig(n_obs=1, horizon=steps, n_exec=steps),
            action_config=ActionConfig(),
        )

    def plan(self, request: PlanRequest) -> NDArray[np.float32] | None:
        """All of it; after its end, rest. After a hold nothing: the arm is no longer where it begins."""
        if request.plan > 0:
            return self._rest
        if request.seed in self._begun:
            return None
        self._begun.add(request.seed)
        return self._actions

    def close(self) -> None:
        """Nothing is held open."""
