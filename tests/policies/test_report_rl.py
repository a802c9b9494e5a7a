"""The report of a run of PPO, and what a run shows while it goes on."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from visuomotor.policies.learn import report_rl
from visuomotor.policies.learn.callbacks import RunBar
from visuomotor.policies.learn.evaluate import Episode, EvalResult, compare
from visuomotor.policies.learn.report import write_report


def result(successes: int, n: int = 10) -> EvalResult:
    episodes = (
        Episode(seed=i, score=1.0 if i < successes else 0.25, success=i < successes, length=20, episode_return=3.0)
        for i in range(n)
    )
    return EvalResult(episodes=tuple(episodes), seconds=2.0)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    rows = [
        {"step": i, "time_s": 100.0 + i, "train_s": 6.0 * i, "env_steps": 1000 * i, "return": 2.0 * i,
         "success": i / 10, "kl": 0.01, "clip_fraction": 0.1, "explained_variance": -3.0 if i == 1 else 0.5,
         "entropy": 0.3, "lr": 1e-3, "value_loss": 1.0 / i, "steps_per_s": 500.0, "share_simulate": 0.3,
         "share_infer": 0.2, "share_learn": 0.5}
        for i in range(1, 11)
    ]  # fmt: skip
    rows.insert(0, {"step": 0, "time_s": 1.0, "env_steps": 0, "eval_score": 0.4, "eval_success": 0.2, "eval_return": 1})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    before, after = result(2), result(9)
    final = {**after.to_dict(), "checkpoint": "step_00000010", "task": "lift", "before": before.to_dict()}
    final["difference"] = compare(after, before).to_dict()
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "final.json").write_text(json.dumps(final))
    return tmp_path


def test_before_and_after_stand_beside_each_other(run_dir):
    page = write_report(run_dir).read_text()
    assert "10,000 environment steps in 10 updates" in page
    assert "Success (before: 20.0%)" in page
    assert "+70 points" in page
    assert "10 paired seeds, McNemar p = 0.0156" in page  # 2 * 0.5 ** 7
    assert "1.0 min" in page  # of learning, not of evaluating
    assert "dataset.json" not in page


def test_every_chart_is_over_environment_steps(run_dir):
    page = write_report(run_dir).read_text()
    titles = re.findall(r"<figcaption>([^<]+)<", page)
    for title in ("Return of an episode", "Success", "Clip fraction", "Explained variance of the returns",
                  "Share of the time", "Environment steps/s", "Entropy [nat per component]"):  # fmt: skip
        assert title in titles
    assert page.count("environment steps</text>") == 10
    assert "0.2 at 0" in page  # the evaluation of what the run began with


def test_a_run_without_evaluation_or_metrics_has_a_report_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "env_steps": 64, "value_loss": NaN}\n')
    assert "There is no final evaluation" in write_report(tmp_path).read_text()
    assert not report_rl.is_rl([], None)
    assert "No metrics" in report_rl.curves([])
    assert report_rl.videos(None) is None


def test_films_say_whether_they_are_from_before_or_after():
    film = {"path": "a.mp4", "kind": "worst", "seed": 1, "score": 0.0, "success": False}
    shown = report_rl.videos({"videos": [film], "before": {"videos": [film]}})
    assert shown is not None
    assert [v["kind"] for v in shown["videos"]] == ["before, worst", "after, worst"]


def test_results_survive_the_disk():
    again = EvalResult.from_dict(json.loads(json.dumps(result(3).to_dict())))
    assert again.episodes == result(3).episodes
    assert compare(again, result(3)).score_difference == 0.0


def test_outside_a_terminal_lines_come_now_and_then_and_at_the_end():
    said = io.StringIO()
    with RunBar("training", Console(file=said, width=200), interval=0.0) as bar:
        bar.show(0.25, ["5 steps", "return 1"])
    with RunBar("training", Console(file=said, width=200), interval=1e9) as bar:
        bar.show(0.5, ["10 steps"])
        bar.show(1.0, ["20 steps", "return 2"])
    lines = said.getvalue().splitlines()
    assert [line.split("  ")[:-1] for line in lines] == [["5 steps", "return 1"], ["20 steps", "return 2"]]
    assert all(line.endswith("min left") for line in lines)
