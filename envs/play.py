"""Interactive episodes: a policy, an expert or a person acts in one world in real time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.envs.base import Obs, Step, VecEnv
from visuomotor.envs.generate import FIRST_PLAYED
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.tape import DemoTape
from visuomotor.envs.teleop import ArmOperator, Event, EventSource

__all__ = ["Clock", "ExpertPilot", "Pilot", "PlaySession", "PlaySettings", "Played", "SystemClock", "View"]

_SEEDS = 100_000  # of one `seed`
_EXPERT = 1 << 20  # domain of its random numbers, beyond those of events
_FASTEST = 8.0  # and slowest, as a factor of real time


class Pilot(Protocol):
    """What acts when no person does: a policy with its chunk execution, or an expert."""

    def reset(self, seeds: Sequence[int], mask: Tensor | None = None) -> None:
        """Forget the past and begin an episode."""

    def act(self, obs: Obs, active: Tensor) -> Tensor:
        """Actions ``[1, Da]``."""


class ExpertPilot:
    """The task's scripted expert as a pilot."""

    def __init__(self, env: SimVecEnv, diversity: float = 0.0) -> None:
        self._env, self._expert = env, env.task.expert(diversity)
        self._everyone = Selection.all(env.num_envs, env.device)

    def reset(self, seeds: Sequence[int], mask: Tensor | None = None) -> None:
        counter = torch.zeros(self._env.num_envs, dtype=torch.int64, device=self._env.device)
        self._expert.reset(self._everyone, self._env.world.random.draws(self._everyone, _EXPERT, counter))

    def act(self, obs: Obs, active: Tensor) -> Tensor:
        return self._expert.act()


class View(Protocol):
    """Where a person sees the world."""

    def show(self, status: str) -> bool:
        """Show the state now; False once the person has closed the window."""


class Clock(Protocol):
    """Time that passes: ``time.monotonic`` and ``time.sleep``, or a test's own."""

    def now(self) -> float:
        """Seconds since some moment."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The computer's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True, kw_only=True)
class PlaySettings:
    """How a session goes.

    Attributes:
        speed: of the time, as a factor of real time.
        seed: other seeds begin with other episodes; a recording that is added to goes on after its last one.
        episodes: end when this many were kept; 0 goes on until somebody quits.
        hold: steps an episode goes on after its goal is reached; it is kept if the goal still holds then.
        keep_failures: keep episodes that ended without success too.
    """

    speed: float = 1.0
    seed: int = 0
    episodes: int = 0
    hold: int = 10
    keep_failures: bool = False


@dataclass(frozen=True)
class Played:
    """What became of a session."""

    kept: int
    dropped: int
    steps: int


class PlaySession:
    """One world, at a fixed rate, until somebody quits.

    Args:
        env: one world, whose episodes do not end by success.
        source: what the person says.
        pilot: acts unless a person has taken over; None: the person acts always.
        operator: the person's hand; None: the person only watches.
        tape: where episodes go; None records nothing.
        view: where the person sees it; None: nowhere.
        settings: see :class:`PlaySettings`.
        clock: of the rate.
        tell: gets a line about each episode.

    Raises:
        ConfigError: neither a pilot nor an operator.
    """

    def __init__(
        self,
        env: VecEnv,
        source: EventSource,
        *,
        pilot: Pilot | None = None,
        operator: ArmOperator | None = None,
        tape: DemoTape | None = None,
        view: View | None = None,
        settings: PlaySettings | None = None,
        clock: Clock | None = None,
        tell: Callable[[str], None] = print,
    ) -> None:
        if pilot is None and operator is None:
            raise ConfigError("nobody acts: give a policy, an expert or an operator")
        self._env, self._source, self._pilot, self._operator = env, source, pilot, operator
        self._tape, self._view, self._tell = tape, view, tell
        self._settings, self._clock = settings or PlaySettings(), clock or SystemClock()
        self._everyone = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        begin = FIRST_PLAYED + self._settings.seed * _SEEDS
        self._seed = begin if tape is None else tape.next_seed(range(begin, begin + _SEEDS))
        self._speed, self._due, self._paused, self._open = self._settings.speed, 0.0, False, True
        self._human, self._since, self._length, self._obs = pilot is None, -1, 0, Obs()
        self._kept = self._dropped = self._steps = 0

    def run(self) -> Played:
        """Play; returns when somebody quits, or enough episodes were kept."""
        self._begin()
        self._due = self._clock.now()
        while self._open:
            for event in self._source.poll():
                self._handle(event)
            if not self._open:
                break
            if not self._paused:
                self._step()
            if self._view is not None and not self._view.show(self._status()):
                break
            self._wait()
        if self._tape is not None:
            self._tape.drop()
        return Played(self._kept, self._dropped, self._steps)

    def _step(self) -> None:
        env, obs = self._env, self._obs
        action = self._act(obs)
        step = env.advance(action, self._everyone)
        if self._tape is not None:
            self._tape.add(obs, action, step.reward, self._human)
        self._obs = step.final_obs
        self._length, self._steps = self._length + 1, self._steps + 1
        self._judge(step)

    def _act(self, obs: Obs) -> Tensor:
        env = self._env
        if self._human:
            assert self._operator is not None
            action = self._operator.act()
        else:
            assert self._pilot is not None
            action = self._pilot.act(obs, self._everyone)
        return torch.clamp(action, env.action_low, env.action_high)

    def _judge(self, step: Step) -> None:
        """End the episode when the goal has held for long enough, when it is lost, and when its time is up."""
        success = bool(step.info["success"][0])
        if self._since >= 0:
            self._since += 1
        elif success:
            self._since = 0
        over = bool((step.terminated | step.truncated)[0])
        if over or self._since >= self._settings.hold:
            self._end(success and not bool(step.terminated[0]), "the goal is reached" if success else "it failed")

    def _handle(self, event: Event) -> None:
        match event.kind:
            case "success" if self._length:
                self._end(True, "the person says so")
            case "discard":
                self._drop("thrown away", self._seed + 1)
            case "restart":
                self._drop("begun again", self._seed)
            case "pause":
                self._paused = not self._paused
            case "takeover" if self._pilot is not None and self._operator is not None:
                self._human = not self._human
                self._operator.reset()
                if not self._human:
                    self._pilot.reset([self._seed])  # it has not seen what the person did
            case "faster" | "slower":
                factor = 2.0 if event.kind == "faster" else 0.5
                self._speed = min(_FASTEST, max(1 / _FASTEST, self._speed * factor))
            case "quit":
                self._open = False
            case _ if self._operator is not None:
                self._operator.handle(event)

    def _begin(self) -> None:
        self._obs = self._env.reset(seeds=[self._seed])
        self._length, self._since, self._human = 0, -1, self._pilot is None
        if self._pilot is not None:
            self._pilot.reset([self._seed])
        if self._operator is not None:
            self._operator.reset()
        if self._tape is not None:
            self._tape.start(self._seed)

    def _end(self, success: bool, why: str) -> None:
        if not success and not self._settings.keep_failures:
            self._drop(f"{why}, not kept", self._seed + 1)
            return
        where = "" if self._tape is None else f", episode {self._tape.keep(success)} of the store"
        self._kept += 1
        self._tell(f"seed {self._seed}: {why} after {self._length} steps{where}")
        self._open = self._open and self._kept != self._settings.episodes
        self._next(self._seed + 1)

    def _drop(self, why: str, seed: int) -> None:
        if self._tape is not None:
            self._tape.drop()
        self._dropped += 1
        self._tell(f"seed {self._seed}: {why} after {self._length} steps")
        self._next(seed)

    def _next(self, seed: int) -> None:
        self._seed = seed
        if self._open:
            self._begin()

    def _wait(self) -> None:
        """Until the next step is due. Time that was lost is not caught up with by a rush."""
        self._due = max(self._due + 1.0 / (self._env.fps * self._speed), self._clock.now())
        self._clock.sleep(max(0.0, self._due - self._clock.now()))

    def _status(self) -> str:
        who = "you act" if self._human else "the policy acts" if self._operator is not None else "watching"
        state = "paused" if self._paused else f"{self._speed:g} x real time"
        held = "" if self._tape is None else f", {self._kept} recorded"
        return f"{who}, step {self._length}, {state}{held}"
