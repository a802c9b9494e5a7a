"""Cost of domain randomisation: lift on the CPU with 20 physics terms drawn at every reset, against none.

    python benchmarks/randomization.py --threads 2 --out randomization.json

512 worlds, observations of the state, random actions, episodes that end at staggered times, so that a few worlds are
reset in nearly every step. Contenders: no randomisation; the 20 terms drawn at every reset; the same terms drawn once,
at startup, which have the price of worlds that differ (contacts and the solver's iterations) without that of drawing.
All live in one process and measure in turns; ratios are taken in each round, and their median reported. Beside them:
how long a reset of a few worlds takes, and which share of it ``set_const`` has.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import mujoco
import torch
from omegaconf import OmegaConf

from visuomotor.configs.randomize import typed_randomization
from visuomotor.envs.robots.arm import ControlConfig
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.terms import JointOffset
from visuomotor.envs.tasks.lift import Lift, LiftConfig
from visuomotor.sim2real.randomization.build import build_events
from visuomotor.sim2real.randomization.config import RandomizationConfig


def terms() -> RandomizationConfig:
    """Twenty terms that change physics, one number a body, geom, joint or actuator each."""
    links, joints, inputs = ["robot/link*"], ["robot/*"], ["robot/joint*"]
    plain: dict[str, dict[str, Any]] = {
        "cube_mass": {"term": "mass", "names": ["cube"], "low": 0.5, "high": 2.0, "distribution": "loguniform"},
        "cube_inertia": {"term": "pseudo_inertia", "names": ["cube"], "low": -0.1, "high": 0.1},
        "cube_size": {"term": "object_size", "names": ["cube"], "low": 0.9, "high": 1.1},
        "cube_friction": {"term": "friction", "names": ["cube"], "low": 0.7, "high": 1.3},
        "torsional_friction": {"names": ["cube", "table"], "low": 0.5, "high": 2.0},
        "rolling_friction": {"names": ["cube", "table"], "low": 0.5, "high": 2.0},
        "table_friction": {"term": "friction", "names": ["table"], "low": 0.7, "high": 1.3},
        "contact_time": {"names": ["cube"], "low": 0.8, "high": 1.2},
        "contact_damping": {"names": ["cube"], "low": 0.9, "high": 1.1},
        "link_mass": {"term": "mass", "names": links, "low": 0.9, "high": 1.1},
        "center_of_mass": {"names": links, "operation": "+", "low": -0.005, "high": 0.005},
        "damping": {"names": joints, "low": 0.7, "high": 1.4},
        "friction_loss": {"names": joints, "low": 0.5, "high": 2.0},
        "armature": {"names": joints, "low": 0.8, "high": 1.2},
        "position_gain": {"names": inputs, "low": 0.9, "high": 1.1},
        "velocity_gain": {"names": inputs, "low": 0.9, "high": 1.1},
        "force_limit": {"names": inputs, "low": 0.9, "high": 1.0},
        "actuator_delay": {"names": inputs, "operation": "+", "low": 0.0, "high": 0.01},
        "gravity": {"operation": "+", "low": -0.05, "high": 0.05},
        "joint_offset": {"names": inputs, "low": -0.02, "high": 0.02},
    }
    config = OmegaConf.to_object(typed_randomization({"terms": plain}))
    assert isinstance(config, RandomizationConfig)
    return config


def _env(args: argparse.Namespace, when: str | None) -> SimVecEnv:
    """Worlds at different times of their episodes: as many end in each step as do in the long run."""
    config = LiftConfig(control=ControlConfig(mode="joint_delta"), engine=EngineConfig(threads=args.threads))
    events: list[Event] = [] if when is None else build_events(terms())
    for event in events:
        event.when = event.when if isinstance(event, JointOffset) else str(when)
    env = SimVecEnv(Lift(config), config, args.worlds, events)
    env.reset(seeds=range(env.num_envs))
    snapshot = env.snapshot()
    snapshot.buffers["elapsed"].copy_(torch.arange(env.num_envs) * env.max_episode_steps // env.num_envs)
    env.restore(snapshot)
    return env


def _turn(env: SimVecEnv, steps: int) -> tuple[float, float]:
    """Control steps of all worlds a second of the clock, and of this process's processors."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(steps, env.num_envs, env.action_spec.size, generator=generator)
    actions = env.action_low + (env.action_high - env.action_low) * u
    start, busy = time.perf_counter(), time.process_time()
    for action in actions:
        env.step(action)
    done = steps * env.num_envs
    return done / (time.perf_counter() - start), done / (time.process_time() - busy)


def _reset_cost(env: SimVecEnv, worlds: int, times: int = 200) -> dict[str, float]:
    """Of drawing all terms for a few worlds, and of ``set_const`` in them: medians [ms of processor time]."""
    mask = torch.zeros(env.num_envs, dtype=torch.bool)
    mask[:worlds] = True
    chosen = Selection(mask)
    draw, const = [], []
    for _ in range(times):
        draws = env.world.random.begin_episode(chosen)
        t = [time.process_time()]
        env.events.reset(chosen, draws)
        t.append(time.process_time())
        env.sim.set_const(chosen)
        t.append(time.process_time())
        draw.append(t[1] - t[0])
        const.append(t[2] - t[1])
    draw_ms, const_ms = 1e3 * statistics.median(draw), 1e3 * statistics.median(const)
    return {"worlds": worlds, "draw_and_set_const_ms": round(draw_ms, 3), "set_const_ms": round(const_ms, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worlds", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20, help="control steps in a turn")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # operations on a few hundred worlds are too small to share: threads would only wait
    envs = {name: _env(args, when) for name, when in (("none", None), ("reset", "reset"), ("startup", "startup"))}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in envs}
    for i in range(args.rounds + 1):  # the first warms up
        for name, env in envs.items():
            rate = _turn(env, args.steps)
            rates[name] += [rate] if i else []
    ratios = {
        f"{name} / none{by}": round(statistics.median(a[k] / b[k] for a, b in zip(r, rates["none"], strict=True)), 3)
        for name, r in rates.items()
        if name != "none"
        for k, by in enumerate(("", " by processor time"))
    }
    document = {
        "setting": {
            "terms": len(terms().terms), "threads": args.threads, "rounds": args.rounds, "worlds": args.worlds,
            "episode_ends_per_step": round(args.worlds / envs["none"].max_episode_steps, 1),
            "mujoco": mujoco.__version__, "torch": torch.__version__,
        },
        "steps_per_s": {name: round(statistics.median(a for a, _ in r)) for name, r in rates.items()},
        "ratios": ratios,
        "reset": [_reset_cost(envs["reset"], n) for n in (1, 4, 32)],
    }  # fmt: skip
    text = json.dumps(document, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
