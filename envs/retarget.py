"""New demonstrations from recorded ones: the same motion relative to objects that lie elsewhere.

Mandlekar et al. 2023, "MimicGen: A Data Generation System for Scalable Robot Learning using Human Demonstrations", and
Xue et al. 2025, "DemoGen: Synthetic Demonstration Generation for Data-Efficient Visuomotor Policy Learning". A
recorded demonstration is cut into *skill* segments, near an object, and free motion in between. In a new scene the hand
poses of each skill segment are moved with the object (``T_new T_recorded^-1``), free motion goes straight to where the
next segment begins, and everything is executed in simulation; what fails is thrown away.

It needs of a store, whether a person or an expert recorded it: the hand's pose (``tcp_pos``, ``tcp_rot6d``), an action
whose last component is the gripper, and objects as components ``<object>_x``, ``_y``, ``_z`` of an observation, with
``<object>_r0`` … ``_r5`` where their rotation matters.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.rotations import axis_angle_to_quat, quat_to_matrix, rot6d_to_matrix
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.envs.base import Obs
from visuomotor.envs.robots.arm import Arm
from visuomotor.envs.robots.kinematics import rotation_error
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.task import Expert, Task

__all__ = ["Demonstration", "ObjectPoses", "RetargetExpert", "Segment", "digest", "load_demonstrations", "segment"]

FloatArray = NDArray[np.float32]

_NEAR = 0.2  # of an object, as a share of the arm's reach: where a skill segment begins and ends
_SPEED, _TURN = 0.2, 1.0  # of free motion [m/s], [rad/s]
_KEYS = ("tcp_pos", "tcp_rot6d", "action")


class ObjectPoses:
    """Which components of the observations are poses of objects.

    Args:
        specs: of the observations.

    Attributes:
        names: of the objects.
    """

    def __init__(self, specs: Mapping[str, ArraySpec]) -> None:
        self._where: dict[str, tuple[str, list[int], list[int]]] = {}
        for key, spec in specs.items():
            names = list(spec.names or ()) if spec.role == "observation" else []
            for found in (re.fullmatch(r"(\w+)_x", n) for n in names):
                if found is None or f"{found[1]}_z" not in names or f"{found[1]}_y" not in names:
                    continue
                turn = [f"{found[1]}_r{i}" for i in range(6)]
                whole = all(t in names for t in turn)
                pos = [names.index(f"{found[1]}_{axis}") for axis in "xyz"]
                self._where[found[1]] = (key, pos, [names.index(t) for t in turn] if whole else [])
        self.names = tuple(self._where)
        self.keys = tuple(dict.fromkeys(key for key, _, _ in self._where.values()))

    def read(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """Positions ``[N, k, 3]`` and matrices ``[N, k, 3, 3]`` of the ``k`` objects, frame of the robot's base."""
        pos, rot = [], []
        for key, p, r in self._where.values():
            x = obs[key]
            pos.append(x[:, p])
            rot.append(rot6d_to_matrix(x[:, r]) if r else torch.eye(3, device=x.device).expand(len(x), 3, 3))
        return torch.stack(pos, 1), torch.stack(rot, 1)


@dataclass(frozen=True)
class Demonstration:
    """One recorded episode of ``L`` steps, in the frame of the robot's base."""

    pos: FloatArray  # [L, 3] the hand [m]
    rot: FloatArray  # [L, 3, 3]
    grip: FloatArray  # [L] commanded opening, 0..1
    object_pos: FloatArray  # [L, k, 3] [m]
    object_rot: FloatArray  # [L, k, 3, 3]


@dataclass(frozen=True)
class Segment:
    """Steps ``start`` to ``stop - 1`` of a demonstration, which belong to object ``reference``."""

    start: int
    stop: int
    reference: int


def load_demonstrations(path: Path, task: Task) -> list[Demonstration]:
    """Read every episode of a store that suits a bound task of one arm with a gripper.

    Raises:
        ConfigError: the task has two arms, no gripper, or no object with a pose among its observations.
        DataError: the store lacks an array, has it with other components, or was recorded at another rate.
    """
    arms: Sequence[Arm] = getattr(task, "arms", ())
    poses = ObjectPoses(task.obs_spec)
    if len(arms) != 1 or arms[0].model.gripper is None or not poses.names:
        raise ConfigError(
            f"task {task.name!r}: demonstrations are re-targeted for one arm with a gripper and objects whose poses "
            f"are observed; it has {len(arms)} arm(s) and the objects {list(poses.names)}"
        )
    with DemoStore.open(path) as store:
        store.require([*_KEYS, *poses.keys])
        for key, spec in {**{k: task.obs_spec[k] for k in poses.keys}, "tcp_pos": task.obs_spec["tcp_pos"]}.items():
            theirs = store.specs[key]
            if theirs.shape != spec.shape or (theirs.names and theirs.names != spec.names):
                raise DataError(
                    f"{path}: array {key!r} has the components {theirs.names or theirs.shape}; task {task.name!r} "
                    f"observes {spec.names or spec.shape}"
                )
        names = store.specs["action"].names
        if names and not names[-1].endswith("gripper"):
            raise DataError(f"{path}: the last component of 'action' is {names[-1]!r}; expected the gripper's opening")
        if store.fps is not None and store.fps != task.fps:
            raise DataError(f"{path} was recorded at {store.fps:g} Hz; task {task.name!r} runs at {task.fps:g} Hz")
        if store.n_episodes == 0:
            raise DataError(f"{path} has no episodes to re-target")
        return [_demonstration(store.episode(i), poses) for i in range(store.n_episodes)]


def _demonstration(arrays: Mapping[str, np.ndarray], poses: ObjectPoses) -> Demonstration:
    obs = {k: torch.from_numpy(np.array(arrays[k], np.float32)) for k in poses.keys}
    object_pos, object_rot = poses.read(obs)
    return Demonstration(
        pos=arrays["tcp_pos"].astype(np.float32),
        rot=rot6d_to_matrix(torch.from_numpy(np.array(arrays["tcp_rot6d"], np.float32))).numpy(),
        grip=arrays["action"][:, -1].astype(np.float32).clip(0.0, 1.0),
        object_pos=object_pos.numpy(),
        object_rot=object_rot.numpy(),
    )


def segment(demo: Demonstration, near: float) -> list[Segment]:
    """Skill segments of a demonstration: around each change of the gripper, as long as the hand is ``near`` [m].

    A closing gripper acts on the object nearest to the hand, an opening one on the nearest other than the one that it
    holds. The last segment lasts to the end. Without any change there is one segment, around the nearest approach.
    """
    closed = demo.grip < 0.5
    events = [int(t) for t in np.flatnonzero(np.diff(closed.astype(np.int8))) + 1]
    distance = np.linalg.norm(demo.object_pos - demo.pos[:, None], axis=-1)  # [L, k]
    if not events:
        events = [int(distance.min(1).argmin())]
    out: list[Segment] = []
    held: int | None = None
    for t in events:
        order = [int(k) for k in distance[t].argsort()]
        others = [k for k in order if k != held]
        reference = order[0] if held is None or not others else others[0]
        held = order[0] if closed[t] else None
        away = np.linalg.norm(demo.pos - demo.pos[t], axis=-1) > near
        before, after = np.flatnonzero(away[:t]), np.flatnonzero(away[t:])
        start = max(int(before[-1]) + 1 if len(before) else 0, out[-1].stop if out else 0)
        stop = t + int(after[0]) if len(after) else len(demo.pos)
        if out and start >= t:  # the next change comes before the hand has gone: one segment
            start = t
            out[-1] = Segment(out[-1].start, t, out[-1].reference)
        out.append(Segment(start, max(stop, start + 1), reference))
    out[-1] = Segment(out[-1].start, len(demo.pos), out[-1].reference)
    return [s for s in out if s.stop > s.start]


def digest(path: Path) -> str:
    """Hash of what re-targeting reads of a store."""
    found = hashlib.sha256()
    with DemoStore.open(path) as store:
        for key in store.keys:
            if not store.specs[key].is_image:
                for _, rows in store.iter_blocks(key):
                    found.update(rows.tobytes())
        found.update(store.episode_ends.tobytes())
    return found.hexdigest()[:16]


class RetargetExpert(Expert):
    """Executes re-targeted demonstrations in all worlds at once; stays where the last segment ends.

    A world takes, of the demonstrations, one whose objects lay nearly as they do now: by the sum of their distances,
    as a share of the arm's reach, and of the angles between them [rad]. ``diversity`` 0..1 lets it choose among that
    share of all.

    Args:
        task: bound; see :func:`load_demonstrations`.
        demos: at least one.
        dt: duration of a control step [s].
        diversity: see above.
    """

    def __init__(self, task: Task, demos: Sequence[Demonstration], dt: float, diversity: float = 0.0) -> None:
        self._task, self._poses = task, ObjectPoses(task.obs_spec)
        self._arm: Arm = task.arms[0]  # type: ignore[attr-defined]
        self._reach, self._dt, self._diversity = self._arm.model.reach, dt, diversity
        n, device = self._arm.target.shape[0], self._arm.target.device
        self._load([(d, segment(d, _NEAR * self._reach)) for d in demos], device)
        self._demo, self._segment, self._step = (torch.zeros(n, dtype=torch.int64, device=device) for _ in range(3))
        self._begun = torch.zeros(n, dtype=torch.bool, device=device)  # the segment's place is known
        self._arrived = torch.zeros_like(self._begun)  # free motion is over
        self._shift = torch.zeros(n, 3, device=device)  # x_new = turn x_recorded + shift
        self._turn = torch.eye(3, device=device).repeat(n, 1, 1)
        self._pos, self._rot = torch.zeros(n, 3, device=device), self._turn.clone()  # reference pose, base frame
        self._grip = torch.ones(n, device=device)

    def _load(self, cut: list[tuple[Demonstration, list[Segment]]], device: torch.device) -> None:
        """Tables over demonstrations ``D``, segments ``S`` and steps ``K``, filled up with the last step."""
        count, most = len(cut), max(len(parts) for _, parts in cut)
        longest = max(p.stop - p.start for _, parts in cut for p in parts)
        self._way = torch.zeros(count, most, longest, 3)
        self._ways_turn = torch.eye(3).repeat(count, most, longest, 1, 1)
        self._grips = torch.ones(count, most, longest)
        self._length, self._reference = (torch.ones(count, most, dtype=torch.int64) for _ in range(2))
        self._n_segments = torch.tensor([len(parts) for _, parts in cut])
        self._base_pos, self._base_rot = torch.zeros(count, most, 3), torch.eye(3).repeat(count, most, 1, 1)
        for d, (demo, parts) in enumerate(cut):
            for s, part in enumerate(parts):
                steps = np.minimum(np.arange(part.start, part.start + longest), part.stop - 1)
                ahead = np.minimum(steps + 1, len(demo.pos) - 1)  # what the action of a step led to
                self._way[d, s] = torch.from_numpy(demo.pos[ahead])
                self._ways_turn[d, s] = torch.from_numpy(demo.rot[ahead])
                self._grips[d, s] = torch.from_numpy(demo.grip[steps])
                self._length[d, s], self._reference[d, s] = part.stop - part.start, part.reference
                self._base_pos[d, s] = torch.from_numpy(demo.object_pos[part.start, part.reference])
                self._base_rot[d, s] = torch.from_numpy(demo.object_rot[part.start, part.reference])
        self._first_pos = torch.stack([torch.from_numpy(d.object_pos[0]) for d, _ in cut])
        self._first_rot = torch.stack([torch.from_numpy(d.object_rot[0]) for d, _ in cut])
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    def reset(self, worlds: Selection, draws: Draws) -> None:
        pos, rot = self._poses.read(self._task.observe())
        away = (pos[:, None] - self._first_pos).norm(dim=-1).sum(-1) / self._reach  # [N, D]
        turned = rotation_error(rot[:, None], self._first_rot).norm(dim=-1).sum(-1)
        order = (away + turned).argsort(1)
        among = 1 + round(self._diversity * (order.shape[1] - 1))
        chosen = worlds.take(order).gather(1, draws.integers(among)[:, None])[:, 0]
        worlds.put(self._demo, chosen)
        for counter in (self._segment, self._step):
            worlds.put(counter, 0)
        worlds.put(self._begun, False)
        worlds.put(self._arrived, False)
        worlds.put(self._grip, 1.0)
        hand_pos, hand_rot = self._arm.tcp_pose()
        worlds.put(self._pos, worlds.take(hand_pos))
        worlds.put(self._rot, worlds.take(hand_rot))

    def act(self) -> Tensor:
        d, s = self._demo, self._segment
        self._find_place(d, s)
        k = self._step
        pos = (self._turn @ self._way[d, s, k][..., None])[..., 0] + self._shift
        rot = self._turn @ self._ways_turn[d, s, k]
        self._approach(pos, rot)
        self._grip.copy_(torch.where(self._arrived, self._grips[d, s, k], self._grip))
        world_pos, world_rot = self._arm.to_world(self._pos, self._rot)
        action = self._arm.encode(world_pos, world_rot, self._grip[:, None])
        last = self._step + 1 >= self._length[d, s]
        more = s + 1 < self._n_segments[d]
        onward = self._arrived & last & more
        self._step.add_(self._arrived & ~last).masked_fill_(onward, 0)
        self._segment.add_(onward)
        self._begun &= ~onward
        self._arrived &= ~onward
        return action

    def buffers(self) -> dict[str, Tensor]:
        names = ("demo", "segment", "step", "begun", "arrived", "shift", "turn", "pos", "rot", "grip")
        return {n: getattr(self, f"_{n}") for n in names}

    def _find_place(self, d: Tensor, s: Tensor) -> None:
        """Where the object of a segment that begins now lies, against where it lay."""
        pos, rot = self._poses.read(self._task.observe())
        rows, which = torch.arange(len(d), device=d.device), self._reference[d, s]
        turn = rot[rows, which] @ self._base_rot[d, s].transpose(1, 2)
        shift = pos[rows, which] - (turn @ self._base_pos[d, s][..., None])[..., 0]
        self._turn.copy_(torch.where(self._begun[:, None, None], self._turn, turn))
        self._shift.copy_(torch.where(self._begun[:, None], self._shift, shift))
        self._begun.fill_(True)

    def _approach(self, pos: Tensor, rot: Tensor) -> None:
        """Where a segment is being replayed, be there; else move on a straight line towards its beginning."""
        way, turn = pos - self._pos, rotation_error(rot, self._rot)
        length, angle = way.norm(dim=1), turn.norm(dim=1)
        steps = torch.maximum(length / (_SPEED * self._dt), angle / (_TURN * self._dt))
        share = (1.0 / steps.clamp(min=1.0)).masked_fill(self._arrived, 1.0)[:, None]
        self._pos.add_(way * share)
        self._rot.copy_(quat_to_matrix(axis_angle_to_quat(turn * share)) @ self._rot)
        self._arrived.logical_or_(steps <= 1.0)
