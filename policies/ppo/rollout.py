"""Gathering experience: the policy acts in every world for a number of decisions, and everything is remembered."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visuomotor.data.transforms.crop import shift
from visuomotor.envs.base import ChunkStep, Obs, VecEnv, merge_obs
from visuomotor.policies.draws import Draws, mix_seed
from visuomotor.policies.likelihoods.base import Likelihood, Record
from visuomotor.policies.ppo.critic import Critic
from visuomotor.policies.ppo.episodes import EpisodeTally
from visuomotor.policies.ppo.returns import chunk_reward
from visuomotor.policies.ppo.windows import Windows, as_chunk, moved

__all__ = ["Collector", "Rollout"]

_ROWS = 4096  # observations that the critic values at once
_STAGGER = 3  # stream of random numbers


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
    valid: Tensor  # [T, N] bool; false where a reward was not finite
    episodes: Tensor  # [4] float64: how many ended, and sums of their returns, lengths and successes
    steps: int  # control steps executed
    seconds: dict[str, float]  # simulate, infer


class Collector:
    """Keeps the worlds between rollouts: nothing is reset but what ended.

    Worlds that begin together and have the same time limit would also end together, and every update would see another
    part of the episode. With ``stagger`` each world's first episode is cut off after a random number of steps (which
    counts as a time limit, and not in the reports), as rsl_rl begins with random ages.

    Args:
        env: the worlds of this process.
        likelihood: the policy that acts.
        critic: values what is seen.
        gamma: discount per control step.
        bound: of normalised actions when they are executed.
        seed: of the worlds' first episodes.
        rank: this process; its worlds are ``rank * num_envs`` and on.
        stagger: whether first episodes are cut off.
        image_shift: pixels by which images are moved at random, alike for all frames of a decision.
    """

    def __init__(
        self, env: VecEnv, likelihood: Likelihood, critic: Critic, *, gamma: float, bound: float | None, seed: int,
        rank: int = 0, stagger: bool = False, image_shift: int = 0,
    ) -> None:  # fmt: skip
        self.env, self._likelihood, self._critic = env, likelihood, critic
        self._gamma, self._bound = gamma, bound
        spec = likelihood.policy.spec
        self._first, self._n_exec = spec.window.n_obs - 1, spec.window.n_exec
        self._device = device = likelihood.policy.device
        self._positions = torch.arange(spec.window.horizon, device=device) - self._first
        constant = spec.constant_keys
        keys = dict.fromkeys([*spec.obs, *critic.keys])
        self.windows = Windows({k: 1 if k in constant else spec.window.n_obs for k in keys})
        self._policy_keys = list(spec.obs)
        n = env.num_envs
        self.episodes = EpisodeTally(n, device)
        seeds = [mix_seed(seed, rank * n + i) for i in range(n)]
        ages = [1 + mix_seed(s, _STAGGER) % env.max_episode_steps if stagger else 0 for s in seeds]
        self._left = torch.tensor(ages, device=device)  # [N] steps to the cut; 0: no cut any more
        self._staggers = stagger
        self._shift = image_shift
        self._images = [k for k in keys if env.obs_spec[k].is_image] if image_shift else []
        self.windows.start({k: v.to(device) for k, v in env.reset(seeds=seeds).items()})

    def collect(self, decisions: int, draws: Draws, *key: int) -> Rollout:
        """``decisions`` of every world; the noise of decision ``t`` is a function of ``(*key, t)``."""
        store: dict[str, Tensor] = {}
        cut_off: list[tuple[Tensor, Tensor, Obs]] = []
        began, simulated = time.perf_counter(), 0.0
        for t in range(decisions):
            draws.reseed(*key, t)
            obs = self._seen(draws)
            policy_obs = {k: obs[k] for k in self._policy_keys}
            with torch.no_grad():
                record = self._likelihood.rollout(policy_obs, draws)
                chunk = self._likelihood.action(record, policy_obs, self._bound)
            start = time.perf_counter()
            step, cut = self._step(chunk[:, self._first : self._first + self._n_exec].to(self.env.device))
            simulated += time.perf_counter() - start
            _put(store, decisions, t, {**_row(step, record), "cut": cut, **{f"obs/{k}": v for k, v in obs.items()}})
            self._remember_end(t, self.windows.push(step), step, cut_off, store)
        self._staggers = self._staggers and bool((self._left > 0).any())
        with torch.no_grad():
            rollout = self._rollout(store, cut_off)
        return replace(
            rollout, seconds={"simulate": simulated, "infer": time.perf_counter() - began - simulated}
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Everything of the worlds and of the running episodes from which collecting goes on bit for bit."""
        windows = {f"window/{k}": v for k, v in self.windows.now.items()}
        return {"left": self._left, **self.episodes.state(), **windows}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`."""
        self._left.copy_(state["left"])
        self._staggers = bool((self._left > 0).any())
        self.episodes.load_state(state)
        self.windows.now = {
            k.removeprefix("window/"): v.to(self._device) for k, v in state.items() if k.startswith("window/")
        }

    def _seen(self, draws: Draws) -> Obs:
        """What the policy sees now: the windows, with images moved."""
        obs = dict(self.windows.now)
        for key in self._images:
            down, right = draws.integers(-self._shift, self._shift + 1, (2 * len(obs[key]),)).chunk(2)
            obs[key] = _moved(obs[key], down, right, self._shift)
        return obs

    def _step(self, action: Tensor) -> tuple[ChunkStep, Tensor]:
        """Act in all worlds; also which of them ``[N]`` were cut off to stagger them."""
        step = as_chunk(self.env.step(action[:, 0])) if self._n_exec == 1 else self.env.step_chunk(action)
        step = step if self._device == self.env.device else moved(step, self._device)
        if not self._staggers:
            return step, torch.zeros_like(step.truncated)
        ended = step.terminated | step.truncated
        due = (self._left > 0) & (self._left <= step.n_executed)
        cut = due & ~ended
        self._left.sub_(step.n_executed).clamp_min_(0).masked_fill_(ended | due, 0)
        if cut.device.type == "cpu" and not bool(cut.any()):
            return step, cut
        fresh = self.env.reset(mask=cut.to(self.env.device))
        obs = merge_obs({k: v.to(self._device) for k, v in fresh.items()}, step.obs, cut)
        return replace(step, obs=obs, truncated=step.truncated | cut), cut

    @torch.no_grad()
    def _remember_end(
        self, t: int, final: Obs, step: ChunkStep, cut_off: list[tuple[Tensor, Tensor, Obs]], store: dict[str, Tensor]
    ) -> None:
        """What a time limit cut off is valued by its final observation; where nothing was cut off that is not kept."""
        cut = step.truncated & ~step.terminated
        if cut.device.type != "cpu":  # asking which they are would stall the GPU
            _put(store, len(store["cut"]), t, {"final_value": torch.where(cut, self._critic(final), 0.0)})
        elif bool(cut.any()):
            rows = cut.nonzero()[:, 0]
            cut_off.append((torch.full_like(rows, t), rows, {k: final[k][rows] for k in self._critic.keys}))

    def _rollout(self, store: dict[str, Tensor], cut_off: list[tuple[Tensor, Tensor, Obs]]) -> Rollout:
        obs = {k.removeprefix("obs/"): v for k, v in store.items() if k.startswith("obs/")}
        aux = {k.removeprefix("aux/"): v for k, v in store.items() if k.startswith("aux/")}
        reward, n_executed = store["reward"].nan_to_num(0.0, 0.0, 0.0), store["n_executed"]
        ended = store["terminated"] | store["truncated"]
        value = self._values({k: v.flatten(0, 1) for k, v in obs.items()}).view(ended.shape)
        following = torch.cat([value[1:], self._critic(self.windows.now)[None]])
        executed = (self._positions >= 0) & (self._positions < n_executed[..., None])
        episodes = self.episodes.add(reward.sum(2), n_executed, store["success"], ended, ~store["cut"])
        return Rollout(
            obs=obs, record=Record(store["chunk"], aux), executed=executed,
            reward=chunk_reward(reward, self._gamma), discount=self._gamma ** n_executed.float(), value=value,
            next_value=torch.where(ended, self._final_values(store, cut_off), following),
            terminated=store["terminated"], truncated=store["truncated"],
            valid=torch.isfinite(store["reward"]).all(2),
            episodes=episodes, steps=int(n_executed.sum()), seconds={},
        )  # fmt: skip

    def _final_values(self, store: dict[str, Tensor], cut_off: list[tuple[Tensor, Tensor, Obs]]) -> Tensor:
        """``[T, N]``: values of final observations where an episode was cut off, elsewhere 0."""
        if "final_value" in store:
            return store["final_value"]
        out = torch.zeros(store["truncated"].shape, device=self._device)
        if cut_off:
            times, rows, finals = zip(*cut_off, strict=True)
            seen = {k: torch.cat([f[k] for f in finals]) for k in self._critic.keys}
            out[torch.cat(times), torch.cat(rows)] = self._values(seen)
        return out

    def _values(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Values of ``{key: [n, To, ...]}``: the critic does not change within a rollout, so all at once is cheaper."""
        n = len(next(iter(obs.values())))
        parts = [
            self._critic({k: obs[k][i : i + _ROWS] for k in self._critic.keys}) for i in range(0, n, _ROWS)
        ]  # fmt: skip
        return torch.cat(parts)


def _moved(images: Tensor, down: Tensor, right: Tensor, reach: int) -> Tensor:
    """``images [N, To, H, W, C]`` of any dtype moved by whole pixels, one shift a row; the border is repeated."""
    frames = images.movedim(-1, 2).flatten(1, 2)  # [N, To * C, H, W]
    out = shift(frames.float(), down, right, reach).to(images.dtype)
    return out.unflatten(1, (images.shape[1], images.shape[-1])).movedim(2, -1)


def _row(step: ChunkStep, record: Record) -> dict[str, Tensor]:
    success = step.info.get("success")
    return {
        "chunk": record.chunk,
        "reward": step.reward,
        "n_executed": step.n_executed,
        "terminated": step.terminated,
        "truncated": step.truncated,
        "success": torch.zeros_like(step.terminated) if success is None else success.bool().any(1),
        **{f"aux/{k}": v for k, v in record.aux.items()},
    }


def _put(store: dict[str, Tensor], decisions: int, t: int, row: Mapping[str, Tensor]) -> None:
    for name, value in row.items():
        if name not in store:
            store[name] = value.new_empty((decisions, *value.shape))
        store[name][t] = value
