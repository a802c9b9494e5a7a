"""From filtered motion to what a driver takes: positions, trajectories that end at rest, poses, velocities.

What each mode guarantees when the bridge is killed (``kill -9``) in the midst of motion:

* ``joint_trajectory``: the arm comes to rest along the tail of the last trajectory, within its limits, and holds.
* ``forward_position``, ``joint_group``, ``pose``: the controller holds the last position; the arm stops as hard as its
  servos do, since nobody tells it to brake.
* ``forward_velocity``, ``twist``: the driver stops by itself after its own timeout, which must be declared.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import matrix_to_quat
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.messages import FloatArray, JointCommand, JointTrajectory, Pose, TrajectoryPoint, Twist
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.runtime.gripper import command_value
from visuomotor.sim2real.safety.filter import Filtered
from visuomotor.sim2real.transports.base import Publisher, Transport

__all__ = ["Streamer", "lead_ns", "limits_share", "loop_hz", "make_streamer"]

_LEAST_HZ = 100.0  # of the loop under slow trajectories
_MARGIN_S = 0.01  # that a trajectory may come late
_QUIET_S = 0.5  # after which a standing arm is not commanded again
_PULL = 2.0  # towards the commanded position, in velocity modes [1/s]
_SHARE = 0.1  # of the limits that this pull may use

Tail = Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]  # positions [P, n], velocities [P, n], times [P] to rest


def loop_hz(robot: RobotConfig) -> float:
    """Rate of the bridge's loop: that of the commands; a multiple of it where trajectories are sent slowly."""
    rate = robot.command.rate_hz
    return rate * max(1, math.ceil(_LEAST_HZ / rate - 1e-9)) if robot.command.mode == "joint_trajectory" else rate


def lead_ns(robot: RobotConfig) -> int:
    """From sending a motion to when it shall be reached: a tick, or as far as the loop works ahead."""
    tick = _tick_ns(robot)
    if robot.command.mode != "joint_trajectory":
        return tick
    return tick * (math.ceil((1e9 / robot.command.rate_hz + 1e9 * _MARGIN_S) / tick) + 2)


def _tick_ns(robot: RobotConfig) -> int:
    return round(1e9 / loop_hz(robot))


class Streamer(ABC):
    """Sends one tick's motion.

    Attributes:
        lead_ns: see :func:`lead_ns`.
        publisher: of the commands.
    """

    lead_ns: int
    publisher: Publisher

    def start(self) -> None:  # noqa: B027  (most have no past)
        """Forget what was sent before: motion begins anew."""

    def times(self, now_ns: int) -> list[int]:
        """When the motions that are to be worked out now shall be reached, a tick apart.

        Those that lie in the past already have to be on the way to rest: nobody told the arm otherwise.
        """
        return [now_ns + self.lead_ns]

    @abstractmethod
    def send(self, now_ns: int, motions: Sequence[Filtered], tail: Tail, measured: np.ndarray, opening: float) -> bool:
        """Send the motions of :meth:`times`, one at least; ``tail`` is the way to rest from the last.

        Returns whether anything was sent.
        """


class _Positions(Streamer):
    """Positions, every tick."""

    def __init__(self, robot: RobotConfig, transport: Transport) -> None:
        self.lead_ns = lead_ns(robot)
        self._gripper = robot.gripper if robot.gripper is not None and robot.gripper.mode == "with_arm" else None
        self._group = robot.command.group if robot.command.mode == "joint_group" else ""
        kind: type[JointCommand] | type[FloatArray] = JointCommand if self._group else FloatArray
        self.publisher: Publisher = transport.advertise(robot.command.topic, kind)

    def send(self, now_ns: int, motions: Sequence[Filtered], tail: Tail, measured: np.ndarray, opening: float) -> bool:
        values = motions[-1].position
        if self._gripper is not None:
            values = np.append(values, command_value(self._gripper, opening))
        if self._group:
            self.publisher.publish(JointCommand(name=self._group, command=values.astype(np.float32)))
        else:
            self.publisher.publish(FloatArray(data=values))
        return True


class _Trajectories(Streamer):
    """Trajectories with velocities that go on from the one before, and end at rest.

    The rules are those of joint_trajectory_controller: a new trajectory replaces the old one when it arrives, times
    increase, the last velocity is zero. The loop works ``lead`` ahead, so that every trajectory begins with motion that
    the one before had as well: where it replaces it, nothing changes. Positions without velocities would stop at every
    point. The first point is due at once: a controller joins a later one to where the arm is *measured* to be (unless
    its ``interpolate_from_desired_state`` is set), which throws the arm back by its tracking error each time.
    """

    def __init__(self, robot: RobotConfig, transport: Transport) -> None:
        self._dt_ns = _tick_ns(robot)
        self._period_ns = round(1e9 / robot.command.rate_hz)
        self.lead_ns = lead_ns(robot)
        self._gripper = robot.gripper if robot.gripper is not None and robot.gripper.mode == "with_arm" else None
        self._names = (*robot.joints, *([self._gripper.joint] if self._gripper is not None else []))
        self.publisher = transport.advertise(robot.command.topic, JointTrajectory)
        self._ahead: deque[tuple[int, np.ndarray, np.ndarray]] = deque()
        self.start()

    def start(self) -> None:
        self._ahead.clear()
        self._sent_ns, self._moved_ns, self._last_opening = -(10**18), -1, math.nan
        self._times: list[int] = []

    def times(self, now_ns: int) -> list[int]:
        """Those from where the last trajectory's own motion ends (its tail begins there) to ``lead`` ahead.

        They keep the loop's period whatever its ticks do, as the filter's motions do.
        """
        self._times = []
        if now_ns - self._sent_ns < self._period_ns - self._dt_ns // 2:
            return []
        end = now_ns + self.lead_ns
        if not self._ahead:
            self._times = [end]
        else:
            last = self._ahead[-1][0]
            count = max(0, round((end - last) / self._dt_ns))
            self._times = [last + self._dt_ns * (k + 1) for k in range(count)]
        return self._times

    def send(self, now_ns: int, motions: Sequence[Filtered], tail: Tail, measured: np.ndarray, opening: float) -> bool:
        moves = any(m.velocity.any() for m in motions) or opening != self._last_opening
        if moves or self._moved_ns < 0:
            self._moved_ns = now_ns
        self._last_opening = opening
        for time_ns, m in zip(self._times, motions, strict=True):
            self._ahead.append((time_ns, self._with_gripper(m.position, opening), self._grown(m.velocity)))
        while len(self._ahead) > 1 and self._ahead[1][0] <= now_ns:
            self._ahead.popleft()
        self._sent_ns = now_ns
        if now_ns - self._moved_ns > 1e9 * _QUIET_S:
            return False
        points = [
            TrajectoryPoint(time_from_start_ns=t - now_ns, positions=q, velocities=v)
            for t, q, v in self._from_now(now_ns)
        ]
        end = self._ahead[-1][0] - now_ns
        points += [
            TrajectoryPoint(
                time_from_start_ns=end + round(1e9 * t),
                positions=self._with_gripper(q, opening),
                velocities=self._grown(v),
            )
            for q, v, t in zip(*tail(), strict=True)
        ]
        points[-1].velocities = np.zeros(len(self._names))  # exactly: a controller refuses anything else
        self.publisher.publish(JointTrajectory(joint_names=self._names, points=tuple(points)))
        return True

    def _from_now(self, now_ns: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """What lies ahead, from where the motion is now, in between of two ticks by the controller's own cubic."""
        (t0, p, v), rest = self._ahead[0], list(self._ahead)[1:]
        if t0 >= now_ns or not rest:
            return [(max(t0, now_ns), p, v), *rest]
        t1, q, w = rest[0]
        h, s = (t1 - t0) * 1e-9, (now_ns - t0) / (t1 - t0)
        at = p + h * s * v + s**2 * (3 * (q - p) - h * (2 * v + w)) + s**3 * (2 * (p - q) + h * (v + w))
        speed = v + 2 * s * (3 * (q - p) / h - 2 * v - w) + 3 * s**2 * (2 * (p - q) / h + v + w)
        return [(now_ns, at, speed), *rest]

    def _with_gripper(self, q: np.ndarray, opening: float) -> np.ndarray:
        return q if self._gripper is None else np.append(q, command_value(self._gripper, opening))

    def _grown(self, v: np.ndarray) -> np.ndarray:
        return v if self._gripper is None else np.append(v, 0.0)


class _Poses(Streamer):
    """Poses of the hand, every tick."""

    def __init__(self, robot: RobotConfig, transport: Transport, kinematics: Kinematics) -> None:
        self.lead_ns = lead_ns(robot)
        self._frame, self._kinematics = robot.command.group, kinematics
        self._transport = transport
        self.publisher = transport.advertise(robot.command.topic, Pose)

    def send(self, now_ns: int, motions: Sequence[Filtered], tail: Tail, measured: np.ndarray, opening: float) -> bool:
        pos, rot = self._kinematics.pose(motions[-1].position)
        q = np.asarray(matrix_to_quat(rot))[[1, 2, 3, 0]]
        stamp = self._transport.stamp_ns()
        self.publisher.publish(Pose(stamp_ns=stamp, frame_id=self._frame, position=pos, q_xyzw=q))
        return True


class _Velocities(Streamer):
    """Velocities of the joints or, with kinematics, of the hand, every tick.

    Velocities alone would drift away from the positions that were checked. A small pull towards them is added, of a
    tenth of the limits at most; the motion itself has to leave room for it (``_SHARE``).
    """

    def __init__(
        self, robot: RobotConfig, transport: Transport, velocity: np.ndarray, acceleration: np.ndarray,
        kinematics: Kinematics | None,
    ) -> None:  # fmt: skip
        self.lead_ns = lead_ns(robot)
        self._most, self._change = _SHARE * velocity, _SHARE * acceleration / loop_hz(robot)
        self._frame, self._kinematics, self._transport = robot.command.group, kinematics, transport
        kind: type[Twist] | type[FloatArray] = FloatArray if kinematics is None else Twist
        self.publisher: Publisher = transport.advertise(robot.command.topic, kind)
        self._pull = np.zeros_like(velocity)

    def start(self) -> None:
        self._pull = np.zeros_like(self._pull)

    def send(self, now_ns: int, motions: Sequence[Filtered], tail: Tail, measured: np.ndarray, opening: float) -> bool:
        motion = motions[-1]
        wanted = np.clip(_PULL * (motion.position - measured), -self._most, self._most)
        wanted = np.where(np.isfinite(wanted), wanted, 0.0)
        self._pull = self._pull + np.clip(wanted - self._pull, -self._change, self._change)
        rates = motion.velocity + self._pull
        if self._kinematics is None:
            self.publisher.publish(FloatArray(data=rates))
            return True
        hand = self._kinematics.jacobian(motion.position) @ rates
        stamp = self._transport.stamp_ns()
        self.publisher.publish(Twist(stamp_ns=stamp, frame_id=self._frame, linear=hand[:3], angular=hand[3:]))
        return True


def limits_share(robot: RobotConfig) -> float:
    """Share of the arm's limits that the safety filter may use: velocity modes need the rest for their pull."""
    return 1.0 - _SHARE if robot.command.mode in ("forward_velocity", "twist") else 1.0


def make_streamer(
    robot: RobotConfig, transport: Transport, kinematics: Kinematics | None, velocity: np.ndarray,
    acceleration: np.ndarray,
) -> Streamer:  # fmt: skip
    """What sends commands in the robot's mode; ``velocity``, ``acceleration`` are its limits ``[n]``.

    Raises:
        ConfigError: a mode of the hand for an arm without a model.
    """
    mode = robot.command.mode
    if mode in ("pose", "twist") and kinematics is None:
        raise ConfigError(f"command.mode={mode} takes a model of the arm: give robot.model=")
    if mode == "joint_trajectory":
        return _Trajectories(robot, transport)
    if mode in ("forward_position", "joint_group"):
        return _Positions(robot, transport)
    if mode == "pose":
        assert kinematics is not None
        return _Poses(robot, transport, kinematics)
    return _Velocities(robot, transport, velocity, acceleration, kinematics if mode == "twist" else None)
