"""A policy on the twin against the same policy in its task: what deployment itself costs, episode by episode.

    python benchmarks/twin.py --checkpoint runs/lift --episodes 200 --latency-ms 20 --noise 1 --out twin.json

The same seeds are run twice: by the evaluation of ``visuomotor eval``, and by the whole bridge (observer, scheduler,
safety filter, streamer, supervisor) on a twin in the same process, on a simulated clock: sensors that come late and are
noisy, commands that are obeyed late, chunks that take their time. The clock makes both functions of their seeds, so
the comparison is paired. Success is the task's own, judged at every control step of the same time limit.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from visuomotor.configs.build import LoadedPolicy, load_policy
from visuomotor.configs.compose import task_settings
from visuomotor.configs.doctor import policy_facts
from visuomotor.configs.execution import Execution
from visuomotor.configs.robots import load_robot
from visuomotor.configs.twin import TwinCommand, build_twin
from visuomotor.envs.registry import make_env
from visuomotor.policies.execution.config import ExecuteConfig
from visuomotor.policies.learn.evaluate import evaluate, test_seeds
from visuomotor.policies.learn.results import Episode, EvalResult, compare
from visuomotor.sim2real.remote.policy_source import PolicySource
from visuomotor.sim2real.runtime.board import RequestBox, StatusBoard
from visuomotor.sim2real.runtime.bridge import Bridge
from visuomotor.sim2real.runtime.build import RuntimeConfig, Setup, make_bridge, make_rhythm
from visuomotor.sim2real.runtime.episodes import EpisodeConfig
from visuomotor.sim2real.runtime.link import DirectLink
from visuomotor.sim2real.runtime.pilot import Pilot
from visuomotor.sim2real.runtime.streamer import loop_hz
from visuomotor.sim2real.runtime.types import Request, State
from visuomotor.sim2real.transports.inproc import Bus
from visuomotor.sim2real.twin.node import Twin


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    loaded = load_policy(args.checkpoint)
    saved = loaded.checkpoint.document("config")["config"]
    seeds = test_seeds(args.episodes)
    document: dict[str, Any] = {"setting": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}}
    direct = _direct(loaded, saved, seeds, args)
    document["direct"] = {"successes": sum(e.success for e in direct.episodes), "seconds": direct.seconds}
    print(f"direct: {document['direct']['successes']} of {len(seeds)} ({direct.seconds:.0f} s)", flush=True)
    began = time.perf_counter()
    rehearsal = Rehearsal(loaded, saved, args)
    episodes = rehearsal.run(len(seeds))
    seconds = time.perf_counter() - began
    rehearsed = EvalResult(episodes=tuple(episodes), seconds=seconds, videos=(), warnings=())
    difference = compare(rehearsed, direct)
    document["twin"] = {
        "successes": sum(e.success for e in episodes),
        "seconds": seconds,
        "faults": rehearsal.faults,
        "violations": dict(rehearsal.twin.violations.count),
        "commands": rehearsal.twin.status.commands,
        "refused": rehearsal.twin.status.refused,
    }
    document["difference"] = {
        "success": difference.success_difference,
        "interval": list(difference.success_interval),
        "only_twin": difference.only_a,
        "only_direct": difference.only_b,
        "p_value": difference.p_value,
    }
    print(json.dumps({k: document[k] for k in ("direct", "twin", "difference")}, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(document, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--robot", default="panda_twin")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the robot, as command.mode=joint_trajectory")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--command-latency-ms", type=float, default=0.0)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--policy-ms", type=float, default=10.0, help="that a chunk takes")
    parser.add_argument("--n-exec", type=int, help="control steps of each chunk; default: the policy's own")
    parser.add_argument("--runtime", nargs="*", default=[], help="settings of the runtime, as action_time=1.0")
    parser.add_argument("--worlds", type=int, default=50, help="side by side in the direct evaluation")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _direct(loaded: LoadedPolicy, saved: dict[str, Any], seeds: range, args: argparse.Namespace) -> EvalResult:
    settings = task_settings(saved["task"], saved["env"] or {})
    env = make_env(settings, min(args.worlds, len(seeds)))
    try:
        actor = Execution(config=ExecuteConfig(n_exec=args.n_exec)).actor(loaded.policy, env.num_envs)
        return evaluate(env, actor, seeds)
    finally:
        env.close()


@dataclass
class _Watched:
    """The best of the episode that runs."""

    seed: int = -1
    reached: bool = False
    score: float = 0.0


class Rehearsal:
    """A bridge and a twin on one clock."""

    def __init__(self, loaded: LoadedPolicy, saved: dict[str, Any], args: argparse.Namespace) -> None:
        robot = load_robot(args.robot, args.set)
        self.bus = Bus()
        settings = {k: v for k, v in (saved["env"] or {}).items() if k not in ("robot", "model", "engine", "seed")}
        config = TwinCommand(
            task=saved["task"], env=settings, latency_ms=args.latency_ms, command_latency_ms=args.command_latency_ms,
            noise=args.noise,
        )  # fmt: skip
        twin, self._plant = build_twin(robot, config, self.bus.node("twin"))
        self.twin: Twin = twin
        limit = (saved["env"] or {}).get("max_episode_steps") or 150
        facts = policy_facts(args.checkpoint)
        episodes = EpisodeConfig(
            auto=True, count=args.episodes, seconds=limit / facts.fps, success_s=1e-3, reset_s=1.0, seed=100_000
        )
        own = {k: json.loads(v) for k, _, v in (word.partition("=") for word in args.runtime)}
        runtime = RuntimeConfig(decode_threads=False, **own)
        setup = Setup(robot=robot, policy=facts, episodes=episodes, runtime=runtime)
        source = PolicySource(loaded.policy, ExecuteConfig(n_exec=args.n_exec))
        n_exec = args.n_exec or loaded.policy.spec.window.n_exec
        rhythm = make_rhythm(setup, n_exec=n_exec, delay=None, ensemble=False, decay=0.01)
        link = DirectLink(Pilot(source, rhythm), latency_s=1e-3 * args.policy_ms)
        self._board, self._box = StatusBoard(), RequestBox()
        self.bridge: Bridge = make_bridge(
            setup, self.bus.node("bridge"), link=link, board=self._board, requests=self._box
        )
        self._twin_ns, self._bridge_ns = round(1e9 / twin.rate_hz), round(1e9 / loop_hz(robot))
        self.faults: list[str] = []

    def run(self, count: int) -> list[Episode]:
        """``count`` episodes."""
        watched, done, found = _Watched(), 0, []
        twin_due = bridge_due = self.bus.now_ns
        results = self.bridge.parts.conductor.results
        while len(results) < count:
            if twin_due <= bridge_due:
                self.bus.advance(twin_due - self.bus.now_ns)
                self.twin.tick()
                twin_due += self._twin_ns
                if self.bridge.state is State.RUN:
                    s = self.twin.status
                    watched = watched if watched.seed == s.seed else _Watched(s.seed)
                    watched = replace(watched, reached=s.reached, score=s.score)
                continue
            self.bus.advance(bridge_due - self.bus.now_ns)
            self.bridge.tick(self.bus.now_ns)
            bridge_due += self._bridge_ns
            if self.bridge.state is State.FAULT:
                if self.bridge.parts.supervisor.fault not in self.faults[-1:]:
                    self.faults.append(self.bridge.parts.supervisor.fault)
                self._box.put(Request.RESET)
            if len(results) > done:
                done = len(results)
                found.append(_episode(watched, results[-1].seed, results[-1].seconds))
                if done % 20 == 0:
                    print(f"{done} episodes on the twin, {sum(e.success for e in found)} succeeded", flush=True)
        self._plant.close()
        self._board.close()
        self._box.close()
        return found


def _episode(watched: _Watched, seed: int, seconds: float) -> Episode:
    same = watched.seed == seed
    success, score = same and watched.reached, watched.score if same else 0.0
    return Episode(seed=seed, score=score, success=success, length=round(20 * seconds), episode_return=float(success))


if __name__ == "__main__":
    main()
