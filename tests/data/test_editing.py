"""Operations on demonstrations, by hand; views that read through; results that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))
from edited import columns, run, states, write_operators

from visuomotor.data.cache import CacheConfig, load_cache
from visuomotor.data.editing.edit import edit, fix
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import validate


@pytest.fixture
def operators(tmp_path: Path) -> Path:
    return write_operators(tmp_path / "ops.zarr")


# ---------------------------------------------------------------- choosing


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["success=true"], [0, 2]),
        (["task~=TASK 2"], [2]),
        (["length>1", "episode<2"], [0]),
        (["duration>=0.5"], [0, 2]),
        (["task!=task 0"], [1, 2]),
    ],
)
def test_filter_keeps_what_meets_all_conditions(demo_store, tmp_path, words, kept):
    out = run(demo_store, tmp_path / "v.json", "filter", *words)
    assert columns(out)["task"] == [f"task {i}" for i in kept]


def test_drop_and_trim_by_number(demo_store, tmp_path):
    assert states(run(demo_store, tmp_path / "a.json", "drop", "0-1")) == [[6, 7, 8, 9, 10, 11, 12, 13]]
    out = run(demo_store, tmp_path / "b.json", "drop", "1", "trim", "start=1", "end=2", "trim", "episode=1", "rows=1:3")
    assert states(out) == [[1, 2], [8, 9]]
    assert states(run(demo_store, tmp_path / "b.zarr", "trim", "episode=2", "rows=6:"))[2] == [12, 13]


def test_a_view_of_a_view_is_of_the_store(demo_store, tmp_path):
    first = run(demo_store, tmp_path / "a.json", "filter", "length>1", "trim", "start=1")
    second = run(first, tmp_path / "sub" / "b.json", "drop", "0", "trim", "end=3")
    assert states(second) == [[7, 8, 9, 10]]
    document = json.loads(second.read_text())
    assert document["source"] == "../demo.zarr"
    assert document["spans"] == [[2, 1, 5]]
    assert [h["operation"] for h in document["history"]] == ["filter length>1", "trim start=1", "drop 0", "trim end=3"]


def test_set_gives_values_to_those_that_meet_the_conditions(demo_store, tmp_path):
    out = run(demo_store, tmp_path / "a.json", "set", "weight:=0.2", "success=false", "set", "task:=push, all",
              "episode>0", "set", "count:=3")  # fmt: skip
    assert columns(out) == {
        "success": [True, False, True],
        "task": ["task 0", "push, all", "push, all"],
        "weight": [1.0, 0.2, 1.0],
        "count": [3, 3, 3],
    }
    assert columns(run(out, tmp_path / "a.zarr", "set", "weight:=2", "weight=1")) == {
        **columns(out), "weight": [2.0, 0.2, 2.0],
    }  # fmt: skip


def test_rests_at_the_ends_are_cut_but_for_a_moment(tmp_path):
    specs = {"x": ArraySpec(shape=(1,), role="observation")}
    moves = np.linspace(0, 1, 50)
    with DemoStore.create(tmp_path / "a.zarr", specs, fps=10) as store:
        store.append_episode({"x": np.concatenate([np.zeros(30), moves, np.ones(20)])[:, None]})
        store.append_episode({"x": np.concatenate([moves, np.ones(5)])[:, None]})
    with DemoStore.open(run(tmp_path / "a.zarr", tmp_path / "b.json", "trim", "idle")) as view:
        first, second = (view.episode(i)["x"][:, 0] for i in range(2))
    # 31 equal steps before the first move; the last of them begins it, 0.3 s before it stays; likewise after the end
    assert first[:5].tolist() == [0, 0, 0, 0, np.float32(moves[1])]
    assert (len(first), len(second)) == (3 + 50 + 3, 55)
    assert (first[-4:] == 1).all()


# ---------------------------------------------------------------- views


def test_a_view_is_read_like_the_store_that_would_be_written(operators, tmp_path):
    words = ("filter", "operator!=b", "trim", "start=2", "end=1", "drop", "3")
    view, copy = run(operators, tmp_path / "v.json", *words), run(operators, tmp_path / "v.zarr", *words)
    with DemoStore.open(view) as a, DemoStore.open(copy) as b:
        assert a.episode_ends.tolist() == b.episode_ends.tolist()
        assert (a.fps, a.specs, a.column_types) == (b.fps, b.specs, b.column_types)
        assert a.origin == b.origin
        for k in a.specs:
            assert np.array_equal(a.read(k, 0, a.n_steps), b.read(k, 0, b.n_steps))
            blocks = list(a.iter_blocks(k, 64, 3))
            assert np.array_equal(np.concatenate([rows for _, rows in blocks]), b.read(k, 3, b.n_steps))
        assert {k: v.tolist() for k, v in a.episode_columns.items()} == {
            k: v.tolist() for k, v in b.episode_columns.items()
        }
        assert [f for f in validate(a) if f.severity != "info"] == [f for f in validate(b) if f.severity != "info"]
        one, two = (load_cache(s, ["state", "action"], CacheConfig(dir=str(tmp_path / "cache"))) for s in (a, b))
        assert one.arrays["state"].equal(two.arrays["state"])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_slice_of_a_view_is_that_of_its_episodes(operators, tmp_path, data):
    out = tmp_path / "h.json"
    out.unlink(missing_ok=True)
    gone = data.draw(st.sets(st.integers(0, 11), max_size=10))
    cut = data.draw(st.integers(0, 9))
    words = [*(["drop", ",".join(map(str, sorted(gone)))] if gone else []), "trim", f"start={cut}"]
    with DemoStore.open(run(operators, out, *words)) as view:
        whole = np.concatenate([np.arange(10 + i)[cut:] + 100 * i for i in range(12) if i not in gone])
        a = data.draw(st.integers(0, len(whole)))
        b = data.draw(st.integers(a, len(whole)))
        assert view.read("state", a, b)[:, 0].tolist() == whole[a:b].tolist()


def test_a_view_of_a_store_that_changed_is_refused_but_not_when_it_grew(operators, tmp_path):
    view = run(operators, tmp_path / "v.json", "filter", "episode<3")
    with DemoStore.open(operators, "a") as store:
        store.append_episode({k: np.zeros((4, 2)) for k in ("state", "action")}, {"operator": "d", "quality": 1.0})
    with DemoStore.open(view) as a:
        assert a.n_episodes == 3
    with pytest.raises(DataError, match="read only"):
        DemoStore.open(view, "a")
    document = json.loads(view.read_text())
    for change, says in (
        ({"spans": [[0, 0, 99]]}, "whose episodes are others|outside of an episode"),
        ({"spans": [[99, 0, 1]]}, "whose episodes are others"),
        ({"source": "gone.zarr"}, "nothing is there"),
        ({"version": 7}, "version 7"),
        ({"columns": {"a": ["str", ["x"]]}}, "damaged view"),
        ({"spans": "x"}, "damaged view"),
        ({"format": "other"}, "no view"),
    ):
        view.write_text(json.dumps({**document, **change}))
        with pytest.raises(DataError, match=says):
            DemoStore.open(view)
    view.write_text("{")
    with pytest.raises(DataError, match="is no view"):
        DemoStore.open(view)


# ---------------------------------------------------------------- mending, safety, mistakes


def faulty(tmp_path: Path) -> Path:
    specs = {
        "x": ArraySpec(shape=(1,), role="observation"),
        "q": ArraySpec(shape=(4,), role="observation", names=("qx", "qy", "qz", "qw")),
    }
    rng, half = np.random.default_rng(0), np.linspace(0, 1, 60)
    with DemoStore.create(tmp_path / "f.zarr", specs, fps=20) as store:
        for i in range(5):
            q = np.stack([np.sin(half), 0 * half, 0 * half, np.cos(half)], axis=1)
            arrays = {"x": np.cumsum(rng.uniform(0.5, 1, (60, 1)), axis=0), "q": 1.05 * q if i == 2 else q}
            if i == 1:
                arrays["q"] = q * np.where(np.arange(60) < 30, 1, -1)[:, None]
            if i == 3:
                arrays = {k: np.concatenate([v[:1]] * 40 + [v]) for k, v in arrays.items()}
            store.append_episode(arrays)
        store.append_episode(store.episode(0))
        store.append_episode({k: v[:1] for k, v in store.episode(4).items()})
        bad = {k: v.copy() for k, v in store.episode(4).items()}
        bad["q"][7] = 0
        store.append_episode(bad)
    return tmp_path / "f.zarr"


def test_fix_mends_what_needs_no_decision_and_says_so(tmp_path):
    source = faulty(tmp_path)
    report = fix(source, tmp_path / "mended.zarr")
    assert report.lines[0].startswith("drop faulty duplicates: 8 to 6 episodes")
    assert report.lines[1].startswith("filter length>1: 6 to 5 episodes")
    with DemoStore.open(tmp_path / "mended.zarr") as store:
        assert [str(f) for f in validate(store) if f.severity != "info" or f.fix] == []
        assert np.diff(store.episode_ends, prepend=0).tolist() == [60, 60, 60, 66, 60]
        q = store.episode(1)["q"]
        assert (np.sum(q[1:] * q[:-1], axis=1) > 0).all()
        assert np.linalg.norm(store.episode(2)["q"], axis=1) == pytest.approx(1)
        assert store.origin["history"][0]["operation"] == "drop faulty duplicates"
    with DemoStore.open(source) as store:
        assert store.n_episodes == 8


def test_a_damaged_chunk_costs_its_episodes_only(tmp_path):
    with DemoStore.create(tmp_path / "a.zarr", {"img": ArraySpec(shape=(64, 64, 3), dtype="uint8")}) as store:
        for i in range(5):
            store.append_episode({"img": np.random.default_rng(i).integers(0, 255, (100, 64, 64, 3), dtype=np.uint8)})
    first = sorted((tmp_path / "a.zarr" / "data" / "img").glob("c.*"))[0]
    first.write_bytes(first.read_bytes()[:-100])
    out = run(tmp_path / "a.zarr", tmp_path / "b.zarr", "drop", "faulty")
    with DemoStore.open(out) as store:
        assert 0 < store.n_episodes < 5


def test_nothing_appears_when_writing_fails_or_is_killed(demo_store, tmp_path):
    with pytest.raises(DataError, match="no episodes are left"):
        run(demo_store, tmp_path / "none.zarr", "filter", "length>99")
    with pytest.raises(DataError, match="exists already"):
        run(demo_store, demo_store, "filter", "length>1")
    assert not (tmp_path / "none.zarr").exists()
    code = (
        "import sys, os, signal\n"
        "from visuomotor.data.editing.edit import edit\n"
        "kill = lambda done, n: os.kill(os.getpid(), signal.SIGKILL) if done == 2 else None\n"
        f"edit({str(demo_store)!r}, {str(tmp_path / 'k.zarr')!r}, ['keys', 'drop=img'], kill)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "k.zarr").exists()
    assert states(run(demo_store, tmp_path / "k.zarr", "keys", "drop=img")) == states(demo_store)
    assert [p for p in os.listdir(tmp_path) if "unfinished" in p] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "say what to do"),
        (["filtr", "a=1"], "unknown operation 'filtr'. Did you mean 'filter'"),
        (["filter"], "give conditions"),
        (["filter", "succes=true"], "no column 'succes'.*Did you mean 'success'"),
        (["filter", "success=maybe"], "'maybe' is no bool"),
        (["filter", "success"], "cannot read the condition"),
        (["drop", "7"], "expected numbers from 0 to 2"),
        (["drop", "x"], "no list of numbers"),
        (["trim", "start=5"], "of episode 0, which has 5 steps"),
        (["trim"], "say idle"),
        (["set", "weight:=-1"], "expected 0 or more"),
        (["set", "new:=1", "success=true"], "1 episodes would have no value"),
        (["set", "length:=1"], "computed"),
        (["keys", "keep=stat"], "no array 'stat'. Did you mean 'state'"),
        (["add", "state=action:0"], "an array 'state' already"),
        (["add", "z=state:9"], "expected numbers from 0 to 2"),
        (["resize", "state=8x8"], "expected images or depth"),
        (["resize", "img=99999x8"], "8 to 8192"),
        (["uint8"], "no float images"),
        (["quaternions", "state"], "holds none by its names"),
        (["resample", "hz=0"], "expected a positive number"),
        (["rate", "hz=20"], "the store says 10 Hz"),
        (["split", "a=0.5", "b=0.5", "trim", "idle"], "split comes last"),
        (["merge", "wiht=a"], "expected with="),
        (["merge", "with=nowhere.zarr"], "nothing is there"),
        (["resize", "img=8x8"], "would be a view"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(demo_store, tmp_path, words, says):
    with pytest.raises((ConfigError, DataError), match=says):
        edit(demo_store, tmp_path / "out.json", words)
    assert not (tmp_path / "out.json").exists()
