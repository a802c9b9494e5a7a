"""What the policy sees: every key at one time, from streams that come at their own rates on clocks of their own.

As in UMI (Chi et al. 2024): an observation is true at the time of the newest frame of one camera; of other cameras the
nearest frame is taken, and what is low-dimensional is interpolated to that time. Without cameras it is the time of the
newest joint state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from visuomotor.data.errors import CheckpointError, nearest
from visuomotor.data.rotations import matrix_to_rot6d
from visuomotor.data.spec import ArraySpec
from visuomotor.sim2real.messages import JointState
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.runtime.actions import Arm
from visuomotor.sim2real.runtime.camera import CameraReader
from visuomotor.sim2real.runtime.streams import HeaderClock, Inbox, JointHistory
from visuomotor.sim2real.runtime.types import Observed
from visuomotor.sim2real.runtime.values import ValueReader
from visuomotor.sim2real.transports.base import Transport

__all__ = ["DERIVED", "Observer"]

DERIVED = ("joint_pos", "joint_vel", "tcp_pos", "tcp_rot6d", "gripper")
_STATE = "state"
_JUMP = 2.0  # a joint measured to move at twice its largest speed did not move


class Observer:
    """Listens to a robot and puts observations together.

    Args:
        robot: its topics.
        arm: its joints, and its kinematics for the hand's pose.
        obs: what the policy observes, without its constant keys; empty: nothing but joints (teleoperation).
        speed: largest velocity of each joint ``[n]``.
        transport: brings the messages.
        sources: for a key that the robot does not have under this name: the keys whose values make it, end to end.
        threaded: decode pictures in threads.

    Raises:
        CheckpointError: a key that the robot does not have, with the nearest; a shape or a unit that differs.
    """

    def __init__(
        self, robot: RobotConfig, arm: Arm, obs: Mapping[str, ArraySpec], speed: np.ndarray, transport: Transport, *,
        sources: Mapping[str, Sequence[str]] | None = None, threaded: bool = True,
    ) -> None:  # fmt: skip
        self._robot, self._arm, self._transport = robot, arm, transport
        self._inbox: Inbox[JointState] = Inbox()
        clock = HeaderClock(robot.state.latency_s)
        patience = max(0.5, 3 * robot.state.max_age_s)
        self._joints = JointHistory(tuple(robot.joints), _JUMP * speed, clock, patience)
        self._fingers: JointHistory | None = None
        if robot.gripper is not None and robot.gripper.joint:
            clock = HeaderClock(robot.state.latency_s)
            self._fingers = JointHistory((robot.gripper.joint,), np.full(1, math.inf), clock, patience)
        self._commanded_opening = 1.0
        self._cameras: dict[str, CameraReader] = {}
        self._values: dict[str, ValueReader] = {}
        self._recipes = {k: self._recipe(k, s, (sources or {}).get(k), threaded) for k, s in obs.items()}
        self._pose: tuple[int, np.ndarray, np.ndarray] | None = None  # the hand's, at the time that was asked for last
        transport.subscribe(robot.state.topic, JointState, self._inbox.put)

    # ---- what comes in

    def poll(self) -> list[str]:
        """Take in what has come; returns what was not believed, in words."""
        events = []
        for message, received in self._inbox.take():
            for history in (self._joints, self._fingers):
                if history is None:
                    continue
                why = history.put(message.name, message.position, message.velocity, message.stamp_ns, received)
                if why:
                    events.append(f"{self._robot.state.topic}: {why}")
        for value in self._values.values():
            value.poll()
        return events

    def note_opening(self, opening: float) -> None:
        """Tell what the gripper was commanded: where it is not measured, that counts as the measurement."""
        self._commanded_opening = opening

    @property
    def seen(self) -> bool:
        """Whether the joints were ever measured."""
        return self._joints.believed_ns > 0

    @property
    def state_ns(self) -> int:
        """When the newest joint state came; 0: none has."""
        return self._joints.believed_ns

    def measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Newest positions and velocities of the joints ``[n]``; nan before the first."""
        n = len(self._robot.joints)
        if not self.seen:
            return np.full(n, np.nan), np.full(n, np.nan)
        return self._joints.track.newest[:n], self._joints.track.newest[n:]

    def opening(self, time_ns: int | None = None) -> float:
        """Measured opening of the gripper, 0 closed, 1 open."""
        g = self._robot.gripper
        if g is None or self._fingers is None or not self._fingers.believed_ns:
            return self._commanded_opening
        track = self._fingers.track
        position = (track.newest if time_ns is None else track.at(time_ns))[0]
        return float((position - g.closed) / (g.opened - g.closed))

    # ---- whether it is enough

    def missing(self) -> list[str]:
        """Why no observation can be made yet, stream by stream."""
        out = []
        if not self.seen:
            why = "; ".join(f"{w} ({n} times)" for w, n in self._joints.refused.items())
            out.append(f"{self._robot.state.topic}: {why or 'no message yet'}")
        if self._fingers is not None and not self._fingers.believed_ns:
            out.append(f"{self._robot.state.topic}: no message with the gripper's joint {self._fingers.names[0]!r} yet")
        cameras = [
            c.trouble or f"{c.stream.topic}: no message yet" for c in self._cameras.values() if not c.believed_ns
        ]
        values = [v.trouble or f"{v.stream.topic}: no message yet" for v in self._values.values() if not v.believed_ns]
        return out + cameras + values

    def ages(self, now_ns: int) -> dict[str, tuple[float, float]]:
        """By stream: how old the newest usable message is and how old it may be [s].

        Old by when it came or by when it was true, whichever is more. Infinite before the first message.
        """
        state = self._robot.state
        track = self._joints.track
        out = {_STATE: (_age(now_ns, self._joints.believed_ns, track.newest_ns, state.latency_s), state.max_age_s)}
        if self._fingers is not None:
            age = _age(now_ns, self._fingers.believed_ns, self._fingers.track.newest_ns, state.latency_s)
            out["gripper"] = (age, max(0.5, state.max_age_s))
        for key, camera in self._cameras.items():
            s = camera.stream
            out[key] = (_age(now_ns, camera.believed_ns, camera.newest_ns, s.latency_s), s.max_age_s)
            if s.frozen_s is not None:
                out[f"{key} (change of the picture)"] = (_since(now_ns, camera.changed_ns), s.frozen_s)
        for key, value in self._values.items():
            v = value.stream
            out[key] = (_age(now_ns, value.believed_ns, value.track.newest_ns, v.latency_s), v.max_age_s)
        return out

    def rates_hz(self, now_ns: int) -> dict[str, float]:
        """Messages of each stream in the last second."""
        out = {_STATE: self._inbox.rate_hz(now_ns)}
        out |= {k: c.rate_hz(now_ns) for k, c in self._cameras.items()}
        return out | {k: v.inbox.rate_hz(now_ns) for k, v in self._values.items()}

    def pictures(self) -> dict[str, np.ndarray]:
        """The newest picture of each camera as the policy sees it, uint8 ``[H, W, 3]``."""
        found = {k: c.at(c.newest_ns) for k, c in self._cameras.items() if c.newest_ns}
        return {k: np.repeat(p, 3, 2) if p.shape[2] == 1 else p for k, p in found.items() if p.dtype == np.uint8}

    # ---- observations

    def observe(self, now_ns: int, *, step: int, episode: int, seed: int) -> Observed:
        """Everything at the time of the newest frame of the first camera, or of the newest joint state.

        Only when nothing is :meth:`missing`.
        """
        anchors = [c.newest_ns for c in self._cameras.values()]
        time_ns = min(anchors[0] if anchors else self._joints.track.newest_ns, now_ns)
        values = {k: recipe(time_ns) for k, recipe in self._recipes.items()}
        ages = {k: age for k, (age, _) in self.ages(now_ns).items()}
        return Observed(time_ns=time_ns, step=step, episode=episode, seed=seed, values=values, ages_s=ages)

    def close(self) -> None:
        """End the threads."""
        for camera in self._cameras.values():
            camera.close()

    def _recipe(
        self, key: str, spec: ArraySpec, parts: Sequence[str] | None, threaded: bool
    ) -> Callable[[int], np.ndarray]:
        if parts is not None:
            makers = [self._derived(p, None, key) for p in parts]
            return lambda t: np.concatenate([m(t) for m in makers]).astype(spec.dtype).reshape(spec.shape)
        if key in self._robot.cameras:
            self._cameras[key] = camera = CameraReader(
                key, self._robot.cameras[key], spec, self._transport, threaded=threaded
            )
            return camera.at
        if key in self._robot.values:
            self._values[key] = value = ValueReader(key, self._robot.values[key], spec, self._transport)
            return value.at
        make = self._derived(key, spec, key)
        return lambda t: make(t).astype(spec.dtype).reshape(spec.shape)

    def _derived(self, name: str, spec: ArraySpec | None, key: str) -> Callable[[int], np.ndarray]:
        """What is worked out from the joints."""
        n = len(self._robot.joints)
        if name in ("joint_pos", "joint_vel"):
            index = self._order(spec, key, "rad" if name == "joint_pos" else "rad/s") + (
                0 if name == "joint_pos" else n
            )
            return lambda t: self._joints.track.at(t)[index]
        if name in ("tcp_pos", "tcp_rot6d"):
            if self._arm.kinematics is None:
                raise CheckpointError(
                    f"the policy observes {name!r}, which takes a model of the arm: give robot.model="
                )
            part = 0 if name == "tcp_pos" else 1
            return lambda t: self._hand(t)[part]
        if name == "gripper" and self._robot.gripper is not None:
            return lambda t: np.array([self.opening(t)])
        known = [
            *(d for d in DERIVED if d != "gripper" or self._robot.gripper),
            *self._robot.cameras,
            *self._robot.values,
        ]
        raise CheckpointError(
            f"the policy observes {name!r}, which robot {self._robot.name!r} does not have. {nearest(name, known)} "
            "A topic for it is given by robot.values.<key>.topic= or robot.cameras.<key>.topic=."
        )

    def _order(self, spec: ArraySpec | None, key: str, unit: str) -> np.ndarray:
        """Places of our joints in the order of the policy's."""
        n = len(self._robot.joints)
        if spec is None or spec.names is None:
            if spec is not None and spec.size != n:
                raise CheckpointError(f"observation {key!r}: the policy expects {spec.size} joints, the robot has {n}")
            return np.arange(n)
        if spec.unit not in (None, unit):
            raise CheckpointError(f"observation {key!r}: the policy expects {spec.unit}, the robot gives {unit}")
        for joints in (self._arm.joints, self._arm.driver_joints):
            if set(spec.names) == set(joints):
                return np.array([joints.index(name) for name in spec.names])
        raise CheckpointError(
            f"observation {key!r}: the policy expects the joints {', '.join(spec.names)}; the robot has "
            f"{', '.join(self._arm.joints)}"
        )

    def _hand(self, time_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """Position and 6-D rotation of the hand in the frame of the base."""
        if self._pose is None or self._pose[0] != time_ns:
            assert self._arm.kinematics is not None
            pos, rot = self._arm.kinematics.pose(self._joints.track.at(time_ns)[: len(self._robot.joints)])
            self._pose = (time_ns, pos, np.asarray(matrix_to_rot6d(rot)))
        return self._pose[1], self._pose[2]


def _since(now_ns: int, then_ns: int) -> float:
    return (now_ns - then_ns) * 1e-9 if then_ns else math.inf


def _age(now_ns: int, came_ns: int, true_ns: int, latency_s: float) -> float:
    """By when it came, or when it was true apart from the latency that is known, whichever is more."""
    return max(_since(now_ns, came_ns), _since(now_ns, true_ns) - latency_s)
