"""The import itself: order, going on after any stop, what is refused, what one bad episode does to the others."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.importing import run as run_module
from visuomotor.data.importing.registry import detect, format_names, open_source
from visuomotor.data.importing.run import Selection, import_demos
from visuomotor.data.importing.source import EpisodeInfo, Source, SourceEpisode
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import Finding


class Numbers(Source):
    """Episode ``i`` holds ``i`` in each of its ``2 + i % 3`` steps; some cannot be read."""

    format = "numbers"

    def __init__(self, n: int, bad: Mapping[int, Exception] | None = None, fps: float | None = 10.0) -> None:
        self.path, self.fps, self.columns, self.findings = Path("numbers.src"), fps, {"task": "str"}, []
        self.specs = {
            "state": ArraySpec(shape=(2,), role="observation"),
            "action": ArraySpec(shape=(1,), role="action"),
        }
        self.episodes = [EpisodeInfo(id=f"e{i}", length=2 + i % 3) for i in range(n)]
        self.bad, self.lock = dict(bad or {}), threading.Lock()
        self.live = self.most = 0
        self.delay = 0.0

    @classmethod
    def recognises(cls, path: Path) -> str | None:
        return None

    def read(self, index: int) -> SourceEpisode:
        with self.lock:
            self.live += 1
            self.most = max(self.most, self.live)
        time.sleep(self.delay * ((index * 7) % 3))  # later ones overtake earlier ones
        with self.lock:
            self.live -= 1
        if index in self.bad:
            raise self.bad[index]
        n = 2 + index % 3
        arrays = {"state": np.full((n, 2), index, np.float32), "action": np.full((n, 1), index, np.float32)}
        finding = Finding(severity="warning", array="state", episode=index, message="looked at")
        return SourceEpisode(arrays=arrays, columns={"task": f"task {index}"}, findings=(finding,))


def first_values(path: Path, key: str = "state") -> list[int]:
    with DemoStore.open(path) as store:
        return [int(store.episode(i)[key][0, 0]) for i in range(store.n_episodes)]


@pytest.mark.parametrize("workers", [1, 3])
def test_episodes_come_in_order_with_their_columns(tmp_path: Path, workers: int) -> None:
    source = Numbers(12)
    source.delay = 0.004
    seen: list[tuple[int, int]] = []
    report = import_demos(
        source, tmp_path / "a.zarr", workers=workers, on_progress=lambda done, total: seen.append((done, total))
    )
    assert first_values(tmp_path / "a.zarr") == list(range(12))
    assert (report.episodes, report.added, report.steps) == (12, 12, sum(2 + i % 3 for i in range(12)))
    assert len(report.findings) == 12
    assert seen == [(i, 12) for i in range(1, 13)]
    assert source.most <= workers
    with DemoStore.open(tmp_path / "a.zarr") as store:
        assert store.fps == 10
        assert list(store.episode_columns["task"]) == [f"task {i}" for i in range(12)]
        assert list(store.episode_columns["source_episode"]) == [f"e{i}" for i in range(12)]
        assert store.origin["format"] == "numbers"


def test_memory_holds_few_episodes(tmp_path: Path) -> None:
    """With one more worker than nothing to do, no more than ``workers + 1`` decoded episodes wait."""
    source, waiting = Numbers(20), []
    reading, writing = source.read, run_module._append
    alive = [0]

    def read(index: int) -> SourceEpisode:
        alive[0] += 1
        return reading(index)

    def append(*args: Any) -> Any:
        time.sleep(0.01)  # a slow disk: decoded episodes would pile up
        waiting.append(alive[0])
        alive[0] -= 1
        return writing(*args)

    source.read = read  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_append", append)
        import_demos(source, tmp_path / "a.zarr", workers=3)
    assert max(waiting) <= 4


def test_workers_fit_into_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = Numbers(6)  # longest episode: 4 steps of 3 float32, 48 bytes
    source.delay = 0.003
    monkeypatch.setattr(run_module, "free_ram", lambda: 48 * 6)  # half of it: two workers and what is being written
    import_demos(source, tmp_path / "a.zarr", workers=5)
    assert source.most <= 2
    monkeypatch.setattr(run_module, "free_ram", lambda: 47)
    with pytest.raises(DataError, match=r"episode e2 with 4 steps takes 4\.8e-08 GB"):
        import_demos(Numbers(6), tmp_path / "b.zarr")
    assert not (tmp_path / "b.zarr").exists()


def test_selection(tmp_path: Path) -> None:
    selection = Selection(
        keys=("state", "action"), drop=("action",), rename={"state": "pose"}, episodes=(4, 0, 4),
        roles={"state": "privileged"},
    )  # fmt: skip
    import_demos(Numbers(6), tmp_path / "a.zarr", selection=selection)
    assert first_values(tmp_path / "a.zarr", "pose") == [4, 0]
    with DemoStore.open(tmp_path / "a.zarr") as store:
        assert store.keys == ("pose",)
        assert store.specs["pose"].role == "privileged"
    import_demos(Numbers(6), tmp_path / "a.zarr", selection=Selection(**{**vars(selection), "episodes": (0, 5)}))
    assert first_values(tmp_path / "a.zarr", "pose") == [4, 0, 5]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(keys=("stat",)), "no array 'stat'. Did you mean 'state'"),
        (Selection(rename={"state": "action"}), "one name"),
        (Selection(drop=("state", "action")), "nothing to import"),
        (Selection(episodes=(3,)), "no episode 3: it has 3"),
        (Selection(episodes=(-1,)), "no episode -1"),
        (Selection(roles={"state": "observaton"}), "unknown role"),
        (Selection(fps=20.0), "says 10 steps a second"),
        (Selection(fps=-1.0), "positive"),
    ],
)
def test_wrong_selections(tmp_path: Path, selection: Selection, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_demos(Numbers(3), tmp_path / "a.zarr", selection=selection)
    assert list(tmp_path.iterdir()) == []


def test_rate_is_given_where_the_source_does_not_say(tmp_path: Path) -> None:
    import_demos(Numbers(1, fps=None), tmp_path / "a.zarr", selection=Selection(fps=12.5))
    with DemoStore.open(tmp_path / "a.zarr") as store:
        assert store.fps == 12.5


def test_damaged_episodes_are_left_out_and_named(tmp_path: Path) -> None:
    bad = {1: DataError("x.bin: cut short"), 3: IndexError("depths"), 4: MemoryError()}
    report = import_demos(Numbers(6, bad), tmp_path / "a.zarr", workers=2)
    assert first_values(tmp_path / "a.zarr") == [0, 2, 5]
    assert report.skipped == {
        "e1": "x.bin: cut short",
        "e3": "it cannot be read: IndexError: depths",
        "e4": "reading it takes more memory than there is",
    }
    report = import_demos(Numbers(6), tmp_path / "a.zarr")  # mended since
    assert first_values(tmp_path / "a.zarr") == [0, 2, 5, 1, 3, 4]
    assert (report.added, report.skipped) == (3, {})
    with pytest.raises(DataError, match=r"episode e1: x\.bin: cut short"):
        import_demos(Numbers(6, bad), tmp_path / "b.zarr", skip_damaged=False)
    assert first_values(tmp_path / "b.zarr") == [0]


def test_text_that_is_no_unicode_is_stored(tmp_path: Path) -> None:
    source = Numbers(1)
    reading = source.read
    bad = {"task": "push \ud800 it"}
    source.read = lambda i: SourceEpisode(arrays=reading(i).arrays, columns=bad)  # type: ignore[assignment, method-assign]
    import_demos(source, tmp_path / "a.zarr")
    with DemoStore.open(tmp_path / "a.zarr") as store:
        assert list(store.episode_columns["task"]) == ["push ? it"]


def test_ctrl_c_leaves_whole_episodes_and_no_thread(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    before = threading.active_count()
    source = Numbers(50)
    source.delay = 0.001
    with pytest.raises(KeyboardInterrupt):
        import_demos(source, tmp_path / "a.zarr", workers=3, on_progress=stop)
    assert not [t for t in threading.enumerate() if t.name.startswith("import")]
    assert threading.active_count() <= before + 2  # zarr keeps its own
    assert first_values(tmp_path / "a.zarr") == [0, 1, 2]
    import_demos(Numbers(50), tmp_path / "a.zarr")
    assert first_values(tmp_path / "a.zarr") == list(range(50))


def changed(**values: Any) -> Numbers:
    source = Numbers(4)
    for name, value in values.items():
        setattr(source, name, value)
    return source


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        (changed(path=Path("other.src")), {}, "source: the store has numbers.src, this import other.src"),
        (changed(), {"shift": 1}, "options shift: the store has none, this import 1"),
        (changed(fps=20.0), {}, r"fps: the store has 10\.0, this import 20\.0"),
        (changed(columns={}), {}, "column task: the store has str, this import none"),
        (changed(episodes=[EpisodeInfo(id="e0", length=9)]), {}, "its episode e0 has 2 steps, the source's 9"),
        (changed(episodes=[EpisodeInfo(id="new", length=2)]), {}, "holds episode e0, which the source does not have"),
    ],
)
def test_other_settings_are_refused_with_what_differs(
    tmp_path: Path, source: Numbers, options: dict[str, Any], says: str
) -> None:
    import_demos(Numbers(3), tmp_path / "a.zarr")
    with pytest.raises(DataError, match=says) as caught:
        import_demos(source, tmp_path / "a.zarr", options=options)
    assert str(caught.value).count("the store has") <= 1  # nothing that is the same is told
    assert first_values(tmp_path / "a.zarr") == [0, 1, 2]
    import_demos(Numbers(4), tmp_path / "a.zarr")  # its lock was given back


def test_episodes_of_one_id_are_refused(tmp_path: Path) -> None:
    source = changed(episodes=[EpisodeInfo(id="x", length=2), EpisodeInfo(id="x", length=3)])
    with pytest.raises(DataError, match="two episodes are called 'x'"):
        import_demos(source, tmp_path / "a.zarr")
    with pytest.raises(DataError, match="no name of an episode"):
        import_demos(changed(episodes=[EpisodeInfo(id="a\udc80", length=2)]), tmp_path / "a.zarr")


def test_stores_of_others_are_never_touched(tmp_path: Path) -> None:
    DemoStore.create(tmp_path / "a.zarr", Numbers(1).specs).close()
    with pytest.raises(DataError, match=r"is not what an import of numbers\.src"):
        import_demos(Numbers(3), tmp_path / "a.zarr")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError):
        import_demos(Numbers(3), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_detection_names_what_it_knows(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"of no format known here\. Known: .*npz"):
        detect(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        open_source(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"unknown format 'zar'\. Did you mean 'zarr'"):
        open_source(tmp_path, "zar")
    assert {"zarr", "npz"} <= set(format_names())


# ---------------------------------------------------------------- kill -9

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Send one command to the process that imports in a child and kills it."""
    script = Path(__file__).with_name("import_worker.py")
    worker = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=script.parent
    )
    stdin, stdout = cast(Any, worker.stdin), cast(Any, worker.stdout)

    def send(**command: Any) -> dict[str, Any]:
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer

    yield send
    stdin.close()
    worker.wait(timeout=30)


def contents(path: Path, skip: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file of a store."""
    files = (p for p in sorted(path.rglob("*")) if p.is_file())
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in files if p.name not in skip}


def test_killed_imports_go_on_to_the_same_bits(tmp_path: Path, ask: Ask) -> None:
    rng, random_state = np.random.default_rng(0), random.Random(1)
    (tmp_path / "demos").mkdir()
    for i in range(40):
        n = int(rng.integers(5, 30))
        arrays: dict[str, Any] = {
            "image": rng.integers(0, 255, (n, 24, 24, 3), np.uint8),
            "action": rng.random((n, 3), np.float32),
        }
        np.savez_compressed(tmp_path / "demos" / f"episode_{i}.npz", **arrays, task=np.array(f"task {i}"))
    whole = tmp_path / "whole.zarr"
    begun = time.monotonic()
    assert ask(source=str(tmp_path / "demos"), store=str(whole), workers=2, seconds=120)["status"] == 0
    took = time.monotonic() - begun
    kills = 0
    for trial in range(3):
        path = tmp_path / f"killed{trial}.zarr"
        for _ in range(12):
            seconds = random_state.uniform(0.1, 0.8) * took
            answer = ask(source=str(tmp_path / "demos"), store=str(path), workers=1 + trial, seconds=seconds)
            if answer["finished"]:
                break
            kills += 1
        if not answer["finished"]:
            answer = ask(source=str(tmp_path / "demos"), store=str(path), workers=2, seconds=120)
        assert answer == {"finished": True, "status": 0}
        assert contents(path) == contents(whole)
    assert kills >= 3
