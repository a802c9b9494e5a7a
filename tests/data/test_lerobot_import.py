"""LeRobot datasets in: real ones of each version, made ones with each oddity, and files that lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.importing.lerobot import LeRobotSource
from visuomotor.data.importing.run import import_demos
from visuomotor.data.store import DemoStore
from visuomotor.data.video import VideoWriter

pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra lerobot")
pa = pytest.importorskip("pyarrow")

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
FPS, LENGTHS = 10, (6, 9)


def real(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"recorded data {name} is not there")
    return SHARED / name


def told(source: LeRobotSource) -> str:
    return "\n".join(map(str, source.findings))


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])


# -------------------------------------------------------------------- recorded datasets


def test_push_t_is_bit_equal_to_the_zarr_it_came_from() -> None:
    source = LeRobotSource(real("pusht_lerobot_v3"), {})
    episodes = [source.read(i).arrays for i in range(len(source.episodes))]
    with DemoStore.open(real("pusht/pusht_cchi_v7_replay.zarr")) as store:
        for key, want in (("action", store.read("action", 0, 25650)), ("state", store.read("state", 0, 25650)[:, :2])):
            got = np.concatenate([e[key] for e in episodes])
            assert got.dtype == want.dtype == np.float32
            assert got.tobytes() == want.tobytes()
        assert np.cumsum([len(e["action"]) for e in episodes]).tolist() == store.episode_ends.tolist()
    assert source.fps == 10
    assert source.read(0).columns["task"] == "Push the T-shaped block onto the T-shaped target."
    assert source.specs["state"].names == ("motor_0", "motor_1")
    assert "observation.image is declared in meta/info.json, but no episode has its video" in told(source)


def test_unitree_holes_are_reported_and_frames_are_pyavs() -> None:
    path = real("unitree_g1_lerobot_v21")
    source = LeRobotSource(path, {})
    assert [e.id for e in source.episodes] == ["1", "2", "4", "5", "7", "8", "10", "11", "12", "13"]
    assert "40 of 100 episodes have no data file (60-99): left out" in told(source)
    assert "50 of 60 episodes have no video of observation.images.cam_high (0, 3, 6, 9, 14-59): left out" in told(
        source
    )
    shortest = min(range(10), key=lambda i: source.episodes[i].length or 0)
    episode = source.read(shortest)
    name = f"episode_{int(source.episodes[shortest].id):06d}"
    assert np.array_equal(
        episode.arrays["cam_high"], decode(path / f"videos/chunk-000/observation.images.cam_high/{name}.mp4")
    )
    table = pq.read_table(path / f"data/chunk-000/{name}.parquet")
    assert np.array_equal(episode.arrays["state"], np.stack(table["observation.state"].to_numpy()))
    assert source.specs["action"].names is not None
    assert source.specs["action"].names[0] == "kLeftShoulderPitch"
    assert episode.findings == ()


def test_unitree_without_the_camera_has_all_sixty_episodes() -> None:
    source = LeRobotSource(real("unitree_g1_lerobot_v21"), {"missing_video": "drop_camera"})
    assert len(source.episodes) == 60
    assert "cam_high" not in source.specs
    assert source.read(59).arrays["state"].shape[1] == 26


def test_gr1_camera_without_files_is_reported_and_the_rest_read() -> None:
    path = real("gr1_picknplace_lerobot_v2") / "robot_sim.PickNPlace"
    source = LeRobotSource(path, {})
    assert "observation.images.egoview is declared in meta/info.json, but no episode has its video" in told(source)
    assert "data_path of meta/info.json" in told(source)  # it names folders that do not exist
    assert (len(source.episodes), source.fps) == (5, 20)
    episode = source.read(0)
    assert np.array_equal(
        episode.arrays["ego_view"],
        decode(path / "videos/chunk-000/observation.images.ego_view/episode_000000.mp4"),
    )
    assert episode.arrays["state"].shape == (416, 44)
    assert episode.arrays["state"].dtype == np.float64
    assert episode.columns["task"] == "pick the pear from the counter and place it in the plate"
    # its clocks differ by a period: LeRobot would pair row 0 with frame 1, and the last row with nothing
    assert "timestamps are +0.0500 s off the video's" in str(episode.findings[0])


# -------------------------------------------------------------------- made datasets


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A dataset 2.1 of two episodes: state (list of double), action, a camera as video, one as PNG cells, two tasks."""

    def build(**change: Any) -> Path:
        root = tmp_path / "set"
        features: dict[str, Any] = {
            "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
            "action": {"dtype": "float32", "shape": [1], "names": None},
            "observation.images.top": {
                "dtype": "video",
                "shape": [3, 32, 48],
                "names": ["channels", "height", "width"],
            },
            "observation.images.hand": {"dtype": "image", "shape": [16, 16, 3], "names": None},
            "next.success": {"dtype": "bool", "shape": [1], "names": None},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **{n: {"dtype": "int64", "shape": [1], "names": None} for n in ("episode_index", "index", "task_index")},
        }
        info = {
            "codebase_version": "v2.1", "fps": FPS, "total_episodes": 2, "chunks_size": 1000, "features": features,
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        }  # fmt: skip
        info.update(change.get("info", {}))
        (root / "meta").mkdir(parents=True)
        (root / "meta/info.json").write_text(json.dumps(info))
        lines = [{"episode_index": i, "length": n, "tasks": [f"t{i}"]} for i, n in enumerate(LENGTHS)]
        (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (root / "meta/tasks.jsonl").write_text(
            "".join(json.dumps({"task_index": i, "task": f"t{i}"}) + "\n" for i in (0, 1))
        )
        for i, n in enumerate(LENGTHS):
            _write_episode(root, i, n, change.get("columns", {}))
        return root

    return build


def _write_episode(root: Path, i: int, n: int, columns: dict[str, Callable[[int], Any]]) -> None:
    cells: dict[str, Any] = {
        "observation.state": [[float(t), t + 0.5] for t in range(n)],
        "action": [[t / 3] for t in range(n)],
        "observation.images.hand": [{"bytes": png(t), "path": None} for t in range(n)],
        "next.success": [t == n - 1 and i == 1 for t in range(n)],
        "timestamp": np.arange(n, dtype=np.float32) / FPS,
        "episode_index": [i] * n,
        "task_index": [i] * n,
    }
    cells |= {name: make(n) for name, make in columns.items()}
    path = root / f"data/chunk-000/episode_{i:06d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({k: v for k, v in cells.items() if v is not None}), path)
    with VideoWriter(root / f"videos/chunk-000/observation.images.top/episode_{i:06d}.mp4", FPS) as video:
        for t in range(n):
            video.add(np.full((32, 48, 3), 20 * t, np.uint8))


def png(value: int, side: int = 16) -> bytes:
    return bytes(cv2.imencode(".png", np.full((side, side, 3), (0, 0, value), np.uint8))[1])


def test_every_kind_of_column(make: Callable[..., Path], tmp_path: Path) -> None:
    source = LeRobotSource(make(), {})
    assert LeRobotSource.recognises(source.path) == "LeRobot v2.1 (meta/info.json)"
    assert {k: (s.shape, s.dtype, s.role) for k, s in source.specs.items()} == {
        "state": ((2,), "float32", "observation"),
        "action": ((1,), "float32", "action"),
        "top": ((32, 48, 3), "uint8", "observation"),
        "hand": ((16, 16, 3), "uint8", "observation"),
        "success": ((), "bool", "other"),
        "timestamp": ((), "float32", "timestamp"),
    }
    assert source.specs["top"].source == "observation.images.top"
    report = import_demos(source, tmp_path / "out.zarr")
    assert (report.episodes, report.steps, report.skipped, report.findings) == (2, 15, {}, [])
    with DemoStore.open(tmp_path / "out.zarr") as store:
        assert store.fps == 10
        assert store.episode_columns["task"].tolist() == ["t0", "t1"]
        assert store.episode_columns["success"].tolist() == [False, True]
        arrays = store.episode(1)
    assert arrays["state"][:, 1].tolist() == [t + 0.5 for t in range(9)]
    assert np.array_equal(arrays["action"][:, 0], (np.arange(9) / 3).astype(np.float32))
    assert arrays["hand"][:, 0, 0].tolist() == [[t, 0, 0] for t in range(9)]  # red: channels are in order
    assert np.abs(arrays["top"].mean((1, 2, 3)) - 20 * np.arange(9)).max() < 2


def test_what_is_odd_is_mended_and_told(make: Callable[..., Path]) -> None:
    columns: dict[str, Callable[[int], Any]] = {
        "frame_index": lambda n: [0, *range(2, n + 1)],
        "task_index": lambda n: [0] * (n - 2) + [1, 1],
        "extra": lambda n: [0] * n,
    }
    source = LeRobotSource(make(columns=columns), {})
    assert "columns that meta/info.json does not declare: extra" in told(source)
    notes = " ".join(map(str, source.read(0).findings))
    assert "frame_index is 2 at row 1" in notes
    assert "the task changes at row 4 to 't1'" in notes


def test_pictures_that_are_lost_are_errors(make: Callable[..., Path]) -> None:
    columns: dict[str, Callable[[int], Any]] = {"timestamp": lambda n: np.arange(n, dtype=np.float32) / 8}
    source = LeRobotSource(make(columns=columns), {})
    with pytest.raises(DataError, match=r"episode_000001.mp4: row .* has no frame within half a period"):
        source.read(1)
    assert len(LeRobotSource(source.path, {"pairing": "order"}).read(1).arrays["top"]) == 9


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bytes": b"GIF89a", "path": None}, "row 0: a picture begins with 474946383961: neither PNG nor JPEG"),
        ({"bytes": png(0, 20), "path": None}, "row 0: it is 20 x 20 px; expected 16 x 16"),
        ({"bytes": png(0)[:-30], "path": None}, "damaged"),
        ({"bytes": None, "path": "../../secret.png"}, "names a picture outside the dataset"),
        ({"bytes": None, "path": None}, "row 0 holds no picture"),
    ],
)
def test_picture_cells_are_not_trusted(make: Callable[..., Path], cell: dict[str, Any], message: str) -> None:
    source = LeRobotSource(make(columns={"observation.images.hand": lambda n: [cell] * n}), {})
    with pytest.raises(DataError, match=message):
        source.read(0)


def test_rows_of_another_length_or_kind_are_refused(make: Callable[..., Path]) -> None:
    ragged = LeRobotSource(make(columns={"observation.state": lambda n: [[0.0, 0.0]] * (n - 1) + [[0.0]]}), {})
    with pytest.raises(DataError, match=r"observation.state.*rows of different length"):
        ragged.read(0)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"codebase_version": "v1.6"}, "version 'v1.6': v2.0, v2.1, v3.0 are read"),
        ({"fps": 0}, "fps 0.0"),
        ({"fps": "fast"}, "damaged"),
        ({"features": {"action": {"dtype": "float32", "shape": [1 << 40]}}}, "declares the shape"),
        ({"features": {"action": {"dtype": "object", "shape": [1]}}}, "expected numbers"),
        ({"data_path": "../{episode_index}.parquet"}, "none inside the dataset"),
        ({"data_path": "{episode_index.__class__}"}, "none inside the dataset"),
        ({"data_path": "{episode_index:99999999999d}"}, "none inside the dataset"),
        ({"data_path": "{secret}"}, "has the field 'secret'"),
    ],
)
def test_descriptions_are_not_trusted(make: Callable[..., Path], info: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        LeRobotSource(make(info=info), {})


def test_a_small_file_that_declares_many_rows_is_refused(make: Callable[..., Path]) -> None:
    root, rows = make(), 3 << 20
    path = root / "data/chunk-000/episode_000000.parquet"
    pq.write_table(pa.table({"episode_index": np.zeros(rows, np.int64)}), path, compression="zstd")
    assert path.stat().st_size < rows // 64
    with pytest.raises(DataError, match=f"declares {rows} rows in .* bytes"):
        LeRobotSource(root, {})


@pytest.mark.parametrize(
    "name", ["data/chunk-000/episode_000000.parquet", "videos/chunk-000/observation.images.top/episode_000000.mp4"]
)
@pytest.mark.parametrize("keep", [0, 40, 700])
def test_truncated_files_are_one_error(make: Callable[..., Path], name: str, keep: int) -> None:
    root = make()
    (root / name).write_bytes((root / name).read_bytes()[:keep])
    with pytest.raises(DataError, match=f"{Path(name).name}"):
        LeRobotSource(root, {}).read(0)


def test_a_playlist_named_mp4_opens_nothing(make: Callable[..., Path]) -> None:
    root = make()
    folder = root / "videos/chunk-000/observation.images.top"
    (folder / "episode_000000.mp4").write_text(f"ffconcat version 1.0\nfile {folder / 'episode_000001.mp4'}\n")
    with pytest.raises(DataError, match=r"episode_000000.mp4 cannot be read as mp4"):
        LeRobotSource(root, {})


def test_options_are_checked(make: Callable[..., Path]) -> None:
    root = make()
    with pytest.raises(ConfigError, match=r"no option 'pairs'. Did you mean 'pairing'"):
        LeRobotSource(root, {"pairs": "order"})
    with pytest.raises(ConfigError, match="expected time or order"):
        LeRobotSource(root, {"pairing": "row"})
