"""What an environment promises, tried on it: types, seeds, independence of its neighbours, speed, a picture."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import UserError
from visuomotor.envs.base import Obs, Step, VecEnv

__all__ = ["Finding", "Report", "check_env"]


@dataclass(frozen=True)
class Finding:
    """One promise, whether it was kept, and what was seen."""

    what: str
    kept: bool
    seen: str


@dataclass(frozen=True)
class Report:
    """All findings; ``steps_per_s`` counts the steps of all worlds, in wall time; ``picture`` uint8 ``[H, W, 3]``."""

    findings: list[Finding]
    steps_per_s: float
    picture: np.ndarray | None


def check_env(env: VecEnv, *, steps: int = 50, seed: int = 0) -> Report:
    """Try an environment of at least two worlds with random actions, reproducible by ``seed``.

    Raises:
        UserError: fewer than two worlds, or fewer than one step.
    """
    if env.num_envs < 2 or steps < 1:
        raise UserError(f"{env.num_envs} worlds and {steps} steps; expected at least 2 and 1")
    actions = _actions(env, steps, seed)
    seeds = [seed + i for i in range(env.num_envs)]
    start = time.perf_counter()
    first, run = _run(env, seeds, actions)
    seconds = time.perf_counter() - start
    again, repeated = _run(env, seeds, actions)
    turned, other_way = _run(env, seeds[::-1], actions.flip(1))
    success = {"score", "success"} & set(run[0].info)
    findings = [
        _types(env, [first, *(s.final_obs for s in run)]),
        Finding("observations and rewards are finite", *_finite(run)),
        Finding("an episode is a function of its seed", *_same(first, run, again, repeated)),
        Finding("its neighbours do not matter", *_same(first, run, *_flipped(turned, other_way))),
        Finding("other seeds begin otherwise", *_differs(first)),
        Finding("it reports success or score", bool(success), ", ".join(sorted(run[0].info)) or "nothing"),
    ]
    picture: np.ndarray | None = None
    try:
        picture = env.render(0)
        seen = f"{'x'.join(map(str, picture.shape))}, grey levels {picture.min()} to {picture.max()}"
    except UserError as e:
        seen = str(e)
    findings.append(Finding("it renders", picture is not None and bool(picture.any()), seen))
    return Report(findings, steps * env.num_envs / seconds, picture)


def _actions(env: VecEnv, steps: int, seed: int) -> Tensor:
    """Uniform within the bounds (-1..1 where there are none), ``[steps, N, Da]``."""
    low, high = (x.cpu() for x in (env.action_low, env.action_high))
    low, high = torch.where(low.isfinite(), low, -1.0), torch.where(high.isfinite(), high, 1.0)
    share = torch.rand(steps, env.num_envs, len(low), generator=torch.Generator().manual_seed(seed))
    actions = low + share * (high - low)
    return (actions.round() if env.action_spec.dtype == "int64" else actions).to(env.device)


def _run(env: VecEnv, seeds: list[int], actions: Tensor) -> tuple[Obs, list[Step]]:
    """Steps up to the first end of an episode: what follows it is seeded by nobody."""
    first, run = env.reset(seeds=seeds), []
    active = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    for action in actions:
        run.append(env.advance(action, active))
        active = active & ~(run[-1].terminated | run[-1].truncated)
        if not bool(active.any()):
            break
    return first, run


def _types(env: VecEnv, observed: list[Obs]) -> Finding:
    said = {k: (s.shape, s.dtype) for k, s in env.obs_spec.items()}
    for obs in observed:
        got = {k: (tuple(v.shape[1:]), str(v.dtype).removeprefix("torch.")) for k, v in obs.items()}
        if got != said:
            return Finding("observations are what the spec says", False, f"{got}, but the spec says {said}")
    return Finding(
        "observations are what the spec says", True, ", ".join(f"{k} {list(s)}" for k, (s, _) in said.items())
    )


def _finite(run: list[Step]) -> tuple[bool, str]:
    for i, step in enumerate(run):
        for name, value in {**step.final_obs, "reward": step.reward}.items():
            if not bool(torch.isfinite(value).all()):
                return False, f"{name} in step {i} of {len(run)}"
    return True, f"{len(run)} steps"


def _flipped(first: Obs, run: list[Step]) -> tuple[Obs, list[Step]]:
    def turn(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.flip(0) for k, v in values.items()}

    steps = [
        Step(turn(s.obs), s.reward.flip(0), s.terminated.flip(0), s.truncated.flip(0), turn(s.final_obs), turn(s.info))
        for s in run
    ]
    return turn(first), steps


def _same(first: Obs, run: list[Step], again: Obs, repeated: list[Step]) -> tuple[bool, str]:
    """Bit for bit."""
    if len(run) != len(repeated):
        return False, f"one run took {len(run)} steps, the other {len(repeated)}"
    pairs = [(-1, k, first[k], again[k]) for k in first]
    for i, (x, y) in enumerate(zip(run, repeated, strict=True)):
        pairs += [(i, k, x.final_obs[k], y.final_obs[k]) for k in first]
        pairs += [(i, k, getattr(x, k), getattr(y, k)) for k in ("reward", "terminated", "truncated")]
    for i, name, a, b in pairs:
        if not torch.equal(a, b):
            largest = float((a.double() - b.double()).abs().max())
            return False, f"{name} differs by {largest:.3g} {'at the reset' if i < 0 else f'in step {i}'}"
    return True, "bit for bit"


def _differs(first: Obs) -> tuple[bool, str]:
    keys = [k for k, v in first.items() if not torch.equal(v[0], v[1])]
    return bool(keys), f"in {', '.join(keys)}" if keys else "in nothing that is observed"
