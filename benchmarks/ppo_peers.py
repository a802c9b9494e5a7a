"""The peers of benchmarks/ppo.py: Stable-Baselines3's PPO, and a plain one in a single file as CleanRL's are.

    python -m pip install --no-deps --target PEERS stable-baselines3==2.9.0 imageio==2.37.0

Stable-Baselines3 runs twice: with the hyper-parameters of its zoo, tuned for each task (hyperparams/ppo.yml of
rl-baselines3-zoo: Hopper-v3, InvertedPendulum-v3, Reacher-v2: one environment, normalised), and with its defaults on
eight environments. The plain one was written here after *The 37 Implementation Details of PPO* (Huang et al. 2022) with
the settings that CleanRL documents for continuous actions (docs.cleanrl.dev/rl-algorithms/ppo), on one environment as
there, and on eight.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers.utils import RunningMeanStd
from ppo_clock import Clock
from torch import Tensor, nn

__all__ = ["plain", "stable_baselines"]

_BIG = {"log_std_init": -2.0, "ortho_init": False, "activation_fn": nn.ReLU}
ZOO: dict[str, dict[str, Any]] = {
    "cartpole": {
        "n_steps": 32, "batch_size": 64, "gamma": 0.999, "learning_rate": 0.000222425, "ent_coef": 1.37976e-07,
        "clip_range": 0.4, "n_epochs": 5, "gae_lambda": 0.9, "max_grad_norm": 0.3, "vf_coef": 0.19816,
    },
    "reacher": {
        "n_steps": 512, "batch_size": 32, "gamma": 0.9, "learning_rate": 0.000104019, "ent_coef": 7.52585e-08,
        "clip_range": 0.3, "n_epochs": 5, "gae_lambda": 1.0, "max_grad_norm": 0.9, "vf_coef": 0.950368,
    },
    "hopper": {
        "n_steps": 512, "batch_size": 32, "gamma": 0.999, "learning_rate": 9.80828e-05, "ent_coef": 0.00229519,
        "clip_range": 0.2, "n_epochs": 5, "gae_lambda": 0.99, "max_grad_norm": 0.7, "vf_coef": 0.835671,
        "policy_kwargs": {**_BIG, "net_arch": {"pi": [256, 256], "vf": [256, 256]}},
    },
}  # fmt: skip


def stable_baselines(task: str, seed: int, clock: Clock, *, n_envs: int) -> None:
    """``n_envs=1``: tuned by the zoo. More: its defaults with as many steps an update, in its vector environment."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    settings = ZOO[task] if n_envs == 1 else {"n_steps": 2048 // n_envs}
    envs = VecNormalize(make_vec_env(clock.task.gym_id, n_envs=n_envs, seed=seed), gamma=settings.get("gamma", 0.99))
    model = PPO("MlpPolicy", envs, seed=seed, device="cpu", **settings)

    class Check(BaseCallback):
        def _on_rollout_start(self) -> None:
            if self.num_timesteps and clock.check(self.num_timesteps, act):
                self.model.stop = True  # type: ignore[attr-defined]

        def _on_step(self) -> bool:
            return not getattr(self.model, "stop", False)

    def act(obs: np.ndarray) -> np.ndarray:
        return model.predict(envs.normalize_obs(obs), deterministic=True)[0]

    clock.start()
    model.learn(clock.task.steps + 1, callback=Check())


class _Scaled:
    """Observations and rewards divided by their running deviations and bounded by 10; ended worlds begin at once."""

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any], size: int) -> None:
        self._envs, self._seen, self._returns = envs, RunningMeanStd(shape=(size,)), RunningMeanStd(shape=())
        self._running = np.zeros(envs.num_envs)

    def scaled(self, obs: np.ndarray) -> Tensor:
        return _bounded((obs - self._seen.mean) / np.sqrt(self._seen.var + 1e-8))

    def reset(self, seed: int) -> Tensor:
        return self._watched(self._envs.reset(seed=seed)[0])

    def step(self, action: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        obs, reward, terminated, truncated, _ = self._envs.step(action)
        over = terminated | truncated
        self._running = 0.99 * self._running + reward
        self._returns.update(self._running)
        self._running[over] = 0.0
        return (
            self._watched(obs), _bounded(reward / np.sqrt(self._returns.var + 1e-8)), torch.from_numpy(over).float()
        )  # fmt: skip

    def _watched(self, obs: np.ndarray) -> Tensor:
        self._seen.update(obs)
        return self.scaled(obs)


def _bounded(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.clip(x, -10, 10)).float()


class _Agent(nn.Module):
    def __init__(self, size: int, action: int) -> None:
        super().__init__()
        self.critic, self.actor = _layers(size, 1, 1.0), _layers(size, action, 0.01)
        self.log_std = nn.Parameter(torch.zeros(action))

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        z = (action - self.actor(obs)) / self.log_std.exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def _layers(size: int, out: int, gain: float) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out))
    for layer, g in ((net[0], math.sqrt(2.0)), (net[2], math.sqrt(2.0)), (net[4], gain)):
        nn.init.orthogonal_(layer.weight, g)
        nn.init.zeros_(layer.bias)
    return net


def plain(task: str, seed: int, clock: Clock, *, n_envs: int) -> None:
    """2048 steps an update, 10 epochs of 32 minibatches, rate 3e-4 falling to 0, clip 0.2, gamma 0.99, lambda 0.95."""
    torch.manual_seed(seed)
    raw = gym.vector.SyncVectorEnv(
        [lambda: gym.wrappers.ClipAction(gym.make(clock.task.gym_id))] * n_envs,
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    size, actions = (space.shape[0] for space in (raw.single_observation_space, raw.single_action_space))  # type: ignore[index]
    envs = _Scaled(raw, size)
    agent = _Agent(size, actions)
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-4, eps=1e-5)
    n_steps, updates = 2048 // n_envs, math.ceil(clock.task.steps / 2048)

    def act(obs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return agent.actor(envs.scaled(obs)).numpy()

    clock.start()
    obs = envs.reset(seed)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 3e-4 * (1.0 - update / updates)
        batch, obs = _gather(envs, agent, obs, n_steps)
        _learn(agent, optimizer, batch)
        if clock.check((update + 1) * 2048, act):
            break


def _gather(envs: Any, agent: _Agent, obs: Tensor, n_steps: int) -> tuple[dict[str, Tensor], Tensor]:
    rows: dict[str, list[Tensor]] = {k: [] for k in ("obs", "action", "log_prob", "value", "reward", "over")}
    with torch.no_grad():
        for _ in range(n_steps):
            mean = agent.actor(obs)
            action = mean + agent.log_std.exp() * torch.randn_like(mean)
            found = {
                "obs": obs,
                "action": action,
                "log_prob": agent.log_prob(obs, action),
                "value": agent.critic(obs)[:, 0],
            }
            obs, found["reward"], found["over"] = envs.step(action.numpy())
            for name, value in found.items():
                rows[name].append(value)
        batch = {k: torch.stack(v) for k, v in rows.items()}
        following, running = agent.critic(obs)[:, 0], torch.zeros(len(obs))
        batch["advantage"] = torch.zeros_like(batch["reward"])
        for t in reversed(range(n_steps)):
            goes_on = 1.0 - batch["over"][t]
            delta = batch["reward"][t] + 0.99 * following * goes_on - batch["value"][t]
            running = delta + 0.99 * 0.95 * goes_on * running
            batch["advantage"][t], following = running, batch["value"][t]
        batch["target"] = batch["advantage"] + batch["value"]
    return {k: v.flatten(0, 1) for k, v in batch.items()}, obs


def _learn(agent: _Agent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    for _ in range(10):
        for index in torch.randperm(len(batch["value"])).chunk(32):
            b = {k: v[index] for k, v in batch.items()}
            ratio = (agent.log_prob(b["obs"], b["action"]) - b["log_prob"]).exp()
            advantage = (b["advantage"] - b["advantage"].mean()) / (b["advantage"].std() + 1e-8)
            policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
            value = agent.critic(b["obs"])[:, 0]
            held = b["value"] + (value - b["value"]).clamp(-0.2, 0.2)
            value_loss = 0.5 * torch.max((value - b["target"]).square(), (held - b["target"]).square()).mean()
            optimizer.zero_grad()
            (policy_loss + 0.5 * value_loss).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
