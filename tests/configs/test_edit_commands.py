"""``visuomotor data edit`` and ``data validate`` from the command line, up to training on a view."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from visuomotor.configs.cli import main
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore


@pytest.fixture
def reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight episodes towards the middle; the last one goes the other way."""
    monkeypatch.setenv("VISUOMOTOR_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    specs = {"qpos": ArraySpec(shape=(2,), role="observation"), "action": ArraySpec(shape=(2,), role="action")}
    with DemoStore.create(tmp_path / "reach.zarr", specs, fps=20, episode_columns={"operator": "str"}) as store:
        for i in range(8):
            path = rng.uniform(-1, 1, 2) * np.linspace(1, 0, 31)[:, None]
            sign = -5 if i == 7 else 1
            store.append_episode({"qpos": path[:-1], "action": sign * path[1:]}, {"operator": "ab"[i % 2]})
    return tmp_path / "reach.zarr"


def test_edit_says_what_it_did_and_training_takes_the_view(reach, tmp_path, capsys):
    out = tmp_path / "some, parts"
    assert main(["data", "edit", str(reach), str(out), "filter", "operator=a", "split", "train=0.75", "test=0.25"]) == 0
    told = capsys.readouterr().out
    assert "filter operator=a: 8 to 4 episodes, 240 to 120 steps" in told
    assert f"{out / 'train.json'}: 3 episodes, 90 steps" in told
    assert main(["data", "inspect", str(out / "train.json"), "json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_episodes"] == 3
    run = tmp_path / "run"
    small = ["backbone.width=16", "backbone.depth=1", "train.batch_size=4", "train.steps=1", "threads=1", "device=cpu"]
    assert main(["train", f"data={out / 'train.json'}", f"run_dir={run}", "obs.keys=[qpos]", *small]) == 0
    assert "3 episodes, 90 steps" in capsys.readouterr().out
    assert main(["data", "validate", str(reach), f"checkpoint={run}", "json"]) == 0
    judged = json.loads(capsys.readouterr().out)["compatibility"]
    assert judged["ranking"][0] == 7
    assert judged["disagreement"]["between"] > 0
    assert set(judged["disagreement"]["within"]) == {"a", "b"}


def test_validate_against_fix_thresholds_and_help(reach, tmp_path, capsys):
    assert main(["data", "edit", str(reach), str(tmp_path / "p"), "split", "train=0.5", "test=0.5"]) == 0
    train, test = tmp_path / "p" / "train.json", tmp_path / "p" / "test.json"
    assert main(["data", "validate", str(test), f"against={train}"]) == 0
    assert main(["data", "validate", str(test), f"against={reach}"]) == 1
    assert "leakage" in capsys.readouterr().out
    assert main(["data", "validate", str(reach), f"fix={tmp_path / 'fixed, all.zarr'}"]) == 0
    assert f"{tmp_path / 'fixed, all.zarr'}: 8 episodes, 240 steps" in capsys.readouterr().out
    assert main(["data", "validate", str(reach), "thresholds.idle_s=-1"]) == 2
    assert "thresholds.idle_s=-1" in capsys.readouterr().err
    assert main(["data", "validate", "--help"]) == 0
    assert main(["data", "edit", "--help"]) == 0
    assert "merge with=" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data", "edit", "a.zarr"], "expected <store> <out> <operation>"),
        (["data", "edit", "/nowhere.zarr", "b.zarr", "drop", "1"], "nothing is there"),
        (["data", "validate", "{reach}", "--fix"], "say where, as in fix=mended.zarr"),
        (["data", "validate", "{reach}", "threshold.gap=2"], "unknown setting 'threshold.gap'"),
        (["data", "validate", "{reach}", "checkpoint=/nowhere"], "/nowhere does not exist"),
    ],
)
def test_mistakes_are_one_line(reach, words, says, capsys):
    assert main([w.format(reach=reach) for w in words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
