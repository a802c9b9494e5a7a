"""The episode recorder: what it commits, what it refuses, and that it keeps nothing in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from visuomotor.data.errors import DataError
from visuomotor.data.recorder import EpisodeRecorder
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    specs = {
        "q": ArraySpec(shape=(2,), role="observation", names=("shoulder", "elbow")),
        "time": ArraySpec(shape=(), dtype="float64", role="timestamp"),
        "img": ArraySpec(shape=(8, 8, 3), dtype="uint8", role="observation"),
        "is_intervention": ArraySpec(shape=(), dtype="bool", role="intervention"),
    }
    path = tmp_path / "a.zarr"
    DemoStore.create(
        path, specs, fps=10, episode_columns={"task": "str", "success": "bool", "score": "float64"}
    ).close()
    return path


def step(i: int) -> dict[str, object]:
    return {"q": [i, -i], "time": 0.1 * i, "img": np.full((8, 8, 3), i, np.uint8), "is_intervention": i == 2}


def test_recorded_steps_are_the_episode(empty: Path) -> None:
    with EpisodeRecorder(empty) as recorder:
        for n in (3, 5):
            recorder.start({"task": "push"})
            assert recorder.recording
            for i in range(n):
                recorder.step(step(i))
            assert recorder.n_steps == n
            recorder.end({"success": np.bool_(n == 5), "score": 1})
            assert not recorder.recording
    with DemoStore.open(empty) as store:
        assert store.episode_ends.tolist() == [3, 8]
        last = store.episode(1)
        assert last["q"].tolist() == [[0, 0], [1, -1], [2, -2], [3, -3], [4, -4]]
        assert last["time"].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
        assert last["img"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
        assert last["is_intervention"].tolist() == [False, False, True, False, False]
        assert {k: v.tolist() for k, v in store.episode_columns.items()} == {
            "task": ["push", "push"], "success": [False, True], "score": [1.0, 1.0],
        }  # fmt: skip


def test_discarded_and_unfinished_episodes_leave_nothing(empty: Path) -> None:
    with DemoStore.open(empty, "a") as store:
        with EpisodeRecorder(store) as recorder:
            recorder.start()
            recorder.step(step(0))
            recorder.discard()
            recorder.discard()
            recorder.start()
            recorder.step(step(0))
        assert [p.name for p in store.journal_path.iterdir()] == [".lock"]
        assert store.n_episodes == 0
        EpisodeRecorder(store).start()  # the store outlives a recorder that it was given to
    assert not (empty / "journal" / ".lock").exists()


def test_a_large_value_goes_to_disk_at_once(empty: Path) -> None:
    with DemoStore.open(empty, "a") as store, EpisodeRecorder(store) as recorder:
        recorder.start()
        for i in range(500):
            recorder.step(step(i % 100))
        on_disk = sum(f.stat().st_size for f in store.journal_path.rglob("*.bin"))
        assert on_disk >= 500 * 8 * 8 * 3 - (1 << 16), "no more than one buffer is held back"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": [1.0]}, r"'q' has shape \[1\]: expected \[2\]"),
        ({"q": [0.0, float("nan")]}, r"'q' is nan, component 1 \(elbow\): every value must be finite"),
        ({"img": np.zeros((8, 8, 3), np.float32)}, r"'img' has type float32: expected uint8"),
        ({"depth": 0.0}, r"unknown array 'depth'"),
        ({"q": [[1.0], [2.0, 3.0]]}, r"'q' is not an array"),
        ({"time": float("inf")}, r"'time' is inf: every value"),
    ],
)
def test_a_wrong_step_is_refused_and_the_recording_goes_on(empty: Path, change: dict, message: str) -> None:
    with EpisodeRecorder(empty) as recorder:
        recorder.start({"task": "", "success": True, "score": 0.5})
        recorder.step(step(0))
        with pytest.raises(DataError, match=message):
            recorder.step({**step(1), **change})
        recorder.step(step(2))
        recorder.end()
    with DemoStore.open(empty) as store:
        assert store.episode(0)["q"].tolist() == [[0, 0], [2, -2]], "all arrays or none took the refused step"


def test_calls_out_of_order_say_what_to_call(empty: Path) -> None:
    with EpisodeRecorder(empty) as recorder:
        with pytest.raises(DataError, match=r"call start\(\) first"):
            recorder.step(step(0))
        with pytest.raises(DataError, match=r"unknown episode column 'sucess'. Did you mean 'success'"):
            recorder.start({"sucess": True})
        recorder.start()
        with pytest.raises(DataError, match=r"an episode of 0 steps is being recorded: end\(\) or discard\(\)"):
            recorder.start()
        with pytest.raises(DataError, match=r"the episode has no steps"):
            recorder.end()
        recorder.step(step(0))
        with pytest.raises(DataError, match=r"missing episode column 'score', 'success', 'task'"):
            recorder.end()
        assert recorder.end({"task": "t", "success": False, "score": 0.0}) == 0
    with pytest.raises(DataError, match=r"nothing is there"):
        EpisodeRecorder(empty.parent / "b.zarr")
