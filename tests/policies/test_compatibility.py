"""Demonstrations judged by a policy and by each other, on cases whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from visuomotor.data.batches import BatchSource
from visuomotor.data.errors import DataError
from visuomotor.data.windows import WindowConfig, window_table
from visuomotor.policies.learn.compatibility import disagreement, episode_losses

WINDOW = WindowConfig(n_obs=1, horizon=4, n_exec=2, pad_after=3)


class Zero:
    """Its loss is the square of the action."""

    device = torch.device("cpu")

    def loss(self, batch, draws):
        return SimpleNamespace(per_step=batch.action.square().mean(-1))


def test_the_loss_of_an_episode_is_the_mean_over_its_steps(cache):
    cache.arrays["action"][:] = torch.repeat_interleave(torch.tensor([1.0, 2.0, 1.0, 1.1]), 30)[:, None]
    table = window_table(cache.episode_ends, WINDOW)
    source = BatchSource(
        cache, table, obs_keys=["state"], action_key="action", n_obs=1, horizon=4, batch_size=8, seed=0
    )
    policy: Any = Zero()
    found = episode_losses(policy, source, table.episode, 5, windows_per_episode=7, batch_size=5)
    assert found.loss[:4] == pytest.approx([1, 4, 1, 1.21])  # padded steps do not count
    assert np.isnan(found.loss[4])
    assert found.ranking == [1, 3, 0, 2]
    # median 1.105, absolute deviations 0.105, 2.895, 0.105, 0.105
    assert found.deviation[1] == pytest.approx(2.895 / (1.4826 * 0.105))


def test_a_real_policy_gives_the_same_losses_again(make_policy):
    policy, source = make_policy()
    table = window_table(np.array([30, 60, 90, 120]), policy.spec.window)
    policy.eval()
    one, two = (episode_losses(policy, source, table.episode, 4, windows_per_episode=8, draws=2) for _ in range(2))
    assert np.isfinite(one.loss).all()
    assert np.array_equal(one.loss, two.loss)


def crossing(action_of) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Eight episodes along the same line."""
    x = torch.linspace(0, 1, 50)[:, None].repeat(8, 1)
    episode = np.repeat(np.arange(8), 50)
    action = torch.stack([action_of(e, t) for e, t in zip(episode, x[:, 0], strict=True)])
    return x, action, episode


def test_those_who_do_the_same_agree():
    states, actions, episode = crossing(lambda e, t: torch.stack([torch.sin(6 * t), t]))
    found = disagreement(states, actions, episode)
    assert found.overall == pytest.approx(0, abs=1e-9)
    assert found.by_episode.shape == (8,)


def test_operators_who_go_opposite_ways_disagree_with_each_other_alone():
    operators = np.array(["left", "right"] * 4, dtype=object)
    states, actions, episode = crossing(lambda e, t: torch.tensor([1.0 if e % 2 else -1.0]))
    found = disagreement(states, actions, episode, operators, neighbours=7)
    assert found.within == {"left": 0, "right": 0}
    assert found.between == pytest.approx(2)  # |a - a'|^2 = 4, tr Var a = 1
    assert found.overall == pytest.approx(4 / 7 * 2, rel=1e-6)  # of 7 others, 4 go the other way


def test_actions_that_have_nothing_to_do_with_the_state_differ_as_much_as_any():
    generator = torch.Generator().manual_seed(0)
    states, actions, episode = crossing(lambda e, t: torch.randn(2, generator=generator))
    assert disagreement(states, actions, episode).overall == pytest.approx(1, abs=0.15)


def test_one_episode_or_constant_actions_are_refused():
    states, actions, episode = crossing(lambda e, t: torch.zeros(1))
    with pytest.raises(DataError, match="never change"):
        disagreement(states, actions, episode)
    with pytest.raises(DataError, match="two episodes"):
        disagreement(states[:50], actions[:50], episode[:50])
