"""Seconds of learning until a return is reached, from scratch, for our PPO, Stable-Baselines3's and CleanRL's.

    python benchmarks/ppo.py --peers PEERS --out ppo.json           # five seeds, all tasks: needs a quiet machine
    python benchmarks/ppo.py --peers PEERS --tasks cartpole --seeds 1

``ppo_peers.py`` says how to make the folder ``PEERS``. Ours learns in our tasks, in as many worlds as suit it; the
peers learn in Gymnasium's own environments of the same mechanism (InvertedPendulum-v5, Reacher-v5, Hopper-v5), which
are faster for one world than ours through an adapter. All are tested in Gymnasium's, with the mean action and the clock
standing still: ours has never seen it. Each run is a process of its own; contenders take turns seed by seed. Prints
JSON: medians over the seeds, a run that never gets there counting as infinitely long, and our time as a share of the
better of each peer's two variants.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ppo_clock import TASKS, Clock

CONTENDERS = ("ours", "sb3_zoo", "sb3_8", "cleanrl_1", "cleanrl_8")
PPO: dict[str, dict[str, Any]] = {
    "cartpole": {
        "num_envs": 32, "decisions": 16, "epochs": 8, "minibatches": 2, "lr": 2e-3, "critic_lr": 2e-3, "lam": 0.9,
    },
    "reacher": {"num_envs": 32, "decisions": 32, "epochs": 8, "minibatches": 4, "lr": 1e-3, "gamma": 0.9},
    "hopper": {"num_envs": 16, "decisions": 128, "epochs": 5, "minibatches": 16, "lr": 5e-4, "critic_lr": 1e-3},
}  # fmt: skip
STD = {"cartpole": 0.6, "reacher": 0.5, "hopper": 1.0}  # of the first actions, in units of half the range


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, help="folder with stable_baselines3 and imageio")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--only", default=",".join(CONTENDERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of learning after which a run gives up")
    parser.add_argument("--threads", type=int, default=2, help="of our simulator; networks this small use one")
    parser.add_argument("--processor-time", action="store_true", help="of the process, for a machine that is not quiet")
    parser.add_argument("--set", action="append", default=[], help="ours: setting of PPOConfig as name=value")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        _serve(*args.serve, args)
        return
    names, tasks = args.only.split(","), args.tasks.split(",")
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {t: {n: [] for n in names} for t in tasks}
    for task in tasks:
        for seed in range(args.seeds):
            for name in names:
                runs[task][name].append(_run(name, task, seed, args))
                print(f"{task} {name} seed {seed}: {_brief(runs[task][name][-1])}", file=sys.stderr, flush=True)
            if args.out:
                args.out.write_text(json.dumps(_document(runs), indent=1) + "\n")
    print(json.dumps(_document(runs), indent=1))


def _run(name: str, task: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    path = os.pathsep.join(str(p) for p in (args.peers, os.environ.get("PYTHONPATH")) if p)
    command = [
        sys.executable,
        __file__,
        "--peers",
        str(args.peers),
        "--serve",
        name,
        task,
        str(seed),
        "--limit",
        str(args.limit),
    ]
    command += ["--processor-time"] * args.processor_time
    command += ["--threads", str(args.threads), *(f"--set={s}" for s in args.set)]
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _serve(name: str, task: str, seed: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    clock = Clock(TASKS[task], args.limit, time.process_time if args.processor_time else time.perf_counter)
    if name == "ours":
        _ours(task, int(seed), clock, threads=args.threads, settings=_parsed(args.set))
    else:
        import ppo_peers

        n_envs = 8 if name.endswith("8") else 1
        learn = ppo_peers.stable_baselines if name.startswith("sb3") else ppo_peers.plain
        learn(task, int(seed), clock, n_envs=n_envs)
    print(json.dumps(clock.result()))


def _ours(task: str, seed: int, clock: Clock, *, threads: int, settings: Mapping[str, Any]) -> None:
    from accelerate import Accelerator
    from ppo_ours import make_trainer

    from visuomotor.policies.learn.events import GracefulStop
    from visuomotor.policies.ppo.trainer import UpdateEvent

    trainer = make_trainer(
        task, seed, {**PPO[task], **settings}, std=STD[task], env_steps=clock.task.steps, threads=threads,
        accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    policy, stop = trainer.likelihood.policy, GracefulStop()

    def act(obs: np.ndarray) -> np.ndarray:
        seen = {"state": torch.from_numpy(obs).float()[:, None]}
        return policy.sample(seen, torch.empty(len(obs), *policy.noise_shape))[:, 0].numpy()

    def check(event: UpdateEvent) -> None:
        stop.requested = stop.requested or clock.check(event.env_steps, act)

    clock.start()
    trainer.run([check], stop)


def _parsed(settings: list[str]) -> dict[str, Any]:
    return {name: json.loads(value) for name, _, value in (s.partition("=") for s in settings)}


def _document(runs: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    return {task: {"target": TASKS[task].target, **_task(of)} for task, of in runs.items()}


def _task(of: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    median = {n: statistics.median(r["seconds"] or math.inf for r in runs) for n, runs in of.items() if runs}
    table = {
        n: {"median_seconds": _number(median[n]), "reached": sum(r["seconds"] is not None for r in of[n]),
            "seeds": len(of[n]), "median_steps_per_s": statistics.median(r["steps_per_s"] for r in of[n])}
        for n in median
    }  # fmt: skip
    ratio = {}
    for peer in ("sb3", "cleanrl"):
        times = [t for n, t in median.items() if n.startswith(peer)]
        if times and "ours" in median:
            ratio[f"ours / {peer}"] = _number(median["ours"] / min(times))
    return {"ratio": ratio, "contenders": table, "runs": of}


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _brief(run: Mapping[str, Any]) -> str:
    reached = "not reached" if run["seconds"] is None else f"{run['seconds']:.1f} s, {run['steps']} steps"
    return f"{reached}; best {run['best']:.1f}, {run['steps_per_s']:.0f} steps/s"


if __name__ == "__main__":
    main()
