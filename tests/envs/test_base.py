"""What VecEnv builds on reset and advance, on a counter whose episodes end when it is told to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from visuomotor.data.errors import UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.base import Obs, Step, VecEnv, merge_obs


class Counter(VecEnv):
    """Adds the action; terminates above 10, truncates at the fifth step; a reset puts -1 - (number of resets)."""

    def __init__(self, n: int) -> None:
        self.num_envs, self.device, self.fps, self.max_episode_steps = n, torch.device("cpu"), 1.0, 5
        self.obs_spec, self.action_spec = {"x": ArraySpec(shape=(1,))}, ArraySpec(shape=(1,))
        self.action_low, self.action_high = torch.tensor([0.0]), torch.tensor([20.0])
        self.x, self.t, self.resets = torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64), torch.zeros(n)

    def reset(self, *, seeds: Sequence[int] | None = None, mask: Tensor | None = None) -> Obs:
        mask = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else mask
        self.resets += mask
        self.t[mask] = 0
        self.x[mask, 0] = -1 - self.resets[mask]
        return {"x": self.x.clone()}

    def advance(self, action: Tensor, active: Tensor) -> Step:
        self.x += action * active[:, None]
        self.t += active
        obs = {"x": self.x.clone()}
        terminated, truncated = active & (self.x[:, 0] > 10), active & (self.t >= 5)
        info = {"score": torch.where(active, self.x[:, 0], torch.nan)}
        return Step(obs, action[:, 0] * active, terminated, truncated, obs, info)

    def render(self, index: int) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)


def test_merge_takes_fresh_rows_only_under_the_mask() -> None:
    fresh, old = {"a": torch.ones(3, 2, 2)}, {"a": torch.zeros(3, 2, 2)}
    merged = merge_obs(fresh, old, torch.tensor([True, False, True]))["a"]
    assert merged[:, 0, 0].tolist() == [1, 0, 1]


def test_step_resets_ended_worlds_and_keeps_what_the_step_gave() -> None:
    env = Counter(2)
    env.reset()  # both at -2
    step = env.step(torch.tensor([[15.0], [1.0]]))
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, False]
    assert step.final_obs["x"].flatten().tolist() == [13, -1]
    assert step.obs["x"].flatten().tolist() == [-3, -1]


def test_chunk_that_ends_midway_ignores_the_rest() -> None:
    env = Counter(3)
    env.reset()  # all at -2
    chunk = torch.tensor([[1.0, 1, 1, 1], [1, 20, 7, 7], [1, 1, 1, 20]])[..., None]
    got = env.step_chunk(chunk)
    assert got.n_executed.tolist() == [4, 2, 4]
    assert got.reward.tolist() == [[1, 1, 1, 1], [1, 20, 0, 0], [1, 1, 1, 20]]
    assert got.terminated.tolist() == [False, True, True]
    assert got.history["x"][..., 0].tolist() == [[-1, 0, 1, 2], [-1, 19, 19, 19], [-1, 0, 1, 21]]
    assert got.info["score"].tolist() == [[-1, 0, 1, 2], [-1, 19, 19, 19], [-1, 0, 1, 21]]
    assert got.final_obs["x"].flatten().tolist() == [2, 19, 21]
    assert got.obs["x"].flatten().tolist() == [2, -3, -3]
    later = env.step_chunk(torch.zeros(3, 2, 1))  # the first world reaches its fifth step
    assert later.truncated.tolist() == [True, False, False]
    assert not later.terminated.any()
    assert later.n_executed.tolist() == [1, 2, 2]
    assert later.final_obs["x"].flatten().tolist() == [2, -3, -3]
    assert later.obs["x"].flatten().tolist() == [-3, -3, -3]


def test_two_chunks_equal_their_single_steps() -> None:
    actions = torch.rand(3, 4, 1, generator=torch.Generator().manual_seed(0))
    a, b = Counter(3), Counter(3)
    a.reset()
    b.reset()
    chunk = a.step_chunk(actions)
    steps = [b.step(actions[:, i]) for i in range(4)]
    assert torch.equal(chunk.history["x"], torch.stack([s.final_obs["x"] for s in steps], 1))
    assert torch.equal(chunk.reward, torch.stack([s.reward for s in steps], 1))
    assert torch.equal(chunk.obs["x"], steps[-1].obs["x"])


@pytest.mark.parametrize("shape", [(3, 1), (3, 0, 1), (2, 4, 1)])
def test_wrong_chunks_are_refused(shape: tuple[int, ...]) -> None:
    env = Counter(3)
    env.reset()
    with pytest.raises(UserError, match=r"expected \[3, steps, action size\]"):
        env.step_chunk(torch.zeros(shape))
