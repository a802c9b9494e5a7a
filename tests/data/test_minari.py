"""Minari: files in the layout that minari 0.5.4 writes (its documentation's "Dataset Standards"), nested and flat.

With ``MINARI_PYTHON`` set to a Python that has minari[hdf5,create], a real dataset is made and read.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.importing.registry import detect, open_source
from visuomotor.data.importing.run import import_demos
from visuomotor.data.store import DemoStore

h5py = pytest.importorskip("h5py", reason="needs the extra hdf5")
LENGTHS = (5, 3, 8)


def write_dataset(root: Path, *, metadata: dict[str, object] | None = None) -> Path:
    """Observations ``{"image", "robot": {"pos", "vel"}, "mission"}``; one row more of them than of actions."""
    data = root / "data"
    data.mkdir(parents=True)
    told = {"data_format": "hdf5", "total_episodes": len(LENGTHS), "dataset_id": "toy/reach-v0"}
    told |= {"env_spec": json.dumps({"id": "Reach-v3", "kwargs": {}})}
    (data / "metadata.json").write_text(json.dumps({**told, **(metadata or {})}))
    with h5py.File(data / "main_data.hdf5", "w", track_order=True) as f:
        for i, n in enumerate(LENGTHS):
            g = f.create_group(f"episode_{i}")
            g.attrs["id"], g.attrs["total_steps"] = i, n
            if i:
                g.attrs["seed"] = 40 + i
            row = np.arange(n + 1)
            g["observations/robot/pos"] = row[:, None] * [1.0, 10.0, 100.0] + i
            g["observations/robot/vel"] = row[:, None] * np.float32(0.5)
            codes = [cv2.imencode(".jpg", np.full((40, 40, 3), (250, 8 * t, 10), np.uint8))[1].ravel() for t in row]
            images = g.create_dataset("observations/image", (n + 1,), dtype=h5py.vlen_dtype(np.uint8))
            for t, code in enumerate(codes):
                images[t] = code
            g.create_dataset("observations/mission", data=["go there"] * (n + 1), dtype=h5py.string_dtype())
            g["actions"], g["rewards"] = np.full((n, 2), i, np.float32), np.arange(n, dtype=np.float64)
            g["terminations"], g["truncations"] = np.arange(n) == n - 1, np.zeros(n, bool)
            g["infos/success"] = (row == n) & (i != 1)
            g["infos/distance"] = row.astype(float)
    return root


def test_row_t_is_observation_t_with_the_action_taken_on_it(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "reach-v0")
    assert [detect(p) for p in (root, root / "data", root / "data" / "main_data.hdf5")] == ["minari"] * 3
    source = open_source(root, options={"fps": 25})
    report = import_demos(source, tmp_path / "s.zarr")
    source.close()
    assert (report.episodes, report.steps, report.skipped) == (3, 16, {})
    with DemoStore.open(tmp_path / "s.zarr") as store:
        assert store.fps == 25
        assert {k: s.role for k, s in store.specs.items()} == {
            "robot_pos": "observation", "robot_vel": "observation", "image": "observation", "action": "action",
            "reward": "reward", "terminated": "other", "truncated": "other",
        }  # fmt: skip
        last = store.episode(2)
        np.testing.assert_array_equal(last["robot_pos"][:, 1], 10.0 * np.arange(8) + 2)
        assert store.specs["robot_pos"].source == "observations/robot/pos"
        assert last["image"].shape == (8, 40, 40, 3)
        assert np.abs(last["image"][5, 20, 20].astype(int) - [10, 40, 250]).max() <= 4  # written as BGR by OpenCV
        assert last["terminated"].tolist() == [False] * 7 + [True]
        columns = {k: v.tolist() for k, v in store.episode_columns.items()}
    assert columns == {
        "task": ["Reach-v3"] * 3, "seed": [-1, 41, 42], "success": [True, False, True], "mission": ["go there"] * 3,
        "source_episode": ["episode_0", "episode_1", "episode_2"],
    }  # fmt: skip


def test_the_last_observation_and_infos_when_asked_for(tmp_path: Path) -> None:
    source = open_source(write_dataset(tmp_path / "d"), options={"next_obs": True, "infos": True})
    arrays = source.read(0).arrays
    np.testing.assert_array_equal(arrays["next_robot_pos"][:, 0], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(arrays["next_robot_pos"][:-1], arrays["robot_pos"][1:])
    assert arrays["next_image"].shape == (5, 40, 40, 3)
    assert arrays["info_distance"].tolist() == [0, 1, 2, 3, 4]
    assert source.fps is None
    source.close()


def test_flat_observations_and_single_actions(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "main_data.hdf5", "w") as f:
        f["episode_0/observations"], f["episode_0/actions"] = np.arange(15.0).reshape(5, 3), np.arange(4)
        f["episode_0/rewards"] = np.zeros(4)
    source = open_source(tmp_path)
    assert source.read(0).arrays["state"].tolist() == np.arange(12.0).reshape(4, 3).tolist()
    assert source.specs["action"].shape == ()
    assert source.columns == {"task": "str", "seed": "int64"}
    source.close()


def test_what_is_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", metadata={"total_episodes": 5})
    source = open_source(root)
    assert "declares 5 episodes, the file has 3" in source.findings[0].message
    source.close()
    with pytest.raises(ConfigError, match=r"no option 'info'\. Did you mean 'infos'"):
        open_source(root, options={"info": True})
    with h5py.File(root / "data" / "main_data.hdf5", "a") as f:
        del f["episode_1/observations/robot/vel"]
        del f["episode_2/actions"]
        f["episode_2/actions"] = np.zeros((6, 2))
    source = open_source(root)
    for i, words in (
        (1, "episode_1 has no observations/robot/vel"),
        (2, r"actions has shape \[6, 2\]: expected \[8, 2\]"),
    ):
        with pytest.raises(DataError, match=words):
            source.read(i)
    source.close()
    (root / "data" / "metadata.json").write_text("{")
    with pytest.raises(DataError, match=r"metadata\.json is damaged"):
        open_source(root)
    arrow = write_dataset(tmp_path / "arrow", metadata={"data_format": "arrow"})
    with pytest.raises(DataError, match="kept as 'arrow': expected hdf5"):
        open_source(arrow, "minari")


MAKE = """
import minari, gymnasium as gym, numpy as np, sys
class Env(gym.Env):
    observation_space = gym.spaces.Dict({
        "image": gym.spaces.Box(0, 255, (48, 48, 3), np.uint8),
        "robot": gym.spaces.Dict({"pos": gym.spaces.Box(-9, 9, (3,), np.float64)}),
    })
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    def see(self):
        image = np.full((48, 48, 3), (250, 8 * self.t, 10), np.uint8)
        return {"image": image, "robot": {"pos": np.arange(3.0) + self.t}}
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {"success": False}
    def step(self, action):
        self.t += 1
        return self.see(), float(self.t), self.t >= 7, False, {"success": self.t >= 7}
env = minari.DataCollector(Env(), record_infos=True, data_format="hdf5")
for seed in range(3):
    env.reset(seed=seed)
    for i in range(7):
        env.step(np.array([i / 10, seed], np.float32))
env.create_dataset(dataset_id="toy/nested-v0")
"""


def test_a_dataset_that_minari_itself_wrote(tmp_path: Path) -> None:
    python = os.environ.get("MINARI_PYTHON")
    if not python:
        pytest.skip("set MINARI_PYTHON to a Python that has minari[hdf5,create]")
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(tmp_path)}
    done = subprocess.run([python, "-c", MAKE], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    source = open_source(tmp_path / "toy" / "nested-v0")
    assert len(source.episodes) == 3
    episode = source.read(2)
    np.testing.assert_array_equal(episode.arrays["robot_pos"], np.arange(3.0) + np.arange(7)[:, None])
    np.testing.assert_array_equal(episode.arrays["action"], np.array([[i / 10, 2] for i in range(7)], np.float32))
    assert np.abs(episode.arrays["image"][5, 20, 20].astype(int) - [250, 40, 10]).max() <= 4
    assert episode.columns == {"task": "toy/nested-v0", "seed": 2, "success": True}
    source.close()
