"""Episodes written by several processes: the same store as by one, whatever the processes do, also after a kill."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visuomotor.data.compaction import Compaction
from visuomotor.data.errors import DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.writers import EpisodeWriter, StagedFiles, add_episode, discard_staged

SPECS = {
    "q": ArraySpec(shape=(2,), role="observation"),
    "img": ArraySpec(shape=(40, 40, 3), dtype="uint8", role="observation"),
}
WORKER = """
import pickle, sys
from pathlib import Path
import numpy as np
from visuomotor.data.writers import EpisodeWriter
writer = EpisodeWriter(Path(sys.argv[1]))
for line in sys.stdin:
    rng, n = np.random.default_rng(int(line)), 1 + int(line) % 5
    arrays = {"q": rng.normal(size=(n, 2)).astype("f4"), "img": rng.integers(0, 255, (n, 40, 40, 3), "u1")}
    pickle.dump(writer.write(arrays), sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


def episode(seed: int) -> dict[str, np.ndarray]:
    rng, n = np.random.default_rng(seed), 1 + seed % 5
    return {"q": rng.normal(size=(n, 2)).astype("f4"), "img": rng.integers(0, 255, (n, 40, 40, 3), "u1")}


def create(path: Path, journal_bytes: int = 1 << 30) -> DemoStore:
    return DemoStore.create(path, SPECS, episode_columns={"seed": "int64"}, journal_bytes=journal_bytes)


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by one process."""
    path = tmp_path_factory.mktemp("alone") / "a.zarr"
    with create(path) as store:
        for seed in range(12):
            add_episode(store, episode(seed), {"seed": seed})
    return path


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_processes_writes_the_same_files(alone: Path, tmp_path: Path, workers: int) -> None:
    path = tmp_path / "a.zarr"
    with create(path) as store:
        pool = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            for _ in range(workers)
        ]  # fmt: skip
        for seed in range(12):  # all of it is asked for at once: whoever is quick is ahead
            pipe = pool[seed % workers].stdin
            assert pipe is not None
            pipe.write(b"%d\n" % seed)
            pipe.flush()
        for seed in range(12):
            out = pool[seed % workers].stdout
            assert out is not None
            assert add_episode(store, pickle.load(out), {"seed": seed}) == seed
        for worker in pool:
            worker.communicate(timeout=30)
    assert files(path) == files(alone)


def test_they_are_the_same_while_the_journal_is_compacted_beside(alone: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with create(path, journal_bytes=0) as store:
        writer = EpisodeWriter(path)
        staged = [writer.write(episode(seed)) for seed in range(12)]
        for seed, files_ in enumerate(staged):
            add_episode(store, files_, {"seed": seed})
            if seed == 5 and store._moving is not None:  # the compaction has low priority: on a busy machine it is late
                store._moving.wait()
        assert len(store.array_ends) > 0
    with DemoStore.open(path) as store, DemoStore.open(alone) as other:
        assert store.episode_ends.tolist() == other.episode_ends.tolist()
        assert store.episode_columns["seed"].tolist() == list(range(12))
        assert all(np.array_equal(store.read(k, 0, store.n_steps), other.read(k, 0, store.n_steps)) for k in SPECS)


def test_a_compaction_that_may_not_choose_its_priority_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")  # a user whose program runs at a lower one already

    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    monkeypatch.setattr(os, "setpriority", refuse)
    path = tmp_path / "a.zarr"
    with create(path, journal_bytes=0) as store:
        writer = EpisodeWriter(path)
        for seed in range(3):
            add_episode(store, writer.write(episode(seed)), {"seed": seed})
            assert store._moving is not None
            store._moving.wait()
        assert len(store.array_ends) == 2
        assert all(np.array_equal(store.episode(s)[k], episode(s)[k]) for s in range(3) for k in SPECS)
    with DemoStore.open(path) as store:
        assert all(np.array_equal(store.episode(s)[k], episode(s)[k]) for s in range(3) for k in SPECS)


def test_ctrl_c_in_close_leaves_the_lock_to_the_compaction_that_still_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, real = threading.Event(), threading.Event(), Compaction._run

    def slow(compaction: Compaction) -> None:
        begun.set()
        assert go_on.wait(20)
        real(compaction)

    def interrupted(compaction: Compaction) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "a.zarr"
    store = create(path, journal_bytes=0)
    with monkeypatch.context() as patched:
        patched.setattr(Compaction, "_run", slow)
        add_episode(store, EpisodeWriter(path).write(episode(3)), {"seed": 3})
        assert begun.wait(20)
        patched.setattr(Compaction, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.close()
    try:
        with pytest.raises(DataError, match="is being written by another writer"):
            DemoStore.open(path, "a")
    finally:
        go_on.set()
    unlocking = next((t for t in threading.enumerate() if t.name == "unlock"), None)
    if unlocking is not None:
        unlocking.join(20)
    with DemoStore.open(path, "a") as again:
        assert again.array_ends.tolist() == [4]
        assert np.array_equal(again.episode(0)["img"], episode(3)["img"])


def test_a_store_may_be_closed_while_an_episode_is_put_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path / "a.zarr")
    EpisodeWriter(store.path).write(episode(0))
    with monkeypatch.context() as patched:  # as if it came after a look into the folder
        patched.setattr(Path, "iterdir", lambda _: iter(()))
        store.close()
    DemoStore.open(tmp_path / "a.zarr", "a").close()


def test_files_that_cannot_be_made_leave_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def full(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "q.bin":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *args, **options)

    with create(tmp_path / "a.zarr") as store:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", full)
            with pytest.raises(DataError, match="No space left on device"):
                store.append_episode(episode(0), {"seed": 0})
        assert [p.name for p in store.journal_path.iterdir()] == [".lock"]


def test_what_was_not_added_is_deleted(tmp_path: Path) -> None:
    with create(tmp_path / "a.zarr") as store:
        writer = EpisodeWriter(store.path)
        first, _ = writer.write(episode(0)), writer.write(episode(1))
        add_episode(store, first, {"seed": 0})
        discard_staged(store)
        assert sorted(p.name for p in store.journal_path.iterdir()) == [".lock", "00000000"]
        EpisodeWriter(store.path).write(episode(2))  # of a process that is then killed, as its parent is
    DemoStore.open(tmp_path / "a.zarr", "a").close()
    assert {p.name for p in (tmp_path / "a.zarr").iterdir()} == {"zarr.json", "data", "meta"}


def test_what_cannot_be_an_episode_is_refused_where_it_is_made(tmp_path: Path) -> None:
    with create(tmp_path / "a.zarr") as store:
        writer = EpisodeWriter(store.path)
        with pytest.raises(DataError, match="arrays of different length in one episode: img 2, q 1"):
            writer.write({"q": np.zeros((1, 2), "f4"), "img": np.zeros((2, 40, 40, 3), "u1")})
        with pytest.raises(DataError, match="missing array 'img'"):
            writer.write({"q": np.zeros((1, 2), "f4")})
        with pytest.raises(DataError, match=r"an episode could not be added: No such file.*unchanged, with 0 episodes"):
            add_episode(store, StagedFiles(".staging-gone", 1, {"q": 0, "img": 0}), {"seed": 0})
        with pytest.raises(DataError, match="missing episode column 'seed'"):
            add_episode(store, writer.write(episode(0)))
        assert store.n_episodes == 0
    with pytest.raises(DataError, match="nothing is there"):
        EpisodeWriter(tmp_path / "b.zarr")
