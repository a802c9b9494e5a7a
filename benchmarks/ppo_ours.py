"""A task with a Gaussian policy from scratch, as `visuomotor rl` builds it, for benchmarks/ppo.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from visuomotor.configs.build import build_policy
from visuomotor.data.actions import ActionConfig
from visuomotor.data.normalize import ArrayStats, KeyNorm, Normalizer
from visuomotor.data.windows import WindowConfig
from visuomotor.envs.registry import get_task, make_env
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.heads.gaussian import GaussianConfig
from visuomotor.policies.likelihoods.gaussian import GaussianLikelihood, GaussianLikelihoodConfig
from visuomotor.policies.nets.perceptron import PerceptronConfig
from visuomotor.policies.ppo.config import PPOConfig
from visuomotor.policies.ppo.critic import Critic, CriticConfig, running_normalizer
from visuomotor.policies.ppo.trainer import BudgetConfig, PPOTrainer
from visuomotor.policies.spec import PolicySpec

__all__ = ["make_trainer"]


def make_trainer(
    task: str, seed: int, settings: Mapping[str, Any], *, std: float, env_steps: int, threads: int,
    accelerator: Accelerator,
) -> PPOTrainer:  # fmt: skip
    """Two layers of 64 for policy and critic each, as the peers have."""
    torch.manual_seed(seed)
    config = PPOConfig(**settings)
    sim = get_task(task).config_class()
    env = make_env(replace(sim, engine=replace(sim.engine, threads=threads)), config.num_envs)  # type: ignore[attr-defined]
    spec = PolicySpec(
        obs=dict(env.obs_spec), action_key="action", action=env.action_spec, fps=env.fps,
        window=WindowConfig(n_obs=1, horizon=1, n_exec=1), action_config=ActionConfig(),
    )  # fmt: skip
    observed = ObservationConfig(keys=list(spec.obs))
    running = running_normalizer(ObservationEncoder(observed, spec.obs), spec.obs).to_dict()
    low, high = env.action_low.double().numpy(), env.action_high.double().numpy()
    action = ArrayStats(1, low, high, (low + high) / 2, (high - low) / 2, low, high)
    normalizer = Normalizer(
        {**{k: ArrayStats.from_dict(v["stats"]) for k, v in running.items()}, "action": action},
        {**{k: KeyNorm(**v["norm"]) for k, v in running.items()}, "action": KeyNorm(clip=None)},
    )
    policy = build_policy(
        spec, obs=observed, head=GaussianConfig(std_from_obs=False, std_init=std, std_min=0.02),
        backbone=PerceptronConfig(), normalizer=normalizer,
    )  # fmt: skip
    return PPOTrainer(
        env, GaussianLikelihood(policy, GaussianLikelihoodConfig()),
        Critic(CriticConfig(width=64, activation="tanh"), list(spec.obs), env.obs_spec, 1),
        config=config, budget=BudgetConfig(env_steps=env_steps), seed=seed, learn_statistics=True,
        accelerator=accelerator,
    )  # fmt: skip
