"""Advantages against brute force, with termination, truncation, both at once, and chunks that were cut short."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.policies.ppo.returns import chunk_reward, generalized_advantage


def brute_force(
    reward: torch.Tensor, discount: torch.Tensor, value: torch.Tensor, following: torch.Tensor,
    terminated: torch.Tensor, truncated: torch.Tensor, lam: float,
) -> torch.Tensor:  # fmt: skip
    """The sum of discounted errors, written out decision by decision until the episode's own end."""
    out = torch.zeros_like(reward)
    for n in range(reward.shape[1]):
        for t in range(len(reward)):
            weight = 1.0
            for k in range(t, len(reward)):
                then = 0.0 if terminated[k, n] else float(following[k, n])
                delta = float(reward[k, n]) + float(discount[k, n]) * then - float(value[k, n])
                out[t, n] += weight * delta
                if terminated[k, n] or truncated[k, n]:
                    break
                weight *= lam * float(discount[k, n])
    return out


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), lam=st.floats(0.0, 1.0), gamma=st.floats(0.5, 1.0))
def test_advantage_equals_brute_force(seed: int, lam: float, gamma: float) -> None:
    g = torch.Generator().manual_seed(seed)
    shape = (7, 3)
    n_executed = torch.randint(1, 9, shape, generator=g)
    parts = (
        torch.randn(shape, generator=g), gamma**n_executed.float(), torch.randn(shape, generator=g),
        torch.randn(shape, generator=g), torch.rand(shape, generator=g) < 0.2, torch.rand(shape, generator=g) < 0.2,
    )  # fmt: skip
    torch.testing.assert_close(generalized_advantage(*parts, lam), brute_force(*parts, lam), rtol=1e-4, atol=1e-5)


def test_a_time_limit_is_worth_what_would_have_followed_and_a_loss_nothing() -> None:
    one = torch.ones(1, 1)
    no, yes = torch.zeros(1, 1, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)
    cut = generalized_advantage(one, 0.9 * one, 2 * one, 10 * one, no, yes, 0.95)
    lost = generalized_advantage(one, 0.9 * one, 2 * one, 10 * one, yes, no, 0.95)
    both = generalized_advantage(one, 0.9 * one, 2 * one, 10 * one, yes, yes, 0.95)
    assert math.isclose(float(cut), 1 + 0.9 * 10 - 2, rel_tol=1e-6)
    assert math.isclose(float(lost), 1 - 2, rel_tol=1e-6)
    assert float(both) == float(lost)


def test_nothing_of_the_next_episode_leaks_over_a_time_limit() -> None:
    reward = torch.tensor([[0.0], [0.0], [100.0]])
    half, zero = torch.full((3, 1), 0.5), torch.zeros(3, 1)
    truncated = torch.tensor([[False], [True], [False]])
    advantage = generalized_advantage(reward, half, zero, zero, torch.zeros(3, 1, dtype=torch.bool), truncated, 1.0)
    assert advantage.tolist() == [[0.0], [0.0], [100.0]]


def test_what_is_not_a_number_stays_in_its_episode() -> None:
    half, zero, no = torch.full((4, 1), 0.5), torch.zeros(4, 1), torch.zeros(4, 1, dtype=torch.bool)
    value = torch.tensor([[1.0], [1.0], [torch.nan], [1.0]])
    for ends in ({"terminated": ~no, "truncated": no}, {"terminated": no, "truncated": ~no}):
        over = {k: v & torch.tensor([[False], [True], [False], [False]]) for k, v in ends.items()}
        advantage = generalized_advantage(zero, half, value, zero, **over, lam=1.0)
        assert torch.isfinite(advantage).flatten().tolist() == [True, True, False, True]


def test_reward_of_a_chunk_is_discounted_within_it() -> None:
    reward = torch.tensor([[1.0, 2.0, 4.0], [1.0, 0.0, 0.0]])  # the second was cut short after one step
    assert chunk_reward(reward, 0.5).tolist() == [1 + 1 + 1, 1]
