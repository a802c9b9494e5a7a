"""A scripted environment whose rewards say where and when they were earned, and small policies for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from visuomotor.data.actions import ActionConfig
from visuomotor.data.normalize import ArrayStats, KeyNorm, Normalizer
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.envs.base import Obs, Step, VecEnv
from visuomotor.policies.base import ChunkSizes, NetSizes
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.heads.gaussian import GaussianConfig, GaussianHead
from visuomotor.policies.likelihoods.gaussian import GaussianLikelihood, GaussianLikelihoodConfig
from visuomotor.policies.nets.perceptron import Perceptron, PerceptronConfig
from visuomotor.policies.policy import Policy
from visuomotor.policies.ppo.config import PPOConfig
from visuomotor.policies.ppo.critic import Critic, CriticConfig, running_normalizer
from visuomotor.policies.ppo.trainer import BudgetConfig, PPOTrainer
from visuomotor.policies.spec import PolicySpec


class ScriptedEnv(VecEnv):
    """World ``w`` ends every ``lengths[w]`` steps: terminated where ``w`` is even, truncated where it is odd.

    ``state`` is (world, step of the episode, number of the episode); the reward of a step is ``100 w + step``, with the
    step from 0. The goal holds in the last step of worlds that terminate. ``poison`` steps (counted over all time) give
    a reward that is not a number.
    """

    def __init__(self, lengths: Sequence[int], *, action_size: int = 1, poison: Sequence[int] = ()) -> None:
        self.num_envs, self.device = len(lengths), torch.device("cpu")
        self.obs_spec = {
            "state": ArraySpec(shape=(3,), role="observation"),
            "privileged": ArraySpec(shape=(1,), role="privileged"),
        }
        self.action_spec = ArraySpec(shape=(action_size,), role="action")
        self.action_low, self.action_high = -torch.ones(action_size), torch.ones(action_size)
        self.fps, self.max_episode_steps = 10.0, max(lengths)
        self.lengths, self.world = torch.tensor(lengths), torch.arange(len(lengths))
        self.step_of, self.episode = torch.zeros_like(self.world), torch.zeros_like(self.world) - 1
        self.actions: list[torch.Tensor] = []
        self._poison, self._time = set(poison), 0

    def reset(self, *, seeds: Sequence[int] | None = None, mask: torch.Tensor | None = None) -> Obs:
        mask = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else mask
        self.step_of[mask], self.episode[mask] = 0, self.episode[mask] + 1
        return self._observe()

    def advance(self, action: torch.Tensor, active: torch.Tensor) -> Step:
        self.actions.append(action.clone())
        reward = (100.0 * self.world + self.step_of) * active
        if self._time in self._poison:
            reward[0] = torch.nan
        self._time += 1
        self.step_of += active
        over = (self.step_of >= self.lengths) & active
        lost, cut = over & (self.world % 2 == 0), over & (self.world % 2 == 1)
        obs = self._observe()
        return Step(obs, reward.float(), lost, cut, obs, {"success": lost})

    def render(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def _observe(self) -> Obs:
        state = torch.stack([self.world, self.step_of, self.episode], 1).float()
        return {"state": state, "privileged": self.world[:, None].float()}


class TargetEnv(VecEnv):
    """A target that is shown, in episodes of ``length`` steps: the reward is ``-(action - target)^2``."""

    def __init__(self, num_envs: int, *, length: int = 5, first: int = 0, poison: int | None = None) -> None:
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self.obs_spec = {"state": ArraySpec(shape=(1,), role="observation")}
        self.action_spec = ArraySpec(shape=(1,), role="action")
        self.action_low, self.action_high = -torch.ones(1), torch.ones(1)
        self.fps, self.max_episode_steps = 10.0, length
        self._world = first + torch.arange(num_envs)  # global numbers: parts of a set of worlds do what the whole does
        self._time, self._poison = torch.zeros(num_envs, dtype=torch.int64), poison
        self._steps = 0

    def reset(self, *, seeds: Sequence[int] | None = None, mask: torch.Tensor | None = None) -> Obs:
        self._time[torch.ones(self.num_envs, dtype=torch.bool) if mask is None else mask] = 0
        return self._observe()

    def advance(self, action: torch.Tensor, active: torch.Tensor) -> Step:
        reward = -(action[:, 0] - self._target()).square()
        self._time += active
        self._steps += 1
        over = (self._time >= self.max_episode_steps) & active
        obs = self._observe()
        if self._poison == self._steps:
            obs["state"][0] = torch.nan
        return Step(obs, reward, torch.zeros_like(over), over, obs, {})

    def render(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def _target(self) -> torch.Tensor:
        return 0.8 * torch.sin(1.7 * self._world + 0.9 * self._time)

    def _observe(self) -> Obs:
        return {"state": self._target()[:, None]}


def gaussian_policy(
    specs: Mapping[str, ArraySpec], action: ArraySpec, keys: Sequence[str], window: WindowConfig, **head: Any
) -> Policy:
    torch.manual_seed(0)
    spec = PolicySpec(
        obs={k: specs[k] for k in keys}, action_key="action", action=action, fps=10.0, window=window,
        action_config=ActionConfig(),
    )  # fmt: skip
    observed = ObservationConfig(keys=list(keys))
    encoder = ObservationEncoder(observed, spec.obs)
    running = running_normalizer(encoder, spec.obs).to_dict()
    one = np.ones(action.size)
    normalizer = Normalizer(
        {
            **{k: ArrayStats.from_dict(v["stats"]) for k, v in running.items()},
            "action": ArrayStats(1, -one, one, 0 * one, one, -one, one),
        },
        {**{k: KeyNorm(**v["norm"]) for k, v in running.items()}, "action": KeyNorm(clip=None)},
    )
    sizes = {"n_obs": window.n_obs, "feature_dim": encoder.feature_dim, "horizon": window.horizon}
    settings = {"std_from_obs": False, "std_init": 0.5, **head}
    head_ = GaussianHead(GaussianConfig(**settings), ChunkSizes(action_dim=action.size, **sizes))
    net = Perceptron(
        PerceptronConfig(width=16), NetSizes(input_dim=action.size, output_dim=head_.output_dim, **sizes)
    )  # fmt: skip
    return Policy(spec, encoder=encoder, backbone=net, head=head_, normalizer=normalizer)


@pytest.fixture
def scripted() -> type[ScriptedEnv]:
    return ScriptedEnv


@pytest.fixture
def target_env() -> type[TargetEnv]:
    return TargetEnv


@pytest.fixture
def make_likelihood() -> Callable[..., GaussianLikelihood]:
    """``make(env, window=..., keys=..., **head)``: a small Gaussian policy for ``env``."""

    def make(
        env: VecEnv, window: WindowConfig | None = None, keys: Sequence[str] = ("state",), **head: Any
    ) -> GaussianLikelihood:
        window = window or WindowConfig(n_obs=1, horizon=1, n_exec=1)
        policy = gaussian_policy(env.obs_spec, env.action_spec, keys, window, **head)
        return GaussianLikelihood(policy, GaussianLikelihoodConfig())

    return make


@pytest.fixture
def make_trainer(make_likelihood: Callable[..., GaussianLikelihood]) -> Callable[..., PPOTrainer]:
    """``make(env, accelerator=..., learn_statistics=..., **settings of PPOConfig)``."""

    def make(
        env: VecEnv, *, accelerator: Accelerator | None = None, steps: int = 10_000, learn_statistics: bool = True,
        window: WindowConfig | None = None, **settings: Any,
    ) -> PPOTrainer:  # fmt: skip
        likelihood = make_likelihood(env, window)
        n_obs = likelihood.policy.spec.window.n_obs
        critic = Critic(CriticConfig(width=16, depth=1), ["state"], env.obs_spec, n_obs)
        config = PPOConfig(**{"num_envs": env.num_envs, "decisions": 8, "epochs": 3, "minibatches": 2, **settings})
        return PPOTrainer(
            env, likelihood, critic, config=config, budget=BudgetConfig(env_steps=steps), seed=0,
            learn_statistics=learn_statistics, accelerator=accelerator or Accelerator(cpu=True),
        )  # fmt: skip

    return make
