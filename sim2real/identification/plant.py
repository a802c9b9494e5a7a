"""The arm in simulation, driven by recorded commands: many variants of its physics at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np
from mujoco import rollout

from visuomotor.envs.robots.model import RobotModel
from visuomotor.sim2real.identification.recording import Episode
from visuomotor.sim2real.identification.unknowns import Unknowns

__all__ = ["Plant", "held", "initial_state", "resampled"]

_FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS
_THREADS = 16  # each has a model of its own
_START = 0.15  # of a record, from which its first position and velocity are taken [s]


class Plant:
    """One arm alone, without contacts.

    Args:
        robot: what it is.
        timestep: of the physics [s].
        threads: that simulate; 0 takes one a core, up to 16.
    """

    def __init__(self, robot: RobotModel, *, timestep: float = 0.005, threads: int = 0) -> None:
        self.robot = robot
        spec = robot.spec()
        spec.option.timestep = timestep
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT.value
        spec.option.tolerance, spec.option.iterations = 1e-10, 100  # finite differences see what a solver leaves over
        for body in spec.bodies:  # a simple body's inertia is stored in a form that needs its centre at its origin
            body.simple = False
        for joint in robot.joints:
            spec.add_sensor(
                name=f"sysid_effort_{joint}", type=mujoco.mjtSensor.mjSENS_JOINTACTFRC,
                objtype=mujoco.mjtObj.mjOBJ_JOINT, objname=joint,
            )  # fmt: skip
        self.model: mujoco.MjModel = spec.compile()
        m = self.model
        self.timestep = timestep
        self._qpos = np.array([int(m.jnt_qposadr[m.joint(j).id]) for j in robot.joints])
        self._qvel = np.array([int(m.jnt_dofadr[m.joint(j).id]) for j in robot.joints])
        self._inputs = np.array([int(m.actuator(a).id) for a in robot.actuators])
        self._effort = np.array([int(m.sensor(f"sysid_effort_{j}").adr[0]) for j in robot.joints])
        self._rest, self._ctrl = self._resting()
        self._threads = threads or min(len(os.sched_getaffinity(0)), _THREADS)
        self._own = [(spec.compile(), mujoco.MjData(m)) for _ in range(self._threads)]

    @property
    def limits(self) -> np.ndarray:
        """Of the joints' positions ``[n, 2]`` [rad]; infinite where there are none."""
        m = self.model
        ids = [m.joint(j).id for j in self.robot.joints]
        return np.where(m.jnt_limited[ids].astype(bool)[:, None], m.jnt_range[ids], [-np.inf, np.inf])

    def simulate(self, unknowns: Unknowns, z: np.ndarray, episodes: Sequence[Episode]) -> list[dict[str, np.ndarray]]:
        """What would have been measured in each episode: ``{position, velocity, effort}``, each ``[m, T, n]``.

        Args:
            unknowns: what ``z`` means.
            z: ``[n, m]``, one variant a column.
            episodes: their commands are executed, their measurements give the initial states.
        """
        variants = list(range(z.shape[1]))
        shares = [variants[i :: self._threads] for i in range(self._threads)]

        def work(worker: int) -> list[list[dict[str, np.ndarray]]]:
            model, data = self._own[worker]
            out = []
            for v in shares[worker]:
                unknowns.write(model, data, z[:, v])
                delays = unknowns.delay("actuator_delay", z[:, v]), unknowns.delay("sensor_delay", z[:, v])
                out.append([self._one(model, data, e, *delays) for e in episodes])
            return out

        if len(variants) == 1 or self._threads == 1:
            done = [work(k) for k in range(self._threads)]
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                done = list(pool.map(work, range(self._threads)))
        by_variant = dict(zip([v for s in shares for v in s], [r for d in done for r in d], strict=True))
        return [
            {k: np.stack([by_variant[v][e][k] for v in variants]) for k in by_variant[0][e]}
            for e in range(len(episodes))
        ]

    def _one(
        self, model: mujoco.MjModel, data: mujoco.MjData, e: Episode, command_delay: float, sensor_delay: float
    ) -> dict[str, np.ndarray]:
        steps = int(np.ceil(e.time[-1] / self.timestep)) + 1
        control = np.tile(self._ctrl, (steps, 1))
        control[:, self._inputs] = held(e.time, e.command, steps, self.timestep, command_delay)
        q, v = initial_state(e)
        mujoco.mj_resetData(model, data)
        data.qpos[:] = self._rest
        data.qpos[self._qpos], data.qvel[self._qvel] = q, v
        data.ctrl[:] = control[0]
        mujoco.mj_forward(model, data)
        start = np.zeros(mujoco.mj_stateSize(model, _FULL))
        mujoco.mj_getState(model, data, start, _FULL)
        effort = data.sensordata[self._effort].copy()
        state, sensed = rollout.rollout(model, data, start[None], control[None])
        at = (e.time - sensor_delay) / self.timestep
        rows = {
            "position": (q, state[0][:, 1 + self._qpos]),
            "velocity": (v, state[0][:, 1 + model.nq + self._qvel]),
            "effort": (effort, sensed[0][:, self._effort]),
        }
        return {k: resampled(np.concatenate([first[None], rest]), at) for k, (first, rest) in rows.items()}

    def _resting(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of all joints and inputs of all actuators, the gripper open."""
        m = self.model
        data = mujoco.MjData(m)
        qpos, ctrl = data.qpos.copy(), np.zeros(m.nu)
        qpos[self._qpos] = ctrl[self._inputs] = self.robot.home
        if (g := self.robot.gripper) is not None:
            for joint, position in zip(g.joints, g.joint_opened, strict=True):
                qpos[int(m.jnt_qposadr[m.joint(joint).id])] = position
            for actuator, value in zip(g.actuators, g.opened, strict=True):
                ctrl[m.actuator(actuator).id] = value
        return qpos, ctrl


def held(time: np.ndarray, command: np.ndarray, steps: int, timestep: float, delay: float) -> np.ndarray:
    """Commands that hold until the next, delayed, as their means over physics steps: ``[steps, n]``.

    Means make what follows a smooth function of the delay, and are exact to the first order of the timestep.

    Args:
        time: ``[T]`` s, when each was sent; before the first, the first holds.
        command: ``[T, n]``.
        steps, timestep: of the physics.
        delay: [s].
    """
    lengths = np.diff(time, append=time[-1] + 1e3)
    knots = np.concatenate([[time[0] - 1e3], time, [time[-1] + 1e3]])
    area = np.concatenate([np.zeros((1, command.shape[1])), np.cumsum(command * lengths[:, None], axis=0)])
    area = np.concatenate([area[:1] - 1e3 * command[:1], area])
    edges = np.arange(steps + 1) * timestep - delay
    at = np.stack([np.interp(edges, knots, area[:, j]) for j in range(command.shape[1])], axis=1)
    return np.diff(at, axis=0) / timestep


def resampled(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows ``[S, n]`` at fractional indices ``at [T]``, linear between them, the ends held."""
    at = np.clip(at, 0, len(rows) - 1)
    low = np.minimum(at.astype(np.int64), len(rows) - 2)
    part = (at - low)[:, None]
    return rows[low] * (1 - part) + rows[low + 1] * part


def initial_state(e: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Position and velocity ``[n]`` at the start of a record: a parabola through its first moments."""
    n = max(3, int(np.searchsorted(e.time, _START)))
    t, rows = e.time[:n], [e.measured["position"][:n]]
    basis = [np.stack([np.ones_like(t), t, t**2], axis=1)]
    if "velocity" in e.measured:
        rows.append(e.measured["velocity"][:n] * _START)
        basis.append(np.stack([np.zeros_like(t), np.ones_like(t), 2 * t], axis=1) * _START)
    fit = np.linalg.lstsq(np.concatenate(basis), np.concatenate(rows), rcond=None)[0]
    return fit[0], fit[1]
