"""The episode recorder: what it commits, what it refuses, and that it keeps nothing in memory."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from visuomotor.data.compaction import Compaction
from visuomotor.data.errors import DataError
from visuomotor.data.journal import StagedEpisode
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


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come about")


def test_memory_is_bounded_and_what_fills_it_goes_to_disk(empty: Path) -> None:
    row = 2 * 4 + 8 + 8 * 8 * 3 + 1
    with DemoStore.open(empty, "a") as store, EpisodeRecorder(store, buffer_bytes=64 * row) as recorder:
        recorder.start()
        for i in range(1003):
            recorder.step(step(i % 100))
        assert recorder._pool.rows == 8
        written = sum(f.stat().st_size for f in store.journal_path.rglob("img.bin"))
        assert written >= (1003 - 64) * 192 - (1 << 16), "no more than the buffer and what a file holds back"
        recorder.end({"task": "", "success": True, "score": 0})
        assert np.array_equal(store.read("img", 0, 1003)[:, 0, 0, 0], np.arange(1003) % 100)


def test_a_step_is_copied(empty: Path) -> None:
    q = np.zeros(2, np.float32)
    with EpisodeRecorder(empty) as recorder:
        recorder.start({"task": "", "success": True, "score": 0})
        for i in range(3):
            q[:] = i
            recorder.step({**step(0), "q": q})
        recorder.end()
        assert recorder.store.read("q", 0, 3)[:, 0].tolist() == [0, 1, 2]


class Disk:
    """Stands between recorder and disk: :attr:`open` lets writes through; the call ``fails_at`` fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int = -1) -> None:
        self.open, self.calls = threading.Event(), 0
        real = StagedEpisode.write

        def write(staged: StagedEpisode, rows: Mapping[str, np.ndarray], n: int) -> None:
            assert self.open.wait(10)
            self.calls += 1
            if self.calls == fails_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(staged, rows, n)

        monkeypatch.setattr(StagedEpisode, "write", write)


def test_a_disk_that_does_not_keep_up_is_said_and_the_steps_before_are_kept(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    with EpisodeRecorder(empty, buffer_bytes=1, max_wait_s=0.0) as recorder:  # two blocks of one step
        recorder.start({"task": "", "success": True, "score": 0})
        recorder.step(step(0))
        recorder.step(step(1))
        for _ in range(2):
            with pytest.raises(DataError, match=r"the disk does not keep up: .* full for 0 s, so step 2 was refused"):
                recorder.step(step(2))
        disk.open.set()
        wait_for(lambda: disk.calls == 2)
        with pytest.raises(DataError, match="step 2 was refused"):
            recorder.step(step(3))  # there is room again, but the episode would have a hole
        assert (recorder.load.waits, recorder.load.refused, recorder.n_steps) == (1, 3, 2)
        recorder.end()
        recorder.start({"task": "", "success": True, "score": 0})
        recorder.step(step(7))
        recorder.end()
    with DemoStore.open(empty) as store:
        assert store.episode_ends.tolist() == [2, 3]
        assert store.read("q", 0, 3)[:, 0].tolist() == [0, 1, 7]


def test_a_step_waits_for_room_and_the_wait_is_counted(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    with EpisodeRecorder(empty, buffer_bytes=1, max_wait_s=10.0) as recorder:
        recorder.start({"task": "", "success": True, "score": 0})
        recorder.step(step(0))
        recorder.step(step(1))
        threading.Timer(0.05, disk.open.set).start()
        recorder.step(step(2))
        assert recorder.load.waits >= 1
        assert 0 < recorder.load.longest_wait_s < 10
        assert recorder.load.refused == 0
        assert recorder.end() == 0


def test_a_full_disk_is_told_at_the_next_step_and_the_next_episode_can_be_recorded(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, fails_at=2)
    disk.open.set()
    with EpisodeRecorder(empty, buffer_bytes=1) as recorder:
        recorder.start({"task": "", "success": True, "score": 0})
        recorder.step(step(0))
        recorder.step(step(1))
        episode = recorder._episode
        assert episode is not None
        wait_for(lambda: episode.error is not None)
        with pytest.raises(DataError, match=r"lost after 2 steps: No space left on device. The store is unchanged"):
            recorder.step(step(2))
        assert not recorder.recording
        assert [p.name for p in recorder.store.journal_path.iterdir()] == [".lock"]
        recorder.start({"task": "", "success": True, "score": 0})
        recorder.step(step(3))
        assert recorder.end() == 0


def test_steps_after_an_end_that_ctrl_c_stopped_are_kept(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with EpisodeRecorder(empty) as recorder:
        recorder.start({"task": "", "success": True, "score": 0})
        recorder.step(step(3))
        episode = recorder._episode
        assert episode is not None
        with monkeypatch.context() as patched:
            patched.setattr(episode._thread, "join", interrupted)
            with pytest.raises(KeyboardInterrupt):
                recorder.end()
        wait_for(lambda: not episode._thread.is_alive())
        recorder.step(step(4))
        recorder.end()
        assert recorder.store.read("q", 0, 2)[:, 0].tolist() == [3, 4]


def test_the_journal_is_compacted_while_the_next_episode_is_recorded(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    real = Compaction._run

    def slow(compaction: Compaction) -> None:
        begun.set()
        assert go_on.wait(10)
        real(compaction)

    monkeypatch.setattr(Compaction, "_run", slow)
    with DemoStore.open(empty, "a", journal_bytes=0) as store, EpisodeRecorder(store) as recorder:
        for episode in range(3):
            recorder.start({"task": f"{episode}", "success": True, "score": 0})
            for i in range(5):
                recorder.step(step(10 * episode + i))
            assert recorder.end() == episode
            assert begun.wait(10)
            if episode == 1:  # the first is still on its way; all can be read
                assert (len(store.array_ends), len(store.journal)) == (0, 2)
                assert store.read("q", 0, 10)[:, 0].tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
                go_on.set()
                wait_for(lambda: not store._moving.running)  # type: ignore[union-attr]
        assert len(store.array_ends) >= 1
        assert store.n_episodes == 3
        assert store.episode_columns["task"].tolist() == ["0", "1", "2"]
        expected = [10 * e + i for e in range(3) for i in range(5)]
        assert store.read("q", 0, 15)[:, 0].tolist() == expected
    assert {p.name for p in empty.iterdir()} == {"zarr.json", "data", "meta"}
    with DemoStore.open(empty) as store:
        assert len(store.array_ends) == 3
        assert store.read("q", 0, 15)[:, 0].tolist() == expected


def test_a_background_compaction_that_fails_is_told_and_loses_nothing(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = Compaction._run, [OSError(errno.ENOSPC, "No space left on device")]

    def failing(compaction: Compaction) -> None:
        if failures:
            raise failures.pop()
        real(compaction)

    monkeypatch.setattr(Compaction, "_run", failing)
    with DemoStore.open(empty, "a", journal_bytes=0) as store, EpisodeRecorder(store) as recorder:
        for episode in range(2):
            recorder.start({"task": "", "success": True, "score": 0})
            recorder.step(step(episode))
            if episode == 0:
                recorder.end()
                wait_for(lambda: not store._moving.running)  # type: ignore[union-attr]
                continue
            with pytest.raises(DataError, match=r"episodes 0 to 0 are safe in the journal but .*: No space left"):
                recorder.end()
            assert not recorder.recording
        assert store.n_episodes == 2
    with DemoStore.open(empty) as store:
        assert store.read("q", 0, 2)[:, 0].tolist() == [0, 1]


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
