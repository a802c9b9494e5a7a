"""What needs more than the state of now: PPO from pictures, and with a history where velocities are hidden."""

from __future__ import annotations

from collections.abc import Sequence
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
from visuomotor.envs.registry import get_task, make_env
from visuomotor.policies.base import ChunkSizes, NetSizes
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.images import ImageConfig
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.encoders.vit import ViTConfig
from visuomotor.policies.heads.gaussian import GaussianConfig, GaussianHead
from visuomotor.policies.learn.events import GracefulStop
from visuomotor.policies.likelihoods.gaussian import GaussianLikelihood, GaussianLikelihoodConfig
from visuomotor.policies.nets.perceptron import Perceptron, PerceptronConfig
from visuomotor.policies.policy import Policy
from visuomotor.policies.ppo.config import PPOConfig
from visuomotor.policies.ppo.critic import Critic, CriticConfig
from visuomotor.policies.ppo.trainer import BudgetConfig, PPOTrainer
from visuomotor.policies.spec import PolicySpec

_SIDE = 16


class ChaseEnv(VecEnv):
    """A red dot is to be steered to a green one; the picture is all the policy sees, their places all the critic sees.

    The action is a velocity; the reward is minus the distance that is left, in widths of the picture; 12 steps.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.device, self.fps, self.max_episode_steps = num_envs, torch.device("cpu"), 10.0, 12
        self.obs_spec = {
            "front": ArraySpec(shape=(_SIDE, _SIDE, 3), dtype="uint8", role="observation"),
            "privileged": ArraySpec(shape=(4,), role="privileged"),
        }
        self.action_spec = ArraySpec(shape=(2,), role="action")
        self.action_low, self.action_high = -torch.ones(2), torch.ones(2)
        self._generator = torch.Generator().manual_seed(0)
        self._at, self._goal = torch.zeros(num_envs, 2), torch.zeros(num_envs, 2)
        self._time = torch.zeros(num_envs, dtype=torch.int64)
        self._pixels = torch.stack(torch.meshgrid(*[(torch.arange(_SIDE) + 0.5) / _SIDE] * 2, indexing="ij"), -1)

    def reset(self, *, seeds: Sequence[int] | None = None, mask: torch.Tensor | None = None) -> Obs:
        mask = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else mask
        both = 0.1 + 0.8 * torch.rand(2, self.num_envs, 2, generator=self._generator)
        self._at, self._goal = (
            torch.where(mask[:, None], new, old) for new, old in zip(both, (self._at, self._goal), strict=True)
        )
        self._time[mask] = 0
        return self._observe()

    def advance(self, action: torch.Tensor, active: torch.Tensor) -> Step:
        moved = (self._at + 0.15 * action.clamp(-1, 1)).clamp(0.0, 1.0)
        self._at = torch.where(active[:, None], moved, self._at)
        self._time += active
        over = (self._time >= self.max_episode_steps) & active
        left = (self._at - self._goal).norm(dim=1)
        obs = self._observe()
        return Step(obs, -left * active, torch.zeros_like(over), over, obs, {"success": left < 0.15})

    def render(self, index: int) -> np.ndarray:
        return self._observe()["front"][index].numpy()

    def _observe(self) -> Obs:
        places = torch.stack([self._at, self._goal], 1)  # [N, 2, 2]
        distance = (self._pixels[None, :, :, None] - places[:, None, None]).square().sum(-1)  # [N, H, W, 2]
        picture = torch.zeros(self.num_envs, _SIDE, _SIDE, 3)
        picture[..., :2] = torch.exp(-distance / 0.008)
        return {"front": (255 * picture).to(torch.uint8), "privileged": places.flatten(1)}


class HiddenVelocity(VecEnv):
    """Cart-pole of which only positions are shown."""

    def __init__(self, num_envs: int) -> None:
        self._env = make_env(get_task("cartpole").config_class(max_episode_steps=200), num_envs)
        for name in ("num_envs", "device", "action_spec", "action_low", "action_high", "fps", "max_episode_steps"):
            setattr(self, name, getattr(self._env, name))
        self.obs_spec = {"state": ArraySpec(shape=(2,), role="observation")}

    def reset(self, *, seeds: Sequence[int] | None = None, mask: torch.Tensor | None = None) -> Obs:
        return self._shown(self._env.reset(seeds=seeds, mask=mask))

    def advance(self, action: torch.Tensor, active: torch.Tensor) -> Step:
        s = self._env.advance(action, active)
        return Step(self._shown(s.obs), s.reward, s.terminated, s.truncated, self._shown(s.final_obs), s.info)

    def render(self, index: int) -> np.ndarray:
        return self._env.render(index)

    @staticmethod
    def _shown(obs: Obs) -> Obs:
        return {"state": obs["state"][:, :2]}


def learn(
    env: VecEnv, key: str, critic_keys: list[str], *, n_obs: int, steps: int, width: int,
    image: ImageConfig | None = None, **settings: Any,
) -> list[dict[str, float]]:  # fmt: skip
    """Metrics of every update of a Gaussian policy that sees ``key``."""
    torch.manual_seed(0)
    window = WindowConfig(n_obs=n_obs, horizon=n_obs, n_exec=1)
    spec = PolicySpec(
        obs={key: env.obs_spec[key]}, action_key="action", action=env.action_spec, fps=env.fps, window=window,
        action_config=ActionConfig(),
    )  # fmt: skip
    encoder = ObservationEncoder(ObservationConfig(keys=[key], image=image or ImageConfig()), spec.obs)
    low, high = env.action_low.double().numpy(), env.action_high.double().numpy()
    stats = {"action": ArrayStats(1, low, high, 0 * low, high, low, high)}
    norms = {"action": KeyNorm(clip=None)}
    if encoder.vector_keys:
        one = np.ones(env.obs_spec[key].shape)
        stats[f"obs/{key}"], norms[f"obs/{key}"] = (
            ArrayStats(1, -one, one, 0 * one, one, -one, one),
            KeyNorm(mode="zscore"),
        )
    sizes = {"horizon": n_obs, "n_obs": n_obs, "feature_dim": encoder.feature_dim}
    head = GaussianHead(
        GaussianConfig(std_from_obs=False, std_init=0.5, std_min=0.05), ChunkSizes(action_dim=len(low), **sizes)
    )
    net = Perceptron(PerceptronConfig(width=width), NetSizes(input_dim=len(low), output_dim=len(low), **sizes))
    policy = Policy(spec, encoder=encoder, backbone=net, head=head, normalizer=Normalizer(stats, norms))
    critic = Critic(CriticConfig(width=width, activation="tanh"), critic_keys, env.obs_spec, n_obs)
    trainer = PPOTrainer(
        env, GaussianLikelihood(policy, GaussianLikelihoodConfig()), critic,
        config=PPOConfig(num_envs=env.num_envs, **settings), budget=BudgetConfig(env_steps=steps), seed=0,
        learn_statistics=True, accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    seen: list[dict[str, float]] = []
    trainer.run([lambda event: seen.append(dict(event.metrics))], GracefulStop())
    return seen


def look() -> ImageConfig:
    return ImageConfig(
        net="vit", pool="spatial_softmax", feature_dim=32, vit=ViTConfig(patch=2, dim=32, depth=1, heads=2)
    )


def test_pictures_are_kept_as_bytes_and_the_ratio_begins_at_one_although_they_move() -> None:
    seen = learn(
        ChaseEnv(4), "front", ["privileged"], n_obs=2, steps=4 * 4 * 3, width=16, image=look(), decisions=4, epochs=2,
        minibatches=2, image_shift=2,
    )  # fmt: skip
    assert len(seen) == 3
    assert all(m["first_ratio_error"] <= 1e-5 for m in seen)
    assert all(m["kl"] > 0 for m in seen)


@pytest.mark.slow
def test_a_policy_learns_from_pictures_with_a_critic_that_sees_the_state() -> None:
    seen = learn(
        ChaseEnv(64), "front", ["privileged"], n_obs=1, steps=64 * 12 * 18, width=64, image=look(), decisions=12,
        epochs=4, minibatches=3, image_shift=1, lr=2e-3, critic_lr=2e-3, gamma=0.8,
    )  # fmt: skip
    begin, end = (sum(m["return"] for m in part) / len(part) for part in (seen[1:4], seen[-3:]))
    assert end > 0.5 * begin  # both are negative: what was left of the way has become much less
    assert min(m["success"] for m in seen[-3:]) > 0.9 > 0.5 > seen[1]["success"]


@pytest.mark.slow
def test_hidden_velocities_are_learnt_with_a_history_and_not_without() -> None:
    found = {}
    for n_obs in (1, 4):
        seen = learn(
            HiddenVelocity(32), "state", ["state"], n_obs=n_obs, steps=60_000, width=64, decisions=32, epochs=8,
            minibatches=4, lr=1e-3, critic_lr=1e-3,
        )  # fmt: skip
        lengths = [m["length"] for m in seen[-12:] if "length" in m]
        found[n_obs] = sum(lengths) / len(lengths)
    assert found[4] > 100  # of 200 steps
    assert found[4] > 2.5 * found[1]
