"""robomimic and robosuite HDF5: real recordings, every array and filter, a round trip that robomimic itself reads."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.exporting.registry import export_demos
from visuomotor.data.importing.registry import detect, open_source
from visuomotor.data.importing.run import import_demos
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

h5py = pytest.importorskip("h5py", reason="needs the extra hdf5")
SUITE = Path(__file__).parents[2].parent / "shared" / "data" / "robosuite_demos" / "v1.0_panda"
TASKS = {  # steps, size of a state, size of an action: read with h5py from the files
    "door": (261, 23, 7),
    "lift": (412, 32, 7),
    "nut-assembly": (1036, 45, 7),
    "pick-place": (1482, 71, 7),
    "stack": (532, 45, 7),
    "wipe": (174, 15, 6),
}


def demo_file(path: Path, *, lengths: tuple[int, ...] = (5, 8, 3)) -> Path:
    """What robomimic's dataset_states_to_obs.py writes, after its documentation ("Datasets: overview")."""
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as f:
        data = f.create_group("data")
        data.attrs["total"] = sum(lengths)
        kwargs = {"control_freq": 20, "robots": "Panda"}
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": kwargs})
        for i, n in enumerate(lengths):
            g = data.create_group(f"demo_{i}")
            g.attrs["num_samples"], g.attrs["model_file"] = n, f"<mujoco model='{i}'/>"
            g["actions"], g["rewards"] = rng.uniform(-1, 1, (n, 7)), np.arange(n) == n - 1
            g["dones"], g["states"] = np.zeros(n, np.int64), rng.normal(size=(n, 9))
            for top in ("obs", "next_obs"):
                g[f"{top}/robot0_eef_pos"] = rng.normal(size=(n, 3))
                g[f"{top}/agentview_image"] = rng.integers(0, 255, (n, 8, 8, 3), dtype=np.uint8)
        f["mask/train"], f["mask/valid"] = np.array(["demo_0", "demo_2"], "S"), np.array(["demo_1"], "S")
    return path


def test_every_array_goes_to_its_place(tmp_path: Path) -> None:
    path = demo_file(tmp_path / "low.hdf5")
    assert detect(path) == "robomimic"
    source = open_source(path)
    roles = {k: s.role for k, s in source.specs.items()}
    assert roles == {
        "action": "action", "reward": "reward", "done": "other", "states": "privileged",
        "robot0_eef_pos": "observation", "agentview_image": "observation",
    }  # fmt: skip
    assert source.fps == 20
    assert source.specs["agentview_image"].is_image
    assert source.specs["robot0_eef_pos"].source == "obs/robot0_eef_pos"
    with h5py.File(path, locking=False) as f:
        for i, info in enumerate(source.episodes):
            episode = source.read(i)
            g = f[f"data/{info.id}"]
            np.testing.assert_array_equal(episode.arrays["action"], g["actions"][()])
            np.testing.assert_array_equal(episode.arrays["agentview_image"], g["obs/agentview_image"][()])
            assert episode.columns["filters"] == ("valid" if i == 1 else "train")
            assert episode.columns["task"] == "Lift"
            assert json.loads(episode.columns["env_args"])["env_kwargs"]["robots"] == "Panda"
    source.close()


def test_options(tmp_path: Path) -> None:
    path = demo_file(tmp_path / "low.hdf5")
    chosen = open_source(path, options={"filter": "train", "next_obs": True, "fps": 10, "model": "yes"})
    assert [e.id for e in chosen.episodes] == ["demo_0", "demo_2"]
    assert chosen.fps == 10
    episode = chosen.read(1)
    assert episode.columns["model"] == "<mujoco model='2'/>"
    with h5py.File(path, locking=False) as f:
        expected = f["data/demo_2/next_obs/robot0_eef_pos"][()]
    np.testing.assert_array_equal(episode.arrays["next_robot0_eef_pos"], expected)
    chosen.close()
    for options, error, words in (
        ({"filter": "trian"}, DataError, "no filter key 'trian'. Did you mean 'train'"),
        ({"filtre": "x"}, ConfigError, "no option 'filtre'. Did you mean 'filter'"),
        ({"model": "maybe"}, ConfigError, "expected auto, yes or no"),
    ):
        with pytest.raises(error, match=words):
            open_source(path, options=options)


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    path = demo_file(tmp_path / "low.hdf5", lengths=(5, 8, 3))
    with h5py.File(path, "a") as f:
        f["data/demo_1"].attrs["num_samples"] = 9
        del f["data/demo_2/obs/robot0_eef_pos"]
        f["data/demo_0/note"] = np.zeros(2)
        f["mask/lost"] = np.array(["demo_7"], "S")
    source = open_source(path)
    assert [f.message for f in source.findings] == [
        "filter key 'lost' names 1 episodes that are not there (demo_7)",
        "data/demo_0/note has shape [2], not 5 rows of values: left out",
    ]
    report = import_demos(source, tmp_path / "s.zarr")
    source.close()
    assert report.episodes == 2
    assert list(report.skipped) == ["demo_2"]
    assert "data/demo_2/obs/robot0_eef_pos is absent: expected [3, 3]" in report.skipped["demo_2"]
    assert any("num_samples of data/demo_1 is 9, but there are 8 actions" in f.message for f in report.findings)


@pytest.mark.parametrize("told", ["../secret.xml", "/etc/passwd", "a/b.xml", ".."])
def test_a_model_is_read_from_its_folder_only(told: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "secret.xml").write_text("<mujoco/>")
    path = demo_file(tmp_path / "low.hdf5")
    with h5py.File(path, "a") as f:
        f["data/demo_0"].attrs["model_file"] = told
    source = open_source(path, options={"model": "yes"})
    with pytest.raises(DataError, match="expected a name in models/"):
        source.read(0)
    source.close()


def test_a_model_that_is_a_link_out_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "secret.xml").write_text("<mujoco/>")
    (tmp_path / "models" / "m.xml").symlink_to(tmp_path / "secret.xml")
    path = demo_file(tmp_path / "low.hdf5")
    with h5py.File(path, "a") as f:
        f["data/demo_0"].attrs["model_file"] = "m.xml"
    source = open_source(path, options={"model": "yes"})
    with pytest.raises(DataError, match="expected a name in models/"):
        source.read(0)
    source.close()


@pytest.mark.skipif(not SUITE.is_dir(), reason=f"the recorded robosuite demonstrations are not at {SUITE}")
@pytest.mark.parametrize("task", TASKS)
def test_recordings_of_robosuite(task: str, tmp_path: Path) -> None:
    steps, state, action = TASKS[task]
    path = SUITE / task / "panda" / "demo.hdf5"
    assert detect(path) == "robomimic"
    source = open_source(path)
    assert source.fps == 20  # of the times in the states: these files do not say it
    assert "no observations" in source.findings[0].message
    report = import_demos(source, tmp_path / "s.zarr")
    source.close()
    assert (report.episodes, report.steps, report.skipped) == (1, steps, {})
    with DemoStore.open(tmp_path / "s.zarr") as store, h5py.File(path, locking=False) as f:
        got = store.episode(0)
        assert {k: v.shape[1:] for k, v in got.items()} == {
            "action": (action,), "states": (state,), "joint_torques": (7,)
        }  # fmt: skip
        assert store.specs["states"].role == "privileged"
        for key, name in (("action", "actions"), ("states", "states"), ("joint_torques", "joint_torques")):
            assert got[key].tobytes() == f[f"data/demo_1/{name}"][()].tobytes()
        assert store.episode_columns["model"][0].startswith("<mujoco")
        assert store.episode_columns["task"][0].lower().replace("-", "") == task.replace("-", "")


def own_store(path: Path, lengths: tuple[int, ...] = (6, 4, 9)) -> Path:
    rng = np.random.default_rng(2)
    specs = {
        "action": ArraySpec(shape=(3,), role="action", unit="m", names=("x", "y", "z")),
        "pos": ArraySpec(shape=(2,), role="observation", unit="m", source="/pose"),
        "count": ArraySpec(shape=(), dtype="int64", role="observation"),
        "cam": ArraySpec(shape=(40, 40, 3), dtype="uint8", role="observation"),
        "block": ArraySpec(shape=(2,), dtype="float64", role="privileged"),
        "reward": ArraySpec(shape=(), role="reward"),
        "time": ArraySpec(shape=(), dtype="float64", role="timestamp", unit="s"),
    }
    columns = {"task": "str", "success": "bool", "score": "float64", "filters": "str"}
    with DemoStore.create(path, specs, fps=12.5, episode_columns=columns) as store:
        for i, n in enumerate(lengths):
            arrays = {
                k: (rng.normal(size=(n, *s.shape)) if s.dtype[0] == "f" else rng.integers(0, 200, (n, *s.shape)))
                for k, s in specs.items()
            }
            arrays = {k: v.astype(specs[k].dtype) for k, v in arrays.items()}
            values = {"task": f"put {i}", "success": i == 1, "score": i / 3, "filters": "train" if i else "train,first"}
            store.append_episode(arrays, values)
    return path


def test_a_store_comes_back_as_it_was(tmp_path: Path) -> None:
    with DemoStore.open(own_store(tmp_path / "a.zarr")) as store:
        notes = export_demos(store, tmp_path / "a.hdf5", "robomimic")
        assert any("actions reach" in n for n in notes)
        source = open_source(tmp_path / "a.hdf5")
        import_demos(source, tmp_path / "b.zarr")
        source.close()
        with DemoStore.open(tmp_path / "b.zarr") as again:
            assert again.specs == store.specs
            assert again.fps == store.fps
            assert again.episode_ends.tolist() == store.episode_ends.tolist()
            for i in range(store.n_episodes):
                a, b = store.episode(i), again.episode(i)
                assert {k: v.tobytes() for k, v in a.items()} == {k: v.tobytes() for k, v in b.items()}
            back = again.episode_columns
            assert back.pop("source_episode").tolist() == ["demo_0", "demo_1", "demo_2"]
            assert {k: v.tolist() for k, v in back.items()} == {
                k: v.tolist() for k, v in store.episode_columns.items()
            } | {"filters": ["first,train", "train", "train"]}


def test_the_layout_that_is_written(tmp_path: Path) -> None:
    with DemoStore.open(own_store(tmp_path / "a.zarr")) as store:
        export_demos(store, tmp_path / "a.hdf5", "robomimic", episodes=[2, 0], drop=["reward"])
        with h5py.File(tmp_path / "a.hdf5") as f:
            assert sorted(f["data"]) == ["demo_0", "demo_1"]
            assert f["data"].attrs["total"] == 15
            assert json.loads(f["data"].attrs["env_args"]) == {"env_name": "put 2", "type": 2, "env_kwargs": {}}
            g = f["data/demo_0"]
            assert g.attrs["num_samples"] == 9
            assert sorted(g["obs"]) == sorted(g["next_obs"]) == ["block", "cam", "count", "pos"]
            assert g["dones"][()].tolist() == [0] * 8 + [1]
            assert g["rewards"][()].tolist() == [0.0] * 9  # that episode did not succeed
            np.testing.assert_array_equal(g["next_obs/pos"][:-1], g["obs/pos"][1:])
            np.testing.assert_array_equal(g["next_obs/pos"][-1], g["obs/pos"][-1])
            assert f["mask/first"][()].tolist() == [b"demo_1"]
        export_demos(store, tmp_path / "c.hdf5", "robomimic", options={"next_obs": False})
        with h5py.File(tmp_path / "c.hdf5") as f:
            assert "next_obs" not in f["data/demo_0"]
        with pytest.raises(ConfigError, match=r"no option 'nextobs'"):
            export_demos(store, tmp_path / "d.hdf5", "robomimic", options={"nextobs": False})
        with pytest.raises(ConfigError, match=r"options\.action=cma is not exported"):
            export_demos(store, tmp_path / "d.hdf5", "robomimic", options={"action": "cma"})
        assert not (tmp_path / "d.hdf5").exists()


def test_a_forged_description_changes_nothing(tmp_path: Path) -> None:
    with DemoStore.open(own_store(tmp_path / "a.zarr")) as store:
        export_demos(store, tmp_path / "a.hdf5", "robomimic")
    forged: dict[str, Any] = {
        "fps": "fast", "columns": {"x": "object", "success": "bool"},
        "keys": {"actions": {"name": "action", "spec": {"shape": [99], "dtype": "O"}}, "obs/pos": {"name": "../p"}},
    }  # fmt: skip
    with h5py.File(tmp_path / "a.hdf5", "a") as f:
        f["data"].attrs["visuomotor"] = json.dumps(forged)
    source = open_source(tmp_path / "a.hdf5")
    assert list(source.specs) == ["action", "___p"]
    assert source.specs["action"].shape == (3,)
    assert source.columns == {"success": "bool"}
    assert source.read(1).columns == {"success": True}
    source.close()


LOAD = """
import json, sys, torch
import robomimic.utils.obs_utils as ObsUtils
from robomimic.utils.dataset import SequenceDataset
low, rgb = ["pos", "block"], ["cam"]
ObsUtils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": low, "rgb": rgb}, "goal": {}})
for cache in (None, "low_dim", "all"):
    data = SequenceDataset(
        hdf5_path=sys.argv[1], obs_keys=low + rgb, dataset_keys=("actions", "rewards", "dones"), frame_stack=2,
        seq_length=3, hdf5_cache_mode=cache, hdf5_use_swmr=True, hdf5_normalize_obs=False, load_next_obs=True,
        filter_by_attribute="train",
    )
    loader = torch.utils.data.DataLoader(data, batch_size=19)
    (batch,) = list(loader)
print("BATCH", json.dumps({
    "n": len(data), "actions": batch["actions"].tolist(), "pos": batch["obs"]["pos"].tolist(),
    "next": batch["next_obs"]["pos"].tolist(), "cam": [list(batch["obs"]["cam"].shape), int(batch["obs"]["cam"].sum())],
}))
"""


def test_robomimics_own_loader_reads_it(tmp_path: Path) -> None:
    python = os.environ.get("ROBOMIMIC_PYTHON")
    if not python:
        pytest.skip("set ROBOMIMIC_PYTHON to a Python that has robomimic 0.3.0")
    with DemoStore.open(own_store(tmp_path / "a.zarr")) as store:
        export_demos(store, tmp_path / "a.hdf5", "robomimic")
        done = subprocess.run(
            [python, "-c", LOAD, str(tmp_path / "a.hdf5")], capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr[-2000:]
        batch = json.loads(done.stdout.split("BATCH ")[-1])
        actions, pos = store.read("action", 0, 19), store.read("pos", 0, 19)
        cam = store.read("cam", 0, 19).astype(np.int64)
    assert batch["n"] == 19
    starts = np.array([0] * 6 + [6] * 4 + [10] * 9)
    last = np.array([5] * 6 + [9] * 4 + [18] * 9)
    rows = np.stack([np.clip(np.arange(19) + k, starts, last) for k in (-1, 0, 1, 2)], 1)  # two frames, three steps
    np.testing.assert_allclose(batch["actions"], actions[rows], rtol=1e-6)
    np.testing.assert_allclose(batch["pos"], pos[rows], rtol=1e-6)
    after = np.minimum(rows + 1, last[:, None])
    after[rows[:, 0] == rows[:, 1], 0] = rows[rows[:, 0] == rows[:, 1], 0] + 1
    np.testing.assert_allclose(np.array(batch["next"])[:, 1:], pos[after][:, 1:], rtol=1e-6)
    assert batch["cam"] == [[19, 4, 40, 40, 3], int(cam[rows].sum())]
