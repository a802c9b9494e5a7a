"""Demonstrations by a scripted expert: worlds run side by side until the goal has held for a while, or time is up.

Seeds are run in blocks of one size: where a world stands among how many others decides the last bits of a result
(vector instructions round differently from the rest of a row that does not fill one), so the same seed of the same
block gives the same episode bit for bit, whoever runs it. This module is also the program of the worker processes that
:mod:`visuomotor.envs.generate` starts.
"""

from __future__ import annotations

import copy
import math
import pickle
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.writers import EpisodeWriter, StagedFiles
from visuomotor.envs.base import Obs
from visuomotor.envs.registry import make_env
from visuomotor.envs.retarget import RetargetExpert, load_demonstrations
from visuomotor.envs.sim.cameras import camera_specs
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.task import Expert, SimConfig
from visuomotor.envs.sim.world_state import STATE_KEY, WorldState

__all__ = ["Attempt", "DemoPlan", "Demonstrator", "block_size", "serve"]

_BLOCK, _GPU_BLOCK = 16, 256
_EXPERT, _NOISE, _SLIP = 1 << 20, (1 << 20) + 1, (1 << 20) + 2  # domains of random numbers, beyond those of events
_PUSHED = 0.25  # share of the time in which there is noise; else every recorded action would correct what came before
_SAME_NOISE, _SAME_SLIP = 4, 8  # control steps for which a disturbance lasts: long enough to be off the way


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """What is demonstrated, and how. It decides every number of an episode, together with the episode's seed.

    Attributes:
        env: settings of the task's environment.
        diversity: 0..1: how much the expert's ways vary, and the size of disturbances.
        noise: standard deviation of the disturbances at diversity 1, as a share of the largest motion in one step; they
            last four control steps and come in a quarter of the time.
        slips: probability at diversity 1 that for eight control steps a gripper does the opposite of what it is told.
            Not where demonstrations are re-targeted.
        hold: steps that are recorded after the goal is reached; it must still hold then.
        source: store of demonstrations to re-target; None: the task's scripted expert.
        states: also record the state of the simulator, from which episodes can begin later.
        events: what happens in the worlds besides.
        randomization: the settings that ``events`` were made from, as plain values: a store says them.

    Raises:
        ConfigError: settings of a task that is not simulated here.
    """

    env: Any
    diversity: float = 0.5
    noise: float = 0.3
    slips: float = 0.1
    hold: int = 10
    source: Path | None = None
    states: bool = False
    events: tuple[Event, ...] = ()
    randomization: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.env, SimConfig):
            raise ConfigError(f"{type(self.env).__name__} is of a task that has no scripted expert to generate from")


@dataclass(frozen=True)
class Attempt:
    """One episode that was tried. It failed if there is nothing of it.

    Attributes:
        seed: what decides it.
        arrays: ``{key: [L, *shape]}``.
        staged: in place of ``arrays``, where a worker process has them on disk already.
    """

    seed: int
    arrays: dict[str, np.ndarray] | None
    staged: StagedFiles | None = None


class Demonstrator:
    """Worlds with an expert.

    Disturbances are added to what is executed, and the expert's own action is recorded (DART, Laskey et al. 2017,
    "DART: Noise Injection for Robust Imitation Learning"): the demonstrations then show how to get back on the way,
    and with slips of the gripper what to do after a grasp that failed.

    Cameras are drawn when an episode has succeeded, from the states it went through.

    Args:
        plan: what is demonstrated.
        threads: of the physics; 0 as the plan says.

    Raises:
        ConfigError: a task that has no expert, or a camera that it does not have.
    """

    def __init__(self, plan: DemoPlan, threads: int = 0) -> None:
        config = copy.deepcopy(plan.env)
        config.end_on_success = False  # this class ends episodes itself, some steps later
        config.engine.threads = threads or config.engine.threads
        size = block_size(plan)
        env = make_env(config, size, plan.events)
        assert isinstance(env, SimVecEnv)
        self.env, self._plan = env, plan
        env.draws_cameras = False
        self._limit = env.max_episode_steps  # for reaching the goal; holding it comes after
        env.max_episode_steps += plan.hold
        self._cameras = camera_specs(env.sim.model, plan.env.cameras)
        self._state = WorldState(env.world) if plan.states else None
        self._expert = self._make_expert()
        self._noise = plan.noise * plan.diversity * _largest_motion(env)
        names = env.action_spec.names or ("",) * env.action_spec.size
        self._grippers = torch.tensor([name.endswith("gripper") for name in names], device=env.device)
        # what is re-targeted does not notice a lost object: a slip would only make it fail
        self._slips = plan.slips * plan.diversity if plan.source is None else 0.0
        self._disturbs = plan.diversity > 0 and (plan.noise > 0 or plan.slips > 0)
        self._everyone = Selection.all(size, env.device)

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """Arrays of an episode: the observations, and ``action`` and ``reward`` of the step taken from them."""
        reward = ArraySpec(shape=(), role="reward")
        states = {} if self._state is None else {STATE_KEY: self._state.spec}
        return {**self.env.obs_spec, **states, "action": self.env.action_spec, "reward": reward}

    def run(self, first: int, done: int = 0) -> Iterator[Attempt]:
        """One attempt a seed of the block that begins with seed ``first``, in order, without the first ``done``."""
        env = self.env
        seeds = range(first, first + env.num_envs)
        zeros = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
        active = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        reached, good = torch.zeros_like(active), torch.zeros_like(active)
        since, length = zeros.clone(), zeros.clone()
        rows: list[dict[str, Tensor]] = []
        states: list[Tensor] = []
        obs = env.reset(seeds=seeds)
        self._expert.reset(self._everyone, env.world.random.draws(self._everyone, _EXPERT, zeros))
        while bool(active.any()):
            if self._cameras:
                states.append(env.sim.state())
            obs = obs if self._state is None else {**obs, STATE_KEY: self._state.read()}
            action = torch.clamp(self._expert.act(), env.action_low, env.action_high)
            step = env.advance(self._disturbed(action, len(rows)), active)
            rows.append({**obs, "action": action, "reward": step.reward})
            length += active
            since += reached & active
            success = step.info["success"]
            reached |= success & active
            good = torch.where(active, success & ~step.terminated, good)
            held = reached & (since >= self._plan.hold)
            late = ~reached & (len(rows) >= self._limit)
            active = active & ~(step.terminated | step.truncated | held | late)
            obs = step.final_obs
        lengths = length.masked_fill(~good, 0).tolist()
        lengths[:done] = [0] * done
        pictures = self._pictures(states, lengths)
        for i in range(done, env.num_envs):
            arrays = {**self._episode(rows[: lengths[i]], i), **pictures[i]} if lengths[i] else None
            yield Attempt(seeds[i], arrays)

    def close(self) -> None:
        """Release the worlds."""
        self.env.close()

    def _make_expert(self) -> Expert:
        if self._plan.source is None:
            return self.env.task.expert(self._plan.diversity)
        demos = load_demonstrations(self._plan.source, self.env.task)
        return RetargetExpert(self.env.task, demos, 1.0 / self.env.fps, self._plan.diversity)

    def _disturbed(self, action: Tensor, step: int) -> Tensor:
        if not self._disturbs:
            return action
        low, high = self.env.action_low, self.env.action_high
        slips = self._draws(_SLIP, step // _SAME_SLIP).uniform((1,)) < self._slips
        action = torch.where(slips & self._grippers, low + high - action, action)
        draws = self._draws(_NOISE, step // _SAME_NOISE)
        pushed = draws.uniform((1,)) < _PUSHED
        return torch.clamp(action + pushed * self._noise * draws.normal((action.shape[1],)), low, high)

    def _draws(self, domain: int, counter: int) -> Draws:
        count = torch.full((self.env.num_envs,), counter, dtype=torch.int64, device=self.env.device)
        return self.env.world.random.draws(self._everyone, domain, count)

    def _episode(self, rows: Sequence[Obs], world: int) -> dict[str, np.ndarray]:
        return {
            key: torch.stack([row[key][world] for row in rows]).cpu().numpy().astype(self.specs[key].dtype)
            for key in rows[0]
        }

    def _pictures(self, states: Sequence[Tensor], lengths: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """What the cameras saw in each world in its first ``lengths`` steps: ``{camera: [L, H, W, C]}``."""
        if not self._cameras:
            return [{} for _ in lengths]
        out = [{k: np.empty((n, *s.shape), s.dtype) for k, s in self._cameras.items()} for n in lengths]
        for t, state in enumerate(states):
            mask = torch.tensor([t < n for n in lengths], device=self.env.device)
            worlds = Selection(mask)
            if not bool(mask.any()):
                break
            self.env.sim.set_state(worlds, worlds.take(state))
            seen = self.env.pictures(t, mask)
            for i in mask.nonzero().flatten().tolist():
                for key, picture in seen.items():
                    out[i][key][t] = picture[i].cpu().numpy()
        return out


def block_size(plan: DemoPlan) -> int:
    """Seeds that are run together. On a GPU more of them, where results are not the same bit for bit anyway."""
    return _BLOCK if plan.env.engine.name == "batch" else _GPU_BLOCK


def _largest_motion(env: SimVecEnv) -> Tensor:
    """How far each action component can move its part in one control step ``[Da]``; 0 for grippers and the unbounded.

    Where actions are joint positions, the range of the joints says nothing about a step: their limit a step does.
    """
    half = (env.action_high - env.action_low) / 2
    control = getattr(getattr(env.task, "config", None), "control", None)
    if control is not None and control.mode == "joint_pos":
        half = torch.full_like(half, control.joint_step)
    names = env.action_spec.names or ("",) * len(half)
    fixed = [name.endswith("gripper") or not math.isfinite(h) for name, h in zip(names, half.tolist(), strict=True)]
    return half.masked_fill(torch.tensor(fixed, device=half.device), 0.0)


def serve(pipe: Connection) -> None:
    """Answer with attempts: first come the plan and the path of the store, whose parent has it open, then blocks (see
    :meth:`Demonstrator.run`), until the pipe ends. Episodes go to disk from here.
    """
    plan, path = pickle.loads(pipe.recv_bytes())
    demonstrator, writer = Demonstrator(plan, threads=1), EpisodeWriter(path)
    while True:
        for attempt in demonstrator.run(*pickle.loads(pipe.recv_bytes())):
            staged = None if attempt.arrays is None else writer.write(attempt.arrays)
            pipe.send_bytes(pickle.dumps(Attempt(attempt.seed, None, staged)))


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    torch.set_num_threads(1)  # the cores are shared out among the processes
    pipe = Connection(int(sys.argv[1]))
    try:
        from visuomotor.envs.demonstrate import serve as answer  # classes of the module, not of __main__

        answer(pipe)
    except (EOFError, ConnectionError):  # the parent has gone, or needs no more
        return
    except UserError as e:
        pipe.send_bytes(pickle.dumps(e))
    except Exception as e:
        error = UserError(f"a worker process failed: {type(e).__name__}: {e}")
        error.add_note(f"In the worker:\n{traceback.format_exc()}")
        pipe.send_bytes(pickle.dumps(error))


if __name__ == "__main__":
    _main()
