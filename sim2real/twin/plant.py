"""The twin's physics: one world of a task, whose arm is driven by joint positions instead of a policy's actions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.envs.base import VecEnv
from visuomotor.envs.sim.cameras import CameraConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.render import make_cameras
from visuomotor.envs.sim.world import find
from visuomotor.envs.tasks.tabletop import TabletopTask

__all__ = ["Plant", "Standing"]


@dataclass(frozen=True)
class Standing:
    """How the episode stands."""

    success: bool
    score: float


class Plant:
    """One world of a manipulation task with one arm.

    Args:
        env: the world.
        rate_hz: of :meth:`step`; 0: the physics' own.
        cameras: that are drawn.

    Attributes:
        rate_hz: of :meth:`step`.
        fps: of the task's control steps, at which its goal is judged.

    Raises:
        ConfigError: a task without an arm, with several, or a rate that does not fit its physics.
    """

    def __init__(self, env: VecEnv, rate_hz: float = 0.0, cameras: CameraConfig | None = None) -> None:
        if not isinstance(env, SimVecEnv) or not isinstance(env.task, TabletopTask) or len(env.task.arms) != 1:
            raise ConfigError("the twin needs a simulated task with one arm: lift, reach, stack, pick_place, peg, ...")
        self._env, self._task, self._arm = env, env.task, env.task.arms[0]
        self.fps = env.fps
        self.rate_hz, self._substeps = _pace(env, rate_hz)
        sim, model = env.sim, env.sim.model
        self._qpos, self._qvel, self._ctrl = (sim.field(n).numpy() for n in ("qpos", "qvel", "ctrl"))
        joints, robot = self._arm.joints, self._arm.model
        self._q, self._v = _index(joints.qpos_columns), _index(joints.dof_columns)
        prefix = joints.names[0].removesuffix(robot.joints[0])
        self._inputs = [find(model, "actuator", prefix + a) for a in robot.actuators]
        self.low, self.high = joints.low.double().numpy(), joints.high.double().numpy()
        self._grip = robot.gripper
        if self._grip is not None:
            self._fingers = [find(model, "actuator", prefix + a) for a in self._grip.actuators]
            self._opened, self._closed = np.array(self._grip.opened), np.array(self._grip.closed)
        self._cameras = make_cameras(sim, cameras or CameraConfig())
        self._every = round(self.rate_hz / self.fps)
        self._steps = 0
        self._reached, self._best = False, 0.0

    @property
    def joints(self) -> tuple[str, ...]:
        """Names of the arm's joints in the model."""
        return self._arm.model.joints

    def reset(self, seed: int) -> None:
        """Begin the episode of ``seed``, as an evaluation would."""
        self._env.reset(seeds=[seed])
        self._steps, self._reached, self._best = 0, False, 0.0

    def measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions and velocities ``[n]`` of the arm's joints."""
        return self._qpos[0, self._q].copy(), self._qvel[0, self._v].copy()

    def opening(self) -> float:
        """Of the gripper: 0 closed, 1 open; 1 without one."""
        return float(self._arm.opening()[0, 0]) if self._grip is not None else 1.0

    def command(self, q: np.ndarray, opening: float) -> None:
        """Joint positions ``[n]`` and the opening that the servos go to; limits of the model hold."""
        q = np.clip(q, self.low, self.high)
        self._ctrl[0, self._inputs] = q
        self._arm.target[0] = torch.from_numpy(q).float()
        self._arm.grip[0] = opening = float(np.clip(opening, 0.0, 1.0))
        if self._grip is not None:
            self._ctrl[0, self._fingers] = self._closed + opening * (self._opened - self._closed)

    def step(self) -> None:
        """One period of :attr:`rate_hz`."""
        if self._steps % self._every == 0:
            self._task.before_step()
        self._env.sim.step(self._substeps)
        self._steps += 1
        if self._steps % self._every == 0:
            outcome = self._task.outcome()
            success = bool(outcome.success[0]) and not bool(self._env.sim.diverged()[0])
            self._reached = success
            self._best = max(self._best, float(success if outcome.score is None else outcome.score[0]))

    def standing(self) -> Standing:
        """Whether the goal held when it was last judged, and the best score so far."""
        return Standing(self._reached, self._best)

    def observed(self) -> dict[str, np.ndarray]:
        """What the task observes beside the arm itself: float64, without a batch."""
        own = self._arm.obs_spec
        return {k: v[0].double().numpy() for k, v in self._task.observe().items() if k not in own}

    def pictures(self) -> dict[str, np.ndarray]:
        """Of every camera: uint8 ``[H, W, 3]`` RGB."""
        return {} if self._cameras is None else {k: v[0].numpy() for k, v in self._cameras.observe().items()}

    def close(self) -> None:
        """End the world."""
        if self._cameras is not None:
            self._cameras.close()
        self._env.close()


def _index(columns: slice | torch.Tensor) -> np.ndarray:
    if isinstance(columns, slice):
        return np.arange(columns.start, columns.stop)
    return columns.numpy()


def _pace(env: SimVecEnv, rate_hz: float) -> tuple[float, int]:
    """Rate of the controllers and physics steps in a period of theirs; makes physics finer where it has to be."""
    own = 1.0 / env.sim.timestep
    rate = rate_hz or own
    steps = max(1, round(own / rate))
    if abs(rate / env.fps - round(rate / env.fps)) > 1e-9 or round(rate / env.fps) < 1:
        raise ConfigError(f"rate_hz={rate:g}: expected a multiple of the task's {env.fps:g} Hz")
    if abs(steps * rate - own) > 1e-6 * own:
        env.sim.model_field("opt.timestep").fill_(1.0 / (rate * steps))
    return rate, steps
