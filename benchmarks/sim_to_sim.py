"""From one simulator to others: does randomisation, and which, make a policy that works where it was not trained?

    python benchmarks/sim_to_sim.py lift push --seeds 0 1 2 --out runs/sim_to_sim

For each task and seed a policy is trained by PPO with one budget (a) ``none``: in nominal worlds, (b) ``fixed``: in the
whole ranges of ``benchmarks/sim_to_sim/<task>.yaml``, (c) ``adr`` and (d) ``doraemon``: in ranges that those two
widen. ``lift`` and ``push`` go on from one policy, which a scripted expert taught and PPO then made good in nominal
worlds: from a policy that is still bad everywhere, any training helps everywhere. ``cartpole`` begins from scratch.
Then the last checkpoint of each is tested on the same seeds in nominal worlds, and in every held-out simulator
``configs/heldout/<task>_*.yaml``, which runs on MuJoCo Warp where that is installed (``--engine batch`` for the engine
of training). Those of lift and push were committed before anything was trained for them, and no checkpoint is selected
by them. After a first run of lift the beginning, the learning rate and the curricula's thresholds were changed
(``docs/curricula.md``).
``cartpole`` only exercises the suite: its simulators were eased once after a first try, and all methods pass one of the
two and fail the other.

Each step is a command of its own in a process of its own. What is finished is not repeated and what was stopped goes
on, so the script can be killed and called again. Writes ``sim_to_sim.json`` and ``sim_to_sim.md``: success with the
Wilson interval (95 %) of all episodes together, and differences to ``none`` with an interval from resampling seeds and
episodes (episodes of one policy are not independent of its training). ``--env-steps``, ``--episodes`` and ``--set``
change budget and settings of the training.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.policies.learn.statistics import wilson_interval

ROOT = Path(__file__).parents[1]
METHODS = ("none", "fixed", "adr", "doraemon")
ADAPTIVE = ("adr", "doraemon")
CURRICULA = {
    "fixed": ["observe=true"],
    "adr": ["kind=adr", "observe=true", "adr.step=0.1", "adr.episodes=8", "adr.widen=0.85", "adr.narrow=0.6"],
    "doraemon": [
        "kind=doraemon",
        "observe=true",
        "doraemon.episodes=96",
        "doraemon.concentration=30",
        "doraemon.success=0.8",
    ],
}


@dataclass(frozen=True)
class Setup:
    """A task, the imitation policy to begin with (none: from scratch), and how PPO trains.

    ``nominal_steps`` make the imitation policy good in nominal worlds, before the ``env_steps`` of each method.
    """

    task: str
    env_steps: int
    nominal_steps: int = 0
    demos: int = 0
    imitation: tuple[str, ...] = ()
    train: tuple[str, ...] = ()


_IMITATION = ("policy=gaussian", "policy.std_from_obs=false", "data.val_fraction=0", "eval.videos=0")
SETUPS = {
    "lift": Setup("lift", 600_000, 400_000, 60, (*_IMITATION, "train.steps=3000", "train.eval_every=1500")),
    "push": Setup("push_t_arm", 1_500_000, 1_500_000, 200, (*_IMITATION, "train.steps=8000", "train.eval_every=4000")),
    "cartpole": Setup("cartpole", 150_000, train=("env.max_episode_steps=75", "ppo.num_envs=64")),
}


def command(*words: object) -> None:
    """Run ``visuomotor`` in a process of its own."""
    subprocess.run([sys.executable, "-m", "visuomotor.configs.cli", *map(str, words)], check=True)


def base(setup: Setup, folder: Path, threads: int) -> Path | None:
    """The policy that all methods begin with, made where it is not there yet."""
    if not setup.demos:
        return None
    store, run = folder / "demos.zarr", folder / "base"
    command("data", "generate", f"task={setup.task}", f"episodes={setup.demos}", f"out={store}")
    if not (run / "eval" / "final.json").exists():
        fresh = [f"task={setup.task}", f"data={store}", *setup.imitation, f"threads={threads}", f"run_dir={run}"]
        going = (run / "checkpoints" / "last").exists()
        command("train", *([f"resume={run}"] if going else fresh))
    nominal = folder / "nominal"
    if not (nominal / "finished").exists():
        words = [f"budget.env_steps={setup.nominal_steps}", f"threads={threads}", "eval.episodes=0", *setup.train]
        going = (nominal / "checkpoints" / "last").exists()
        command("finetune", *([f"resume={nominal}"] if going else [f"checkpoint={run}", *words, f"run_dir={nominal}"]))
        (nominal / "finished").touch()
    return nominal


def train(name: str, method: str, seed: int, begin: Path | None, run: Path, args: argparse.Namespace) -> None:
    """One run of PPO; returns at once if it is finished."""
    if (run / "finished").exists():
        return
    setup = SETUPS[name]
    words = [f"budget.env_steps={args.env_steps or setup.env_steps}", f"seed={seed}", f"threads={args.threads}"]
    words += ["eval.episodes=0", *setup.train, *args.set, f"run_dir={run}"]
    if method != "none":
        words.append(f"randomization={ROOT / 'benchmarks' / 'sim_to_sim' / f'{name}.yaml'}")
        words += [f"randomization.curriculum.{w}" for w in CURRICULA[method]]
    verb = "rl" if begin is None else "finetune"
    start = f"task={setup.task}" if begin is None else f"checkpoint={begin}"
    going = (run / "checkpoints" / "last").exists()
    command(verb, *([f"resume={run}"] if going else [start, *words]))
    (run / "finished").touch()


def simulators(name: str) -> dict[str, str]:
    """``randomization=`` of the nominal worlds and of every held-out simulator."""
    found = sorted((ROOT / "configs" / "heldout").glob(f"{name}_*.yaml"))
    return {"nominal": "none", **{f.stem.removeprefix(f"{name}_"): str(f) for f in found}}


def evaluate(checkpoint: Path, out: Path, where: str, setup: Setup, args: argparse.Namespace) -> list[bool]:
    """Success of each test seed in one simulator."""
    if not (out / "eval.json").exists():
        engine = [f"env.engine.name={args.engine}", "env.engine.device=cpu"] if where != "none" else []
        own = [w for w in setup.train if w.startswith("env.")]
        command(
            "eval", f"checkpoint={checkpoint}", f"randomization={where}", f"episodes={args.episodes}", *own,
            f"num_envs={min(args.episodes, 100)}", "videos=0", *engine, f"out={out}",
        )  # fmt: skip
    episodes = json.loads((out / "eval.json").read_text())["episodes"]
    return [bool(e["success"]) for e in episodes]


def rate(success: np.ndarray) -> dict[str, Any]:
    """Share of successes of ``[seeds, episodes]`` with its interval, and of each seed."""
    low, high = wilson_interval(int(success.sum()), success.size)
    return {"rate": float(success.mean()), "low": low, "high": high, "seeds": success.mean(1).tolist()}


def difference(a: np.ndarray, b: np.ndarray, resamples: int = 5000) -> dict[str, float]:
    """``a - b`` of two ``[seeds, episodes]`` of the same episodes, with a 95 % interval [points].

    Training seeds are resampled for each method, episodes for both alike (a bootstrap of two levels).
    """
    rng = np.random.default_rng(0)
    found = np.empty(resamples)
    for i in range(resamples):
        which = rng.integers(0, a.shape[1], a.shape[1])
        rows = (rng.integers(0, len(x), len(x)) for x in (a, b))
        found[i] = np.subtract(*(x[r][:, which].mean() for x, r in zip((a, b), rows, strict=True)))
    low, high = np.quantile(found, [0.025, 0.975])
    return {"points": 100 * float(a.mean() - b.mean()), "low": 100 * float(low), "high": 100 * float(high)}


def summarise(results: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """``{method: {simulator: [seeds, episodes]}}`` to rates, and what the held-out ones say together."""
    out: dict[str, Any] = {"methods": {}}
    pooled = {m: np.concatenate([v for k, v in r.items() if k != "nominal"], 1) for m, r in results.items()}
    for method, by_simulator in results.items():
        rates = {k: rate(v) for k, v in by_simulator.items()}
        out["methods"][method] = {**rates, "held out": rate(pooled[method])}
        if method not in ("base", "none") and "none" in pooled:
            out["methods"][method]["against none"] = difference(pooled[method], pooled["none"])
    if set(METHODS) <= set(results):
        mean = {m: float(x.mean()) for m, x in pooled.items()}
        out["adaptive_beat_none_by_20_points"] = all(mean[m] - mean["none"] >= 0.2 for m in ADAPTIVE)
        out["fixed_is_not_better_than_both"] = not all(mean["fixed"] > mean[m] for m in ADAPTIVE)
    return out


def table(name: str, summary: Mapping[str, Any]) -> str:
    """A table in Markdown."""
    methods = summary["methods"]
    columns = [k for k in next(iter(methods.values())) if k != "against none"]
    lines = [f"## {name}", "", f"| trained | {' | '.join(columns)} | against none |", "|" + "---|" * (len(columns) + 2)]
    for method, found in methods.items():
        cells = [f"{found[c]['rate']:.0%} [{found[c]['low']:.0%}, {found[c]['high']:.0%}]" for c in columns]
        d = found.get("against none")
        cells.append(f"{d['points']:+.0f} points [{d['low']:+.0f}, {d['high']:+.0f}]" if d else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def run_task(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything of one task."""
    setup, folder = SETUPS[name], args.out / name
    begin = base(setup, folder, args.threads)
    policies = {} if begin is None else {"base": [begin / "checkpoints" / "last"]}
    for seed in args.seeds:  # all methods of a seed before the next: what is there can be compared at any time
        for method in args.methods:
            run = folder / f"{method}_{seed}"
            train(name, method, seed, begin, run, args)
            policies.setdefault(method, []).append(run / "checkpoints" / "last")
    results = {
        method: {
            where: np.array([evaluate(c, folder / "eval" / c.parents[1].name / where, words, setup, args) for c in at])
            for where, words in simulators(name).items()
        }
        for method, at in policies.items()
    }
    return summarise(results)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=sorted(SETUPS))
    parser.add_argument("--out", type=Path, default=Path("runs/sim_to_sim"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--env-steps", type=int, help="of each run; default: as suits the task")
    parser.add_argument("--episodes", type=int, default=200, help="of each evaluation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", choices=("warp", "batch"), help="of the held-out simulators")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of the training, key=value")
    args = parser.parse_args()
    args.engine = args.engine or ("warp" if importlib.util.find_spec("mujoco_warp") else "batch")
    document: dict[str, Any] = {k: v if k != "out" else str(v) for k, v in vars(args).items()} | {"results": {}}
    for name in args.tasks:
        document["results"][name] = run_task(name, args)
        text = "\n".join(table(n, s) for n, s in document["results"].items())
        (args.out / "sim_to_sim.json").write_text(json.dumps(document, indent=1))
        (args.out / "sim_to_sim.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
