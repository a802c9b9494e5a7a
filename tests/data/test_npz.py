"""NumPy archives in and out: no pickle, what headers declare is what is there, round trips without a bit lost."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.exporting.registry import export_demos
from visuomotor.data.importing.archive import Archive
from visuomotor.data.importing.registry import detect, open_source
from visuomotor.data.importing.run import Selection, import_demos
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

RNG = np.random.default_rng(0)
SPECS = {
    "action": ArraySpec(shape=(3,), role="action", unit="m", names=("x", "y", "z")),
    "camera": ArraySpec(shape=(16, 12, 3), dtype="uint8", role="observation"),
    "done": ArraySpec(shape=(), dtype="bool", role="other"),
    "clock": ArraySpec(shape=(), dtype="float64", role="timestamp", unit="s"),
}
COLUMNS = {"task": "str", "success": "bool", "seed": "int64", "score": "float64"}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with DemoStore.create(tmp_path / "a.zarr", SPECS, fps=12.5, episode_columns=COLUMNS) as demos:
        for i, n in enumerate((4, 1, 7)):
            arrays = {
                "action": RNG.random((n, 3), np.float32),
                "camera": RNG.integers(0, 256, (n, 16, 12, 3), np.uint8),
                "done": RNG.random(n) > 0.5,
                "clock": np.arange(n) / 12.5,
            }
            demos.append_episode(arrays, {"task": f"push {i} é", "success": i == 1, "seed": -i, "score": i / 3})
    return tmp_path / "a.zarr"


def same(a: Path, b: Path, episodes: tuple[int, ...] = (0, 1, 2)) -> None:
    with DemoStore.open(a) as first, DemoStore.open(b) as second:
        assert first.specs == second.specs
        assert first.fps == second.fps
        assert second.n_episodes == len(episodes)
        for j, i in enumerate(episodes):
            x, y = first.episode(i), second.episode(j)
            assert all(x[k].tobytes() == y[k].tobytes() for k in SPECS)
            assert all(first.episode_columns[c][i] == second.episode_columns[c][j] for c in COLUMNS)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["out.npz", "out"])
def test_round_trip(tmp_path: Path, store: Path, name: str, compress: bool) -> None:
    with DemoStore.open(store) as demos:
        export_demos(demos, tmp_path / name, "npz", options={"compress": compress})
        export_demos(demos, tmp_path / f"two-{name}", "npz", episodes=[2, 0], options={"compress": compress})
    for path, episodes in ((tmp_path / name, (0, 1, 2)), (tmp_path / f"two-{name}", (2, 0))):
        assert detect(path) == "npz"
        source = open_source(path)
        assert source.findings == []
        import_demos(source, path.with_suffix(".zarr"))
        source.close()
        same(store, path.with_suffix(".zarr"), episodes)


def test_numpy_reads_what_is_written(tmp_path: Path, store: Path) -> None:
    with DemoStore.open(store) as demos:
        export_demos(demos, tmp_path / "out.npz", "npz")
        export_demos(demos, tmp_path / "out", "npz")
        with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
            np.testing.assert_array_equal(file["data/action"], demos.read("action", 0, 12))
            assert file["meta/episode_ends"].tolist() == [4, 5, 12]
            assert file["meta/task"].tolist() == ["push 0 é", "push 1 é", "push 2 é"]
        with np.load(tmp_path / "out" / "episode_000002.npz", allow_pickle=False) as file:
            np.testing.assert_array_equal(file["camera"], demos.episode(2)["camera"])
        with pytest.raises(ConfigError, match="no option 'level'"):
            export_demos(demos, tmp_path / "b.npz", "npz", options={"level": 9})
    assert not list(tmp_path.glob(".*"))


def test_a_folder_as_people_write_it(tmp_path: Path) -> None:
    (tmp_path / "demos").mkdir()
    arrays = []
    for i in (10, 9):
        n = i
        step: dict[str, Any] = {
            "observation.state": np.asfortranarray(RNG.random((n, 4))),
            "action": RNG.random((n, 2)).astype(">f4"),
        }
        np.savez(tmp_path / "demos" / f"ep{i}.npz", **step, extra=np.zeros(n + 1), task="lift", note=np.zeros((2, 2)))
        arrays.append(step)
    source = open_source(tmp_path / "demos")
    assert [e.id for e in source.episodes] == ["ep9", "ep10"]
    assert {k: (s.dtype, s.shape, s.role) for k, s in source.specs.items()} == {
        "state": ("float64", (4,), "observation"),
        "action": ("float32", (2,), "action"),
    }
    assert source.specs["state"].source == "observation.state"
    assert sorted(f.array or "" for f in source.findings) == ["extra", "note"]
    import_demos(source, tmp_path / "a.zarr", selection=Selection(fps=20))
    with DemoStore.open(tmp_path / "a.zarr") as demos:
        np.testing.assert_array_equal(demos.episode(0)["state"], arrays[1]["observation.state"])
        np.testing.assert_array_equal(demos.episode(1)["action"], arrays[0]["action"])
        assert demos.episode_columns["task"].tolist() == ["lift", "lift"]


def test_a_file_that_differs_from_the_first_is_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", action=np.zeros((3, 2)), state=np.zeros((3, 1)))
    np.savez(tmp_path / "1.npz", action=np.zeros((3, 2)))
    np.savez(tmp_path / "2.npz", action=np.zeros((3, 5)), state=np.zeros((3, 1)))
    np.savez(tmp_path / "3.npz", action=np.zeros((3, 2)), state=np.zeros((4, 1)))
    np.savez(tmp_path / "4.npz", action=np.zeros((3, 2)), state=np.array(["a", "b", "c"]))
    report = import_demos(open_source(tmp_path), tmp_path / "a.zarr")
    assert report.episodes == 1
    assert sorted(report.skipped) == ["1", "2", "3", "4"]
    assert "has no 'state'" in report.skipped["1"]
    assert "expected [L, 2]" in report.skipped["2"]
    assert "different length" in report.skipped["3"]


class Marks:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def entry(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entry("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 2)}\n", bytes(32)), "declares"),
        (entry("{'descr': '<f8', 'fortran_order': False, 'shape': (-2, -2)}\n", bytes(32)), "declares|header"),
        (entry("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2)}\n", bytes(32)), "pickled"),
        (entry("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,)}\n", bytes(16)), "pickled"),
        (entry("{'descr': '<c16', 'fortran_order': False, 'shape': (2,)}\n", bytes(32)), "expected numbers"),
        (entry("__import__('os').system('touch marker')\n"), "damaged header"),
        (entry("(" * 5000 + "\n"), "damaged header"),
        (b"\x93NUMPY\x07\x00" + bytes(100), "NPY version|header"),
        (b"\x93NUMPY\x01\x00\xff\xff", "damaged header"),
        (b"", "damaged header"),
    ],
)
def test_hostile_entries(tmp_path: Path, content: bytes, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("action.npy", content)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "a.npz")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", action=np.array([Marks(tmp_path / "marker")], dtype=object))
    with pytest.raises(DataError, match="pickled objects"):
        open_source(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Marks(tmp_path / "marker")))
    with pytest.raises(DataError, match="no zip archive"):
        open_source(tmp_path / "b.npz")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("compress", [False, True])
def test_every_flipped_bit_of_the_values_is_noticed(tmp_path: Path, store: Path, compress: bool) -> None:
    with DemoStore.open(store) as demos:
        export_demos(demos, tmp_path / "out.npz", "npz", keys=["action"], options={"compress": compress})
    raw = (tmp_path / "out.npz").read_bytes()
    start = raw.index(b"data/action.npy") + 160
    for at in range(start, start + 100, 7):
        (tmp_path / "b.npz").write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        with pytest.raises(DataError):
            open_source(tmp_path / "b.npz").read(0)


def test_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"one")
    opened = Archive(tmp_path / "a.zip")
    assert (opened.names, opened.size("a"), opened.read("a"), opened.offset("a")) == (("a",), 3, b"one", None)
    buffer = io.BytesIO()
    opened.copy("a", buffer)
    assert buffer.getvalue() == b"one"
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"two")
    with pytest.raises(DataError, match="two entries"):
        Archive(tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", b"one")
    with pytest.raises(DataError, match="compression 14"):
        Archive(tmp_path / "c.zip")
