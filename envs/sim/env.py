"""A task on an engine as a :class:`~visuomotor.envs.base.VecEnv`: the loop of control, physics, outcome and reset."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.base import Obs, Step, VecEnv
from visuomotor.envs.sim.arrays import words
from visuomotor.envs.sim.engines import make_simulator
from visuomotor.envs.sim.events import Event, EventSchedule
from visuomotor.envs.sim.random import WorldRandom
from visuomotor.envs.sim.render import FilmRenderer, make_cameras
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.simulator import Snapshot
from visuomotor.envs.sim.task import SimConfig, Task
from visuomotor.envs.sim.world import World

__all__ = ["EnvSnapshot", "SimVecEnv", "sim_factory"]


@dataclass(frozen=True)
class EnvSnapshot:
    """Everything that decides how the worlds go on."""

    sim: Snapshot
    buffers: dict[str, Tensor]


class SimVecEnv(VecEnv):
    """``num_envs`` worlds of ``task``.

    A world whose state is no longer finite counts as lost: it terminates with reward 0, its observation is zero where
    it is not finite, ``info["diverged"]`` says so, and the reset that follows puts it right.

    Args:
        task: not yet bound.
        config: engine, reward, cameras.
        num_envs: number of worlds ``N``.
        events: what happens besides; see :mod:`~visuomotor.envs.sim.events`.

    Attributes:
        draws_cameras: observations hold pictures; otherwise they are only drawn by :meth:`pictures`.

    Raises:
        ConfigError: a scene whose timestep does not divide the control step, or events and cameras that do not fit it.
    """

    def __init__(self, task: Task, config: SimConfig, num_envs: int, events: Sequence[Event] = ()) -> None:
        scene = task.scene()
        # bound to these worlds: other environments may share the list. Together, since events may refer to each other
        events = copy.deepcopy(list(events))
        for event in events:
            event.prepare(scene)
        model = scene.compile()
        self._substeps = round(1.0 / (task.fps * model.opt.timestep))
        if abs(self._substeps * model.opt.timestep * task.fps - 1.0) > 1e-6 or self._substeps < 1:
            raise ConfigError(
                f"task {task.name!r}: the timestep {model.opt.timestep:g} s does not divide the control step "
                f"{1 / task.fps:g} s"
            )
        self.task, self.sim = task, make_simulator(model, num_envs, config.engine, outputs=task.reads_outputs)
        self.num_envs, self.device, self.fps = num_envs, self.sim.device, task.fps
        self.max_episode_steps = config.max_episode_steps or task.max_episode_steps
        self._config = config
        self._random = WorldRandom(num_envs, self.device, config.seed)
        self.control = task.bind(World(self.sim, self._random))
        self.action_spec, self.action_low, self.action_high = self.control.spec, self.control.low, self.control.high
        self._action_shape = torch.Size([num_envs, self.action_spec.size])
        self._elapsed = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._running = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self._lost = torch.zeros(num_envs, dtype=torch.int64, device=self.device)  # episodes that diverged
        self._may_ask = self.device.type == "cpu"  # a GPU would stall at every question
        self._everyone = Selection.all(num_envs, self.device)
        self.obs_spec = dict(task.obs_spec)
        if config.privileged:
            task.privileged()
            names = task.privileged_names
            self.obs_spec["privileged"] = ArraySpec(shape=(len(names),), role="privileged", names=names)
        self._cameras, self._film = make_cameras(self.sim, config.cameras), FilmRenderer(self.sim)
        for key, spec in ({} if self._cameras is None else self._cameras.spec).items():
            if key in self.obs_spec:
                raise ConfigError(f"camera {key!r}: task {task.name!r} already observes something of this name")
            self.obs_spec[key] = spec
        self.world = World(
            self.sim, self._random, self._kept(), obs_spec=self.obs_spec, control=self.control, elapsed=self._elapsed,
            dt=1.0 / task.fps,
        )  # fmt: skip
        self.events = EventSchedule(events, self.world, 1.0 / task.fps)
        self.obs_spec = self.obs_spec | self.events.obs_spec
        self.draws_cameras = True
        self.events.startup(self._random.begin_episode(self._everyone))

    def reset(self, *, seeds: Sequence[int] | None = None, mask: Tensor | None = None) -> Obs:
        if seeds is not None and len(seeds) != self.num_envs:
            raise UserError(f"{len(seeds)} seeds for {self.num_envs} worlds; expected one a world")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (self.num_envs,)):
            raise UserError(f"mask is {mask.dtype} {list(mask.shape)}; expected torch.bool [{self.num_envs}]")
        worlds = self._everyone if mask is None else Selection(mask)
        if not worlds.is_empty:
            self._begin(worlds, None if seeds is None else self._seeds(seeds))
        # worlds that diverged and were not chosen still show no NaN
        return self._observe(worlds is not self._everyone and self._any_of(self.sim.diverged()), drawn=mask)

    def advance(self, action: Tensor, active: Tensor) -> Step:
        return self._advance(action, active)

    def step(self, action: Tensor) -> Step:
        s = self._advance(action, None)
        ended = s.terminated | s.truncated
        if self._may_ask and not bool(ended.any()):
            return s
        self._begin(Selection(ended), None)
        obs = self._observe(lost=False, drawn=ended)  # whoever diverged has ended
        return Step(obs, s.reward, s.terminated, s.truncated, s.final_obs, s.info)

    def snapshot(self) -> EnvSnapshot:
        """Everything that decides how the worlds go on; on the CPU :meth:`restore` continues bit for bit."""
        return EnvSnapshot(self.sim.snapshot(), {k: v.clone() for k, v in self._buffers().items()})

    def restore(self, snapshot: EnvSnapshot) -> Obs:
        """Put a snapshot back and return the observations."""
        self.sim.restore(snapshot.sim)
        for name, buffer in self._buffers().items():
            buffer.copy_(snapshot.buffers[name])
        return self._observe(self._any_of(self.sim.diverged()))

    def pictures(self, step: int, drawn: Tensor) -> Obs:
        """What the cameras show of the states that the ``drawn`` worlds (bool ``[N]``) have been put into.

        Args:
            step: control steps since their episodes began.
        """
        self._elapsed.fill_(step)
        return {} if self._cameras is None else self.events.sense(self._cameras.observe(drawn))

    def render(self, index: int) -> np.ndarray:
        if not 0 <= index < self.num_envs:
            raise UserError(f"world {index}: expected 0 to {self.num_envs - 1}")
        return self._film.picture(index)

    def warnings(self) -> list[str]:
        """Episodes that diverged, and worlds whose contacts or constraints did not fit, since the last call."""
        lost = int(self._lost.sum())
        self._lost.zero_()
        found = [f"{lost} episodes diverged (state not finite); they count as lost"] if lost else []
        return found + [
            f"{n} worlds had more {kind} than fit their buffers: their physics is wrong"
            for kind, n in self.sim.overflow().items()
            if n
        ]

    def close(self) -> None:
        self._film.close()
        if self._cameras is not None:
            self._cameras.close()
        self.sim.close()

    def _begin(self, worlds: Selection, seeds: Tensor | None) -> None:
        """New episodes."""
        draws = self._random.begin_episode(worlds, seeds)
        self.sim.reset(worlds)
        self.task.reset(worlds, draws)
        self.events.reset(worlds, draws)
        self.sim.forward(worlds)
        self.control.reset(worlds)
        self.events.begin(worlds, draws)
        worlds.put(self._elapsed, 0)
        worlds.put(self._running, True)

    def _advance(self, action: Tensor, active: Tensor | None) -> Step:
        action = action.detach().to(self.device, torch.float32)
        if action.shape != self._action_shape:
            raise UserError(f"action of shape {list(action.shape)}; expected {list(self._action_shape)}")
        if self._may_ask:
            self._check(action, active)
        self.events.interval(self._elapsed, active)
        self.task.before_step()
        self.control.apply(*self.events.act(action, active))
        self.sim.step(self._substeps, active)
        self._elapsed += 1 if active is None else active
        diverged = self.sim.diverged()
        lost = self._any_of(diverged)
        outcome = self.task.outcome()
        success = outcome.success & ~diverged if lost else outcome.success
        reward = outcome.reward.float() if self._config.reward == "dense" else success.float()
        score = success.float() if outcome.score is None else outcome.score
        if lost:
            reward, score = reward.masked_fill(diverged, 0.0), score.masked_fill(diverged, 0.0)
        ends = [diverged] if lost else []
        ends += [outcome.failure] if outcome.failure is not None else []
        ends += [success] if self._config.end_on_success else []
        terminated = reduce(torch.logical_or, ends, torch.zeros_like(success))
        truncated = (self._elapsed >= self.max_episode_steps) & ~terminated
        info = {"success": success, "score": score, "diverged": diverged}
        if active is not None:
            terminated, truncated, reward = terminated & active, truncated & active, reward * active
        if lost:
            self._lost += diverged & terminated
        ended = terminated | truncated
        self._running &= ~ended
        self.events.watch(success if active is None else success & active, ended)
        obs = self._observe(lost, active)
        return Step(obs, reward, terminated, truncated, obs, info)

    def _any_of(self, worlds: Tensor) -> bool:
        """False if it is known, without asking a GPU, that there are none."""
        return not self._may_ask or bool(words(worlds).any())

    def _observe(self, lost: bool, drawn: Tensor | None = None) -> Obs:
        """What all worlds show now.

        Args:
            lost: some may have diverged.
            drawn: the worlds that changed, for which pictures have to be drawn.
        """
        obs = self.task.observe()
        if self._config.privileged:
            obs["privileged"] = self.task.privileged()
        obs |= self.events.observe()
        if self._cameras is not None and self.draws_cameras:
            obs |= self._cameras.observe(drawn)
        obs = self.events.sense(obs)
        if lost:
            obs = {k: v.nan_to_num(0.0, 0.0, 0.0) if v.is_floating_point() else v for k, v in obs.items()}
        return obs

    def _seeds(self, seeds: Sequence[int]) -> Tensor:
        for seed in seeds:
            if not -(2**63) <= seed < 2**63:
                raise UserError(f"seed {seed}: expected a whole number of 64 bits")
        return torch.tensor(list(seeds), dtype=torch.int64, device=self.device)

    def _kept(self) -> dict[str, Tensor]:
        parts = {"task": self.task.buffers(), "control": self.control.buffers()}
        return {f"{part}.{k}": v for part, buffers in parts.items() for k, v in buffers.items()}

    def _buffers(self) -> dict[str, Tensor]:
        own = {"elapsed": self._elapsed, "running": self._running, "key": self._random.key}
        return own | self._kept() | {f"events.{k}": v for k, v in self.events.buffers().items()}

    def _check(self, action: Tensor, active: Tensor | None) -> None:
        running = self._running if active is None else self._running | ~active
        if not words(running).all():
            raise UserError(f"world {int(running.int().argmin())} has no running episode: reset it before stepping it")
        if math.isfinite(words(action).sum()):
            return
        bad = ~torch.isfinite(action.sum(1))
        bad = bad if active is None else bad & active
        if bool(bad.any()):
            i = int(bad.int().argmax())
            raise UserError(f"the action of world {i} is {action[i].tolist()}; expected finite numbers")


def sim_factory(task: Callable[[Any], Task]) -> Callable[..., VecEnv]:
    """What the registry needs of a simulated task: settings, a number of worlds and events to an environment."""

    def make(config: Any, num_envs: int, events: Sequence[Event] = ()) -> VecEnv:
        return SimVecEnv(task(config), config, num_envs, events)

    return make
