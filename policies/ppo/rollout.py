"""Gathering experience: the policy acts in every world for a number of decisions, and everything is remembered."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.envs.base import ChunkStep, Obs, VecEnv
from visuomotor.policies.draws import Draws, mix_seed
from visuomotor.policies.likelihoods.base import Likelihood, Record
from visuomotor.policies.ppo.critic import Critic
from visuomotor.policies.ppo.returns import chunk_reward
from visuomotor.policies.ppo.windows import Windows, as_chunk

__all__ = ["Collector", "Rollout"]


@dataclass(frozen=True)
class Rollout:
    """``T`` decisions of ``N`` worlds, in order of time. Observations are what each decision saw."""

    obs: Obs  # {key: [T, N, To, ...]}
    record: Record  # rows [T, N, ...]
    executed: Tensor  # [T, N, H] bool
    reward: Tensor  # [T, N] discounted within the chunk
    discount: Tensor  # [T, N] gamma^n
    value: Tensor  # [T, N]
    next_value: Tensor  # [T, N] of what each decision led to, before any reset
    terminated: Tensor  # [T, N] bool
    truncated: Tensor  # [T, N] bool
    valid: Tensor  # [T, N] bool; false where something was not finite
    finished: list[dict[str, float]]  # return, length and success of the episodes that ended
    steps: int  # control steps executed
    seconds: dict[str, float]  # simulate, infer


class Collector:
    """Keeps the worlds between rollouts: nothing is reset but what ended.

    Args:
        env: the worlds of this process.
        likelihood: the policy that acts.
        critic: values what is seen.
        gamma: discount per control step.
        bound: of normalised actions when they are executed.
        seed: of the worlds' first episodes.
        rank: this process; its worlds are ``rank * num_envs`` and on.
    """

    def __init__(
        self, env: VecEnv, likelihood: Likelihood, critic: Critic, *, gamma: float, bound: float | None, seed: int,
        rank: int = 0,
    ) -> None:  # fmt: skip
        self.env, self._likelihood, self._critic = env, likelihood, critic
        self._gamma, self._bound = gamma, bound
        spec = likelihood.policy.spec
        self._first, self._n_exec = spec.window.n_obs - 1, spec.window.n_exec
        constant = spec.constant_keys
        keys = dict.fromkeys([*spec.obs, *critic.keys])
        self.windows = Windows({k: 1 if k in constant else spec.window.n_obs for k in keys})
        self._policy_keys = list(spec.obs)
        n, device = env.num_envs, env.device
        self._return = torch.zeros(n, dtype=torch.float64, device=device)
        self._length = torch.zeros(n, dtype=torch.int64, device=device)
        self._success = torch.zeros(n, dtype=torch.bool, device=device)
        first = rank * n
        self.windows.start(env.reset(seeds=[mix_seed(seed, first + i) for i in range(n)]))

    def collect(self, decisions: int, draws: Draws, *key: int) -> Rollout:
        """``decisions`` of every world; the noise of decision ``t`` is a function of ``(*key, t)``."""
        store: dict[str, Tensor] = {}
        finished: list[dict[str, float]] = []
        seconds = {"simulate": 0.0, "infer": 0.0}
        for t in range(decisions):
            start = time.perf_counter()
            draws.reseed(*key, t)
            obs = self.windows.now
            policy_obs = {k: obs[k] for k in self._policy_keys}
            record = self._likelihood.rollout(policy_obs, draws)
            with torch.no_grad():
                value = self._critic(obs)
                chunk = self._likelihood.action(record, policy_obs, self._bound)
            acted = time.perf_counter()
            step = self._step(chunk[:, self._first : self._first + self._n_exec].to(self.env.device))
            simulated = time.perf_counter()
            final = self.windows.push(step)
            row = self._row(step, record, value, chunk.shape[1])
            row["next_value"] = self._final_value(final, step)
            _put(store, decisions, t, {**row, **{f"obs/{k}": v for k, v in obs.items()}})
            finished += self._tally(step)
            seconds["simulate"] += simulated - acted
            seconds["infer"] += time.perf_counter() - start - (simulated - acted)
        return self._rollout(store, finished, seconds)

    def state(self) -> dict[str, Tensor]:
        """Everything of the worlds and of the running episodes from which collecting goes on bit for bit."""
        own = {"return": self._return, "length": self._length, "success": self._success}
        return own | {f"window/{k}": v for k, v in self.windows.now.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`."""
        for name, mine in (("return", self._return), ("length", self._length), ("success", self._success)):
            mine.copy_(state[name])
        self.windows.now = {
            k.removeprefix("window/"): v.to(self.env.device) for k, v in state.items() if k.startswith("window/")
        }

    def _step(self, action: Tensor) -> ChunkStep:
        return as_chunk(self.env.step(action[:, 0])) if self._n_exec == 1 else self.env.step_chunk(action)

    def _row(self, step: ChunkStep, record: Record, value: Tensor, horizon: int) -> dict[str, Tensor]:
        positions = torch.arange(horizon, device=step.n_executed.device) - self._first
        finite = torch.isfinite(step.reward).all(1)
        row = {
            "chunk": record.chunk,
            "executed": (positions >= 0) & (positions < step.n_executed[:, None]),
            "reward": chunk_reward(step.reward.nan_to_num(0.0, 0.0, 0.0), self._gamma),
            "discount": self._gamma ** step.n_executed.float(),
            "value": value,
            "terminated": step.terminated,
            "truncated": step.truncated,
            "valid": finite & torch.isfinite(record.chunk).all(-1).all(-1) & torch.isfinite(value),
            "steps": step.n_executed,
        }
        return row | {f"aux/{k}": v for k, v in record.aux.items()}

    @torch.no_grad()
    def _final_value(self, final: Obs, step: ChunkStep) -> Tensor:
        """Values of final observations where an episode was cut off; elsewhere 0, filled in by the next decision."""
        cut = step.truncated & ~step.terminated
        if cut.device.type != "cpu":  # asking which they are would stall the GPU
            return torch.where(cut, self._critic(final), 0.0)
        out = torch.zeros(len(cut))
        if bool(cut.any()):
            out[cut] = self._critic({k: v[cut] for k, v in final.items()})
        return out

    @torch.no_grad()
    def _rollout(
        self, store: dict[str, Tensor], finished: list[dict[str, float]], seconds: dict[str, float]
    ) -> Rollout:
        last = self._critic(self.windows.now)
        following = torch.cat([store["value"][1:], last[None]])
        ended = store["terminated"] | store["truncated"]
        aux = {k.removeprefix("aux/"): v for k, v in store.items() if k.startswith("aux/")}
        return Rollout(
            obs={k.removeprefix("obs/"): v for k, v in store.items() if k.startswith("obs/")},
            record=Record(store["chunk"], aux),
            executed=store["executed"],
            reward=store["reward"],
            discount=store["discount"],
            value=store["value"],
            next_value=torch.where(ended, store["next_value"], following),
            terminated=store["terminated"],
            truncated=store["truncated"],
            valid=store["valid"],
            finished=finished,
            steps=int(store["steps"].sum()),
            seconds=seconds,
        )

    def _tally(self, step: ChunkStep) -> list[dict[str, float]]:
        """Add to the running episodes; what ended is returned and begins anew."""
        self._return += step.reward.double().nan_to_num(0.0, 0.0, 0.0).sum(1)
        self._length += step.n_executed
        if "success" in step.info:
            self._success |= step.info["success"].bool().any(1)
        ended = (step.terminated | step.truncated).nonzero()[:, 0]
        rows = zip(*(x[ended].tolist() for x in (self._return, self._length, self._success)), strict=True)
        finished = [{"return": r, "length": float(n), "success": float(s)} for r, n, s in rows]
        for x in (self._return, self._length, self._success):
            x[ended] = 0
        return finished


def _put(store: dict[str, Tensor], decisions: int, t: int, row: Mapping[str, Tensor]) -> None:
    for name, value in row.items():
        if name not in store:
            store[name] = value.new_empty((decisions, *value.shape))
        store[name][t] = value
