from __future__ import annotations

from pathlib import Path

import pytest

from tests.envs.suite_fixtures import install_toy
from visuomotor.configs.cli import main
from visuomotor.configs.compose import compose_train
from visuomotor.data.store import DemoStore
from visuomotor.envs.suites.client import SuiteConfig


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The suite ``toy`` is installed, with this Python, and no other."""
    install_toy(monkeypatch, tmp_path)


def test_list_shows_what_is_there_and_what_installs_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "list"]) == 0
    rows = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if len(line.split()) > 3}
    assert "yes" in rows["toy"].split()
    assert "visuomotor envs install robosuite" in rows["robosuite"]
    assert main(["envs", "list", "toy"]) == 0
    out = capsys.readouterr().out
    assert "toy==1.0" in out
    assert out.splitlines()[-3:] == ["toy:slow", "toy:still", "toy:walk"]
    assert main(["envs", "list", "metaworld"]) == 0
    assert "visuomotor envs install metaworld" in capsys.readouterr().out


def test_check_tries_a_suite_and_our_own_tasks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "toy.png"
    assert main(["envs", "check", "toy:walk", "steps=5", f"picture={picture}", "env.max_episode_steps=4"]) == 0
    out = capsys.readouterr().out
    assert "at most 4 steps" in out
    assert "ok   an episode is a function of its seed: bit for bit" in out
    assert "FAIL" not in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["envs", "check", "cartpole", "steps=3"]) == 0
    assert "ok   its neighbours do not matter" in capsys.readouterr().out


def test_a_place_for_the_picture_is_looked_for_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["envs", "check", "cartpole", f"picture={tmp_path / 'no' / 'a.png'}"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "expected a .png file in a folder that exists" in said.err


def test_demos_without_a_place_say_so_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "demos", "toy:walk"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "give out=<zarr>" in said.err


def test_check_fails_on_a_promise_that_is_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "check", "toy:loose", "steps=5"]) == 1
    out = capsys.readouterr().out
    assert "FAIL an episode is a function of its seed: picture differs by" in out
    assert "FAIL it reports success or score" in out
    assert "FAIL it renders: " in out
    assert "ok   observations are what the spec says" in out


def test_demos_make_a_store_that_task_suite_trains_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "demos.zarr"
    words = ["envs", "demos", "toy:walk", f"out={out}", "episodes=2", "num_envs=2", "hold=0", "env.workers=1"]
    assert main([*words, "env.max_episode_steps=30"]) == 0
    assert "2 kept of" in capsys.readouterr().out
    with DemoStore.open(out) as store:
        assert store.n_episodes == 2
        assert store.episode_columns["task"].tolist() == ["walk", "walk"]
    composed = compose_train(["task=suite", "env.id=toy:walk", f"data={out}", "obs.keys=[position]"])
    assert composed.config.env == SuiteConfig(id="toy:walk")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lst"], "Did you mean 'list'|Known"),
        (["install"], "the name of one suite"),
        (["install", "metawrld"], "metaworld"),
        (["check"], "give an id"),
        (["check", "toy:walk", "stps=3"], "'steps'"),
        (["check", "toy:walk", "env.imgs=[a]"], "'images'"),
        (["check", "robosuite:Lift"], "visuomotor envs install robosuite"),
        (["demos", "toy:walk"], "out="),
        (["demos", "toy:walk", "episodes=0"], "episodes=0"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", *words]) == 2
    err = capsys.readouterr().err
    assert any(s in err for s in said.split("|"))
    assert len(err.splitlines()) == 1
