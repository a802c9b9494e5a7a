"""A tiny policy with any head, and a bandit on which a likelihood has to improve it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visuomotor.configs.build import build_policy
from visuomotor.data.actions import ActionConfig
from visuomotor.data.normalize import ArrayStats, KeyNorm, Normalizer
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.base import BackboneConfig, HeadConfig
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.likelihoods.base import Likelihood
from visuomotor.policies.nets.mlp import MLPConfig
from visuomotor.policies.policy import Policy
from visuomotor.policies.ppo.objective import reduce_log_ratio, surrogate
from visuomotor.policies.spec import PolicySpec


def _policy(head: HeadConfig, *, window: WindowConfig | None = None, backbone: BackboneConfig | None = None) -> Policy:
    window = window or WindowConfig(n_obs=2, horizon=8, n_exec=4)
    spec = PolicySpec(
        obs={"state": ArraySpec(shape=(3,), role="observation")}, action_key="action",
        action=ArraySpec(shape=(2,), role="action"), fps=10.0, window=window, action_config=ActionConfig(),
    )  # fmt: skip
    three, two = np.ones(3), np.ones(2)
    stats = {
        "obs/state": ArrayStats(1, -three, three, 0 * three, three, -three, three),
        "action": ArrayStats(1, -two, two, 0 * two, two, -two, two),
    }
    torch.manual_seed(0)
    policy = build_policy(
        spec, obs=ObservationConfig(keys=["state"]), head=head,
        backbone=backbone or MLPConfig(width=32, depth=2, dropout=0.1),
        normalizer=Normalizer(stats, {k: KeyNorm(mode="zscore", clip=None) for k in stats}),
    )  # fmt: skip
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():  # fresh blocks are the identity, and would hide mistakes
        for p in policy.backbone.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return policy


def _observe(policy: Policy, n: int, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"state": torch.randn(n, policy.spec.window.n_obs, 3, generator=g)}


def _executed(policy: Policy, n: int) -> Tensor:
    """Positions ``[n, H]`` that are executed: every third decision was cut short after one step."""
    w = policy.spec.window
    length = torch.where(torch.arange(n) % 3 == 0, 1, w.n_exec)[:, None]
    position = torch.arange(w.horizon) - (w.n_obs - 1)
    return (position >= 0) & (position < length)


def _improve(
    likelihood: Likelihood, reward: Callable[[Tensor], Tensor], *, updates: int = 30, lr: float = 1e-2, n: int = 512,
    epochs: int = 4, clip: float = 0.2, **objective: Any,
) -> list[float]:  # fmt: skip
    """Mean reward of each update, of PPO on decisions that are all of the same reward ``[B, Ta, Da] -> [B]``."""
    settings = {"reduce": "sum", "level": "step", "kind": "clip", **objective}
    policy, w = likelihood.policy, likelihood.policy.spec.window
    optimizer = torch.optim.Adam([p for p in likelihood.parameters() if p.requires_grad], lr=lr)
    obs = _observe(policy, n)
    position = torch.arange(w.horizon) - (w.n_obs - 1)
    executed = ((position >= 0) & (position < w.n_exec)).expand(n, -1)
    returns = []
    for update in range(updates):
        record = likelihood.rollout(obs, Draws(0, update, 0))
        gained = reward(likelihood.action(record, obs, None)[:, w.n_obs - 1 : w.n_obs - 1 + w.n_exec])
        returns.append(float(gained.mean()))
        advantage = (gained - gained.mean()) / (gained.std() + 1e-8)
        for _ in range(epochs):
            found = likelihood.evaluate(obs, record)
            ratio = reduce_log_ratio(
                found.log_ratio, likelihood.mask(executed, record), 2, reduce=settings["reduce"],
                level=settings["level"],
            )  # fmt: skip
            terms = surrogate(
                ratio, advantage[:, None].expand_as(ratio), torch.tensor(clip).expand(ratio.shape[1]),
                kind=settings["kind"],
            )  # fmt: skip
            loss = terms.loss.mean() + (0.0 if found.penalty is None else found.penalty.mean())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
            optimizer.step()
    return returns


@pytest.fixture
def tiny_policy() -> Callable[..., Policy]:
    """``make(head_config, window=..., backbone=...)``: 3 observed values, 2 of action, dropout in the net."""
    return _policy


@pytest.fixture
def observe() -> Callable[..., dict[str, Tensor]]:
    """``observe(policy, n, seed=0)``: observations."""
    return _observe


@pytest.fixture
def executed_of() -> Callable[..., Tensor]:
    """``executed_of(policy, n)``: which positions of the chunks were executed."""
    return _executed


@pytest.fixture
def improve() -> Callable[..., list[float]]:
    """``improve(likelihood, reward)``: mean reward of each update of PPO on a bandit."""
    return _improve
