"""Each fault planted in a store is found, located, and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from visuomotor.data.describe import describe
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import Finding, validate

PUSHT = Path(__file__).parents[2].parent / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"


def findings(path: Path, *, values: bool = True) -> list[Finding]:
    with DemoStore.open(path) as store:
        return validate(store, values=values)


def errors(path: Path, *, values: bool = True) -> list[Finding]:
    return [f for f in findings(path, values=values) if f.severity == "error"]


def change(path: Path, key: str, row: int | slice, value: float | list[float]) -> None:
    """Change a value behind the store's back, as a faulty tool would."""
    array = zarr.open_group(path, mode="r+")[f"data/{key}"]
    assert isinstance(array, zarr.Array)
    array[row] = value


def test_a_sound_store_has_only_the_warning_about_its_episode_of_one_step(demo_store: Path) -> None:
    (only,) = findings(demo_store)
    assert (only.severity, only.episode) == ("warning", 1)
    assert "1 episodes of one step (episodes 1)" in only.message


def test_nan_is_located_by_array_episode_row_and_component(demo_store: Path) -> None:
    change(demo_store, "state", 9, [0, np.nan, 0])  # global step 9 is row 3 of episode 2
    change(demo_store, "state", 12, np.inf)
    change(demo_store, "action", 2, -np.inf)
    action, state = errors(demo_store)
    assert (action.array, action.episode, action.row) == ("action", 0, 2)
    assert "value is -inf, component 0: every value must be finite" in action.message
    assert (state.array, state.episode, state.row) == ("state", 2, 3)
    assert "value is nan, component 1 (y): every value must be finite (2 such rows in this episode)" in state.message
    assert str(state).startswith("error: array state, episode 2, row 3: value is nan")
    assert errors(demo_store, values=False) == []


def test_many_faulty_episodes_are_counted_not_listed(tmp_path: Path) -> None:
    with DemoStore.create(tmp_path / "a.zarr", {"x": ArraySpec(shape=())}) as store:
        for _ in range(14):
            store.append_episode({"x": np.zeros(2)})
    change(tmp_path / "a.zarr", "x", slice(0, 28), np.nan)
    found = errors(tmp_path / "a.zarr")
    assert len(found) == 11
    assert found[0].message == "value is nan: every value must be finite (2 such rows in this episode)"
    assert found[-1].message == "NaN or infinity in 4 more episodes"


@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("damage", ["empty", "missing"])
def test_lost_chunk_files_are_found_without_decoding(demo_store: Path, damage: str, values: bool) -> None:
    file = demo_store / "data" / "img" / "c.0.0.0.0"
    file.write_bytes(b"") if damage == "empty" else file.unlink()
    (only,) = errors(demo_store, values=values)
    reason = "0 bytes" if damage == "empty" else "the file is missing"
    assert only.array == "img"
    assert only.message == f"chunk file data/img/c.0.0.0.0 is damaged ({reason}); it holds episodes 0 to 2"


def test_a_flipped_bit_is_found_with_chunk_and_episodes(demo_store: Path) -> None:
    file = demo_store / "data" / "img" / "c.0.0.0.0"
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 4
    file.write_bytes(bytes(content))
    (only,) = errors(demo_store)
    assert only.array == "img"
    assert "data/img/c.0.0.0.0 is damaged" in only.message
    assert "episodes 0 to 2" in only.message


def test_damage_in_a_foreign_store_names_only_the_episodes_of_that_chunk(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "f.zarr", mode="w", zarr_format=2)
    group.create_array("data/action", data=np.random.default_rng(0).normal(size=(8, 2)), chunks=(2, 2))
    group.create_array("data/zero", data=np.zeros((9, 1), np.float32), chunks=(8, 1))  # not written: all fill values
    group.create_array("meta/episode_ends", data=np.array([3, 6, 8]))
    file = (
        tmp_path / "f.zarr" / "data" / "action" / "1.0"
    )  # steps 2 and 3: the end of episode 0, the start of episode 1
    file.write_bytes(file.read_bytes()[:30])
    error, *warnings = findings(tmp_path / "f.zarr")
    assert (error.severity, error.array, error.episode) == ("error", "action", 0)
    assert error.message == "chunk file data/action/1.0 is damaged (30 of 48 bytes); it holds episodes 0 to 1"
    assert {w.severity for w in warnings} == {"warning"}
    assert any("data/zero/0.0 is missing: it reads as 0.0, or it is lost" in w.message for w in warnings)
    assert any("1 rows after the last episode end (8): never read" in w.message for w in warnings)


def test_empty_store_and_unusable_arrays_are_errors(tmp_path: Path) -> None:
    DemoStore.create(tmp_path / "a.zarr", {"x": ArraySpec(shape=(1,))}).close()
    assert [f.message for f in errors(tmp_path / "a.zarr")] == ["the store is empty: 0 episodes"]
    zarr.open_group(tmp_path / "a.zarr", mode="r+").create_array("data/label", shape=(4,), dtype=str)
    label = next(f for f in errors(tmp_path / "a.zarr") if f.array == "label")
    assert "expected numbers or booleans" in label.message


def test_time_that_runs_backwards_within_an_episode_is_a_warning(tmp_path: Path) -> None:
    with DemoStore.create(tmp_path / "a.zarr", {"t": ArraySpec(shape=(), dtype="float64", role="timestamp")}) as store:
        store.append_episode({"t": [0.0, 0.1, 0.2]})
        store.append_episode({"t": [0.0, 0.1, 0.1, 0.2]})  # a restart from 0 is right, standing still is not
    (only,) = findings(tmp_path / "a.zarr")
    assert (only.severity, only.array, only.episode, only.row) == ("warning", "t", 1, 2)
    assert "0.1 follows 0.1 (1 such steps in all)" in only.message


def test_a_damaged_journal_entry_is_found_before_it_goes_into_the_arrays(tmp_path: Path) -> None:
    with DemoStore.create(tmp_path / "a.zarr", {"x": ArraySpec(shape=())}) as store:
        store.append_episode({"x": np.ones(3)})
        file = store.journal_path / "00000000" / "x.bin"
        good = file.read_bytes()
        file.write_bytes(bytes(12))
        (only,) = errors(tmp_path / "a.zarr")
        assert (only.array, only.episode) == ("x", 0)
        assert "another checksum" in only.message
        file.write_bytes(good)


def test_figures_of_a_store_by_hand(demo_store: Path) -> None:
    with DemoStore.open(demo_store) as store:
        told = json.loads(json.dumps(describe(store)))
    assert (told["n_episodes"], told["n_steps"], told["fps"]) == (3, 14, 10.0)
    assert told["lengths"] == {"min": 1, "median": 5.0, "max": 8}
    assert told["episode_columns"] == {"success": "bool", "task": "str"}
    state = told["keys"]["state"]
    assert (state["shape"], state["unit"], state["role"]) == ([3], "m", "observation")
    stats = state["stats"]  # 0..13: mean 6.5, variance (14^2 - 1) / 12
    assert (stats["min"], stats["max"], stats["n_nonfinite"]) == ([0.0] * 3, [13.0] * 3, [0] * 3)
    assert stats["mean"] == pytest.approx([6.5] * 3)
    assert stats["std"] == pytest.approx([(195 / 12) ** 0.5] * 3)
    assert "stats" not in told["keys"]["img"]


def test_figures_pass_over_values_that_are_not_finite(demo_store: Path) -> None:
    change(demo_store, "action", slice(0, 13), np.nan)
    with DemoStore.open(demo_store) as store:
        stats = describe(store)["keys"]["action"]["stats"]
    assert stats == {"min": [6.5] * 2, "max": [6.5] * 2, "mean": [6.5] * 2, "std": [0.0] * 2, "n_nonfinite": [13] * 2}


def test_real_push_t_structure_is_sound() -> None:
    if not PUSHT.exists():
        pytest.skip(f"the recorded Push-T data is not at {PUSHT}")
    assert findings(PUSHT, values=False) == []
    with DemoStore.open(PUSHT) as store:
        told = describe(store)
    assert told["lengths"] == {"min": 49, "median": 122.0, "max": 246}
    assert told["keys"]["action"]["stats"]["max"] == [511.0, 511.0]
