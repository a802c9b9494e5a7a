"""What a task is to the simulation, independent of the engine: its scene, observations, reward, success and resets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import mujoco
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.sim.cameras import CameraConfig
from visuomotor.envs.sim.control import Control
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world import World

__all__ = ["Expert", "Outcome", "SimConfig", "Task"]

_REWARDS = ("dense", "sparse")


@dataclass(kw_only=True, slots=True)
class SimConfig:
    """Settings that every simulated task has.

    Attributes:
        engine: who does the physics.
        reward: ``dense`` (shaped) or ``sparse`` (1 in steps in which the goal holds, else 0).
        max_episode_steps: time limit in control steps; 0 takes the task's own.
        end_on_success: an episode ends when the goal holds.
        cameras: which cameras are observed, and how.
        privileged: also observe what only a simulator knows, as the key ``privileged``.
        seed: of worlds that are reset without a seed.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    reward: str = "dense"
    max_episode_steps: int = 0
    end_on_success: bool = True
    cameras: CameraConfig = field(default_factory=CameraConfig)
    privileged: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reward not in _REWARDS:
            raise ConfigError(f"unknown reward {self.reward!r}. {nearest(self.reward, _REWARDS)}")
        if self.max_episode_steps < 0:
            raise ConfigError(f"max_episode_steps={self.max_episode_steps}: expected 0 (the task's own) or more")


@dataclass(frozen=True)
class Outcome:
    """How all worlds stand after a step."""

    reward: Tensor  # [N] float32, dense
    success: Tensor  # [N] bool: the goal holds now
    failure: Tensor | None = None  # [N] bool: the episode is lost (fallen, dropped); None: never
    score: Tensor | None = None  # [N] float32 in 0..1, how close it is; None: success as a number


class Expert(ABC):
    """A scripted controller that solves the task, for all worlds at once."""

    @abstractmethod
    def reset(self, worlds: Selection, draws: Draws) -> None:
        """Begin anew in worlds that were reset, with random numbers for the diversity of its behaviour."""

    @abstractmethod
    def act(self) -> Tensor:
        """Actions ``[N, Da]`` for the state that the worlds are in now."""

    @abstractmethod
    def buffers(self) -> dict[str, Tensor]:
        """Live tensors ``[N, ...]`` that a snapshot has to hold for it to go on as if nothing had happened."""


class Task(ABC):
    """One task, on any engine. Everything it keeps of worlds are tensors ``[N, ...]`` made in :meth:`bind`.

    Attributes:
        name: as the registry has it.
        fps: control steps per second [Hz].
        max_episode_steps: its own time limit.
        obs_spec: what :meth:`observe` gives; complete after :meth:`bind`.
        privileged_names: names of the components of :meth:`privileged`; complete after :meth:`bind`.
        reads_outputs: whether it reads what the engine derives from the state (poses of bodies, sensors); only speed
            depends on it.
    """

    name: str
    fps: float
    max_episode_steps: int
    obs_spec: dict[str, ArraySpec]
    privileged_names: tuple[str, ...] = ()
    reads_outputs: bool = True

    @abstractmethod
    def scene(self) -> mujoco.MjSpec:
        """The whole scene. Its timestep divides ``1 / fps``; keyframe 0, if there is one, is where episodes start."""

    @abstractmethod
    def bind(self, world: World) -> Control:
        """Look names up once, keep handles, and say what actions do."""

    @abstractmethod
    def reset(self, worlds: Selection, draws: Draws) -> None:
        """Place objects and goals in worlds that the engine has just reset. Outputs are not current here."""

    def before_step(self) -> None:  # noqa: B027  (few outcomes compare with the state before)
        """Remember what the next :meth:`outcome` compares with; called before the physics of every control step."""

    @abstractmethod
    def observe(self) -> dict[str, Tensor]:
        """Observations ``{key: [N, ...]}`` float32 of what sensors or an estimator would give; fresh tensors."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """Reward and success of the state that the worlds are in now."""

    def privileged(self) -> Tensor:
        """Float32 ``[N, k]``: what only a simulator knows, named by :attr:`privileged_names`."""
        raise ConfigError(f"task {self.name!r} has no privileged observations: set env.privileged=false")

    def expert(self, diversity: float = 0.0) -> Expert:
        """A scripted expert for the bound worlds; ``diversity`` 0..1 varies its ways."""
        raise ConfigError(f"task {self.name!r} has no scripted expert")

    def buffers(self) -> dict[str, Tensor]:
        """Live tensors ``[N, ...]`` that a snapshot has to hold (goals, counters)."""
        return {}
