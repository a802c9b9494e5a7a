"""Stores that cannot be opened or read: the message names the array, the file, the index, and what is there instead."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from visuomotor.data.errors import DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

SPECS = {"state": ArraySpec(shape=(2,), role="observation"), "action": ArraySpec(shape=(1,), role="action")}


def test_paths_that_are_no_store_say_what_is_there(demo_store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing is there.*Did you mean 'demo.zarr'"):
        DemoStore.open(tmp_path / "demos.zarr")
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(DataError, match=r"notes.txt is a file of 5 bytes, but no zip archive. Expected a Zarr group"):
        DemoStore.open(text)
    with pytest.raises(
        DataError, match=r"is a folder but not a Zarr.*Did you mean .*demo.zarr.*It has: demo.zarr, notes.txt"
    ):
        DemoStore.open(tmp_path)
    with pytest.raises(DataError, match=r"single Zarr array, not a group"):
        DemoStore.open(demo_store / "data" / "img")
    with pytest.raises(DataError, match=r"without meta/episode_ends.*It has: action, img, state"):
        DemoStore.open(demo_store / "data")
    inner = tmp_path / "nested.zip"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("pusht/replay.zarr/.zgroup", "{}")
    with pytest.raises(DataError, match=r"not a zipped Zarr. A Zarr lies inside, in pusht/replay.zarr/: unpack"):
        DemoStore.open(inner)
    shutil.rmtree(demo_store / "data" / "img")
    with pytest.raises(DataError, match=r"declares data/img, which is missing. It has: action, state"):
        DemoStore.open(demo_store)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([2, 5, 4, 6], r"not increasing: 4 at index 2 follows 5 at index 1"),
        ([0, 6], r"not increasing: 0 at index 0 follows 0, the start"),
        ([-3, 6], r"not increasing: -3 at index 0"),
        ([2, 9], r"ends at step 9, but the arrays have 6 rows: 3 too many"),
    ],
)
def test_wrong_episode_ends_are_refused_with_index_and_values(
    foreign_store: Callable[..., Path], ends: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        DemoStore.open(foreign_store("f.zarr", ends=ends))


def test_trailing_fill_values_are_episodes_that_were_never_finished(foreign_store: Callable[..., Path]) -> None:
    with DemoStore.open(foreign_store("f.zarr", ends=[2, 6, 0, 0])) as store:
        assert store.episode_ends.tolist() == [2, 6]
    with DemoStore.open(foreign_store("g.zarr", ends=[0, 0])) as store:
        assert store.n_episodes == 0


def test_arrays_of_different_length_are_all_named(foreign_store: Callable[..., Path]) -> None:
    path = foreign_store("f.zarr")
    state = zarr.open_group(path, mode="r+")["data/state"]
    assert isinstance(state, zarr.Array)
    state.resize((4, 3))
    with pytest.raises(DataError, match=r"different length: action 6, state 4 rows; meta/episode_ends needs 6 in each"):
        DemoStore.open(path)


def test_wrong_types_and_ranks(foreign_store: Callable[..., Path]) -> None:
    path = foreign_store("f.zarr", zarr_format=3)
    group = zarr.open_group(path, mode="r+")
    group.create_array("data/text", shape=(6,), dtype=str)
    group.create_array("data/constant", shape=(), dtype="f4")
    with DemoStore.open(path) as store:
        assert store.keys == ("action", "state")
        with pytest.raises(DataError, match=r"data/text has type StringDType\(\): expected numbers or booleans"):
            store.require(["text"])
        with pytest.raises(DataError, match=r"data/constant has rank 0: expected \[T, ...\]"):
            store.require(["constant"])
    with pytest.raises(DataError, match="cannot be appended to: data/constant has rank 0"):
        DemoStore.open(path, "a")
    del group["meta/episode_ends"]
    group.create_array("meta/episode_ends", data=np.ones((2, 2)))
    with pytest.raises(DataError, match=r"float64 of rank 2: expected whole numbers of rank 1"):
        DemoStore.open(path)


def test_missing_key_and_range_and_episode_name_what_exists(demo_store: Path) -> None:
    with DemoStore.open(demo_store) as store:
        store.require(["state", "img"])
        with pytest.raises(DataError, match=r"no array 'sate'. Did you mean 'state'"):
            store.require(["sate"])
        with pytest.raises(DataError, match=r"steps 3 to 15 of 'state': expected a range within 0 to 14"):
            store.read("state", 3, 15)
        with pytest.raises(DataError, match=r"no episode 3: it has 3 \(0 to 2\)"):
            store.episode(3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"format_version": 2}, r"store format 2; this version of visuomotor reads up to 1: upgrade"),
        ({"format_version": "new"}, r"store format 'new': expected a whole number"),
        ({"format_version": 1}, r"damaged attributes 'visuomotor': KeyError"),
        ([], r"damaged attributes"),
    ],
)
def test_attributes_of_another_format_or_damaged_are_refused(demo_store: Path, value: object, message: str) -> None:
    meta = json.loads((demo_store / "zarr.json").read_text())
    meta["attributes"]["visuomotor"] = value
    (demo_store / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match=message):
        DemoStore.open(demo_store)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_chunk_is_named_with_its_episodes_and_the_rest_is_readable(
    foreign_store: Callable[..., Path], damage: str
) -> None:
    path = foreign_store("f.zarr")
    group = zarr.open_group(path, mode="r+")
    del group["data/state"]
    group.create_array("data/state", data=np.ones((6, 3), np.float32), chunks=(2, 3))
    file = path / "data" / "state" / "1.0"
    content = bytearray(file.read_bytes())
    file.write_bytes(bytes(content[: len(content) // 2]) if damage == "cut" else bytes(b ^ 255 for b in content))
    with DemoStore.open(path) as store:
        assert store.read("state", 0, 2).tolist() == [[1, 1, 1]] * 2
        with pytest.raises(
            DataError, match=r"array 'state': chunk file data/state/1\.0 is damaged .*it holds episode 1"
        ):
            store.read("state", 0, 6)
        with pytest.raises(DataError, match=r"data/state/1\.0"):
            list(store.iter_blocks("state"))


def test_one_flipped_bit_in_our_own_store_is_noticed(demo_store: Path) -> None:
    file = demo_store / "data" / "state" / "c.0.0"
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(bytes(content))
    with (
        DemoStore.open(demo_store) as store,
        pytest.raises(DataError, match=r"data/state/c\.0\.0 is damaged .*episodes 0 to 2"),
    ):
        store.read("state", 0, 1)


def test_a_damaged_journal_is_refused_by_name_and_the_older_episodes_stay(tmp_path: Path) -> None:
    store = DemoStore.create(tmp_path / "a.zarr", SPECS)
    store.append_episode({"state": np.ones((3, 2)), "action": np.ones((3, 1))})
    store.compact()
    store.append_episode({"state": np.ones((4, 2)), "action": np.ones((4, 1))})
    entry = store.journal[0]
    rows = entry.path / "state.bin"
    rows.write_bytes(bytes(len(rows.read_bytes())))
    with pytest.raises(
        DataError, match=r"episode 1 is damaged on disk: 'state' in .*another checksum.*Remove the folder"
    ):
        store.close()
    rows.write_bytes(b"123")
    with pytest.raises(DataError, match=r"state.bin has 3 bytes, expected 32 for 4 steps"):
        DemoStore.open(tmp_path / "a.zarr")
    (entry.path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"00000001 has a damaged manifest.json .*remove the folder"):
        DemoStore.open(tmp_path / "a.zarr")
    entry.path.rename(entry.path.with_name("00000002"))
    with pytest.raises(DataError, match=r"episode 1 is neither in the arrays nor in .*journal, which has 00000002"):
        DemoStore.open(tmp_path / "a.zarr")
    shutil.rmtree(entry.path.with_name("00000002"))
    with DemoStore.open(tmp_path / "a.zarr", "a") as store:
        assert store.episode_ends.tolist() == [3]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("zarr.json", r"damaged zarr.json"),
        ("data/state/zarr.json", r"data/state cannot be opened"),
        ("meta/episode_ends/zarr.json", r"meta/episode_ends cannot be opened"),
        ("meta/episode_ends/c.0", r"meta/episode_ends is damaged"),
    ],
)
def test_damaged_metadata_is_named(demo_store: Path, file: str, message: str) -> None:
    content = (demo_store / file).read_bytes()
    (demo_store / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=message):
        DemoStore.open(demo_store)
