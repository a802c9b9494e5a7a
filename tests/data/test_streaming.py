from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from visuomotor.data.batches import BatchSource
from visuomotor.data.cache import CacheConfig, TrainingCache, load_cache
from visuomotor.data.errors import ConfigError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.streaming import EpisodeStream, StreamedRows, StreamingSource
from visuomotor.data.windows import WindowConfig, window_table

LENGTHS = [21, 30, 25, 24, 40, 22, 28, 33, 20, 27, 35, 26]
SHAPE = (40, 40, 3)  # 4800 bytes a step
EPISODE = 40 * 4800  # of the longest


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Every pixel of a step tells the step, modulo 251."""
    path = tmp_path_factory.mktemp("streamed") / "demos.zarr"
    specs = {"img": ArraySpec(shape=SHAPE, dtype="uint8"), "action": ArraySpec(shape=(2,), role="action")}
    with DemoStore.create(path, specs, fps=10) as out:
        row = 0
        for n in LENGTHS:
            steps = np.arange(row, row + n)
            image = np.broadcast_to((steps % 251).astype(np.uint8)[:, None, None, None], (n, *SHAPE))
            out.append_episode({"img": image, "action": np.stack([steps, -steps], 1).astype(np.float32)})
            row += n
    with DemoStore.open(path) as opened:
        yield opened


@pytest.fixture
def make(store, tmp_path):
    def make(buffer_bytes=None, episodes=None, **changes):
        config = WindowConfig(n_obs=2, horizon=8, n_exec=4)
        cache = load_cache(store, ["action"], CacheConfig(dir=str(tmp_path)))
        table = window_table(store.episode_ends, config, episodes)
        settings = {"obs_keys": ["img"], "action_key": "action", "n_obs": 2, "horizon": 8, "batch_size": 16, "seed": 5}
        if buffer_bytes is None:
            whole = load_cache(store, ["img", "action"], CacheConfig(dir=str(tmp_path)))
            return BatchSource(whole, table, **{**settings, **changes})
        stream = EpisodeStream(store, ["img"], buffer_bytes)
        rows = {"img": StreamedRows(stream, "img")}
        cache = TrainingCache(cache.arrays, cache.episode_ends, "stream", 0, "test", rows)
        return StreamingSource(stream, cache, table, **{**settings, **changes})

    return make


def same(a, b):
    return a.action.equal(b.action) and a.is_pad.equal(b.is_pad) and all(a.obs[k].equal(b.obs[k]) for k in a.obs)


def test_a_buffer_for_all_episodes_gives_the_batches_of_a_full_shuffle(make):
    whole, streamed = make(), make(1e9)
    assert len(streamed.groups(0)) == 1
    assert all(same(whole.batch(i), streamed.batch(i)) for i in range(60))  # past the first epoch


@pytest.mark.parametrize("batch_size", [1, 16, 64])
def test_every_window_comes_once_an_epoch_with_its_own_images(make, batch_size):
    s = make(5 * EPISODE, batch_size=batch_size)
    assert len(s.groups(0)) > 2
    n_epochs, seen = 2, []
    for step in range(-(-n_epochs * len(s) // batch_size)):
        batch = s.batch(step)
        assert batch.obs["img"].shape == (batch_size, 2, *SHAPE)
        assert batch.obs["img"][..., 0, 0, 0].float().equal(batch.action[:, :2, 0] % 251)
        assert (batch.obs["img"] == batch.obs["img"][..., :1, :1, :1]).all()
        seen.append(s.window_indices(step))
    epochs = np.concatenate(seen)[: n_epochs * len(s)].reshape(n_epochs, len(s))
    assert (np.sort(epochs, axis=1) == np.arange(len(s))).all()
    assert {*map(tuple, s.groups(0))} != {*map(tuple, s.groups(1))}


def test_groups_hold_whole_episodes_within_half_the_buffer(make):
    s = make(5 * EPISODE)
    for epoch in range(3):
        groups = s.groups(epoch)
        assert sorted(np.concatenate(groups)) == list(range(len(LENGTHS)))
        assert all(sum(LENGTHS[e] for e in g) * 4800 <= 2.5 * EPISODE for g in groups)
    assert [e for g in make(5 * EPISODE, episodes=[1, 4, 7]).groups(0) for e in g] != []
    assert sorted(np.concatenate(make(5 * EPISODE, episodes=[1, 4, 7]).groups(0))) == [1, 4, 7]


def test_a_batch_is_a_function_of_seed_and_step(make):
    forward = make(5 * EPISODE)
    batches = [forward.batch(i) for i in range(40)]
    for step in (39, 0, 17, 18, 17):  # any order, a fresh source: what resuming does
        assert same(make(5 * EPISODE).batch(step), batches[step])
    jumping = make(5 * EPISODE)
    assert all(same(jumping.batch(step), batches[step]) for step in (39, 0, 17, 18, 17))
    assert not same(make(5 * EPISODE, seed=6).batch(0), batches[0])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_slice_the_global_batch(make, world_size):
    whole = make(5 * EPISODE)
    ranks = [make(5 * EPISODE, rank=r, world_size=world_size) for r in range(world_size)]
    for step in (0, 5, 6, 30):
        parts = [r.batch(step) for r in ranks]
        assert torch.cat([p.action for p in parts]).equal(whole.batch(step).action)
        assert torch.cat([p.obs["img"] for p in parts]).equal(whole.batch(step).obs["img"])


def test_windows_outside_the_buffer_are_read_from_the_store(make):
    whole, streamed = make(), make(5 * EPISODE)
    windows = np.linspace(0, len(whole) - 1, 50).astype(np.int64)
    assert same(whole.gather(windows), streamed.gather(windows))  # nothing is loaded
    streamed.batch(3)
    assert same(whole.gather(windows), streamed.gather(windows))


def test_goals_of_the_same_episode_come_with_it(make):
    settings = {"goal_keys": ["img"], "goal_strategy": "future"}
    s = make(5 * EPISODE, **settings)
    ends = np.cumsum(LENGTHS)
    for step in (0, 7):
        batch = s.batch(step)
        episode = np.searchsorted(ends, batch.action[:, 1, 0].numpy(), side="right")
        goal = batch.obs["goal/img"][:, 0, 0, 0, 0].numpy().astype(int)
        for e, g, present in zip(episode, goal, batch.action[:, 1, 0].int().tolist(), strict=True):
            steps = np.arange(present, ends[e])
            assert g in steps % 251


def test_memory_stays_within_the_buffer(tmp_path):
    shape, n_episodes, length = (96, 96, 3), 24, 120
    episode = length * 96 * 96 * 3  # 3.3 MB
    specs = {"img": ArraySpec(shape=shape, dtype="uint8"), "action": ArraySpec(shape=(1,), role="action")}
    with DemoStore.create(tmp_path / "demos.zarr", specs) as out:
        for i in range(n_episodes):
            out.append_episode({"img": np.full((length, *shape), i, np.uint8), "action": np.zeros((length, 1), "f4")})
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        cache = load_cache(store, ["action"], CacheConfig(dir=str(tmp_path)))
        stream = EpisodeStream(store, ["img"], 6 * episode)
        cache = TrainingCache(cache.arrays, cache.episode_ends, "stream", 0, "", {"img": StreamedRows(stream, "img")})
        table = window_table(store.episode_ends, WindowConfig())
        s = StreamingSource(
            stream, cache, table, obs_keys=["img"], action_key="action", n_obs=2, horizon=16, batch_size=32, seed=0
        )
        tracemalloc.start()
        try:
            for step in range(len(s) // 32):
                s.batch(step)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert len(s.groups(0)) == 8
    assert 5 * episode < peak < 10.5 * episode  # the buffer; an episode, its chunk files and chunks while it is decoded


def test_a_buffer_too_small_for_two_episodes_is_refused(make):
    with pytest.raises(ConfigError, match=r"the longest episode takes 0\.000 GB, and two must fit"):
        make(1.9 * EPISODE)
