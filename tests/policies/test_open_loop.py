"""The error on demonstrations, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from visuomotor.data.actions import ActionConfig
from visuomotor.data.batches import BatchSource
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig, window_table
from visuomotor.policies.learn.open_loop import open_loop_error


def test_a_whole_turn_of_an_angle_is_no_error(cache):
    window = WindowConfig()
    source = BatchSource(
        cache, window_table(cache.episode_ends, window), obs_keys=["state"], action_key="action",
        n_obs=window.n_obs, horizon=window.horizon, batch_size=16, seed=0,
    )  # fmt: skip

    class Constant:
        """Commands (0, 1 - 2 pi), where (1, 1) was commanded."""

        spec = SimpleNamespace(
            window=window, action=ArraySpec(shape=(2,)), action_config=ActionConfig(angle_dims=[1])
        )  # fmt: skip
        device = torch.device("cpu")

        def draw_noise(self, n, generator):
            return torch.zeros(n)

        def sample(self, obs, noise):
            return torch.tensor([0.0, 1.0 - 2 * math.pi]).expand(len(noise), window.horizon, 2)

    cache.arrays["action"][:] = 1.0
    policy: Any = Constant()
    error = open_loop_error(policy, source)
    assert error.mae.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert error.rmse.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
