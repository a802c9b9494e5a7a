"""The bench of heads: its table, its refusals, and a whole run that is stopped and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from visuomotor.configs import bench
from visuomotor.configs.bench import BenchConfig, _train_all, main
from visuomotor.configs.bench_table import Row, render, replace_block
from visuomotor.configs.cli import main as visuomotor
from visuomotor.data.errors import ConfigError

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"


def _row(head, scores):
    mean = sum(scores) / len(scores)
    score, success = {"mean": mean, "low": 0.0, "high": 1.0}, {"rate": 0.5, "low": 0.1, "high": 0.9}
    return Row(head, "mlp", score=score, success=success, scores=scores, minutes=5.0, steps=100, p50_ms=1.0)


def test_the_best_comes_first_and_differences_are_paired():
    text = render([_row("a", [0.1, 0.4]), _row("b", [0.2, 0.5]), Row("c", "mlp", refused="no")], minutes=5, episodes=2)
    lines = text.splitlines()
    assert lines[4].startswith("| b | mlp | 0.350")
    assert "| a | mlp | 0.250" in lines[5]
    assert "-0.100 [-0.100, -0.100]" in lines[5]  # 0.1 worse on each seed: no spread, however the seeds differ
    assert "refused: no" in lines[6]
    assert {line.count("|") for line in lines[2:]} == {10}


def test_the_table_replaces_only_its_own_block(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench a -->\nold\n<!-- end bench a -->\nafter\n")
    replace_block(page, "a", "new\n")
    assert page.read_text() == "before\n<!-- bench a -->\nnew\n<!-- end bench a -->\nafter\n"
    with pytest.raises(ConfigError, match=r"<!-- bench b -->"):
        replace_block(page, "b", "x")
    with pytest.raises(ConfigError, match="does not exist"):
        replace_block(tmp_path / "none.md", "a", None)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"policies": ["difusion"]}, "Did you mean 'diffusion'"),
        ({"policies": ["diffusion/ditt"]}, "unknown backbone 'ditt'"),
        ({"minutes": 0.0}, "minutes"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=says):
        BenchConfig(data="x", **settings)


def test_an_unknown_task_is_refused(capsys):
    assert visuomotor(["bench", "push", "data=x"]) == 2
    assert "Did you mean 'pusht'" in capsys.readouterr().err


def test_every_preset_with_an_environment_is_a_task(tmp_path, monkeypatch):
    trained = []

    def train_all(entries, parallel):
        trained.extend(entries)
        return True

    monkeypatch.setattr(bench, "_train_all", train_all)
    assert visuomotor(["bench", "pusht_image", "data=x", f"out={tmp_path}", "policies=[flow]"]) == 0
    assert len(trained) == 1
    assert visuomotor(["bench", "none", "data=x", f"out={tmp_path}"]) == 2


def test_settings_of_training_are_tried_before_anything_runs(tmp_path, capsys):
    assert visuomotor(["bench", "pusht", "data=x", f"out={tmp_path}", "train.batch_sise=16"]) == 2
    assert "Did you mean 'train.batch_size'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word", ["policy=flow", "train.steps=100", "run_dir=/x", "resume=/x", "eval.episodes=3", "train.eval_every=9"]
)
def test_what_the_bench_sets_itself_is_refused(word, tmp_path, capsys):
    assert visuomotor(["bench", "pusht", "data=x", f"out={tmp_path}", word]) == 2
    assert f"{word}: the bench sets this itself" in capsys.readouterr().err


def test_a_folder_holds_the_bench_of_one_task(tmp_path):
    same = (BenchConfig(data="x"), ["train.batch_size=16"])
    bench._check_same_bench(tmp_path, "pusht", *same)
    with pytest.raises(ConfigError, match=r"task=pusht, asked for is task=reach"):
        bench._check_same_bench(tmp_path, "reach", *same)
    before = json.loads((tmp_path / "bench.json").read_text())
    del before["task"]  # as an older version wrote it
    (tmp_path / "bench.json").write_text(json.dumps(before))
    bench._check_same_bench(tmp_path, "pusht", *same)


@pytest.mark.parametrize(("status", "refused"), [(1, True), (2, True), (130, False), (-9, False)])
@pytest.mark.parametrize("trial_done", [False, True])
def test_a_killed_training_is_tried_again_and_a_failed_one_is_a_row(status, refused, trial_done, tmp_path, monkeypatch):
    entry = bench._Entry("pusht", "flow", "mlp", BenchConfig(data="x"), [], tmp_path)
    if trial_done:
        (tmp_path / "flow_mlp").mkdir()
        (tmp_path / "flow_mlp" / "plan.json").write_text('{"steps": 10}')
    monkeypatch.setattr(bench._Entry, "_visuomotor", lambda *_: status)
    assert entry.train() is refused
    assert entry.finished is refused
    assert not refused or f"status {status}" in entry.row().refused


def test_entries_name_head_and_backbone():
    config = BenchConfig(data="x", policies=["diffusion", "diffusion/unet", "diffusion/mlp"], backbone="mlp")
    assert config.entries() == [("diffusion", "mlp"), ("diffusion", "unet")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bench_goes_on_where_it_was(tmp_path):
    if not DATA.exists():
        pytest.skip(f"the Push-T demonstrations are not at {DATA}")
    out = tmp_path / "bench"
    words = ["pusht", f"data={DATA}", "minutes=0.02", "episodes=2", f"out={out}", "train.batch_size=16"]
    assert main([*words, "policies=[diffusion]"]) == 0
    first = (out / "diffusion_mlp" / "run" / "eval" / "final.json").stat().st_mtime_ns
    assert main([*words, "policies=[diffusion,mip]"]) == 0
    assert (out / "diffusion_mlp" / "run" / "eval" / "final.json").stat().st_mtime_ns == first
    rows = json.loads((out / "table.json").read_text())
    assert [r["head"] for r in rows] == ["diffusion", "mip"]
    assert all(r["p50_ms"] > 0 and r["steps"] > 0 and len(r["scores"]) == 2 for r in rows)
    with pytest.raises(ConfigError, match=r"minutes=0.02, asked for is minutes=1"):
        main([*words[:2], "minutes=1", *words[3:]])


def test_a_training_that_was_stopped_stops_the_bench():
    class Entry:
        def __init__(self, done):
            self.done, self.asked = done, False

        def train(self):
            self.asked = True
            return self.done

    entries: list[Any] = [Entry(True), Entry(False), Entry(True)]
    assert not _train_all(entries, parallel=1)
    assert [e.asked for e in entries] == [True, True, False]
