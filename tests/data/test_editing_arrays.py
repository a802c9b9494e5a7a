"""Operations that join, part and change arrays, by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))
from edited import columns, run, states, write_operators

from visuomotor.data.editing.edit import edit
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore


@pytest.fixture
def operators(tmp_path: Path) -> Path:
    return write_operators(tmp_path / "ops.zarr")


# ---------------------------------------------------------------- split and merge


def test_split_deals_every_episode_once_and_the_same_way(operators, tmp_path):
    report = edit(operators, tmp_path / "p", ["split", "train=0.5", "val=0.25", "test=0.25", "seed=3"])
    assert [(p.name, n) for p, n, _ in report.written] == [("train.json", 6), ("val.json", 3), ("test.json", 3)]
    firsts = [s[0] for name in ("train", "val", "test") for s in states(tmp_path / "p" / f"{name}.json")]
    assert sorted(firsts) == [100.0 * i for i in range(12)]
    edit(operators, tmp_path / "q", ["split", "train=0.5", "val=0.25", "test=0.25", "seed=3"])
    assert states(tmp_path / "q" / "val.json") == states(tmp_path / "p" / "val.json")
    with pytest.raises(ConfigError, match="exists already"):
        edit(operators, tmp_path / "p", ["split", "train=0.5", "test=0.5"])


def test_split_keeps_operators_together_or_apart(operators, tmp_path):
    edit(operators, tmp_path / "p", ["split", "train=0.7", "test=0.3", "together=operator", "as=zarr"])
    train, test = (set(columns(tmp_path / "p" / f"{n}.zarr")["operator"]) for n in ("train", "test"))
    assert (len(train), len(test), train & test) == (2, 1, set())
    edit(operators, tmp_path / "q", ["split", "by=operator"])
    assert columns(tmp_path / "q" / "b.json")["operator"] == ["b"] * 4
    with pytest.raises(ConfigError, match="adding up to 1"):
        edit(operators, tmp_path / "r", ["split", "train=0.7", "test=0.2"])


def test_merge_reconciles_or_refuses(operators, tmp_path):
    other = {
        "state": ArraySpec(shape=(2,), dtype="float64", role="observation", names=("y", "x")),
        "action": ArraySpec(shape=(2,), role="action", unit="m", names=("x", "y")),
    }
    with DemoStore.create(tmp_path / "b.zarr", other, fps=20, episode_columns={"operator": "str"}) as store:
        store.append_episode({"state": [[7.0, 8.0]] * 3, "action": [[1.0, 2.0]] * 3}, {"operator": "d"})
    with pytest.raises(DataError, match=r"column 'quality' is not in .*b.zarr: .* fill.quality=<value>"):
        run(operators, tmp_path / "m.zarr", "merge", f"with={tmp_path / 'b.zarr'}")
    out = run(operators, tmp_path / "m.zarr", "merge", f"with={tmp_path / 'b.zarr'}", "fill.quality=0.5")
    with DemoStore.open(out) as store:
        assert store.n_episodes == 13
        assert store.specs["state"].dtype == "float64"
        assert store.specs["state"].unit == "m"
        assert store.episode(12)["state"][0].tolist() == [8.0, 7.0]  # x comes first
        assert store.episode_columns["quality"][-1] == 0.5
        assert [m["source"] for m in store.origin["merged"]] == ["ops.zarr", str(tmp_path / "b.zarr")]
    for spec, says in (
        (ArraySpec(shape=(2,), role="observation", unit="mm"), "has unit m in ops.zarr, but mm"),
        (ArraySpec(shape=(3,), role="observation"), "has shape"),
        (ArraySpec(shape=(2,), role="observation", names=("u", "v")), "components of 'state' are x, y"),
        (ArraySpec(shape=(2,), role="observation", dtype="int32"), "is float32 in ops.zarr, but int32"),
    ):
        with DemoStore.create(tmp_path / "c.zarr", {**other, "state": spec}, fps=20, overwrite=True) as store:
            store.append_episode({"state": np.ones((3, *spec.shape), spec.dtype), "action": np.ones((3, 2))})
        with pytest.raises(DataError, match=says):
            run(operators, tmp_path / "n.zarr", "merge", f"with={tmp_path / 'c.zarr'}", "common=true")
    with DemoStore.create(tmp_path / "d.zarr", other, fps=10) as store:
        store.append_episode({"state": np.ones((3, 2)), "action": np.ones((3, 2))})
    with pytest.raises(DataError, match="rates differ"):
        run(operators, tmp_path / "n.zarr", "merge", f"with={tmp_path / 'd.zarr'}", "common=true")
    with DemoStore.open(
        run(operators, tmp_path / "n.zarr", "merge", f"with={tmp_path / 'd.zarr'}", "common=true", "hz=10")
    ) as s:
        assert (s.fps, s.n_episodes, s.column_types) == (10, 13, {})


# ---------------------------------------------------------------- arrays and rates


def test_resampling_by_hand(tmp_path):
    half = np.linspace(0, 1, 5)
    specs = {
        "x": ArraySpec(shape=(1,), role="observation"),
        "angle": ArraySpec(shape=(1,), role="observation", unit="rad"),
        "q": ArraySpec(shape=(4,), role="observation", names=("qw", "qx", "qy", "qz")),
        "delta": ArraySpec(shape=(1,), role="action"),
        "img": ArraySpec(shape=(8, 8, 3), dtype="uint8", role="observation"),
        "t": ArraySpec(shape=(), dtype="int64", role="timestamp"),
    }
    arrays = {
        "x": np.arange(5.0)[:, None],
        "angle": np.mod([5.5, 6.0, 6.5, 7.0, 7.5], 2 * np.pi)[:, None],
        "q": np.stack([np.cos(half), np.sin(half), 0 * half, 0 * half], axis=1) * np.array([1, 1, -1, 1, 1])[:, None],
        "delta": np.array([1.0, 2, 3, 4, 5])[:, None],
        "img": np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None, None], (5, 8, 8, 3)),
        "t": 1_700_000_000_000_000_000 + np.arange(5) * 100_000_000,
    }
    with DemoStore.create(tmp_path / "a.zarr", specs, fps=10) as store:
        store.append_episode({k: v.astype(specs[k].dtype) for k, v in arrays.items()})
    with DemoStore.open(run(tmp_path / "a.zarr", tmp_path / "b.zarr", "resample", "hz=20", "sum=delta")) as store:
        up = store.episode(0)
        assert store.fps == 20
    assert up["x"][:, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert up["angle"][:, 0] == pytest.approx(np.mod(5.5 + 0.25 * np.arange(9), 2 * np.pi), abs=1e-6)
    expected = np.linspace(0, 1, 9)
    assert up["q"][:, 0] == pytest.approx(np.cos(expected), abs=1e-6)
    assert up["q"][:, 1] == pytest.approx(np.sin(expected), abs=1e-6)
    assert up["delta"][:, 0].tolist() == [0.5, 0.5, 1, 1, 1.5, 1.5, 2, 2, 5]  # the last step has no half of its own
    assert up["img"][:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert np.diff(up["t"]).tolist() == [50_000_000] * 8
    with DemoStore.open(
        run(tmp_path / "a.zarr", tmp_path / "c.zarr", "resample", "hz=5", "sum=delta", "hold=x")
    ) as store:
        down = store.episode(0)
    assert down["delta"][:, 0].tolist() == [3, 7, 5]
    assert down["x"][:, 0].tolist() == [0, 2, 4]
    with pytest.raises(ConfigError, match="give the new rate"):
        run(tmp_path / "a.zarr", tmp_path / "d.zarr", "resample")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fps=st.sampled_from([10.0, 29.97, 30.0, 50.0]), hz=st.sampled_from([7.0, 15.0, 20.0, 60.0]))
def test_sums_stay_what_they_are_at_any_rate(tmp_path_factory, fps, hz):
    folder = tmp_path_factory.mktemp("rate")
    specs = {"d": ArraySpec(shape=(2,), dtype="float64", role="action"), "x": ArraySpec(shape=(1,), dtype="float64")}
    d = np.random.default_rng(0).normal(size=(53, 2))
    line = np.arange(53)[:, None] / fps
    with DemoStore.create(folder / "a.zarr", specs, fps=fps) as store:
        store.append_episode({"d": d, "x": line})
    with DemoStore.open(run(folder / "a.zarr", folder / "b.zarr", "resample", f"hz={hz}", "sum=d")) as store:
        out = store.episode(0)
    assert out["d"].sum(0) == pytest.approx(d.sum(0), abs=1e-9)
    assert out["x"][:, 0] == pytest.approx(np.arange(len(out["x"])) / hz, abs=1e-8)
    assert len(out["x"]) == int(52 / fps * hz + 1e-6) + 1


def test_keys_parts_files_and_pictures(demo_store, tmp_path):
    np.savez(tmp_path / "more.npz", mask=np.arange(14) % 2 == 0, feature=np.ones((14, 3), np.float32))
    out = run(demo_store, tmp_path / "a.zarr", "add", "height=state:2", f"from={tmp_path / 'more.npz'}",
              "resize", "img=8x12", "keys", "drop=state", "rename=height:z,img:cam")  # fmt: skip
    with DemoStore.open(out) as store:
        assert {k: (s.shape, s.dtype) for k, s in store.specs.items()} == {
            "action": ((2,), "float32"),
            "cam": ((12, 8, 3), "uint8"),
            "feature": ((3,), "float32"),
            "mask": ((), "bool"),
            "z": ((1,), "float32"),
        }
        assert store.specs["z"].names == ("z",)
        last = store.episode(2)
        assert last["z"][:, 0].tolist() == list(range(6, 14))
        assert last["mask"].tolist() == [True, False] * 4
        assert (last["cam"] == np.arange(6, 14)[:, None, None, None]).all()
    np.savez(tmp_path / "bad.npz", evil=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickle"):
        run(demo_store, tmp_path / "b.zarr", "add", f"from={tmp_path / 'bad.npz'}")
    np.savez(tmp_path / "short.npz", x=np.ones(3))
    with pytest.raises(DataError, match="each of the 14 steps"):
        run(demo_store, tmp_path / "b.zarr", "add", f"from={tmp_path / 'short.npz'}")


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_float_images_become_uint8(tmp_path, scale):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.float32)
    with DemoStore.create(tmp_path / "a.zarr", {"img": ArraySpec(shape=(8, 8, 3), role="observation")}) as store:
        store.append_episode({"img": pixels / scale})
    with DemoStore.open(run(tmp_path / "a.zarr", tmp_path / "b.zarr", "uint8")) as store:
        assert np.array_equal(store.episode(0)["img"], pixels.astype(np.uint8))
