"""``visuomotor eval data=``: the error on demonstrations, of policies that observe more than vectors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from visuomotor.configs.cli import main
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

VECTOR = ArraySpec(shape=(2,), role="observation")
FLOAT_IMAGE = ArraySpec(shape=(40, 40, 3), dtype="float32", role="observation")  # as Diffusion Policy published Push-T


@pytest.fixture
def make_store(tmp_path, monkeypatch):
    """``make(name, texts)`` -> path of a store with pictures in float, and a text an episode if wanted."""
    monkeypatch.setenv("VISUOMOTOR_CACHE", str(tmp_path / "cache"))

    def make(name, *, texts):
        rng = np.random.default_rng(0)
        specs = {"qpos": VECTOR, "action": ArraySpec(shape=(2,), role="action"), "img": FLOAT_IMAGE}
        columns = {"task": "str"} if texts else {}
        with DemoStore.create(tmp_path / name, specs, fps=20, episode_columns=columns) as store:
            for i in range(4):
                path = (rng.uniform(-1, 1, 2) * np.linspace(1, 0, 31)[:, None]).astype(np.float32)
                img = rng.integers(0, 255, (30, 40, 40, 3)).astype(np.float32)
                steps = {"qpos": path[:-1], "action": path[1:], "img": img}
                store.append_episode(steps, columns={"task": f"task {i}"} if texts else {})
        return tmp_path / name

    return make


def train(store, run, *words):
    small = ["backbone.width=16", "backbone.depth=1", "train.batch_size=4", "train.steps=1", "threads=1", "device=cpu"]
    assert main(["train", f"data={store}", f"run_dir={run}", *small, *words]) == 0


def test_pictures_that_are_stored_in_float_are_what_the_policy_was_trained_on(make_store, tmp_path):
    store = make_store("a.zarr", texts=False)
    train(store, tmp_path / "run", "obs.keys=[qpos,img]", "obs.image.resnet.width=0.25", "obs.image.resnet.stem=small")
    assert main(["eval", f"checkpoint={tmp_path / 'run'}", f"data={store}", f"out={tmp_path}", "device=cpu"]) == 0
    assert len(json.loads((tmp_path / "eval.json").read_text())["episodes"]) == 1


def test_a_store_without_the_texts_of_the_policy_is_refused(make_store, tmp_path, capsys):
    train(make_store("a.zarr", texts=True), tmp_path / "run", "obs.keys=[qpos,task]", "obs.text.keys=[task]")
    bare = make_store("b.zarr", texts=False)
    assert main(["eval", f"checkpoint={tmp_path / 'run'}", f"data={bare}", f"out={tmp_path}", "device=cpu"]) == 2
    assert "has no column meta/task" in capsys.readouterr().err
