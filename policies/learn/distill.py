"""Labels for a student from a teacher that sees more: DAgger with privileged teachers.

A teacher that observes what only a simulator knows (physics, exact poses) acts well in worlds that differ; a student
that observes the sensors' history can find out what it needs of it (Kumar et al. 2021, "RMA", arXiv:2107.04034; Chen et
al. 2019, "Learning by Cheating"). Copying the teacher's own episodes is not enough, because the student's mistakes lead
elsewhere: here the student drives, more and more, the teacher says at every step what it would have done, and the
student is trained on all that was ever labelled (Ross et al. 2011, "DAgger", arXiv:1011.0686).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.envs.base import Obs, VecEnv
from visuomotor.policies.learn.evaluate import Actor

__all__ = ["DistillConfig", "Labelled", "collect_labels"]

_WHO = 11  # stream of random numbers: who acts


@dataclass(kw_only=True, slots=True)
class DistillConfig:
    """How a student is distilled.

    Attributes:
        rounds: of collecting and training. In the first one the teacher drives alone.
        episodes: that are added in each round.
        steps: optimiser steps of each round.
        beta: share of the time that the teacher drives, in round ``r`` it is ``beta ** r``.
        stretch: control steps after which it is drawn anew who drives.
        num_envs: worlds side by side.
    """

    rounds: int = 6
    episodes: int = 64
    steps: int = 1000
    beta: float = 0.5
    stretch: int = 10
    num_envs: int = 64

    def __post_init__(self) -> None:
        for name in ("rounds", "episodes", "steps", "stretch", "num_envs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"distill.{name}={getattr(self, name)}: expected at least 1")
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"distill.beta={self.beta}: expected a share from 0 to 1")

    def share(self, round: int) -> float:
        """How much the teacher drives in ``round``."""
        return float(self.beta**round)


@dataclass(frozen=True)
class Labelled:
    """One episode: what was observed ``{key: [L, ...]}``, what the teacher would do ``[L, Da]``, and how it went."""

    seed: int
    obs: dict[str, np.ndarray]
    action: np.ndarray
    success: bool
    by_teacher: float  # share of the steps


def collect_labels(
    env: VecEnv, student: Actor | None, teacher: Actor, seeds: Sequence[int], *, keys: Sequence[str], beta: float,
    stretch: int,
) -> Iterator[Labelled]:  # fmt: skip
    """Episodes in which the teacher or the student acts, labelled by the teacher throughout.

    An episode is a function of its seed and of both policies. Labels are cut off at the bounds of the actions.

    Args:
        env: the worlds; they show what both read.
        student: None: the teacher acts alone.
        teacher: acts anew at every step (executes one step of its chunks), or its labels would be of the past.
        seeds: one an episode.
        keys: what is kept of the observations.
        beta: probability that the teacher drives a stretch.
        stretch: control steps of it.
    """
    for first in range(0, len(seeds), env.num_envs):
        yield from _wave(env, student, teacher, list(seeds[first : first + env.num_envs]), keys, beta, stretch)


def _wave(
    env: VecEnv, student: Actor | None, teacher: Actor, seeds: list[int], keys: Sequence[str], beta: float, stretch: int
) -> list[Labelled]:
    padded = [*seeds, *[seeds[-1]] * (env.num_envs - len(seeds))]
    active = torch.arange(env.num_envs, device=env.device) < len(seeds)
    obs = env.reset(seeds=padded, mask=active)
    for actor in (teacher, student):
        if actor is not None:
            actor.reset(padded, active)
    drives = _drivers(padded, -(-env.max_episode_steps // stretch), beta).to(env.device)
    success = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
    rows: list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]] = []
    led = torch.zeros(env.num_envs, device=env.device)
    while bool(active.any()):
        label = torch.minimum(torch.maximum(teacher.act(obs, active), env.action_low), env.action_high)
        taken = label
        if student is not None:
            leads = drives[:, len(rows) // stretch]
            taken = torch.where(leads[:, None], label, student.act(obs, active).to(label.dtype))
            led += active & leads
        rows.append((_numpy(obs, keys), label.cpu().numpy(), active.cpu().numpy()))
        step = env.advance(taken, active)
        success |= active & _succeeded(step.info, active)
        obs, active = step.obs, active & ~(step.terminated | step.truncated)
    return [_episode(i, seed, rows, bool(success[i]), led, student is None) for i, seed in enumerate(seeds)]


def _drivers(seeds: Sequence[int], stretches: int, beta: float) -> Tensor:
    """Bool ``[N, stretches]``: where the teacher drives; a function of each world's seed."""
    return torch.from_numpy(
        np.stack([np.random.default_rng([abs(s), _WHO]).random(stretches) < beta for s in seeds])
    )  # fmt: skip


def _numpy(obs: Obs, keys: Sequence[str]) -> dict[str, np.ndarray]:
    return {k: obs[k].detach().cpu().numpy().copy() for k in keys}


def _succeeded(info: dict[str, Tensor], active: Tensor) -> Tensor:
    if "success" in info:
        return info["success"].bool()
    return info["score"] >= 1.0 if "score" in info else torch.zeros_like(active)


def _episode(
    i: int, seed: int, rows: list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]], success: bool, led: Tensor,
    alone: bool,
) -> Labelled:  # fmt: skip
    mine = [(o, a) for o, a, active in rows if active[i]]
    obs = {k: np.stack([o[k][i] for o, _ in mine]) for k in mine[0][0]}
    share = 1.0 if alone else float(led[i]) / len(mine)
    return Labelled(seed, obs, np.stack([a[i] for _, a in mine]), success, share)
