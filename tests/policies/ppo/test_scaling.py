"""Running statistics against numpy, and the scale of rewards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.policies.ppo.processes import Processes
from visuomotor.policies.ppo.scaling import ReturnScale, RunningStats

ALONE = Processes(Accelerator(cpu=True))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5), shift=st.floats(-1e4, 1e4))
def test_blocks_give_what_numpy_says_of_the_whole(seed: int, sizes: list[int], shift: float) -> None:
    g = torch.Generator().manual_seed(seed)
    blocks = [torch.randn(n, 3, generator=g) + shift for n in sizes]
    running = RunningStats(3)
    for block in blocks:
        running.update(block)
    whole = torch.cat(blocks).double().numpy()
    np.testing.assert_allclose(running.mean.numpy(), whole.mean(0), rtol=1e-9)
    np.testing.assert_allclose(running.std.numpy(), whole.std(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(running.low.numpy(), whole.min(0))
    np.testing.assert_array_equal(running.high.numpy(), whole.max(0))


def test_rows_that_are_not_finite_are_left_out() -> None:
    running = RunningStats(1)
    running.update(torch.tensor([[1.0], [torch.nan], [3.0], [torch.inf]]))
    assert (int(running.count), float(running.mean), float(running.std)) == (2, 2.0, 1.0)
    running.update(torch.full((4, 1), torch.nan))
    assert int(running.count) == 2


def test_before_anything_is_seen_the_deviation_is_one() -> None:
    assert RunningStats(2).std.tolist() == [1.0, 1.0]


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return() -> None:
    scale = ReturnScale(2)
    reward = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 4.0]])
    ended = torch.tensor([[False, False], [True, False], [False, False]])
    assert torch.equal(scale(reward), reward)  # nothing is known yet
    scale.update(reward, torch.full((3, 2), 0.5), ended, ALONE)
    returns = np.array([1.0, 0.5 + 1.0, 1.0, 0.0, 2.0, 1.0 + 4.0])  # the first world's second episode begins anew
    torch.testing.assert_close(scale(reward), reward / float(returns.std()))
    scale.update(reward[:1], torch.full((1, 2), 0.5), ended[:1], ALONE)  # the running returns go on: 1.5 and 2.5
    returns = np.append(returns, [0.5 * 1.0 + 1.0, 0.5 * 5.0])
    assert float(scale.scale) == pytest.approx(returns.std(), rel=1e-6)


def test_scaled_rewards_are_bounded() -> None:
    scale = ReturnScale(1, bound=3.0)
    scale.update(torch.tensor([[0.0], [1.0]]), torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.bool), ALONE)
    assert scale(torch.tensor([[1e6], [-1e6]])).flatten().tolist() == [3.0, -3.0]
