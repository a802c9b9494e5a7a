"""An arm as ros2_control presents one, for the nodes beside this file. Shares no code with the package; plain Python.

Rules of joint_trajectory_controller (ros2_controllers, ``validate_trajectory_msg``): a trajectory with unknown or
missing joints, arrays of other lengths, times that do not increase, an end in the past or a velocity at its last point
is refused; the last accepted one is replaced when the next arrives and begins at the state that was just commanded;
without velocities it is linear between points, with them cubic; after its end the arm holds. NaN is not refused, as
there. forward_command_controller takes whatever has the right length, at once.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
import time

UR_JOINTS = (
    "shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint", "wrist_1_joint", "wrist_2_joint", "wrist_3_joint",
)  # fmt: skip
HOME = (0.0, -1.57, 1.57, -1.57, -1.57, 0.0)
SPEED = 3.14  # rad/s that the drives can do
SECOND = 1_000_000_000


class Log:
    """JSON lines of what was received, each with the monotonic time; safe from several threads."""

    def __init__(self, path):
        self._file = open(path, "w", buffering=1)  # noqa: SIM115  (as long as the process)
        self._lock = threading.Lock()

    def __call__(self, kind, **values):
        with self._lock:
            self._file.write(json.dumps({"kind": kind, "t": time.monotonic(), **values}) + "\n")


class Trajectory:
    """An accepted trajectory: knots (time [s], positions, velocities or None), the first where the arm was."""

    def __init__(self, knots):
        self.knots = knots

    def sample(self, time_s):
        """Positions and velocities at this time."""
        end, last, _ = self.knots[-1]
        if time_s >= end:
            return list(last), [0.0] * len(last)
        i = max(k for k, knot in enumerate(self.knots) if knot[0] <= max(time_s, self.knots[0][0]))
        (t0, p0, v0), (t1, p1, v1) = self.knots[i], self.knots[i + 1]
        h = t1 - t0
        u = (time_s - t0) / h
        if v0 is None or v1 is None:
            return [a + u * (b - a) for a, b in zip(p0, p1, strict=True)], [
                (b - a) / h for a, b in zip(p0, p1, strict=True)
            ]
        positions, velocities = [], []
        for a, b, va, vb in zip(p0, p1, v0, v1, strict=True):
            positions.append(
                (2 * u**3 - 3 * u**2 + 1) * a + (u**3 - 2 * u**2 + u) * h * va + (3 * u**2 - 2 * u**3) * b
                + (u**3 - u**2) * h * vb
            )  # fmt: skip
            velocities.append(
                ((6 * u**2 - 6 * u) * (a - b)) / h + (3 * u**2 - 4 * u + 1) * va + (3 * u**2 - 2 * u) * vb
            )
        return positions, velocities


class Arm:
    """Six joints behind one of both controllers.

    What tests set while it runs, by lines of JSON such as ``{"silent": true}``: ``silent`` (no states), ``frozen`` (the
    same state again and again), ``nan`` (of the second joint), ``glitch`` (the second joint at -pi), ``offset_s`` (of
    the header's clock), ``reverse`` (the order of the joints), ``garbage`` (bytes that are no message; of rclpy alone).
    """

    def __init__(self, log, clock=time.monotonic):
        self.log, self.clock = log, clock
        self.q = list(HOME)
        self.target = list(HOME)
        self.velocity = [0.0] * 6
        self.trajectory = None
        self.silent = self.frozen = self.nan = self.glitch = self.reverse = self.garbage = False
        self.offset_s = 0.0
        self._lock = threading.Lock()
        self._frozen = None

    def forward(self, data):
        """A message of forward_command_controller."""
        data = list(data)
        with self._lock:
            self.log("forward", data=[x if math.isfinite(x) else None for x in data])
            if len(data) == 6 and all(map(math.isfinite, data)):
                self.target = data

    def follow(self, stamp_s, names, points, now_s):
        """A message of joint_trajectory_controller; points: (time [s], positions, velocities)."""
        names = list(names)
        with self._lock:
            reason = refusal(stamp_s, names, points, now_s)
            shown = [[t, [x if math.isfinite(x) else None for x in p], list(v)] for t, p, v in points]
            self.log("trajectory", names=names, points=shown, refused=reason)
            if reason:
                return
            order = [names.index(n) for n in UR_JOINTS]
            begin = self.clock() if stamp_s == 0 else self.clock() + stamp_s - now_s
            knots: list[tuple] = [(self.clock(), list(self.target), list(self.velocity))]
            for t, p, v in points:
                if begin + t > knots[-1][0]:  # what is already past is skipped
                    knots.append((begin + t, [p[i] for i in order], [v[i] for i in order] if v else None))
            self.trajectory = Trajectory(knots)

    def step(self, dt_s):
        """Move for so long; what the controller commands the drives is logged."""
        with self._lock:
            if self.trajectory is not None:
                self.target, self.velocity = self.trajectory.sample(self.clock())
                self.log("desired", q=self.target, v=self.velocity)
            most = SPEED * dt_s
            self.q = [q + max(-most, min(most, t - q)) for q, t in zip(self.q, self.target, strict=True)]

    def state(self):
        """Names and positions as published: a gripper between, in another order than commanded; None: silent."""
        with self._lock:
            if self.silent:
                return None
            if not self.frozen or self._frozen is None:
                self._frozen = list(self.q)
            q = list(self._frozen)
            if self.nan:
                q[1] = math.nan
            if self.glitch:
                q[1] = -math.pi
            names = [UR_JOINTS[2], UR_JOINTS[1], "finger_joint", UR_JOINTS[0], *UR_JOINTS[3:]]
            values = [q[2], q[1], 0.4, q[0], *q[3:]]
            return (names[::-1], values[::-1]) if self.reverse else (names, values)

    def listen(self, lines, log_graph):
        """Obey lines of JSON until they end or say quit; ``graph`` logs what the node sees of others."""
        for line in lines:
            for name, value in json.loads(line).items():
                if name == "quit":
                    return
                if name == "graph":
                    log_graph()
                else:
                    setattr(self, name, value)


def refusal(stamp_s, names, points, now_s):
    """Why joint_trajectory_controller refuses this; empty: it does not."""
    if sorted(names) != sorted(UR_JOINTS):
        return "joints"
    if not points:
        return "empty"
    times = [t for t, _, _ in points]
    if any(b <= a for a, b in itertools.pairwise(times)) or times[0] < 0:
        return "times"
    if any(len(p) != 6 or len(v) not in (0, 6) for _, p, v in points):
        return "sizes"
    if any(abs(x) > 1e-9 for x in points[-1][2]):
        return "last velocity"
    if stamp_s and stamp_s + times[-1] < now_s:
        return "past"
    return ""
