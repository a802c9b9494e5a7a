"""Bulk appends: the same files as zarr writes, whatever the commits; what readers see, and what a full disk leaves."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec
from zarr.storage import MemoryStore

from visuomotor.data.bulk import BulkError, BulkWriter
from visuomotor.data.chunk_files import ChunkFiles
from visuomotor.data.durable import DurableStore
from visuomotor.data.errors import DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

SPECS = {
    "action": ArraySpec(shape=(2,), dtype="float64", role="action"),
    "camera": ArraySpec(shape=(40, 48, 3), dtype="uint8", role="observation"),  # 64 rows a chunk, 256 a file
    "depth": ArraySpec(shape=(50, 60), dtype="uint16", role="observation"),
    "flag": ArraySpec(shape=(), dtype="bool", role="observation"),
}
COLUMNS = {"task": "str", "success": "bool", "weight": "float64"}
LENGTHS = (3, 61, 64, 1, 130, 2, 300, 7)


def episode(i: int, n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(i)
    return {
        "action": rng.random((n, 2)),
        "camera": np.repeat(rng.integers(0, 255, (n, 40, 1, 3), np.uint8), 48, 2),
        "depth": rng.integers(0, 9, (n, 50, 60)).astype(np.uint16),
        "flag": rng.random(n) < 0.5,
    }


def columns(i: int) -> dict[str, Any]:
    return {"task": f"task {i} ü", "success": i % 2 == 0, "weight": i / 3}


def create(path: Path) -> DemoStore:
    return DemoStore.create(path, SPECS, fps=10, episode_columns=COLUMNS)


def write(path: Path, which: Sequence[int], commit_seconds: float, threads: int = 2) -> None:
    store = DemoStore.open(path, "a") if path.exists() else create(path)
    with store, ThreadPoolExecutor(threads) as pool, BulkWriter(store, pool, commit_seconds=commit_seconds) as writer:
        for i in which:
            writer.append(episode(i, LENGTHS[i]), columns(i))


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def by_zarr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same episodes, written by zarr itself."""
    path = tmp_path_factory.mktemp("zarr") / "a.zarr"
    with create(path) as store:
        episodes = [episode(i, n) for i, n in enumerate(LENGTHS)]
        for key, array in store.arrays.items():
            rows = np.concatenate([e[key] for e in episodes])
            array.resize(rows.shape)
            array[:] = rows
        for name, column in store.columns.items():
            column.resize((len(LENGTHS),))
            column[:] = np.array([columns(i)[name] for i in range(len(LENGTHS))], object if name == "task" else None)
        store.ends_array.resize((len(LENGTHS),))
        store.ends_array[:] = np.cumsum(LENGTHS)
    return path


@pytest.mark.parametrize(("commit_seconds", "cuts"), [(1e9, ()), (0.0, ()), (1e9, (2, 5)), (0.0, (1, 2, 7))])
def test_files_are_those_that_zarr_writes(
    tmp_path: Path, by_zarr: Path, commit_seconds: float, cuts: tuple[int, ...]
) -> None:
    bounds = [0, *cuts, len(LENGTHS)]
    for start, stop in pairwise(bounds):
        write(tmp_path / "a.zarr", range(start, stop), commit_seconds)
    assert contents(tmp_path / "a.zarr") == contents(by_zarr)
    with DemoStore.open(tmp_path / "a.zarr") as store:
        assert list(store.episode_columns["task"]) == [f"task {i} ü" for i in range(len(LENGTHS))]


def test_without_threads(tmp_path: Path, by_zarr: Path) -> None:
    with create(tmp_path / "a.zarr") as store, BulkWriter(store) as writer:
        for i, n in enumerate(LENGTHS):
            writer.append(episode(i, n), columns(i))
    assert contents(tmp_path / "a.zarr") == contents(by_zarr)


def test_episodes_of_the_journal_come_first(tmp_path: Path, by_zarr: Path) -> None:
    with create(tmp_path / "a.zarr") as store:
        for i in (0, 1, 2):
            store.append_episode(episode(i, LENGTHS[i]), columns(i))
        with BulkWriter(store) as writer:
            for i in range(3, len(LENGTHS)):
                writer.append(episode(i, LENGTHS[i]), columns(i))
        assert store.n_episodes == len(LENGTHS)
        np.testing.assert_array_equal(store.episode(4)["camera"], episode(4, LENGTHS[4])["camera"])
    assert contents(tmp_path / "a.zarr") == contents(by_zarr)


def test_readers_see_what_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with create(path) as store, BulkWriter(store, commit_seconds=1e9) as writer:
        writer.append(episode(0, 300), columns(0))
        with DemoStore.open(path) as reader:
            assert reader.n_episodes == 0
        writer.commit()
        writer.append(episode(1, 5), columns(1))
        with DemoStore.open(path) as reader:
            assert reader.n_episodes == 1
            np.testing.assert_array_equal(reader.episode(0)["camera"], episode(0, 300)["camera"])
    with DemoStore.open(path) as reader:
        assert reader.n_episodes == 2


def test_what_is_wrong_with_an_episode_leaves_it_out(tmp_path: Path) -> None:
    with create(tmp_path / "a.zarr") as store, BulkWriter(store) as writer:
        writer.append(episode(0, 4), columns(0))
        with pytest.raises(DataError, match="'action' is nan at row 1"):
            writer.append(episode(1, 4) | {"action": np.array([[0, 0], [np.nan, 0], [0, 0], [0, 0]])}, columns(1))
        with pytest.raises(DataError, match="different length"):
            writer.append(episode(1, 4) | {"flag": np.zeros(3, bool)}, columns(1))
        with pytest.raises(DataError, match="column 'success'"):
            writer.append(episode(1, 4), columns(1) | {"success": 3})
        writer.append(episode(2, 6), columns(2))
    with DemoStore.open(tmp_path / "a.zarr") as store:
        assert np.diff(store.episode_ends, prepend=0).tolist() == [4, 6]
        np.testing.assert_array_equal(store.episode(1)["depth"], episode(2, 6)["depth"])


def test_a_block_that_is_left_by_an_exception_is_committed(tmp_path: Path) -> None:
    def stopped(store: DemoStore) -> None:
        with BulkWriter(store) as writer:
            writer.append(episode(0, 4), columns(0))
            raise KeyboardInterrupt

    with create(tmp_path / "a.zarr") as store:
        with pytest.raises(KeyboardInterrupt):
            stopped(store)
        assert store.n_episodes == 1


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zarr"
    replace, room = DurableStore._replace, [True]

    def fill(self: DurableStore, target: Path, parts: Any) -> None:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(self, target, parts)

    def until_full(store: DemoStore) -> None:
        with BulkWriter(store, commit_seconds=1e9) as writer:
            writer.append(episode(0, 4), columns(0))
            writer.commit()
            room[0] = False
            for i in range(1, 6):
                writer.append(episode(i, 300), columns(i))

    monkeypatch.setattr(DurableStore, "_replace", fill)
    with create(path) as store:
        says = r"a\.zarr cannot be written: No space left on device\. It holds the 1 episode"
        with pytest.raises(BulkError, match=says):
            until_full(store)
        room[0] = True
    write(path, [1, 2], 1e9)
    with DemoStore.open(path) as reader:
        assert np.diff(reader.episode_ends, prepend=0).tolist() == [4, LENGTHS[1], LENGTHS[2]]
        np.testing.assert_array_equal(reader.episode(2)["camera"], episode(2, LENGTHS[2])["camera"])


def test_files_that_a_kill_left_behind_the_end_are_removed(tmp_path: Path, by_zarr: Path) -> None:
    path = tmp_path / "a.zarr"
    write(path, range(3), 1e9)
    (path / "data/camera/c.7.0.0.0").write_bytes(b"left")
    write(path, range(3, len(LENGTHS)), 1e9)
    assert contents(path) == contents(by_zarr)


def test_metadata_that_others_consolidated_follow(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write(path, range(2), 1e9)
    zarr.consolidate_metadata(path)
    write(path, range(2, 4), 1e9)
    seen: Any = zarr.open_group(path, mode="r", use_consolidated=True)["data/action"]
    assert seen.shape == (sum(LENGTHS[:4]), 2)


def test_other_codecs() -> None:
    def files(codec: Any) -> tuple[zarr.Array, ChunkFiles, list[bytes]]:
        group = zarr.create_group(MemoryStore())
        array = group.create_array("x", shape=(5, 2), chunks=(5, 2), dtype="float32", compressors=[codec])
        written: list[bytes] = []
        with ThreadPoolExecutor(1) as pool:
            made = ChunkFiles(
                "x", array, 0, pool.submit, lambda _, c: written.append(b"".join(made.assemble([c[0].result()])))
            )
            made.add(np.arange(10, dtype=np.float32).reshape(5, 2))
        return array, made, written

    array, _, written = files(BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"))
    array[:] = np.arange(10).reshape(5, 2)
    stored: Any = array.store
    assert written == [stored._store_dict["x/c/0/0"].to_bytes()]
    with pytest.raises(DataError, match="GzipCodec, which this version does not write"):
        files(GzipCodec())
