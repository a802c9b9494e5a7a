"""``visuomotor data import`` as it is typed: what it prints, what it returns, what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from visuomotor.configs.cli import main
from visuomotor.data.store import DemoStore


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    """Twelve files, three of which cannot be used."""
    folder = tmp_path / "my demos, 1"
    folder.mkdir()
    for i in range(12):
        n = 3 + i
        width = 5 if i in (3, 7) else 2
        np.savez(folder / f"ep{i}.npz", action=np.full((n, width), i, np.float32), state=np.zeros((n, 4)))
    (folder / "ep9.npz").write_bytes((folder / "ep9.npz").read_bytes()[:-70] + bytes(70))
    return folder


def test_import(demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (demos / "ep9.npz").unlink()
    out, report = tmp_path / "a b.zarr", tmp_path / "report.json"
    words = [str(demos), str(out), "fps=20", "rename={state: pose}", f"report={report}", "roles={state: privileged}"]
    assert main(["data", "import", *words]) == 1  # two episodes were left out
    printed = capsys.readouterr().out
    assert f"{demos}: npz, 11 episodes" in printed
    assert (
        "left out: episode ep3: 'action' has shape [6, 5]: expected [L, 2] -- and 1 more like it (episodes ep7)"
        in printed
    )
    assert "9 episodes, 74 steps (9 episodes added now, 2 left out)" in printed
    with DemoStore.open(out) as store:
        assert store.keys == ("action", "pose")
        assert store.fps == 20
        assert store.specs["pose"].role == "privileged"
    written = json.loads(report.read_text())
    assert (written["format"], written["added"], sorted(written["skipped"])) == ("npz", 9, ["ep3", "ep7"])
    assert main(["data", "import", *words]) == 1
    assert "(0 episodes added now, 2 left out)" in capsys.readouterr().out
    assert main(["data", "import", *words, "fps=30"]) == 2
    assert "fps: the store has 20.0, this import 30.0" in capsys.readouterr().err


def test_episodes_are_picked_and_the_exit_status_is_good(demos: Path, tmp_path: Path) -> None:
    (demos / "ep9.npz").unlink()
    words = ["data", "import", f"source={demos}", f"store={tmp_path / 'a.zarr'}", "episodes=[0,10]", "keys=[action]"]
    assert main(words) == 0
    with DemoStore.open(tmp_path / "a.zarr") as store:
        assert [int(store.episode(i)["action"][0, 0]) for i in range(2)] == [0, 11]


def test_dry_run_lists_and_writes_nothing(demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (demos / "ep9.npz").unlink()
    assert main(["data", "import", str(demos), str(tmp_path / "a.zarr"), "dry_run=true", "fps=10"]) == 0
    printed = capsys.readouterr().out
    assert "10 Hz" in printed
    assert "  action: float32 [2], action" in printed
    assert "11 episodes, 90 steps" in printed
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=npy"], "unknown format 'npy'. Did you mean 'npz'?"),
        (["keys=[stat]"], "no array 'stat'. Did you mean 'state'?"),
        (["episode=[1]"], "episode"),
        (["workers=0"], "workers=0: expected 1 or more"),
        (["options.level=3"], "format npz has no option 'level'"),
        (["report=/nowhere/a.json", "episodes=[0]"], "/nowhere/a.json cannot be written"),
    ],
)
def test_mistakes_are_one_sentence(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (demos / "ep9.npz").unlink()
    assert main(["data", "import", str(demos), str(tmp_path / "a.zarr"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_damaged_file_is_left_out_and_named(demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "import", str(demos), str(tmp_path / "a.zarr")]) == 1
    printed = capsys.readouterr().out
    assert f"left out: episode ep9: {demos / 'ep9.npz'} is no zip archive" in printed
    assert "9 episodes, 74 steps (9 episodes added now, 3 left out)" in printed


def test_help_says_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "import", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Known: " in printed
    assert "zarr, npz" in printed
