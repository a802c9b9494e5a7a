"""``visuomotor data generate`` from the command line: what it says, refuses and leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from visuomotor.configs.cli import main
from visuomotor.data.store import DemoStore


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Settings, with their defaults"),
        (["--help"], "diversity=0.5"),
    ],
)
def test_help_lists_the_settings(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "generate", *words]) == 0
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["out=x.zarr"], "task is missing: give task=<value>"),
        (["task=lfit"], "unknown task 'lfit'. Did you mean 'lift'"),
        (["task=none"], "has no environment"),
        (["task=pusht"], "no scripted expert"),
        (["task=lift", "episods=3"], "Did you mean 'episodes'"),
        (["task=lift", "episodes=0"], "episodes=0: expected at least 1"),
        (["task=lift", "diversity=2"], "diversity=2.0: expected a number from 0 to 1"),
        (["task=lift", "env.spred=1"], "Did you mean 'env.spread'"),
        (["task=lift", "env.control.mode=torque"], "unknown action mode 'torque'"),
        (["task=lift", "cameras=[frnt]"], "the scene has no camera 'frnt'. Did you mean 'front'"),
        (["task=lift", "from=/nowhere.zarr"], "no demonstration store at /nowhere.zarr"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "generate", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_it_counts_what_it_kept_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data", "generate", "task=lift", "workers=0", "env.engine.threads=1", "env.control.mode=joint_pos"]
    assert main([*words, "episodes=2", "text=lift the 'red' cube, please"]) == 0
    assert "lift.zarr: 2 kept of " in capsys.readouterr().out  # named after the task
    with DemoStore.open(tmp_path / "lift.zarr") as store:
        assert list(store.episode_columns["task"]) == ["lift the 'red' cube, please"] * 2
        assert store.origin["settings"]["env.control.mode"] == "joint_pos"
        assert store.specs["action"].names == (*(f"joint{i}" for i in range(1, 8)), "gripper")
    assert main([*words, "episodes=3"]) == 2
    error = capsys.readouterr().err
    assert (
        "was generated with text=lift the 'red' cube, please; this command says text=lift: give another out=" in error
    )
    assert main([*words, "episodes=3", "text=lift the 'red' cube, please"]) == 0
    assert "3 kept of " in capsys.readouterr().out
    assert main(["data", "validate", "lift.zarr"]) == 0
