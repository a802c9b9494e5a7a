"""A small policy and its data: one-dimensional, fast, deterministic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from visuomotor.data.actions import ActionConfig
from visuomotor.data.batches import BatchSource
from visuomotor.data.cache import TrainingCache
from visuomotor.data.normalize import KeyNorm
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig, window_table
from visuomotor.policies.base import ChunkSizes, NetSizes, Observed
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.heads.diffusion import DiffusionConfig, DiffusionHead
from visuomotor.policies.learn.fitting import fit_normalizer
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP
from visuomotor.policies.policy import Policy
from visuomotor.policies.spec import PolicySpec


class FunctionNet:
    """A plain function ``(x, t) -> out`` as a head sees a net."""

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self._function = function
        self.seen = Observed(torch.zeros(1, 2, 1))

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self._function(x, t)

    def at(self, times: torch.Tensor) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        return [partial(self._at, t) for t in times]

    def with_hidden(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self(x, t), x.flatten(1)

    def rows(self, index: torch.Tensor) -> FunctionNet:
        return self  # a function of x and t alone

    def _at(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._function(x, t.expand(len(x), *t.shape))


@pytest.fixture
def function_net() -> type[FunctionNet]:
    """Wraps a function as a :class:`~visuomotor.policies.base.NetFn`."""
    return FunctionNet


@pytest.fixture
def cache() -> TrainingCache:
    """Four episodes of 30 steps: position and heading of a point that turns, action = next position."""
    t = torch.arange(120, dtype=torch.float32)
    heading = (0.3 * t) % (2 * torch.pi)
    state = torch.stack([100 + 50 * torch.cos(0.1 * t), 20 * torch.sin(0.1 * t), heading], dim=1)
    action = state[:, :2].roll(-1, 0)
    arrays = {"state": state, "action": action}
    return TrainingCache(arrays, np.array([30, 60, 90, 120]), "ram", 0, "test")


@pytest.fixture
def make_policy(cache: TrainingCache) -> Callable[..., tuple[Policy, BatchSource]]:
    """``make(mode=..., window=..., head=...)`` -> a policy with fresh weights, and its batches of 16."""

    def make(
        mode: str = "absolute", window: WindowConfig | None = None, head: DiffusionConfig | None = None
    ) -> tuple[Policy, BatchSource]:
        window = window or WindowConfig()
        spec = PolicySpec(
            obs={"state": ArraySpec(shape=(3,), role="observation")},
            action_key="action",
            action=ArraySpec(shape=(2,), role="action", unit="px"),
            fps=10.0,
            window=window,
            action_config=ActionConfig(
                mode=mode, reference_key=None if mode == "absolute" else "state", reference_dims=[0, 1]
            ),
        )
        source = BatchSource(
            cache, window_table(cache.episode_ends, window), obs_keys=["state"], action_key="action",
            n_obs=window.n_obs, horizon=window.horizon, batch_size=16, seed=3,
        )  # fmt: skip
        encoder = ObservationEncoder(ObservationConfig(angles={"state": [2]}), spec.obs)
        normalizer = fit_normalizer(
            spec, encoder=encoder, cache=cache, source=source, episodes=np.arange(4), action_norm=KeyNorm(clip=None)
        )
        torch.manual_seed(0)
        sizes = ChunkSizes(action_dim=2, horizon=window.horizon, n_obs=window.n_obs, feature_dim=encoder.feature_dim)
        diffusion = DiffusionHead(head or DiffusionConfig(prediction="sample"), sizes)
        net = ResidualMLP(
            MLPConfig(width=32, depth=2, dropout=0.05),
            NetSizes(
                input_dim=2, output_dim=2, horizon=window.horizon, n_obs=window.n_obs, feature_dim=encoder.feature_dim
            ),
        )
        return Policy(spec, encoder=encoder, backbone=net, head=diffusion, normalizer=normalizer), source

    return make
