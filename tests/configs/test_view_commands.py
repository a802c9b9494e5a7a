"""``visuomotor data view | report | video``: files that are read back, and what is refused."""

from __future__ import annotations

import builtins
from typing import Any

import av
import numpy as np
import pytest

from visuomotor.configs.cli import main
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

SPECS = {
    "qpos": ArraySpec(shape=(2,), role="observation", unit="rad", names=("shoulder", "elbow")),
    "action": ArraySpec(shape=(2,), role="action", names=("x", "y")),
    "front": ArraySpec(shape=(24, 32, 3), dtype="uint8", role="observation"),
    "depth": ArraySpec(shape=(16, 20), dtype="uint16", unit="mm", role="observation"),
    "ids": ArraySpec(shape=(16, 20), dtype="int32", role="observation"),
    "cloud": ArraySpec(shape=(40, 3), role="observation", unit="m"),
    "feature": ArraySpec(shape=(200,), role="observation"),
}
LENGTHS = (30, 20, 25)


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A store of three episodes in which ``action`` is ``qpos`` one step later."""
    monkeypatch.setenv("VISUOMOTOR_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    with DemoStore.create(tmp_path / "demos.zarr", SPECS, fps=10, episode_columns={"task": "str"}) as store:
        for e, n in enumerate(LENGTHS):
            walk = (rng.uniform(-1, 1, 2) * np.linspace(1, 0, n + 1)[:, None]).astype(np.float32)
            pictures = np.zeros((n, 24, 32, 3), np.uint8)
            pictures[..., e] = 200
            store.append_episode(
                {
                    "qpos": walk[:-1],
                    "action": walk[1:],
                    "front": pictures,
                    "depth": np.full((n, 16, 20), 500 + e, np.uint16),
                    "ids": np.full((n, 16, 20), -1, np.int32),
                    "cloud": rng.normal(size=(n, 40, 3)).astype(np.float32),
                    "feature": np.zeros((n, 200), np.float32),
                },
                {"task": f"reach {e}"},
            )
    return tmp_path / "demos.zarr"


def read_back(path):
    """``{entity: {column: [values of all rows]}}`` of a recording, by rerun's own reader."""
    from rerun.chunk import RrdReader

    out: dict[str, dict[str, list[Any]]] = {}
    for chunk in RrdReader(str(path)).stream():
        batch = chunk.to_record_batch()
        entity = out.setdefault(str(chunk.entity_path), {})
        for name in batch.schema.names:
            entity.setdefault(name.rpartition(".")[2], []).extend(batch.column(name).to_pylist())
    return out


@pytest.fixture
def rerun():
    return pytest.importorskip("rerun", reason="needs rerun: pip install 'visuomotor[view]'")


def test_a_recording_holds_every_step_of_the_chosen_episodes(path, tmp_path, capsys, rerun):
    file = tmp_path / "out" / "demos.rrd"
    assert main(["data", "view", str(path), "episodes=[0,-1]", f"save={file}", "jpeg=null"]) == 0
    said = capsys.readouterr().out
    assert "2 of 3 episodes, 55 steps" in said
    assert "not shown: feature: 200 values" in said
    got = read_back(file)
    assert not [entity for entity in got if entity.startswith("/episode_0001")]
    with DemoStore.open(path) as store:
        wanted = {e: store.episode(e) for e in (0, 2)}
    for e, steps in wanted.items():
        n = LENGTHS[e]
        for i, name in enumerate(("shoulder", "elbow")):
            rows = got[f"/episode_{e:04d}/qpos/{name}"]
            assert rows["step"] == list(range(n))
            assert [t.total_seconds() for t in rows["seconds"]] == pytest.approx(np.arange(n) / 10)
            assert [v[0] for v in rows["Scalars:scalars"] if v] == pytest.approx(steps["qpos"][:, i])
            assert [v for v in rows["SeriesLines:names"] if v] == [[name]]
        front = got[f"/episode_{e:04d}/front"]["Image:buffer"]
        assert len(front) == n
        assert np.array_equal(np.array(front[3][0], np.uint8).reshape(24, 32, 3), steps["front"][3])
        depth = got[f"/episode_{e:04d}/depth"]
        assert set(map(tuple, depth["DepthImage:meter"])) == {(1000.0,)}
        assert np.frombuffer(np.array(depth["DepthImage:buffer"][0][0], np.uint8).tobytes(), np.uint16)[0] == 500 + e
        assert len(got[f"/episode_{e:04d}/ids"]["SegmentationImage:buffer"]) == n
        assert [len(p) for p in got[f"/episode_{e:04d}/cloud"]["Points3D:positions"]] == [40] * n
        assert f"task: reach {e}" in got[f"/episode_{e:04d}/about"]["TextDocument:text"][0][0]
    assert not list(file.parent.glob(".*"))


def test_pictures_are_compressed_unless_asked_otherwise_and_keys_choose(path, tmp_path, rerun):
    file = tmp_path / "demos.rrd"
    assert main(["data", "view", str(path), "episodes=[1]", f"save={file}", "keys=[front]"]) == 0
    got = read_back(file)
    shown = {entity.split("/")[2] for entity in got if entity.startswith("/episode_0001/")}
    assert shown == {"front", "about"}
    blob = bytes(got["/episode_0001/front"]["EncodedImage:blob"][0][0])
    assert blob[:2] == b"\xff\xd8"  # JPEG


def test_predictions_lie_over_the_recorded_actions(path, tmp_path, capsys, rerun):
    small = ["backbone.width=16", "backbone.depth=1", "train.batch_size=4", "train.steps=1", "threads=1", "device=cpu"]
    run, file = tmp_path / "run", tmp_path / "demos.rrd"
    chunks = ["obs.keys=[qpos]", "window.n_obs=2", "window.horizon=8", "window.n_exec=4"]
    assert main(["train", f"data={path}", f"run_dir={run}", *small, *chunks]) == 0
    asked = ["data", "view", str(path), f"checkpoint={run}", "episodes=[1]", "keys=[qpos,action]", "device=cpu"]
    assert main([*asked, f"save={file}"]) == 0
    assert "mean absolute error of the predictions" in capsys.readouterr().out
    got = read_back(file)
    # 7 future steps at 0, 4, 8, 12, 16 (4 left): with the end mark two lanes are enough
    lanes = [got[f"/episode_0001/action/x/predicted/{i}"] for i in range(2)]
    assert "/episode_0001/action/x/predicted/2" not in got
    steps = [[s for s, v in zip(r["step"], r["Scalars:scalars"], strict=True) if v] for r in lanes]
    assert steps[0] == [*range(7), *range(8, 15), *range(16, 20)]
    assert steps[1] == [*range(4, 11), *range(12, 19)]
    ends = [s for s, v in zip(lanes[0]["step"], lanes[0]["Scalars:scalars"], strict=True) if v == []]
    assert ends == [7, 15, 20]
    errors = got["/episode_0001/prediction\\ error"]
    assert errors["step"] == [0, 4, 8, 12, 16]
    with DemoStore.open(path) as store:
        recorded = store.episode(1)["action"]
    first = np.stack([[v[0] for v in _predicted(got, c)[:4]] for c in "xy"], axis=1)
    assert errors["Scalars:scalars"][0][0] == pytest.approx(np.abs(first - recorded[:4]).mean(), rel=1e-5)
    assert main([*asked, f"save={file}", "every=20"]) == 0
    assert read_back(file)["/episode_0001/prediction\\ error"]["step"] == [0]
    assert main([*asked[:-2], "keys=[qpos]", f"save={file}"]) == 2
    assert "must be one of them" in capsys.readouterr().err


def _predicted(got, component):
    return [v for v in got[f"/episode_0001/action/{component}/predicted/0"]["Scalars:scalars"] if v]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["episodes=[7]", "save=x.rrd"], "has no episode 7: it has 3"),
        (["keys=[qpso]", "save=x.rrd"], "Did you mean 'qpos'"),
        (["jpeg=0", "save=x.rrd"], "expected a quality from 1 to 100"),
        (["every=0"], "expected at least 1 step"),
        (["savve=x.rrd"], "save"),
        (["save=demos.zarr/zarr.json/x.rrd"], "cannot be written"),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(path, capsys, monkeypatch, words, said, rerun):
    monkeypatch.chdir(path.parent)
    assert main(["data", "view", str(path), *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(path.parent.glob("*.rrd")) + list(path.parent.glob(".x*"))


def test_without_a_display_the_way_out_is_named(path, capsys, monkeypatch, rerun):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["data", "view", str(path)]) == 2
    assert "save=<name>.rrd" in capsys.readouterr().err


def test_without_rerun_the_extra_is_named(path, capsys, monkeypatch):
    original = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name == "rerun":
            raise ImportError("No module named 'rerun'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    assert main(["data", "view", str(path), "save=x.rrd"]) == 2
    assert "pip install 'visuomotor[view]'" in capsys.readouterr().err


def test_the_report_is_written_where_asked(path, tmp_path, capsys):
    assert main(["data", "report", str(path), str(tmp_path / "a.html"), "episodes=2", "frames=3", "check=false"]) == 0
    assert "3 episodes, pictures of 2, values not checked" in capsys.readouterr().out
    assert (tmp_path / "a.html").read_text().count("data:image/jpeg") == 6
    assert main(["data", "report", str(tmp_path / "none.zarr")]) == 2
    assert main(["data", "report", "out=x.html"]) == 2
    assert "give the path of a Zarr store" in capsys.readouterr().err


def test_a_film_holds_every_picture(path, tmp_path, capsys):
    file = tmp_path / "x.mp4"
    assert main(["data", "video", str(path), "episode=-1", "camera=front", f"out={file}"]) == 0
    assert "episode 2, front, 25 pictures at 10 Hz" in capsys.readouterr().out
    with av.open(str(file)) as film:
        frames = [f.to_ndarray(format="rgb24") for f in film.decode(video=0)]
        assert film.streams.video[0].average_rate == 10
    assert len(frames) == 25
    assert frames[0][12, 16].tolist() == pytest.approx([0, 0, 200], abs=12)  # H.264 is lossy
    assert main(["data", "video", str(path)]) == 2
    assert "has 3 cameras, give camera=<name>" in capsys.readouterr().err
    assert main(["data", "video", str(path), "camera=qpos"]) == 2
    assert "'qpos' is no camera" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["view", "report", "video"])
def test_help_lists_the_settings(verb, capsys):
    assert main(["data", verb, "--help"]) == 0
    assert "store=(must be given)" in capsys.readouterr().out
