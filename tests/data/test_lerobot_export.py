"""LeRobot datasets out: back again bit for bit, and read by LeRobot's own loader where there is one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visuomotor.configs.cli import main
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.exporting.lerobot_stats import array_stats, merge_stats, picture_stats
from visuomotor.data.exporting.registry import export_demos, export_formats
from visuomotor.data.importing.lerobot import LeRobotSource
from visuomotor.data.importing.run import import_demos
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

pytest.importorskip("pyarrow", reason="needs the extra lerobot")

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
LENGTHS = (7, 1, 12)
SPECS = {
    "qpos": ArraySpec(shape=(3,), role="observation", unit="rad", names=("a", "b", "c")),
    "action": ArraySpec(shape=(1,), role="action"),
    "reward": ArraySpec(shape=(), role="reward"),
    "front": ArraySpec(shape=(48, 64, 3), dtype="uint8", role="observation", source="/camera/front"),
    "depth": ArraySpec(shape=(12, 10), dtype="uint16", role="observation", unit="mm"),
    "poses": ArraySpec(shape=(2, 4), dtype="float64", role="privileged"),
    "flag": ArraySpec(shape=(), dtype="bool", role="intervention"),
    "timestamp": ArraySpec(shape=(), dtype="float64", role="timestamp", unit="s"),
}


def episode(index: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    y, x, t = np.ogrid[:48, :64, :length]
    picture = np.stack(np.broadcast_arrays(2 * y + 5 * t, 3 * x + 0 * t, 20 * index + 0 * t), -1)
    return {
        "qpos": rng.normal(size=(length, 3)).astype(np.float32),
        "action": rng.normal(size=(length, 1)).astype(np.float32),
        "reward": rng.normal(size=length).astype(np.float32),
        "front": np.moveaxis(picture.clip(0, 255), 2, 0).astype(np.uint8),
        "depth": rng.integers(0, 1 << 16, (length, 12, 10)).astype(np.uint16),
        "poses": rng.normal(size=(length, 2, 4)),
        "flag": rng.random(length) > 0.5,
        "timestamp": 100 + np.arange(length) / 30 + 1e-3 * rng.random(length),
    }


@pytest.fixture
def store(tmp_path: Path) -> Path:
    columns = {"task": "str", "success": "bool", "weight": "float64"}
    with DemoStore.create(tmp_path / "a.zarr", SPECS, fps=30.0, episode_columns=columns) as made:
        for i, length in enumerate(LENGTHS):
            made.append_episode(episode(i, length), {"task": f"t{i % 2}", "success": i == 1, "weight": i / 3})
    return tmp_path / "a.zarr"


def export(store: Path, path: Path, **arguments: Any) -> list[str]:
    with DemoStore.open(store) as opened:
        return export_demos(opened, path, "lerobot", **arguments)


@pytest.mark.parametrize("images", ["video", "png"])
def test_a_store_comes_back_as_it_was(store: Path, tmp_path: Path, images: str) -> None:
    assert export(store, tmp_path / "out", options={"images": images}) == []
    source = LeRobotSource(tmp_path / "out", {})
    assert (source.specs, source.fps, source.findings) == (SPECS, 30, [])
    report = import_demos(source, tmp_path / "b.zarr")
    assert (report.episodes, report.findings) == (3, [])
    with DemoStore.open(store) as a, DemoStore.open(tmp_path / "b.zarr") as b:
        assert a.specs == b.specs
        assert a.episode_ends.tolist() == b.episode_ends.tolist()
        for name, values in a.episode_columns.items():
            assert b.episode_columns[name].tolist() == values.tolist()
        for key in SPECS:
            got, want = b.read(key, 0, b.n_steps), a.read(key, 0, a.n_steps)
            if key == "front" and images == "video":
                assert np.abs(got.astype(int) - want).mean() < 3  # lossy, and 4:2:0
            else:
                assert got.tobytes() == want.tobytes()


def test_names_are_those_that_lerobot_expects(store: Path, tmp_path: Path) -> None:
    export(store, tmp_path / "out", options={"names": {"flag": "is_intervention"}})
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    declared = {f["visuomotor"]["key"]: n for n, f in info["features"].items() if "visuomotor" in f}
    assert declared == {
        "qpos": "observation.state",  # the only vector that is observed
        "action": "action",
        "reward": "next.reward",
        "front": "observation.images.front",
        "depth": "observation.depth",
        "poses": "poses",
        "flag": "is_intervention",
        "timestamp": "recorded.timestamp",  # LeRobot's own are of the grid
    }
    assert info["features"]["observation.state"]["names"] == ["a", "b", "c"]
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["fps"]) == (3, 20, 2, 30)


def test_timestamps_of_the_grid_are_lerobots_own(tmp_path: Path) -> None:
    specs = {k: ArraySpec(shape=(1,), role=r) for k, r in (("action", "action"), ("timestamp", "timestamp"))}
    with DemoStore.create(tmp_path / "a.zarr", specs, fps=30.0) as made:
        times = (np.arange(5) / 30).astype(np.float32)[:, None]
        made.append_episode({"action": np.zeros((5, 1), np.float32), "timestamp": times})
    export(tmp_path / "a.zarr", tmp_path / "out")
    source = LeRobotSource(tmp_path / "out", {})
    assert source.specs == specs
    assert np.array_equal(source.read(0).arrays["timestamp"], times)


def test_files_are_begun_when_full(tmp_path: Path) -> None:
    spec = {"cam": ArraySpec(shape=(128, 128, 3), dtype="uint8"), "action": ArraySpec(shape=(2,), role="action")}
    noise = np.random.default_rng(0).integers(0, 256, (16, 128, 128, 3)).astype(np.uint8)  # incompressible: 0.8 MB
    with DemoStore.create(tmp_path / "a.zarr", spec, fps=5.0) as made:
        for i in range(4):
            made.append_episode({"cam": noise + np.uint8(i), "action": np.full((16, 2), i, np.float32)})
    for images, folder in (("png", "data"), ("video", "videos/observation.images.cam")):
        out = tmp_path / images
        names = {"names": {"cam": "observation.images.cam"}}
        export(tmp_path / "a.zarr", out, options={"images": images, "file_mb": 1, "video_mb": 1, "crf": 0, **names})
        assert len(list((out / folder / "chunk-000").iterdir())) == 2
        source = LeRobotSource(out, {})
        for i in reversed(range(4)):
            arrays = source.read(i).arrays
            assert (arrays["action"] == i).all()
            assert images == "video" or np.array_equal(arrays["cam"], noise + np.uint8(i))


def test_float_pictures_odd_sides_and_chosen_episodes(tmp_path: Path) -> None:
    spec = {"cam": ArraySpec(shape=(9, 11, 3), role="observation"), "action": ArraySpec(shape=(2,), role="action")}
    frames = np.random.default_rng(0).integers(0, 256, (4, 9, 11, 3)).astype(np.float32)
    with DemoStore.create(tmp_path / "a.zarr", spec, fps=5.0) as made:
        for i in range(3):
            made.append_episode({"cam": frames, "action": np.full((4, 2), i, np.float32)})
    notes = export(tmp_path / "a.zarr", tmp_path / "out", episodes=[2, 0], options={"task": "push"})
    assert notes == ["cam is 11 x 9 px: video needs even sides, so it is written as PNG"]
    source = LeRobotSource(tmp_path / "out", {})
    assert [source.read(i).arrays["action"][0, 0] for i in (0, 1)] == [2, 0]
    assert source.read(1).arrays["cam"].tolist() == frames.tolist()
    assert source.read(0).columns["task"] == "push"
    with DemoStore.open(tmp_path / "a.zarr", "a") as made:
        made.append_episode({"cam": frames / 255, "action": np.zeros((4, 2), np.float32)})
    with pytest.raises(DataError, match=r"'cam' holds float32 that are not whole numbers in 0..255"):
        export(tmp_path / "a.zarr", tmp_path / "other")
    assert not [p for p in tmp_path.iterdir() if "other" in p.name]


def test_push_t_there_and_back_is_bit_equal(tmp_path: Path) -> None:
    path = SHARED / "pusht" / "pusht_cchi_v7_replay.zarr"
    if not path.exists():
        pytest.skip("recorded data pusht is not there")
    export(path, tmp_path / "out", drop=["img"], options={"fps": 10})
    import_demos(LeRobotSource(tmp_path / "out", {}), tmp_path / "b.zarr")
    with DemoStore.open(path) as a, DemoStore.open(tmp_path / "b.zarr") as b:
        assert a.episode_ends.tolist() == b.episode_ends.tolist()
        for key in ("action", "state", "keypoint", "n_contacts"):
            assert a.read(key, 0, a.n_steps).tobytes() == b.read(key, 0, b.n_steps).tobytes()


def test_statistics_by_hand() -> None:
    a, b = array_stats(np.array([1.0, 3.0])), array_stats(np.array([8.0]))
    merged = merge_stats(merge_stats(None, a), b)
    assert {k: merged[k].tolist() for k in ("min", "max", "mean", "count")} == {
        "min": [1.0], "max": [8.0], "mean": [4.0], "count": [3],
    }  # fmt: skip
    assert merged["std"][0] == pytest.approx(np.sqrt((9 + 1 + 16) / 3))
    picture = np.zeros((2, 4, 4, 3), np.uint8)
    picture[1, ..., 2] = 255
    assert picture_stats(picture)["mean"].reshape(3).tolist() == [0, 0, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"image": "png"}}, "lerobot has no option 'image'. Did you mean 'images'"),
        ({"options": {"images": "jpg"}}, "expected video or png"),
        ({"options": {"crf": "low"}}, "expected a whole number"),
        ({"options": {"names": {"flag": "index"}}}, "'flag' cannot be called 'index'"),
        ({"options": {"names": {"flags": "x"}}}, "no array 'flags' is exported"),
        ({"keys": ["qpose"]}, "has no array 'qpose'"),
        ({"episodes": [3]}, "has no episode 3"),
        ({"episodes": []}, "nothing to export"),
    ],
)
def test_mistakes_are_one_sentence(store: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        export(store, tmp_path / "out", **arguments)
    assert {p.name for p in tmp_path.iterdir()} == {"a.zarr"}


def test_the_command(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "export", str(store), str(tmp_path / "out"), "format=lerobot"]
    assert main([*words, "options.images=png", "drop=[depth]"]) == 0
    assert "written as lerobot" in capsys.readouterr().out
    assert "depth" not in LeRobotSource(tmp_path / "out", {}).specs
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*words[:3], str(tmp_path / "x"), "format=lerobt"]) == 2
    assert "Did you mean 'lerobot'" in capsys.readouterr().err
    assert main([*words[:2], "--help"]) == 0
    assert f"Formats: {', '.join(export_formats())}" in capsys.readouterr().out


@pytest.mark.parametrize("images", ["png", "video"])
def test_lerobots_own_loader_reads_the_same(store: Path, tmp_path: Path, images: str) -> None:
    python = os.environ.get("LEROBOT_PYTHON")
    if not python:
        pytest.skip("LEROBOT_PYTHON names no interpreter that has lerobot 0.4 (for video with torchcodec)")
    export(store, tmp_path / "out", options={"images": images})
    key, worker = "observation.images.front", Path(__file__).with_name("lerobot_worker.py")
    done = subprocess.run(
        [python, worker, tmp_path / "out", tmp_path / "got.npz", key],
        capture_output=True, text=True, timeout=200,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    got = np.load(tmp_path / "got.npz")
    source = LeRobotSource(tmp_path / "out", {})
    want = {k: np.concatenate([source.read(i).arrays[k] for i in range(3)]) for k in SPECS}
    assert got["lengths"].tolist() == list(LENGTHS)
    assert got["tasks"].tolist() == ["t0"] * 7 + ["t1"] + ["t0"] * 12
    names = {"observation.state": "qpos", "next.reward": "reward", "observation.depth": "depth", "poses": "poses"}
    for name, array in names.items():
        assert np.array_equal(got[f"table/{name}"], want[array].astype(got[f"table/{name}"].dtype))
    assert np.array_equal(got["table/action"], want["action"][:, 0])
    rows = got["rows"]
    assert np.array_equal(got["item_action"], want["action"][rows, 0])
    assert got["item_task"].tolist() == got["tasks"][rows].tolist()
    pictures = np.rint(got["pictures"].transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    assert np.array_equal(pictures, want["front"][rows])  # the frames that our own import decodes
    assert {"action", "observation.state", key} <= set(got["stats"].tolist())
    assert got["mean"] == pytest.approx(want["action"].mean(), abs=1e-6)
