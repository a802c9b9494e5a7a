"""Stores as MCAP: read by other readers, and back without a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")

from rosbags.highlevel import AnyReader

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.exporting.registry import export_demos
from visuomotor.data.importing.registry import open_source
from visuomotor.data.importing.run import import_demos
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

LENGTHS = (4, 1, 7)
SPECS = {
    "joints": ArraySpec(shape=(3,), dtype="float32", role="observation", unit="rad", names=("a", "b", "c")),
    "state": ArraySpec(shape=(2,), dtype="float64", role="observation"),
    "action": ArraySpec(shape=(2,), dtype="float32", role="action", names=("x", "x")),
    "matrix": ArraySpec(shape=(2, 3), dtype="int64", role="privileged"),
    "reward": ArraySpec(shape=(), dtype="float32", role="reward"),
    "done": ArraySpec(shape=(1,), dtype="bool"),
    "front": ArraySpec(shape=(10, 12, 3), dtype="uint8", role="observation"),
    "depth": ArraySpec(shape=(9, 8), dtype="uint16", role="observation", unit="mm"),
    "metres": ArraySpec(shape=(8, 9, 1), dtype="float32", role="observation", unit="m"),
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    columns = {"task": "str", "success": "bool", "n": "int64", "score": "float64"}
    with DemoStore.create(tmp_path / "a.zarr", SPECS, fps=30.0, episode_columns=columns) as out:
        for e, n in enumerate(LENGTHS):
            arrays = {}
            for key, spec in SPECS.items():
                values = (
                    rng.normal(size=(n, *spec.shape)) if spec.dtype[0] == "f" else rng.integers(0, 2, (n, *spec.shape))
                )
                arrays[key] = (values * (200 if spec.dtype[0] == "u" else 1)).astype(spec.dtype)
            task = 'say "hi" — ünï' if e else ""
            out.append_episode(arrays, {"task": task, "success": e == 1, "n": -e, "score": e / 3})
    return tmp_path / "a.zarr"


def export(path: Path, out: Path, **options: Any) -> list[str]:
    with DemoStore.open(path) as store:
        return export_demos(store, out, "mcap", options=options)


@pytest.mark.parametrize("files", ["one", "episodes"])
def test_round_trip_without_a_loss(store: Path, tmp_path: Path, files: str) -> None:
    out = tmp_path / ("x.mcap" if files == "one" else "folder")
    assert export(store, out, files=files) == []
    assert out.is_file() == (files == "one")
    source = open_source(out)  # it brings its mapping
    report = import_demos(source, tmp_path / "b.zarr")
    assert (report.episodes, report.skipped) == (3, {})
    with DemoStore.open(store) as a, DemoStore.open(tmp_path / "b.zarr") as b:
        assert a.fps == b.fps
        np.testing.assert_array_equal(a.episode_ends, b.episode_ends)
        for key, spec in SPECS.items():
            np.testing.assert_array_equal(a.read(key, 0, a.n_steps), b.read(key, 0, b.n_steps), err_msg=key)
            got = b.specs[key]
            assert (got.shape, got.dtype, got.role, got.unit, got.names) == (
                spec.shape, spec.dtype, spec.role, spec.unit, spec.names,
            )  # fmt: skip
        for name, values in a.episode_columns.items():
            assert values.tolist() == b.episode_columns[name].tolist()


def test_other_readers_see_the_same(store: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("mcap_ros2.reader")
    export(store, tmp_path / "x.mcap")
    with DemoStore.open(store) as a:
        truth = {key: a.read(key, 0, a.n_steps) for key in SPECS}
    got: dict[str, list[Any]] = {}
    for m in reader.read_ros2_messages(str(tmp_path / "x.mcap")):
        got.setdefault(m.channel.topic, []).append(m.ros_msg)
    assert np.array_equal(np.array([m.position for m in got["/joints"]], np.float32), truth["joints"])
    assert got["/joints"][0].name == ["a", "b", "c"]
    assert np.array_equal(np.array([m.data for m in got["/matrix"]]).reshape(-1, 2, 3), truth["matrix"])
    assert [(d.size, d.stride) for d in got["/matrix"][0].layout.dim] == [(2, 6), (3, 3)]
    depth = np.frombuffer(b"".join(bytes(m.data) for m in got["/depth"]), "<u2").reshape(-1, 9, 8)
    assert np.array_equal(depth, truth["depth"])
    assert [m.data for m in got["/episode"]] == [0, -1, 1, -1, 2, -1]
    with AnyReader([tmp_path / "x.mcap"]) as bag:
        counts = {name: info.msgcount for name, info in bag.topics.items()}
        assert counts["/joints"] == counts["/front"] == sum(LENGTHS)
        stamps = [t for c, t, _ in bag.messages() if c.topic == "/joints"][:4]
        assert np.diff(stamps).tolist() == [33_333_333, 33_333_334, 33_333_333]  # 30 Hz, rounded from the index


def test_jpeg_is_said_to_lose(store: Path, tmp_path: Path) -> None:
    assert export(store, tmp_path / "x.mcap", images="jpeg", quality=90) == [
        "pictures are JPEG: their values differ a little from the store's"
    ]


def test_what_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"options.files is 'two'. Known: episodes, one"):
        export(store, tmp_path / "x.mcap", files="two")
    with pytest.raises(ConfigError, match=r"mcap has no option 'image'. Did you mean 'images'"):
        export(store, tmp_path / "x.mcap", image="png")
    specs = {"grey": ArraySpec(shape=(8, 8, 1), dtype="uint8"), "big": ArraySpec(shape=(1,), dtype="int64")}
    with DemoStore.create(tmp_path / "c.zarr", specs, fps=10.0) as out:
        out.append_episode({"grey": np.zeros((2, 8, 8, 1), np.uint8), "big": np.full((2, 1), 2**60)})
    with DemoStore.open(tmp_path / "c.zarr") as c:
        with pytest.raises(DataError, match="'grey' is uint8"):
            export_demos(c, tmp_path / "y.mcap", "mcap")
        with pytest.raises(DataError, match=r"whole numbers beyond 2\*\*53"):
            export_demos(c, tmp_path / "y.mcap", "mcap", drop=["grey"])
    assert not list(tmp_path.glob("*.mcap"))
    assert not list(tmp_path.glob(".*part*"))
