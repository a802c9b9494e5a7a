"""Round trips of the store: create, append, reopen; Zarr 2 and 3, folder and zip; one writer."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data import reader
from visuomotor.data.errors import DataError
from visuomotor.data.journal import JournalEntry, read_journal
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

PUSHT = Path(__file__).parents[2].parent / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"
SPECS = {"state": ArraySpec(shape=(2,), role="observation"), "action": ArraySpec(shape=(1,), role="action")}


def array_of(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def episode(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: rng.normal(size=(length, *spec.shape)).astype(spec.dtype) for key, spec in SPECS.items()}


def zipped(folder: Path) -> Path:
    target = folder.with_suffix(".zarr.zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return target


# ------------------------------------------------------------------------------------------------ round trips


def test_what_is_written_is_read_back_with_its_meaning(demo_store: Path) -> None:
    with DemoStore.open(demo_store) as store:
        assert store.keys == ("action", "img", "state")
        assert store.fps == 10.0
        assert store.episode_ends.dtype == np.int64
        assert store.episode_ends.tolist() == [5, 6, 14]
        assert (store.n_episodes, store.n_steps) == (3, 14)
        assert store.specs["state"] == ArraySpec(shape=(3,), role="observation", unit="m", names=("x", "y", "z"))
        assert store.episode_columns["task"].tolist() == ["task 0", "task 1", "task 2"]
        assert store.episode_columns["success"].tolist() == [True, False, True]
        assert store.episode_slice(-1) == slice(6, 14)
        last = store.episode(2)
        assert last["state"][:, 1].tolist() == [6, 7, 8, 9, 10, 11, 12, 13]
        assert last["action"].dtype == np.float32
        assert last["img"].shape == (8, 16, 16, 3)
        assert not (demo_store / "journal").exists(), "close() leaves nothing but the Zarr"


def test_an_episode_is_on_disk_when_append_returns_and_readers_see_it_before_the_writer_closes(tmp_path: Path) -> None:
    with DemoStore.create(tmp_path / "a.zarr", SPECS) as writer:
        writer.append_episode(episode(3))
        with DemoStore.open(tmp_path / "a.zarr") as reader:
            assert reader.episode_ends.tolist() == [3]
            assert len(reader.journal) == 1
            writer.append_episode(episode(4, seed=1))
            assert reader.n_episodes == 1, "a reader keeps the view that it opened"
            writer.compact()
            assert np.array_equal(reader.read("state", 0, 3), episode(3)["state"]), "also when the journal is gone"
            assert reader.n_episodes == 1
        with DemoStore.open(tmp_path / "a.zarr") as reader:
            assert reader.episode_ends.tolist() == [3, 7]
            assert len(reader.journal) == 0


def test_a_range_across_arrays_and_journal_is_one_array(tmp_path: Path) -> None:
    with DemoStore.create(tmp_path / "a.zarr", SPECS) as store:
        store.append_episode(episode(3))
        store.compact()
        store.append_episode(episode(4, seed=1))
        both = np.concatenate([episode(3)["state"], episode(4, seed=1)["state"]])
        assert np.array_equal(store.read("state", 1, 6), both[1:6])
        assert store.read("state", 7, 7).shape == (0, 2)
        assert np.array_equal(np.concatenate([rows for _, rows in store.iter_blocks("state", 1)]), both)


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6), journal_bytes=st.sampled_from([0, 600, 1 << 30]))
def test_any_episode_lengths_survive_compaction_and_reopening(lengths: list[int], journal_bytes: int) -> None:
    specs = {
        **SPECS,
        "cloud": ArraySpec(shape=(700, 3), dtype="float32"),
    }  # 8400 bytes a step: sharded, 64 rows a chunk
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # hundreds of flushes would wait for a slow disk
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        path = Path(folder) / "a.zarr"
        with DemoStore.create(path, specs, journal_bytes=journal_bytes) as store:
            for i, n in enumerate(lengths):
                cloud = np.broadcast_to(np.float32(i), (n, 700, 3))
                store.append_episode({**episode(n, seed=i), "cloud": cloud})
        with DemoStore.open(path) as store:
            assert store.episode_ends.tolist() == np.cumsum(lengths).tolist()
            for i, n in enumerate(lengths):
                read = store.episode(i)
                assert np.array_equal(read["state"], episode(n, seed=i)["state"])
                assert read["cloud"].shape == (n, 700, 3)
                assert (read["cloud"] == i).all()


def test_zip_of_a_folder_reads_the_same_and_refuses_append(demo_store: Path) -> None:
    archive = zipped(demo_store)
    with DemoStore.open(archive) as z, DemoStore.open(demo_store) as d:
        assert z.specs == d.specs
        for key in d.keys:
            assert np.array_equal(z.read(key, 0, 14), d.read(key, 0, 14))
        assert z.fingerprint(["img"]) == z.fingerprint(["img"])
    with pytest.raises(DataError, match=r"zip archive, which cannot be appended to safely: unpack it"):
        DemoStore.open(archive, "a")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_store_without_our_attributes_is_inferred_and_can_be_appended_to(
    foreign_store: Callable[..., Path], zarr_format: int
) -> None:
    path = foreign_store("f.zarr", zarr_format=zarr_format)
    zarr.consolidate_metadata(path)
    with DemoStore.open(path, "a") as store:
        assert store.fps is None
        assert store.specs["action"] == ArraySpec(shape=(2,), role="action")
        assert store.specs["state"] == ArraySpec(shape=(3,), role="observation")
        store.append_episode({"action": np.ones((4, 2)), "state": np.zeros((4, 3))})
    with DemoStore.open(path) as store:
        assert store.episode_ends.tolist() == [2, 6, 10]
        assert store.read("action", 5, 8).tolist() == [[10, 11], [1, 1], [1, 1]]
    group = zarr.open_group(path, mode="r")  # as other programs open it: by consolidated metadata where there is any
    assert array_of(group, "data/action").shape == (10, 2)


def test_a_journal_that_is_emptied_while_a_reader_looks_hides_no_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DemoStore.create(tmp_path / "a.zarr", SPECS) as writer:
        writer.append_episode(episode(3))
        looks: list[Any] = []

        def late(*args: Any) -> list[JournalEntry]:
            looks.append(args)
            if len(looks) == 1:  # the reader has seen the arrays without the episode
                writer.compact()
            return read_journal(*args)

        monkeypatch.setattr(reader, "read_journal", late)
        with DemoStore.open(tmp_path / "a.zarr") as store:
            assert (store.n_episodes, store.n_steps, len(looks)) == (1, 3, 2)


def test_real_push_t_store_opens_unchanged() -> None:
    if not PUSHT.exists():
        pytest.skip(f"the recorded Push-T data is not at {PUSHT}")
    with DemoStore.open(PUSHT) as store:
        assert (store.n_episodes, store.n_steps) == (206, 25650)
        assert {"action", "img", "state"} <= set(store.keys)
        assert store.specs["img"].shape == (96, 96, 3)
        first = store.episode_slice(0)
        state = np.asarray(array_of(zarr.open_group(PUSHT, mode="r"), "data/state")[:2])
        assert np.array_equal(store.read("state", first.start, 2), state)
        start, block = next(store.iter_blocks("img", 1))
        assert (start, block.shape) == (0, (161, 96, 96, 3)), "one chunk file, decoded once"
        assert len(store.fingerprint(["img", "action"])) == 64


def test_blocks_are_whole_chunks_and_cover_all(demo_store: Path) -> None:
    with DemoStore.open(demo_store) as store:
        blocks = list(store.iter_blocks("state"))
        assert [start for start, _ in blocks] == [0]
        assert blocks[0][1].shape == (14, 3)


def test_fingerprint_follows_content_and_keys(demo_store: Path) -> None:
    with DemoStore.open(demo_store) as store:
        state, both = store.fingerprint(["state"]), store.fingerprint(["state", "img"])
        assert state == store.fingerprint(["state", "state"])
        assert state != both
    (demo_store / "data" / "img" / "c.0.0.0.0").touch()
    with DemoStore.open(demo_store) as store:
        assert store.fingerprint(["state"]) == state
        assert store.fingerprint(["state", "img"]) != both
    (demo_store / "data" / "img" / "c.0.0.0.0").write_bytes(b"")
    with DemoStore.open(demo_store) as store, pytest.raises(DataError, match=r"data/img/c\.0\.0\.0\.0 has 0 bytes"):
        store.fingerprint(["img"])


def test_images_are_sharded_and_low_dim_arrays_are_not(tmp_path: Path) -> None:
    specs = {
        "small": ArraySpec(shape=(96, 96, 3), dtype="uint8"),
        "big": ArraySpec(shape=(480, 640, 3), dtype="uint8"),
        "q": ArraySpec(shape=(7,)),
    }
    with DemoStore.create(tmp_path / "a.zarr", specs) as store:
        layout = {k: (a.chunks, a.shards) for k, a in store.arrays.items()}
    assert layout == {
        "small": ((64, 96, 96, 3), (256, 96, 96, 3)),
        "big": ((16, 480, 640, 3), (64, 480, 640, 3)),  # 59 MB a shard: bounded by bytes
        "q": ((16384, 7), None),
    }


def test_data_imports_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from visuomotor.data import *; DemoStore, EpisodeRecorder"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------ writers


def test_a_second_writer_is_refused_by_name_and_admitted_after_close(demo_store: Path) -> None:
    first = DemoStore.open(demo_store, "a")
    with pytest.raises(DataError, match=r"written by another writer \(process \d+\).*one writer at a time"):
        DemoStore.open(demo_store, "a")
    DemoStore.open(demo_store, "r").close()
    first.close()
    first.close()
    DemoStore.open(demo_store, "a").close()
    assert not (demo_store / "journal").exists()


def test_reading_mode_refuses_append_and_a_closed_store_refuses_all(demo_store: Path) -> None:
    store = DemoStore.open(demo_store)
    with pytest.raises(DataError, match=r"opened for reading.*mode 'a'"):
        store.append_episode({})
    store.close()
    with pytest.raises(DataError, match="was closed"):
        store.read("state", 0, 1)
    with pytest.raises(DataError, match=r"unknown mode 'w'"):
        DemoStore.open(demo_store, "w")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": np.zeros((4, 3))}, r"'state' has shape \[4, 3\]: expected \[L, 2\]"),
        ({"state": np.zeros((4, 2), complex)}, r"'state' has type complex128: expected float32"),
        ({"state": np.zeros((0, 2)), "action": np.zeros((0, 1))}, r"has 0 steps"),
        ({"action": np.zeros((3, 1))}, r"different length in one episode: action 3, state 4|state 4, action 3"),
        ({"state": np.array([[0, 0], [0, np.nan], [0, 0], [0, 0]])}, r"'state' is nan at row 1, component 1"),
        ({"state": np.full((4, 2), 1e300)}, r"'state' is inf at row 0, component 0"),
        ({"stat": np.zeros((4, 2))}, r"unknown array 'stat'. Did you mean 'state'"),
        ({"state": None}, r"missing array 'state': got action"),
    ],
)
def test_a_wrong_episode_is_refused_and_leaves_no_trace(tmp_path: Path, change: dict, message: str) -> None:
    with DemoStore.create(tmp_path / "a.zarr", SPECS) as store:
        data = {"state": np.zeros((4, 2)), "action": np.zeros((4, 1)), **change}
        with pytest.raises(DataError, match=message):
            store.append_episode({k: v for k, v in data.items() if v is not None})
        assert store.n_episodes == 0
        assert [p.name for p in store.journal_path.iterdir()] == [".lock"]


def test_integers_out_of_range_and_columns_of_the_wrong_type_are_refused(tmp_path: Path) -> None:
    specs = {"img": ArraySpec(shape=(), dtype="uint8")}
    with DemoStore.create(tmp_path / "a.zarr", specs, episode_columns={"ok": "bool", "task": "str"}) as store:
        with pytest.raises(DataError, match=r"'img' holds values from 0 to 256: uint8 ends at 0 and 255"):
            store.append_episode({"img": np.array([0, 256], np.uint16)}, {"ok": True, "task": ""})
        with pytest.raises(DataError, match=r"missing episode column 'task': got ok"):
            store.append_episode({"img": np.zeros(2, np.uint8)}, {"ok": True})
        with pytest.raises(DataError, match=r"unknown episode column 'tasks'. Did you mean 'task'"):
            store.append_episode({"img": np.zeros(2, np.uint8)}, {"ok": True, "tasks": ""})
        with pytest.raises(DataError, match=r"episode column 'ok' is 1 \(int\): expected a finite bool"):
            store.append_episode({"img": np.zeros(2, np.uint8)}, {"ok": 1, "task": ""})


def test_create_refuses_what_it_cannot_store_and_never_replaces_what_is_no_store(
    demo_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"exists already: open it with mode 'a'"):
        DemoStore.create(demo_store, SPECS)
    with DemoStore.create(demo_store, SPECS, overwrite=True) as store:
        assert (store.n_episodes, store.keys) == (0, ("action", "state"))
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.tex").write_text("...")
    with pytest.raises(DataError, match="not a Zarr"):
        DemoStore.create(precious, SPECS, overwrite=True)
    assert (precious / "chapter1.tex").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"demo.zarr", "thesis"}, "no temporary folder is left"
    for specs, columns, fps, message in (
        ({}, {}, None, "at least one array"),
        ({"a/b": SPECS["state"]}, {}, None, "'a/b' is no name"),
        ({"a": ArraySpec(shape=(0,))}, {}, None, "no size of 0"),
        (SPECS, {"task": "text"}, None, "'task' of type 'text'.*str, bool"),
        (SPECS, {}, -1.0, "fps is -1.0: expected a positive number"),
    ):
        with pytest.raises(DataError, match=message):
            DemoStore.create(tmp_path / "b.zarr", specs, episode_columns=columns, fps=fps)
    with pytest.raises(DataError, match="created as a folder"):
        DemoStore.create(tmp_path / "b.zarr.zip", SPECS)
