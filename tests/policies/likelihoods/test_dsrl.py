from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from visuomotor.configs.build import build_policy
from visuomotor.data.actions import ActionConfig
from visuomotor.data.errors import ConfigError
from visuomotor.data.normalize import ArrayStats, KeyNorm, Normalizer
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.base import ChunkSizes, Head, NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.export import export_policy
from visuomotor.policies.heads.diffusion import DiffusionConfig
from visuomotor.policies.heads.flow import FlowConfig
from visuomotor.policies.heads.steered import SteeredConfig, SteeredHead
from visuomotor.policies.likelihoods.dsrl import DSRLConfig, DSRLLikelihood
from visuomotor.policies.nets.mlp import MLPConfig
from visuomotor.policies.policy import Policy
from visuomotor.policies.ppo.config import PPOConfig
from visuomotor.policies.ppo.critic import Critic, CriticConfig
from visuomotor.policies.ppo.learner import Learner
from visuomotor.policies.ppo.rollout import Rollout
from visuomotor.policies.spec import PolicySpec

HORIZON = 4


def _policy(head: Any) -> Policy:
    window = WindowConfig(n_obs=1, horizon=HORIZON, n_exec=HORIZON)
    spec = PolicySpec(
        obs={"state": ArraySpec(shape=(2,), role="observation")}, action_key="action",
        action=ArraySpec(shape=(2,), role="action"), fps=10.0, window=window, action_config=ActionConfig(),
    )  # fmt: skip
    ones = np.ones(2)
    stats = ArrayStats(1, -ones, ones, 0 * ones, ones, -ones, ones)
    normalizer = Normalizer(
        {"obs/state": stats, "action": stats}, {"obs/state": KeyNorm(mode="zscore"), "action": KeyNorm(clip=None)}
    )
    torch.manual_seed(0)
    return build_policy(
        spec, obs=ObservationConfig(keys=["state"]), head=head, backbone=MLPConfig(width=16, depth=1, dropout=0.0),
        normalizer=normalizer,
    )  # fmt: skip


class _TwoModes(Head):
    """Goes to +1 where the mean of the noise is above a threshold that it seldom reaches, else to -1."""

    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        raise NotImplementedError

    def noise_count(self) -> int:
        return 1

    def sample(self, net: NetFn, noise: Tensor) -> Tensor:
        mean = noise[:, 0].mean((1, 2), keepdim=True)  # standard deviation 1 / sqrt(8)
        return torch.tanh(20.0 * (mean - 0.3)).expand(-1, *noise.shape[2:])


def _obs(n: int) -> dict[str, Tensor]:
    return {"state": torch.linspace(-1, 1, 2 * n).view(n, 1, 2)}


@pytest.mark.parametrize("head", [FlowConfig(), DiffusionConfig(solver="ddim"), DiffusionConfig(solver="ddpm")])
def test_a_policy_that_is_not_trained_yet_acts_as_the_frozen_one(head: Any) -> None:
    policy, obs = _policy(head), _obs(6)
    noise = policy.draw_noise(6, torch.Generator().manual_seed(1)).clamp(-2.9, 2.9)
    before = policy.sample(obs, noise)
    DSRLLikelihood(policy, DSRLConfig())
    torch.testing.assert_close(policy.sample(obs, noise), before)


def test_ratio_is_one_before_the_first_update_and_follows_the_density_after_it() -> None:
    likelihood, obs = DSRLLikelihood(_policy(FlowConfig()), DSRLConfig()), _obs(6)
    record = likelihood.rollout(obs, Draws(3))
    assert likelihood.evaluate(obs, record).log_ratio.abs().max() <= 1e-5
    _push(likelihood._head, 0.1)  # a mean of 3 tanh(0.1 / 3)
    moved = 3.0 * np.tanh(0.1 / 3.0)
    expected = (record.aux["noise"] * moved - 0.5 * moved**2).sum(-1)[:, None]
    torch.testing.assert_close(likelihood.evaluate(obs, record).log_ratio, expected, atol=1e-5, rtol=1e-4)
    executed = torch.zeros(6, HORIZON, dtype=torch.bool)
    assert bool(likelihood.mask(executed, record).all())


def test_shared_noise_is_one_choice_for_all_steps_of_a_chunk() -> None:
    policy, obs = _policy(FlowConfig()), _obs(6)
    likelihood = DSRLLikelihood(policy, DSRLConfig(shared=True))
    record = likelihood.rollout(obs, Draws(3))
    assert record.aux["noise"].shape == (6, 1, 2)
    assert likelihood.mask(torch.zeros(6, HORIZON, dtype=torch.bool), record).shape == (6, 1, 1)
    assert likelihood.evaluate(obs, record).log_ratio.abs().max() <= 1e-5
    frozen = likelihood._head.frozen
    alike = record.aux["noise"].expand(-1, HORIZON, -1)[:, None].clamp(-3.0, 3.0)
    with torch.no_grad():
        torch.testing.assert_close(frozen.sample(policy.net(obs), alike), record.chunk)


def test_only_the_choice_of_noise_is_trained() -> None:
    likelihood = DSRLLikelihood(_policy(FlowConfig()), DSRLConfig())
    trained = {n for n, p in likelihood.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in likelihood.named_parameters() if ".actor." in n or n.endswith("raw_std")}
    assert len(trained) == 2 * 3 + 1


def test_a_steered_policy_is_built_again_from_its_settings() -> None:
    policy = _policy(FlowConfig(sample_steps=3))
    DSRLLikelihood(policy, DSRLConfig(steps=5))
    assert isinstance(policy.head, SteeredHead)
    _push(policy.head, 0.4)
    again = _policy(type(policy.head.config)(**asdict(policy.head.config)))
    again.load_state_dict(policy.state_dict())
    noise = torch.randn(6, *policy.noise_shape)
    torch.testing.assert_close(again.sample(_obs(6), noise), policy.sample(_obs(6), noise), rtol=0, atol=0)
    again.head.set_solver(steps=2)
    assert isinstance(again.head, SteeredHead)
    assert again.head.config.settings["sample_steps"] == 2


def test_a_steered_policy_is_exported_with_what_steers_it(tmp_path: Path) -> None:
    policy = _policy(FlowConfig(sample_steps=2))
    DSRLLikelihood(policy, DSRLConfig())
    assert isinstance(policy.head, SteeredHead)
    _push(policy.head, 0.4)
    assert export_policy(policy, tmp_path, formats=["pt2"]).parity["pt2"] < 1e-5


def test_a_policy_without_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="no noise"):
        DSRLLikelihood(_policy(FlowConfig(start="zeros")), DSRLConfig())


def test_it_learns_to_choose_the_mode_that_the_frozen_policy_seldom_takes() -> None:
    policy = _policy(FlowConfig())
    sizes = ChunkSizes(action_dim=2, horizon=HORIZON, n_obs=1, feature_dim=policy.encoder.feature_dim)
    policy.head = SteeredHead(_steered_config(), sizes, _TwoModes(sizes))
    likelihood = DSRLLikelihood(policy, DSRLConfig())
    critic = Critic(CriticConfig(width=16, depth=1), ["state"], policy.spec.obs, 1)
    config = PPOConfig(num_envs=64, decisions=1, epochs=4, minibatches=2, lr=3e-3)
    learner = Learner(likelihood, critic, config, accelerator=Accelerator(cpu=True))
    obs, draws = _obs(64), Draws(0)
    shares = []
    for update in range(30):
        draws.reseed(0, 1, update)
        record = likelihood.rollout(obs, draws)
        reward = (record.chunk.mean((1, 2)) > 0.0).float()
        shares.append(float(reward.mean()))
        with torch.no_grad():
            value = critic(obs)
        learner.update(_bandit(obs, record, reward, value), draws, 0, 2, update, share_done=update / 30)
    assert np.mean(shares[:3]) < 0.4
    assert np.mean(shares[-3:]) > 0.95


def _push(head: SteeredHead, by: float) -> None:
    last = head.actor[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.bias.add_(by)


def _steered_config() -> Any:
    return SteeredConfig(frozen="none", width=16, depth=1)


def _bandit(obs: dict[str, Tensor], record: Any, reward: Tensor, value: Tensor) -> Rollout:
    """Episodes of one decision."""
    n = len(reward)
    yes, no = torch.ones(1, n, dtype=torch.bool), torch.zeros(1, n, dtype=torch.bool)
    zeros = torch.zeros(1, n)
    return Rollout(
        obs={k: v[None] for k, v in obs.items()},
        record=type(record)(record.chunk[None], {k: v[None] for k, v in record.aux.items()}),
        executed=torch.ones(1, n, HORIZON, dtype=torch.bool), reward=reward[None], discount=zeros + 0.99,
        value=value[None], next_value=zeros, terminated=yes, truncated=no, valid=yes, steps=n, seconds={},
        episodes=torch.zeros(4, dtype=torch.float64),
    )  # fmt: skip
