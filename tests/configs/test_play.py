"""``visuomotor play``: settings, who acts, policies and goals, and the window that is not there."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

from visuomotor.configs.cli import main
from visuomotor.configs.compose import parse_plain
from visuomotor.configs.play import PlayConfig, play
from visuomotor.data.errors import ConfigError, UserError
from visuomotor.data.store import DemoStore
from visuomotor.envs.play import Played, SystemClock
from visuomotor.envs.teleop import Event


class Script:
    """One list of events a control step; then quits."""

    def __init__(self, *events: list[Event]) -> None:
        self.events = list(events)

    def poll(self) -> list[Event]:
        return self.events.pop(0) if self.events else [Event("quit")]


class Hurry(SystemClock):
    """Does not wait."""

    def sleep(self, seconds: float) -> None:
        pass


class Glass:
    """A window that only notes what it would show."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def show(self, status: str) -> bool:
        self.shown.append(status)
        return True


def run(config: PlayConfig, *events: list[Event]) -> tuple[Played, list[str]]:
    glass = Glass()

    @contextmanager
    def window(env):
        yield glass

    return play(config, Script(*events), window, Hurry()), glass.shown


UP = [Event("move", (0.0, 0.0, 1.0, 0.0, 0.0, 0.0))]
SMALL = ["env.engine.threads=1"]


def test_a_person_acts_and_records_what_generate_would(tmp_path):
    """Also the cameras that are asked for, and longer than the time limit of the task."""
    path = tmp_path / "demos.zarr"
    config = parse_plain(
        PlayConfig,
        ["task=lift", f"record={path}", "env.cameras={names:[front],height:16,width:16}", "text=lift it", *SMALL],
    )
    played, shown = run(config, UP, *[[] for _ in range(159)], [Event("success")])
    assert (played.kept, played.steps) == (1, 161)
    assert shown[0] == "you act, step 1, 1 x real time, 0 recorded"
    with DemoStore.open(path) as store:
        assert {"action", "reward", "front", "object", "joint_pos"} <= set(store.specs)
        assert "is_intervention" not in store.specs  # a person acts always: there is nothing to tell apart
        assert list(store.episode_columns["task"]) == ["lift it"]
        action = store.read("action", 0, store.n_steps)
    np.testing.assert_allclose(action[:3, 2], 0.2 / 20, atol=1e-5)


def test_the_expert_is_watched(tmp_path):
    config = parse_plain(PlayConfig, ["task=lift", "device=viewer", "episodes=1", "hold=0", *SMALL])
    played, shown = run(config, *[[] for _ in range(200)])
    assert played.kept == 1
    assert shown[0].startswith("watching, step 1")


def test_a_policy_acts_until_somebody_takes_over(tmp_path):
    """Hardly trained: who acts and what is recorded does not depend on how good it is."""
    demos, path = tmp_path / "demos.zarr", tmp_path / "fixes.zarr"
    config = parse_plain(PlayConfig, ["task=lift", "device=viewer", "episodes=2", f"record={demos}", *SMALL])
    run(config, *[[] for _ in range(400)])
    run_dir = tmp_path / "run"
    words = ["task=lift", f"data.path={demos}", f"run_dir={run_dir}", "policy=flow", "train.steps=2", "eval.episodes=0"]
    assert main(["train", *words, "data.val_fraction=0", "train.batch_size=8", "device=cpu", "threads=1"]) == 0
    config = parse_plain(PlayConfig, [f"checkpoint={run_dir}", f"record={path}", *SMALL])
    played, _ = run(config, [], [], [Event("takeover"), *UP], [], [Event("takeover")], [], [Event("success")])
    assert played.kept == 1
    with DemoStore.open(path) as store:
        human = store.read("is_intervention", 0, store.n_steps).tolist()
    assert human == [False, False, True, True, False, False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give task=<name>, or checkpoint=<run>"),
        (["task=lift", "device=keybord"], "unknown device 'keybord'.*'keyboard'"),
        (["task=lift", "speed=0"], "speed=0: expected more than 0"),
        (["task=lift", "hand_speed=nan"], "hand_speed=nan: expected more than 0"),
        (["task=lift", "seed=2000000"], "seed=2000000: expected 0 to 1000000"),
        (["task=lift", "episodes=-1"], "episodes=-1: expected 0 or more"),
        (["task=lift", "recrod=x"], "unknown setting 'recrod'.*'record'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_plain(PlayConfig, words)


def test_a_task_of_another_simulator_has_no_window():
    pytest.importorskip("gym_pusht")
    with pytest.raises(ConfigError, match="task 'pusht' runs in another simulator"):
        run(parse_plain(PlayConfig, ["task=pusht"]))


def test_without_a_screen_one_sentence_says_so(monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert main(["play", "task=lift", *SMALL]) == 2
    assert "there is no screen" in capsys.readouterr().err


def test_a_recording_that_fails_leaves_nothing_open(tmp_path):
    config = parse_plain(PlayConfig, ["task=lift", f"record={tmp_path / 'd.zarr'}", *SMALL])

    class Broken(Script):
        def poll(self) -> list[Event]:
            raise UserError("unplugged")

    @contextmanager
    def window(env):
        yield Glass()

    with pytest.raises(UserError, match="unplugged"):
        play(config, Broken(), window, Hurry())
    with DemoStore.open(tmp_path / "d.zarr", "a") as store:
        assert store.n_episodes == 0


def test_help_lists_settings_and_keys(capsys):
    assert main(["play", "--help"]) == 0
    out = capsys.readouterr().out
    assert "hand_speed=0.2" in out
    assert "Page Up" in out
