"""Goals and texts in batches: where goal rows lie, and what they are a function of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.batches import BatchSource
from visuomotor.data.cache import TrainingCache
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.texts import encode_texts
from visuomotor.data.windows import WindowConfig, window_table


def source(ends=(20, 29, 50), window=None, **changes):
    """Batches of a store in which every value is its own row, and an episode's text is its number."""
    window = window or WindowConfig()
    rows = torch.arange(ends[-1]).float()[:, None]
    cache = TrainingCache({"action": rows, "state": rows, "img": rows.clone()}, np.array(ends), "ram", 0, "test")
    settings = {"batch_size": 12, "seed": 5, "goal_keys": ["state"], "goal_strategy": "future", **changes}
    return BatchSource(
        cache, window_table(cache.episode_ends, window), obs_keys=["state"], action_key="action", n_obs=window.n_obs,
        horizon=window.horizon, episode_tables={"task": torch.arange(len(ends))[:, None] + 100}, **settings,
    )  # fmt: skip


def rows_of(batch):
    """Present row, goal row and episode of every window."""
    return batch.obs["state"][:, -1, 0].long(), batch.obs["goal/state"][:, 0, 0].long(), batch.obs["task"][:, 0, 0]


def test_the_final_goal_is_the_last_step_of_the_episode():
    s = source(goal_strategy="final", goal_keys=["state", "img"])
    batch = s.gather(np.arange(len(s)))
    present, goal, task = rows_of(batch)
    last = torch.tensor([19, 28, 49])[torch.bucketize(present, torch.tensor([20, 29]), right=True)]
    assert torch.equal(goal, last)
    assert batch.obs["goal/state"].shape == (len(s), 1, 1)
    assert torch.equal(batch.obs["goal/img"], batch.obs["goal/state"])
    assert torch.equal(task, 100 + torch.bucketize(present, torch.tensor([20, 29]), right=True))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    n_obs=st.integers(1, 3), step=st.integers(0, 50), fixed=st.booleans(),
)  # fmt: skip
def test_a_future_goal_lies_later_in_the_same_episode(lengths, n_obs, step, fixed):
    window = WindowConfig(n_obs=n_obs, horizon=n_obs + 1, n_exec=2, pad_after=n_obs)
    ends = tuple(np.cumsum(lengths).tolist())
    s = source(ends, window)
    batch = s.gather(s.window_indices(step)) if fixed else s.batch(step)
    present, goal, task = rows_of(batch)
    last = torch.tensor(ends)[task - 100] - 1
    assert bool((goal <= last).all())
    assert bool(((goal > present) | ((present == last) & (goal == last))).all())


def test_future_goals_are_uniform_over_the_later_steps():
    s = source((40,), WindowConfig(n_obs=1, horizon=1, n_exec=1), batch_size=4000)
    present, goal, _ = rows_of(s.batch(0))
    gap = (goal - present)[present == 29]  # 10 later steps, about 100 windows
    counts = torch.bincount(torch.cat([gap, *(g - p for p, g in _more(s, 29))]), minlength=11)
    assert counts[0] == 0
    assert len(counts) == 11
    assert float(counts[1:].float().std() / counts[1:].float().mean()) < 0.15


def _more(s, row):
    for step in range(1, 12):
        present, goal, _ = rows_of(s.batch(step))
        yield present[present == row], goal[present == row]


def test_goals_are_a_function_of_seed_and_step():
    a, b = source(), source()
    assert torch.equal(a.batch(7).obs["goal/state"], b.batch(7).obs["goal/state"])
    assert not torch.equal(a.batch(7).obs["goal/state"], source(seed=6).batch(7).obs["goal/state"])
    # The same windows come again in the next epoch, with other goals.
    one = source(batch_size=len(a))
    first, second = one.batch(0), one.batch(1)
    order = [torch.argsort(rows_of(x)[0]) for x in (first, second)]
    assert not torch.equal(rows_of(first)[1][order[0]], rows_of(second)[1][order[1]])


def test_ranks_slice_the_goals_of_the_global_batch():
    whole = source().batch(3)
    parts = [source(rank=r, world_size=3).batch(3) for r in range(3)]
    for key in ("goal/state", "task", "state"):
        assert torch.equal(torch.cat([p.obs[key] for p in parts]), whole.obs[key])


def test_goals_do_not_change_the_rest_of_a_batch():
    with_goal, without = source().batch(4), source(goal_keys=[]).batch(4)
    assert torch.equal(with_goal.action, without.action)
    assert set(with_goal.obs) - set(without.obs) == {"goal/state"}


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"'stat'.*not in the training cache.*state"):
        source(goal_keys=["stat"])
    with pytest.raises(ConfigError, match=r"'futur'.*future"):
        source(goal_strategy="futur")


def test_texts_as_bytes():
    codes = encode_texts(["ab", "é", ""], 4)
    assert codes.tolist() == [[97, 98, 0, 0], [0xC3, 0xA9, 0, 0], [0, 0, 0, 0]]
    with pytest.raises(DataError, match=r"text 1 has 5 bytes.*at most 4.*'abcde'"):
        encode_texts(["a", "abcde"], 4)
    with pytest.raises(DataError, match="character 0"):
        encode_texts(["a\0"], 4)
