from __future__ import annotations

import numpy as np
import pytest
import torch

from visuomotor.data.batches import BatchSource
from visuomotor.data.cache import TrainingCache
from visuomotor.data.errors import ConfigError
from visuomotor.data.windows import WindowConfig, window_table

ENDS = np.array([20, 29, 50])
T = 50


def make_cache(device="cpu"):
    """Each step holds its own number, so that a value tells its row."""
    step = torch.arange(T, device=device)
    arrays = {
        "action": step.float()[:, None] + torch.tensor([0.0, 1000.0], device=device),
        "img": step.to(torch.uint8)[:, None, None, None].expand(T, 8, 8, 3).contiguous(),
        "state": step.float()[:, None] * torch.ones(5, device=device),
    }
    return TrainingCache(arrays, ENDS, "ram", 0, "test")


def source(config=None, device="cpu", episodes=None, **changes):
    config = config or WindowConfig()
    settings = {"batch_size": 8, "seed": 3, **changes}
    table = window_table(ENDS, config, episodes)
    return BatchSource(
        make_cache(device),
        table,
        obs_keys=["img", "state"],
        action_key="action",
        n_obs=config.n_obs,
        horizon=config.horizon,
        **settings,
    )


def check_values(device="cpu"):
    s = source(device=device)
    assert len(s) == 13 + 2 + 14
    batch = s.gather(torch.tensor([0, 12, 13, 14]))
    expected = [
        [0, 0, *range(1, 15)],
        [*range(11, 20), *[19] * 7],
        [20, *range(20, 29), *[28] * 6],
        [*range(20, 29), *[28] * 7],
    ]
    assert batch.action[..., 0].int().tolist() == expected
    assert batch.action[..., 1].int().tolist() == (np.array(expected) + 1000).tolist()
    pads = [[0] * 16, [0] * 16, [0] * 16, [0] * 16]
    pads[0][0], pads[1][9:], pads[2][10:], pads[3][9:] = 1, [1] * 7, [1] * 6, [1] * 7
    pads[2][0] = 1
    assert batch.is_pad.int().tolist() == pads
    assert batch.obs["img"].shape == (4, 2, 8, 8, 3)
    assert batch.obs["img"].dtype == torch.uint8
    assert batch.obs["img"][..., 0, 0, 0].tolist() == [e[:2] for e in expected]
    assert batch.obs["state"][..., 4].int().tolist() == [e[:2] for e in expected]
    return batch


def test_windows_hold_the_right_steps_and_copies_of_the_edges():
    batch = check_values()
    assert len(batch) == 4
    assert batch.to("cpu").action.equal(batch.action)


@pytest.mark.gpu
def test_windows_on_the_device():
    assert check_values("cuda").action.is_cuda


def test_a_batch_is_a_function_of_seed_and_step():
    a, b = source(), source()
    forward = [a.batch(i) for i in range(9)]
    for i in (8, 0, 4, 4, 7):  # in any order, from a fresh source
        again = b.batch(i)
        assert torch.equal(again.action, forward[i].action)
        assert all(torch.equal(again.obs[k], forward[i].obs[k]) for k in again.obs)
    assert not torch.equal(source(seed=4).batch(0).action, forward[0].action)


@pytest.mark.parametrize("batch_size", [1, 7, 29, 30, 100])
def test_every_window_once_an_epoch(batch_size):
    s = source(batch_size=batch_size)
    n_epochs = 4
    steps = -(-n_epochs * len(s) // batch_size)
    stream = np.concatenate([s.window_indices(i) for i in range(steps)])[: n_epochs * len(s)]
    epochs = stream.reshape(n_epochs, len(s))
    assert (np.sort(epochs, axis=1) == np.arange(len(s))).all()
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_tile_the_global_batch(world_size):
    whole = source()
    ranks = [source(rank=r, world_size=world_size) for r in range(world_size)]
    for step in (0, 3, 4, 50):
        parts = [r.batch(step).action for r in ranks]
        assert torch.equal(torch.cat(parts), whole.batch(step).action)


def test_only_the_chosen_episodes_are_seen():
    s = source(episodes=[1])
    seen = torch.cat([s.batch(i).action[..., 0] for i in range(5)])
    assert seen.min() == 20
    assert seen.max() == 28


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"world_size": 3}, "batch_size=8 over world_size=3"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world_size": 2}, r"rank=2: expected 0\.\.1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_contradictions_are_refused(changes, why):
    with pytest.raises(ConfigError, match=why):
        source(**changes)


def test_a_key_that_is_not_cached():
    table = window_table(ENDS, WindowConfig())
    with pytest.raises(ConfigError, match=r"'stat' is not in the training cache\. Did you mean 'state'"):
        BatchSource(
            make_cache(), table, obs_keys=["stat"], action_key="action", n_obs=2, horizon=16, batch_size=4, seed=0
        )
