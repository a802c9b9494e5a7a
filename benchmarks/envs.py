"""Speed of simulated environments on the CPU, against bare physics of the same model, Gymnasium and EnvPool.

    python benchmarks/envs.py --threads 2 --out envs.json

*Lift*: 512 worlds, observations of the state, random actions, episodes that end at staggered times; the object's pose,
and in a second contender friction, masses, gains, damping, armature and gravity, are drawn anew at every reset. The
peer is a loop that does nothing but ``mujoco.batch.Batch.step`` with the same model, substeps and threads, or the same
drawn models; it replays the actuator inputs that random actions gave, from states in the middle of episodes. *Hopper*:
the same physics step for step (the tests compare them) in ``gymnasium.make_vec("Hopper-v5")`` with a process a world,
and in EnvPool (``pip install envpool``; left out where it is not installed).

All contenders live in one process and measure in turns, so that what slows the machine slows all of them alike; the
ratio is taken in each round, and its median reported. Figures are control steps of all worlds together a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from mujoco import batch
from torch import Tensor

from visuomotor.envs.robots.arm import ControlConfig
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.spread import Spread
from visuomotor.envs.sim.terms import ModelTerm
from visuomotor.envs.tasks.hopper import Hopper, HopperConfig
from visuomotor.envs.tasks.lift import Lift, LiftConfig

Turn = Callable[[], int]  # runs for a while; returns the number of control steps of all worlds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worlds", type=int, default=512, help="of lift, and of hopper against EnvPool")
    parser.add_argument("--steps", type=int, default=20, help="control steps in a turn of lift")
    parser.add_argument("--only", choices=["lift", "hopper"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # operations on a few hundred worlds are too small to share: threads would only wait
    document: dict[str, Any] = {"setting": _setting(args)}
    if args.only != "hopper":
        document["lift"] = {mode: _said(_lift(mode, args)) for mode in ("joint_delta", "ee_delta")}
    if args.only != "lift":
        document["hopper"] = _said(_hopper(args))
    text = json.dumps(document, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


def _said(figures: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(figures), file=sys.stderr, flush=True)
    return figures


def _setting(args: argparse.Namespace) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "mujoco": mujoco.__version__, "gymnasium": gymnasium.__version__}
    return {"threads": args.threads, "rounds": args.rounds, "lift_worlds": args.worlds, **versions}


def _rounds(turns: dict[str, Turn], rounds: int, peers: Collection[str]) -> dict[str, Any]:
    """Medians over rounds of turns, of which the first warms up, and ratios of the others to each of ``peers``.

    By the clock, and by the time of this process's processors: on a busy machine the latter says more, but it does not
    see threads that wait for each other, nor other processes.
    """
    rates: dict[str, dict[str, list[float]]] = {by: {name: [] for name in turns} for by in ("clock", "processor")}
    for i in range(rounds + 1):
        for name, turn in turns.items():
            start, busy = time.perf_counter(), time.process_time()
            done = turn()
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
            if i:
                rates["clock"][name].append(done / seconds)
                rates["processor"][name].append(done / busy)
    ratios = {
        by: {
            f"{name} / {peer}": round(statistics.median(a / b for a, b in zip(r, of[peer], strict=True)), 3)
            for name, r in of.items()
            for peer in peers
            if name not in peers
        }
        for by, of in rates.items()
    }
    steps = {n: round(statistics.median(r)) for n, r in rates["clock"].items()}
    return {"steps_per_s": steps, "ratios": ratios["clock"], "ratios_by_processor_time": ratios["processor"]}


def _lift(mode: str, args: argparse.Namespace) -> dict[str, Any]:
    config = LiftConfig(control=ControlConfig(mode=mode), engine=EngineConfig(threads=args.threads))
    plain, randomised = (SimVecEnv(Lift(config), config, args.worlds, e) for e in ([], _events()))
    turns = {
        "environment": _env_turn(plain, args.steps),
        "environment, randomised physics": _env_turn(randomised, args.steps),
        "bare Batch.step": _bare_turn(plain, args),
        "bare Batch.step, randomised physics": _bare_turn(randomised, args),
    }
    result = _rounds(turns, args.rounds, [name for name in turns if name.startswith("bare")])
    result["episode_ends_per_step"] = round(args.worlds / plain.max_episode_steps, 1)
    return result


def _events() -> list[Event]:
    half_to_double = Spread(low=0.5, high=2.0, distribution="loguniform")
    return [
        ModelTerm("mass", ["cube", "robot/link*"], Spread(low=0.8, high=1.2)),
        ModelTerm("friction", ["*"], half_to_double),
        ModelTerm("damping", ["robot/joint*"], half_to_double),
        ModelTerm("armature", ["robot/joint*"], Spread(low=0.8, high=1.2)),
        ModelTerm("position_gain", ["*"], Spread(low=0.8, high=1.2)),
        ModelTerm("gravity", [], Spread(operation="+", low=-0.1, high=0.1)),
    ]


def _actions(env: SimVecEnv, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(n, env.num_envs, env.action_spec.size, generator=generator)
    return env.action_low + (env.action_high - env.action_low) * u


def _stagger(env: SimVecEnv) -> None:
    """Bring the worlds to different times of their episodes: as many end in each step as do in the long run."""
    env.reset(seeds=range(env.num_envs))
    snapshot = env.snapshot()
    snapshot.buffers["elapsed"].copy_(torch.arange(env.num_envs) * env.max_episode_steps // env.num_envs)
    env.restore(snapshot)


def _env_turn(env: SimVecEnv, steps: int) -> Turn:
    _stagger(env)
    return _env_steps(env, _actions(env, steps))


def _env_steps(env: SimVecEnv, actions: Tensor) -> Turn:
    def turn() -> int:
        for a in actions:
            env.step(a)
        return actions.shape[0] * env.num_envs

    return turn


def _bare_turn(env: SimVecEnv, args: argparse.Namespace) -> Turn:
    """Only physics, from states in the middle of episodes, with the actuator inputs that random actions gave there."""
    model, substeps = env.sim.model, round(1.0 / (env.fps * env.sim.timestep))
    _stagger(env)
    for a in _actions(env, args.steps):
        env.step(a)
    start = env.sim.field("qpos").numpy().copy()
    inputs = []
    for a in _actions(env, args.steps):
        env.step(a)
        inputs.append(env.sim.field("ctrl").numpy().copy())
    bare = batch.Batch(model, env.num_envs, args.threads, persistent=True)
    for name, values in env.sim.snapshot().model.items():  # what was drawn for each world; nothing if nothing was
        bare.expand(name)[:] = values.numpy()
    qpos, ctrl = bare.bind("qpos"), bare.bind("ctrl")

    def turn() -> int:
        bare.reset(stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        qpos[:] = start
        for u in inputs:
            ctrl[:] = u
            bare.step(nstep=substeps)
        return len(inputs) * env.num_envs

    return turn


def _hopper(args: argparse.Namespace) -> dict[str, Any]:
    """A few worlds as Gymnasium is used, and many as reinforcement learning uses them."""
    turns: dict[str, Turn] = {}
    peers, missing = [], []
    few, many = 16, args.worlds
    for n in (few, many):
        config = HopperConfig(engine=EngineConfig(threads=args.threads))
        env = SimVecEnv(Hopper(config), config, n)
        env.reset(seeds=range(n))
        turns[f"environment, {n} worlds"] = _env_steps(env, _actions(env, _hopper_steps(n)))
    if importlib.util.find_spec("imageio") is None:
        missing.append("Gymnasium's MuJoCo environments need: pip install gymnasium[mujoco]")
    else:
        peers.append(f"gymnasium async, {few} worlds")
        turns[peers[-1]] = _vector_turn(gymnasium.make_vec("Hopper-v5", few, "async"), few)
    if importlib.util.find_spec("envpool") is None:
        missing.append("EnvPool is not installed: pip install envpool")
    else:
        import envpool

        for n in (few, many):
            peer = envpool.make("Hopper-v5", env_type="gymnasium", num_envs=n, num_threads=args.threads, seed=0)
            peers.append(f"envpool {envpool.__version__}, {n} worlds")
            turns[peers[-1]] = _vector_turn(peer, n)
    return _rounds(turns, args.rounds, peers) | ({"missing": missing} if missing else {})


def _hopper_steps(n: int) -> int:
    return max(20, 8000 // n)


def _vector_turn(env: Any, n: int) -> Turn:
    """Of a Hopper of Gymnasium's vector interface."""
    actions = np.random.default_rng(0).uniform(-1, 1, (_hopper_steps(n), n, 3)).astype(np.float32)
    env.reset()

    def turn() -> int:
        for a in actions:
            env.step(a)
        return actions.shape[0] * n

    return turn


if __name__ == "__main__":
    main()
