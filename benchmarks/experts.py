"""Success of the scripted experts: seeds 0 .. episodes-1 of every simulated task that has one, as a table and as JSON.

An episode counts as solved if the goal holds before its time limit. Run it as: python
benchmarks/experts.py --tasks lift,stack
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.registry import get_task, make_env, task_names
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.task import SimConfig
from visuomotor.envs.tasks.tabletop import TabletopConfig

__all__ = ["main", "measure"]

_EXPERT = 1 << 20  # domain of the expert's random numbers, beyond those of events


def measure(config: SimConfig, episodes: int, worlds: int, diversity: float) -> dict[str, Any]:
    """Run an expert on seeds 0 .. episodes-1, ``worlds`` at a time.

    Raises:
        ConfigError: the task has no scripted expert.
    """
    solved: list[bool] = []
    lengths: list[int] = []
    start, retries = time.perf_counter(), 0
    for first in range(0, episodes, worlds):
        env = make_env(config, min(worlds, episodes - first))
        assert isinstance(env, SimVecEnv)
        expert = env.task.expert(diversity)
        everyone = Selection.all(env.num_envs, env.device)
        active, success = everyone.mask.clone(), ~everyone.mask
        steps = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
        env.reset(seeds=range(first, first + env.num_envs))
        expert.reset(everyone, env.world.random.draws(everyone, _EXPERT, steps))
        while bool(active.any()):
            s = env.advance(expert.act(), active)
            steps += active
            success |= s.info["success"] & active
            active &= ~(s.terminated | s.truncated | success)
        solved += success.tolist()
        lengths += steps[success].tolist()
        retries += int(getattr(expert, "retries", steps.new_zeros(1)).sum())
        env.close()
    seconds = torch.tensor(lengths or [0]).float() / env.fps
    return {
        "success": sum(solved) / episodes,
        "failed_seeds": [i for i, good in enumerate(solved) if not good],
        "mean_s": round(float(seconds.mean()), 2),
        "longest_s": round(float(seconds.max()), 2),
        "retries": retries,
        "wall_s": round(time.perf_counter() - start, 1),
    }


def _tasks(chosen: str | None) -> list[str]:
    simulated = [n for n in task_names() if issubclass(get_task(n).config_class, SimConfig)]
    names = simulated if chosen is None else chosen.split(",")
    for name in names:
        if name not in simulated:
            raise ConfigError(f"{name!r} is no simulated task. {nearest(name, simulated)}")
    return names


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", help="comma-separated; all that have an expert if left out")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--worlds", type=int, default=64, help="episodes side by side")
    parser.add_argument("--robot", help="of manipulation tasks; each task's own if left out")
    parser.add_argument("--mode", default="ee_delta", help="action mode of manipulation tasks")
    parser.add_argument("--engine", default="batch")
    parser.add_argument("--diversity", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    print(f"{'task':14} {'success':>8} {'mean':>7} {'longest':>8} {'retries':>8} {'wall':>7}")
    for name in _tasks(args.tasks):
        config = get_task(name).config_class()
        config.engine.name, config.engine.threads = args.engine, args.threads
        if isinstance(config, TabletopConfig):
            config.control.mode = args.mode
            config.robot = args.robot or config.robot
        try:
            r = results[name] = measure(config, args.episodes, args.worlds, args.diversity)
        except ConfigError as e:
            print(f"{name:14} left out: {e}")
            continue
        times = f"{r['mean_s']:6.2f}s {r['longest_s']:7.2f}s {r['retries']:8d} {r['wall_s']:6.1f}s"
        print(f"{name:14} {r['success']:8.1%} {times}", flush=True)
    setting = {k: v for k, v in vars(args).items() if k not in ("out", "tasks")}
    text = json.dumps({"setting": setting, "machine": platform.machine(), "results": results}, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
