"""What the adapter of external suites costs: steps/s of one world in the suite's own process, and through the adapter.

    python benchmarks/suites.py metaworld:reach-v3 robotics:FetchReach-v4 [--steps 45] [--rounds 15]

Both sides step the same environment in the suite's Python, in turns; the difference is the message to the worker and
back, and the tensors. Prints JSON: of each side the best of the rounds, because other programs only ever slow a round
down. The suites must be installed (visuomotor envs install <suite>).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from contextlib import closing
from typing import Any

import torch

from visuomotor.envs.suites.client import SuiteConfig, SuiteEnv
from visuomotor.envs.suites.install import suite_python
from visuomotor.envs.suites.suites import split_id

BARE = """
import importlib.util, json, sys, time
path, name, id, steps, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
spec = importlib.util.spec_from_file_location("a", path); m = importlib.util.module_from_spec(spec)
spec.loader.exec_module(m)
env = getattr(m, name)().make(id, [], 84, {})
env.action_space.seed(0)
actions = [0.1 * env.action_space.sample() for _ in range(steps)]
for _ in range(rounds):
    env.reset(seed=0); sys.stdin.readline(); start = time.perf_counter()
    for a in actions: env.step(a)
    print("rate", steps / (time.perf_counter() - start), flush=True)
"""


def measure(id: str, steps: int, rounds: int) -> dict[str, Any]:
    """Steps/s of both, their ratio, and the difference for a step [us]."""
    suite, name = split_id(id)
    path, _, adapter = suite.adapter.rpartition(":")
    command = [str(suite_python(suite)), "-I", "-c", BARE, path, adapter, name, str(steps), str(rounds)]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "MUJOCO_GL": suite.gl or ""}
    bare: list[float] = []
    through: list[float] = []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with (
        subprocess.Popen(command, text=True, env=environ, **pipes) as peer,  # type: ignore[call-overload]
        closing(SuiteEnv(SuiteConfig(id=id, workers=1), 1)) as env,
    ):
        active = torch.ones(1, dtype=torch.bool)
        actions = 0.1 * (2 * torch.rand(steps, 1, env.action_spec.size) - 1)
        for _ in range(rounds):
            peer.stdin.write("go\n")
            peer.stdin.flush()
            bare.append(next(float(line.split()[1]) for line in peer.stdout if line.startswith("rate ")))
            env.reset(seeds=[0])
            start = time.perf_counter()
            for action in actions:
                env.advance(action, active)
            through.append(steps / (time.perf_counter() - start))
    rates = [max(x) for x in (bare, through)]
    cost = 1e6 * (1 / rates[1] - 1 / rates[0])
    return {
        "bare_steps_per_s": rates[0],
        "adapter_steps_per_s": rates[1],
        "ratio": rates[1] / rates[0],
        "cost_us": cost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="+")
    parser.add_argument("--steps", type=int, default=45)  # below the time limit of every environment
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print(json.dumps({id: measure(id, args.steps, args.rounds) for id in args.ids}, indent=1))


if __name__ == "__main__":
    main()
