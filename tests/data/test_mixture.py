from __future__ import annotations

import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from visuomotor.configs.build import build_policy
from visuomotor.configs.compose import compose_train
from visuomotor.configs.train import main as train
from visuomotor.configs.training_data import load_training_data
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.mixture import JoinedRows, MixtureConfig, MixtureOrder, slots
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.streaming import StreamingSource
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.learn.checkpoint import Checkpoint, CheckpointFolder, resolve_checkpoint
from visuomotor.policies.learn.fitting import fit_normalizer


def write(
    path,
    first,
    size,
    *,
    action=None,
    names=("state", "action", "img"),
    n=30,
    episodes=4,
    fps=10,
    unit="rad",
    text=None,
    pixels=16,
):
    """Component ``i`` of step ``t`` is ``first + t + i / 10``; the grey level of every image is ``first``."""
    state, act, img = names
    specs = {
        state: ArraySpec(shape=(size,), role="observation", unit=unit),
        act: ArraySpec(shape=(size,), role="action"),
        img: ArraySpec(shape=(pixels, pixels, 3), dtype="uint8", role="observation"),
    }
    with DemoStore.create(path, specs, fps=fps, episode_columns={"task": "str"} if text else {}) as store:
        for _ in range(episodes):
            step = first + np.arange(n, dtype=np.float32)[:, None]
            arrays = {
                state: step + np.arange(size, dtype=np.float32) / 10,
                act: step + np.arange(size, dtype=np.float32) / 10,
                img: np.full((n, pixels, pixels, 3), first % 256, np.uint8),
            }
            store.append_episode(arrays, {"task": text} if text else {})


@pytest.fixture
def load(tmp_path):
    def load(*words, obs="[img,state]"):
        common = [
            f"data={tmp_path / 'wide.zarr'}", f"data.cache.dir={tmp_path / 'cache'}", f"obs.keys={obs}", "device=cpu",
            "policy=flow", "backbone=mlp", "train.batch_size=20", "window.horizon=8", "window.n_exec=4",
        ]  # fmt: skip
        config = compose_train([*common, *words]).config
        return config, load_training_data(config, Accelerator(cpu=True), Console(quiet=True))

    return load


@pytest.fixture
def two(tmp_path):
    write(tmp_path / "wide.zarr", 100, 4)
    write(tmp_path / "narrow.zarr", 300, 2, names=("qpos", "act", "cam"))
    names = "{qpos: state, act: action, cam: img}"
    return f"data.mixture=[{{path: '{tmp_path / 'narrow.zarr'}', weight: 0.25, rename: {names}}}]"


def test_slots_by_largest_remainder():
    assert slots([1, 1], 4, "ab").tolist() == [2, 2]
    assert slots([2, 1], 16, "ab").tolist() == [11, 5]  # 10.67 and 5.33
    assert slots([1, 1, 1], 8, "abc").tolist() == [3, 3, 2]
    with pytest.raises(ConfigError, match=r"weight 0\.01 of b is 0\.16 of train\.batch_size=16"):
        slots([1, 0.01], 16, "ab")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 3), st.data())
def test_every_window_of_a_store_comes_once_before_any_comes_again(sizes, seed, data):
    count = np.array([data.draw(st.integers(1, 12)) for _ in sizes])
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    windows = [np.arange(a, b) for a, b in pairwise(bounds)]
    order = MixtureOrder(windows, count, seed)
    steps = [order(i) for i in range(12)]
    for i, own in enumerate(windows):
        mine = [s[np.isin(s, own)] for s in steps]
        assert all(len(m) == count[i] for m in mine)
        stream = np.concatenate(mine)
        whole = len(stream) // len(own) * len(own)
        epochs = stream[:whole].reshape(-1, len(own))
        # the places of a store within a batch are drawn, so only the set of an epoch is fixed where it ends a batch
        if len(own) % count[i] == 0:
            assert (np.sort(epochs, axis=1) == own).all()
        appearances = np.bincount(stream - own[0], minlength=len(own))
        assert appearances.max() - appearances.min() <= 1
    fresh = MixtureOrder(windows, count, seed)
    for i in (11, 0, 5):
        assert fresh(i).tolist() == steps[i].tolist()


def test_rows_of_several_arrays_in_any_order():
    parts = [torch.arange(6).reshape(3, 2), torch.arange(100, 108).reshape(4, 2), torch.arange(50, 52).reshape(1, 2)]
    rows = JoinedRows(parts, torch.tensor([0, 3, 7]))
    joined = torch.cat(parts)
    index = torch.tensor([7, 0, 3, 2, 6, 6, 1])
    assert rows.take(index).equal(joined[index])
    assert rows.shape == (2,)


def test_two_robots_in_one_batch(two, load):
    _, data = load(two)
    assert data.spec.action.shape == (4,)
    assert data.spec.obs["state"].shape == (4,)
    mixture = data.document["mixture"]
    assert [m["slots"] for m in mixture] == [16, 4]
    for step in (0, 1, 50):
        batch = data.source.batch(step)
        narrow = batch.obs["img"][:, 0, 0, 0, 0] == 300 % 256
        assert int(narrow.sum()) == 4
        assert batch.action_mask is not None
        assert batch.action_mask[narrow].tolist() == [[True, True, False, False]] * 4
        assert batch.action_mask[~narrow].all()
        assert (batch.action[narrow][..., :2] >= 300).all()
        means = 100 + 14.5 + torch.arange(4) / 10  # of the first store
        torch.testing.assert_close(batch.obs["state"][narrow][..., 2:], means[2:].expand(4, 2, 2))
        assert (batch.action[~narrow] < 200).all()
        torch.testing.assert_close(batch.obs["state"][..., 0], batch.action[:, :2, 0])


def test_joint_statistics_are_not_moved_by_what_was_filled_in(two, load):
    config, data = load(two, "data.val_fraction=0", obs="[state]")
    encoder = ObservationEncoder(config.obs, data.spec.obs)
    normalizer = fit_normalizer(
        data.spec, encoder=encoder, cache=data.cache, source=data.source, episodes=data.train_episodes,
        action_norm=config.action.norm,
    )  # fmt: skip
    stats = normalizer.to_dict()["action"]["stats"]
    np.testing.assert_allclose(stats["min"], [100, 100.1, 100.2, 100.3], rtol=1e-6)
    np.testing.assert_allclose(stats["max"], [329, 329.1, 129.2, 129.3], rtol=1e-6)


def policy_of(config, data):
    encoder = ObservationEncoder(config.obs, data.spec.obs)
    normalizer = fit_normalizer(
        data.spec, encoder=encoder, cache=data.cache, source=data.source, episodes=data.train_episodes,
        action_norm=config.action.norm,
    )  # fmt: skip
    torch.manual_seed(0)
    return build_policy(data.spec, obs=config.obs, head=config.policy, backbone=config.backbone, normalizer=normalizer)


@pytest.mark.parametrize("head", ["flow", "diffusion", "regression", "mip"])
def test_missing_components_get_no_gradient(two, load, head):
    config, data = load(two, f"policy={head}", obs="[state]")
    policy = policy_of(config, data)
    batch = data.source.batch(0)
    mask = batch.action_mask
    assert mask is not None
    outputs: list[torch.Tensor] = []

    def keep(_module, _inputs, out):
        out.retain_grad()
        outputs.append(out)

    policy.backbone.register_forward_hook(keep)
    policy.loss(batch, Draws(0)).loss.backward()
    for out in outputs:
        assert out.grad is not None
        absent = ~mask[:, None].expand_as(out)
        assert (out.grad[absent] == 0).all()
        assert (out.grad[~absent] != 0).float().mean() > 0.99


def test_a_likelihood_over_all_components_is_refused(two, load):
    config, data = load(two, "policy=gaussian", obs="[state]")
    policy = policy_of(config, data)
    with pytest.raises(ConfigError, match="predicts a distribution over all components"):
        policy.loss(data.source.batch(0), Draws(0))


def test_places_and_texts_of_a_narrow_robot(tmp_path, load):
    write(tmp_path / "wide.zarr", 100, 4, text="wide arm")
    write(tmp_path / "narrow.zarr", 300, 2)
    member = f"path: '{tmp_path / 'narrow.zarr'}', dims: {{action: [3, 1]}}, texts: {{task: narrow arm}}"
    _, data = load(f"data.mixture=[{{{member}}}]", "obs.text.keys=[task]", obs="[img,state,task]")
    batch = data.source.batch(0)
    narrow = batch.obs["img"][:, 0, 0, 0, 0] == 300 % 256
    assert batch.action_mask is not None
    assert batch.action_mask[narrow].tolist() == [[False, True, False, True]] * 10
    torch.testing.assert_close(batch.action[narrow][:, :2, 3], batch.obs["state"][narrow][..., 0])
    torch.testing.assert_close(batch.action[narrow][:, :2, 1], batch.obs["state"][narrow][..., 1])
    assert [bytes(t).rstrip(b"\0")[:6] for t in batch.obs["task"][narrow][:, 0].tolist()] == [b"narrow"] * 10


def test_stores_of_one_robot_need_no_mask(tmp_path, load):
    write(tmp_path / "wide.zarr", 100, 3)
    write(tmp_path / "more.zarr", 200, 3)
    _, data = load(f"data.mixture=[{{path: '{tmp_path / 'more.zarr'}'}}]")
    assert data.source.batch(0).action_mask is None
    signature = data.document["signature"]
    write(tmp_path / "other.zarr", 201, 3)
    _, changed = load(f"data.mixture=[{{path: '{tmp_path / 'other.zarr'}'}}]")
    assert changed.document["signature"] != signature


@pytest.mark.parametrize(
    ("second", "words", "why"),
    [
        ({"size": 5}, "", "'state' has 5 components, the first store 4: make the store with the most"),
        ({"size": 4, "fps": 20}, "", "was recorded at 20 Hz"),
        ({"size": 4, "unit": "deg"}, "", "'state' is in deg, in the first store in rad"),
        ({"size": 4, "names": ("qpos", "action", "img")}, "", "has no array 'state'"),
        ({"size": 4}, ", rename: {qpos: state}", "has no array 'qpos'"),
        ({"size": 4}, ", rename: {action: state}", "cannot be renamed to 'state': there is an array of that name"),
        ({"size": 2}, ", dims: {action: [0, 4]}", "expected 2 different places of 0..3"),
        ({"size": 4}, ", weight: 0", "expected more than 0"),
        ({"size": 4, "n": 2}, "", "no training episode is long enough"),
    ],
)
def test_stores_that_do_not_fit_are_refused(tmp_path, load, second, words, why):
    write(tmp_path / "wide.zarr", 100, 4)
    write(tmp_path / "second.zarr", 300, **second)
    with pytest.raises((ConfigError, DataError), match=why):
        load(f"data.mixture=[{{path: '{tmp_path / 'second.zarr'}'{words}}}]")


def test_fewer_episodes_are_a_part_of_more(tmp_path, load):
    write(tmp_path / "wide.zarr", 100, 4, episodes=12)
    few, more = (load(f"data.episodes={n}")[1].train_episodes.tolist() for n in (3, 7))
    assert len(few) == 3
    assert len(more) == 7
    assert set(few) < set(more)
    with pytest.raises(DataError, match=r"data\.episodes=12: there are 11 training episodes"):
        load("data.episodes=12")


def test_streaming_by_the_settings_of_a_run(tmp_path, load):
    write(tmp_path / "wide.zarr", 100, 4, pixels=48, episodes=6)
    words = ["data.cache.mode=stream", "data.cache.buffer_gb=0.0009"]  # an episode: 30 * 48 * 48 * 3 = 207,360 bytes
    _, data = load(*words)
    assert data.cache.placement == "stream"
    assert list(data.cache.rows) == ["img"]
    assert isinstance(data.source, StreamingSource)
    assert [len(g) for g in data.source.groups(0)] == [2, 2, 1]
    assert data.validation is not None
    _, whole = load()
    assert data.validation.gather(np.arange(5)).obs["img"].equal(whole.validation.gather(np.arange(5)).obs["img"])
    assert data.document["signature"] == whole.document["signature"] + "-stream0.0009"
    with pytest.raises(ConfigError, match="serves one store"):
        load("data.cache.mode=stream", f"data.mixture=[{{path: '{tmp_path / 'wide.zarr'}'}}]")


@pytest.mark.parametrize("kind", ["stream", "mixture"])
def test_a_resumed_run_goes_on_exactly(tmp_path, kind, monkeypatch):
    write(tmp_path / "wide.zarr", 100, 4, pixels=48, episodes=6)
    write(tmp_path / "second.zarr", 300, 2, pixels=48)
    words = {
        "stream": ["data.cache.mode=stream", "data.cache.buffer_gb=0.0009", "obs.keys=[img,state]"],
        "mixture": [f"data.mixture=[{{path: '{tmp_path / 'second.zarr'}'}}]", "obs.keys=[state]"],
    }[kind]
    common = [
        f"data={tmp_path / 'wide.zarr'}", f"data.cache.dir={tmp_path / 'cache'}", "policy=flow", "backbone=mlp",
        "train.batch_size=8", "obs.image.pool=mean", "device=cpu", "threads=1", "train.precision=fp32",
        "train.save_every=2", "train.steps=4", "window.horizon=8", "window.n_exec=4", *words,
    ]  # fmt: skip
    run, half, save = tmp_path / "run", tmp_path / "half", CheckpointFolder.save

    def copied(self, *args, **settings):
        save(self, *args, **settings)
        if not half.exists():  # the run as a kill after its first checkpoint would leave it
            shutil.copytree(run, half, symlinks=True)

    monkeypatch.setattr(CheckpointFolder, "save", copied)
    assert train([*common, f"run_dir={run}"]) == 0
    assert train([f"resume={half}"]) == 0
    whole, again = (Checkpoint.open(resolve_checkpoint(r / "checkpoints" / "last")) for r in (run, half))
    assert whole.step == again.step == 4
    before, after = whole.tensors("policy"), again.tensors("policy")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_an_entry_without_a_path():
    with pytest.raises(ConfigError, match="has no path"):
        MixtureConfig()
