"""Goals and texts on the way from a store to batches, as ``visuomotor train`` builds it."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from visuomotor.configs.compose import compose_train
from visuomotor.configs.training_data import load_training_data
from visuomotor.data.errors import DataError


@pytest.fixture
def load(demo_store, tmp_path, monkeypatch):
    """``load("key=value", ...)`` -> the training data of the demo store."""
    monkeypatch.setenv("VISUOMOTOR_CACHE", str(tmp_path / "cache"))

    def load(*words):
        common = [f"data={demo_store}", "data.val_fraction=0", "window.horizon=4", "window.n_exec=2", "device=cpu"]
        return load_training_data(compose_train([*common, *words]).config, Accelerator(cpu=True), Console(quiet=True))

    return load


def test_goals_and_texts_reach_the_batches(load):
    data = load("obs.keys=[state,task]", "obs.text.keys=[task]", "obs.text.length=10", "obs.goal.keys=[img]")
    assert data.spec.constant_keys == {"goal/img", "task"}
    assert {k: (s.shape, s.dtype) for k, s in data.spec.obs.items()} == {
        "state": ((3,), "float32"),
        "task": ((10,), "uint8"),
        "goal/img": ((16, 16, 3), "uint8"),
    }
    batch = data.source.batch(0)
    assert batch.obs["state"].shape[1:] == (2, 3)
    episode = torch.bucketize(batch.obs["state"][:, -1, 0].contiguous(), torch.tensor([5.0, 6.0]), right=True)
    assert torch.equal(batch.obs["goal/img"][:, 0, 0, 0, 0], torch.tensor([4, 5, 13], dtype=torch.uint8)[episode])
    assert torch.equal(batch.obs["task"][:, 0, 5], (ord("0") + episode).to(torch.uint8))


def test_other_texts_are_other_data(load, demo_store):
    with_text = ["obs.keys=[state,task]", "obs.text.keys=[task]"]
    a, b = load(*with_text).document["signature"], load(*with_text, "obs.text.length=20").document["signature"]
    assert len({a, b, load("obs.keys=[state]").document["signature"]}) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["obs.keys=[state,tusk]", "obs.text.keys=[tusk]"], r"meta/tusk.*Did you mean 'task'"),
        (["obs.keys=[state,success]", "obs.text.keys=[success]"], r"no column meta/success with a text"),
        (["obs.keys=[state,task]", "obs.text.keys=[task]", "obs.text.length=3"], r"6 bytes.*obs.text.length"),
        (["obs.keys=[state]", "obs.goal.keys=[image]"], r"no array 'image'.*'img'"),
    ],
)
def test_what_the_store_does_not_have_is_refused(load, words, says):
    with pytest.raises(DataError, match=says):
        load(*words)
