"""``visuomotor distill``: refusals in a sentence, the run folder, and a stopped run that ends as if it had not been."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from visuomotor.configs.build import load_policy
from visuomotor.configs.cli import main
from visuomotor.configs.distill_run import DistillRun
from visuomotor.data.store import DemoStore

WORLDS = ["env.max_episode_steps=30", "env.engine.threads=1"]
JUDGED = ["eval.episodes=4", "eval.selection_episodes=3", "eval.num_envs=4", "eval.videos=0", "threads=1"]
STUDENT = [
    "distill.rounds=3", "distill.episodes=4", "distill.steps=6", "distill.num_envs=4", "window.n_obs=3",
    "window.horizon=4", "backbone=perceptron", "train.batch_size=16", "train.log_every=3", "optim.warmup_steps=2",
    "data.cache.dir=null", *JUDGED,
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teacher") / "run"
    words = ["task=cartpole", *WORLDS, "ppo.num_envs=4", "ppo.decisions=8", "ppo.epochs=1", "ppo.minibatches=2",
             "backbone.width=16", "critic.width=16", "budget.env_steps=64", f"run_dir={run}", *JUDGED]  # fmt: skip
    assert main(["rl", *words]) == 0
    return run


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("student") / "run"
    assert main(["distill", f"teacher={teacher}", f"run_dir={run}", *STUDENT]) == 0
    return run


def test_a_run_is_an_ordinary_one(student: Path, teacher: Path) -> None:
    with DemoStore.open(student / "labels.zarr") as store:
        assert store.n_episodes == 12
        columns = store.episode_columns
        assert columns["round"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert columns["by_teacher"][:4].tolist() == [1.0] * 4
        assert columns["by_teacher"][4:].mean() < 1.0
    loaded = load_policy(student)
    assert set(loaded.policy.spec.obs) == {"state"}
    assert loaded.policy.spec.window.n_obs == 3
    final = json.loads((student / "eval" / "final.json").read_text())
    assert final["n_episodes"] == final["teacher"]["n"] == 4
    assert final["teacher"]["checkpoint"].startswith(str(teacher.resolve()))
    assert "Against the teacher" in (student / "report.html").read_text()
    saved = loaded.checkpoint.document("config")
    assert saved["command"] == "distill"
    assert saved["config"]["env"]["max_episode_steps"] == 30  # the teacher's worlds
    assert main(["eval", f"checkpoint={student}", "episodes=2", "num_envs=2", "videos=0", "threads=1"]) == 0


def test_a_stopped_run_ends_as_if_it_had_not_been(
    student: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train = DistillRun._train

    def stop_in_the_last_round(self: DistillRun, trainer, data, end, stop):
        return False if end == 18 else train(self, trainer, data, end, stop)

    monkeypatch.setattr(DistillRun, "_train", stop_in_the_last_round)
    assert main(["distill", f"teacher={teacher}", f"run_dir={run}", *STUDENT]) == 130
    monkeypatch.undo()
    assert main(["distill", f"resume={run}", "threads=1"]) == 0
    for name in ("policy", "policy_ema", "optimizer"):
        one, other = (load_file(r / "checkpoints" / "last" / f"{name}.safetensors") for r in (student, run))
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]), key
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if "round" in line] == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["obs.keys=[privileged]"], "does not give"),
        (["obs.keys=[sate]"], "Did you mean 'state'"),
        (["data=x.zarr"], "learns from what it makes itself"),
        (["train.steps=5"], "distill.steps"),
        (["distill.beta=2"], "distill.beta=2"),
        (["distill.round=2"], "Did you mean 'distill.rounds'"),
        (["randomization=tabeltop"], "tabletop"),
        (["task=reacher"], "task 'reacher'"),
        (["obs.goal.keys=[state]"], "goal/state is a goal or text"),
    ],
)
def test_refusals_are_a_sentence(
    teacher: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", f"teacher={teacher}", f"run_dir={tmp_path / 'run'}", *STUDENT, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_other_runs_are_not_resumed(teacher: Path, student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", f"resume={teacher}"]) == 2
    assert "visuomotor rl" in capsys.readouterr().err
    assert main(["distill", f"resume={student}", "distill.rounds=9"]) == 2
    assert "cannot change" in capsys.readouterr().err
    assert main(["distill"]) == 0
    assert "distill.beta" in capsys.readouterr().out


def test_a_student_may_not_see_what_only_a_simulator_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demos, run = tmp_path / "reach.zarr", tmp_path / "teacher"
    assert main(["data", "generate", "task=reach", "episodes=2", "env.privileged=true", f"out={demos}",
                 "workers=0"]) == 0  # fmt: skip
    assert main(["train", "task=reach", f"data={demos}", "obs.keys=[tcp_pos,privileged]", "env.privileged=true",
                 "policy=regression", "backbone=perceptron", "train.steps=2", "eval.episodes=0", "data.val_fraction=0",
                 f"run_dir={run}", "threads=1"]) == 0  # fmt: skip
    capsys.readouterr()
    words = ["distill", f"teacher={run}", f"run_dir={tmp_path / 'student'}"]
    assert main([*words, "obs.keys=[tcp_pos,privileged]"]) == 2
    assert "only a simulator knows" in capsys.readouterr().err
    shutil.rmtree(run)
