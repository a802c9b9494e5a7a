"""Replay buffers in Zarr: Push-T value by value, UMI's archive with JPEG XL, and what is refused."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.storage import ZipStore

from visuomotor.data.errors import ConfigError, DataError, UserError
from visuomotor.data.importing.registry import detect, open_source
from visuomotor.data.importing.run import Selection, import_demos
from visuomotor.data.importing.zarr_buffer import ZarrSource
from visuomotor.data.importing.zarr_guard import _unpacked
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

PUSHT = Path(__file__).parents[2].parent / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"
RNG = np.random.default_rng(0)


def buffer(path: Path, arrays: dict[str, np.ndarray], ends: list[int], chunk: int = 7, **more: Any) -> Path:
    """A Zarr 2 replay buffer, as Diffusion Policy writes them."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    data, meta = group.create_group("data"), group.create_group("meta")
    for key, array in arrays.items():
        chunks = (chunk, *array.shape[1:])
        codec = more.get(key, numcodecs.Blosc("zstd", 5, 2))
        data.create_array(key, shape=array.shape, chunks=chunks, dtype=array.dtype, compressors=codec)[:] = array
    meta.create_array("episode_ends", shape=(len(ends),), chunks=(len(ends),), dtype="int64")[:] = np.array(ends)
    return path


def rows(group: zarr.Group, name: str) -> Any:
    return group[name]


def small(path: Path, **more: Any) -> tuple[Path, dict[str, np.ndarray]]:
    image = RNG.integers(0, 256, (20, 12, 16, 3))
    arrays: dict[str, np.ndarray] = {
        "action": RNG.random((20, 2), np.float32),
        "img": image.astype(np.float32),
        "unit_img": (image / 255).astype(np.float32),
        "depth": RNG.integers(0, 5000, (20, 12, 16)).astype(np.uint16),
        "timestamp": np.arange(20, dtype=np.float64) / 10,
    }
    return buffer(path, arrays, [6, 7, 20], **more), arrays


def test_float_images_become_bytes_and_all_else_stays(tmp_path: Path) -> None:
    path, arrays = small(tmp_path / "a.zarr")
    assert detect(path) == "zarr"
    source = open_source(path)
    assert {k: (s.dtype, s.role) for k, s in source.specs.items()} == {
        "action": ("float32", "action"),
        "depth": ("uint16", "observation"),
        "img": ("uint8", "observation"),
        "timestamp": ("float64", "timestamp"),
        "unit_img": ("uint8", "observation"),
    }
    assert [(e.id, e.length) for e in source.episodes] == [("0", 6), ("1", 1), ("2", 13)]
    import_demos(source, tmp_path / "b.zarr", selection=Selection(fps=10))
    with DemoStore.open(tmp_path / "b.zarr") as store:
        assert store.episode_ends.tolist() == [6, 7, 20]
        for key, array in arrays.items():
            expected = np.rint(array * 255).astype(np.uint8) if key == "unit_img" else array
            np.testing.assert_array_equal(store.read(key, 0, 20), expected)


def test_zip_and_version_3_read_the_same(tmp_path: Path) -> None:
    path, arrays = small(tmp_path / "a.zarr")
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w") as archive:
        for file in path.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(path).as_posix())
    specs = {"action": ArraySpec(shape=(2,), role="action", unit="m", names=("x", "y"))}
    with DemoStore.create(tmp_path / "c.zarr", specs, fps=5, episode_columns={"task": "str"}) as ours:
        ours.append_episode({"action": arrays["action"][:6]}, {"task": "push"})
    zipped, third = open_source(tmp_path / "a.zarr.zip"), open_source(tmp_path / "c.zarr")
    np.testing.assert_array_equal(zipped.read(2).arrays["img"], arrays["img"][7:20].astype(np.uint8))
    assert third.specs == specs  # what a store of ours says of itself
    assert third.fps == 5
    assert third.read(0).columns == {"task": "push"}
    np.testing.assert_array_equal(third.read(0).arrays["action"], arrays["action"][:6])


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    path, _ = small(tmp_path / "a.zarr")
    for chunk in (path / "data" / "img").glob("[0-9]*"):
        chunk.write_bytes(b"damaged")
    source = open_source(path)
    report = import_demos(source, tmp_path / "b.zarr", selection=Selection(keys=("action",)))
    assert report.episodes == 3


@pytest.mark.parametrize("step", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_pusht_value_by_value(tmp_path: Path, step: int) -> None:
    """Every ``step``-th episode, pictures and all."""
    if not PUSHT.exists():
        pytest.skip("the Push-T replay buffer is not here")
    chosen = tuple(range(0, 206, step))
    import_demos(open_source(PUSHT), tmp_path / "a.zarr", selection=Selection(fps=10, episodes=chosen))
    original = zarr.open_group(PUSHT, mode="r")
    ends = rows(original, "meta/episode_ends")[:]
    starts = np.concatenate([[0], ends[:-1]])
    with DemoStore.open(tmp_path / "a.zarr") as store:
        assert np.diff(store.episode_ends, prepend=0).tolist() == (ends - starts)[::step].tolist()
        assert store.specs["img"].dtype == "uint8"
        for key in store.keys:
            for i, episode in enumerate(chosen):
                expected = rows(original, f"data/{key}")[starts[episode] : ends[episode]]
                np.testing.assert_array_equal(read(store, key, i), expected)


def read(store: DemoStore, key: str, episode: int) -> np.ndarray:
    span = store.episode_slice(episode)
    return store.read(key, span.start, span.stop)


# ---------------------------------------------------------------- UMI


def umi(path: Path, lossless: bool = True) -> dict[str, np.ndarray]:
    """``dataset.zarr.zip`` as UMI's pipeline writes it: zip of Zarr 2, one JPEG XL frame a chunk."""
    imagecodecs = pytest.importorskip("imagecodecs.numcodecs", reason="needs imagecodecs (extra jpegxl)")
    imagecodecs.register_codecs("imagecodecs_jpegxl", verbose=False)
    n = 9
    smooth = np.linspace(0, 200, n * 32 * 32 * 3).reshape(n, 32, 32, 3)
    arrays: dict[str, np.ndarray] = {"camera0_rgb": (smooth + RNG.integers(0, 50, smooth.shape)).astype(np.uint8)}
    for robot in (0, 1):
        arrays |= {
            f"robot{robot}_eef_pos": RNG.random((n, 3), np.float32),
            f"robot{robot}_eef_rot_axis_angle": RNG.random((n, 3), np.float32),
            f"robot{robot}_gripper_width": RNG.random((n, 1), np.float32),
            f"robot{robot}_demo_start_pose": RNG.random((n, 6)),
            f"robot{robot}_demo_end_pose": RNG.random((n, 6)),
        }
    store = ZipStore(path, mode="w")
    group = zarr.open_group(store, mode="w", zarr_format=2)
    data, meta = group.create_group("data"), group.create_group("meta")
    for key, array in arrays.items():
        codec = imagecodecs.Jpegxl(level=99, lossless=lossless, numthreads=1) if key == "camera0_rgb" else None
        chunks = (1, *array.shape[1:]) if codec else array.shape
        data.create_array(key, shape=array.shape, chunks=chunks, dtype=array.dtype, compressors=codec)[:] = array
    meta.create_array("episode_ends", shape=(2,), chunks=(2,), dtype="int64", compressors=None)[:] = [4, n]
    store.close()
    with_codec = ZipStore(path, mode="r")
    arrays["camera0_rgb"] = rows(zarr.open_group(with_codec, mode="r"), "data/camera0_rgb")[:]  # what others see
    with_codec.close()
    numcodecs.registry.codec_registry.pop("imagecodecs_jpegxl")  # as in a process that never heard of it
    return arrays


@pytest.mark.parametrize("lossless", [True, False])
def test_umi_archive(tmp_path: Path, lossless: bool) -> None:
    arrays = umi(tmp_path / "dataset.zarr.zip", lossless)
    assert detect(tmp_path / "dataset.zarr.zip") == "zarr"
    source = open_source(tmp_path / "dataset.zarr.zip")
    report = import_demos(source, tmp_path / "a.zarr", selection=Selection(fps=59.94), workers=3)
    assert report.skipped == {}
    with DemoStore.open(tmp_path / "a.zarr") as store:
        for key, array in arrays.items():
            np.testing.assert_array_equal(store.read(key, 0, 9), array)
        parts = [arrays[f"robot{i}_{p}"] for i in (0, 1) for p in ("eef_pos", "eef_rot_axis_angle", "gripper_width")]
        np.testing.assert_array_equal(store.read("action", 0, 9), np.concatenate(parts, axis=1))
        assert store.specs["action"].role == "action"
        assert (store.specs["action"].names or ())[:4] == ("robot0_x", "robot0_y", "robot0_z", "robot0_rx")
        assert store.specs["robot0_eef_pos"].unit == "m"
        assert store.specs["robot0_demo_start_pose"].role == "other"
        assert store.episode_ends.tolist() == [4, 9]
    assert "action" not in open_source(tmp_path / "dataset.zarr.zip", options={"action": "none"}).specs
    with pytest.raises(ConfigError, match="'pose' or 'none'"):
        open_source(tmp_path / "dataset.zarr.zip", options={"action": "delta"})


def test_a_frame_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    umi(tmp_path / "a.zarr.zip")
    imagecodecs = pytest.importorskip("imagecodecs")
    big = imagecodecs.jpegxl_encode(np.zeros((999, 999, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "a.zarr.zip") as old, zipfile.ZipFile(tmp_path / "b.zarr.zip", "w") as new:
        for name in old.namelist():
            new.writestr(name, big if name == "data/camera0_rgb/5.0.0.0" else old.read(name))
    report = import_demos(open_source(tmp_path / "b.zarr.zip"), tmp_path / "a.zarr")
    assert list(report.skipped) == ["1"]
    assert "data/camera0_rgb/5.0.0.0 cannot be decoded" in report.skipped["1"]


# ---------------------------------------------------------------- hostile


def damage(path: Path, file: str, **changes: Any) -> Path:
    described = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps({**described, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [10**15, 2]}, "declares"),
        ({"shape": [10**40, 2]}, "expected as many whole numbers"),
        ({"shape": [-1, 2]}, "expected as many whole numbers"),
        ({"shape": "all"}, "shape"),
        ({"chunks": [10**9, 2]}, "expected at most"),
        ({"chunks": [0, 2]}, "chunks above 0"),
        ({"chunks": [7]}, "chunks"),
        ({"dtype": "<f3"}, "damaged"),
        ({"compressor": {"id": "pickle"}}, "encoded by 'pickle'"),
        ({"filters": [{"id": "pickle"}]}, "encoded by 'pickle'"),
        ({"filters": [{"id": "zlib"}]}, "compressed twice"),
        ({"compressor": {"id": "nonsense"}}, "encoded by 'nonsense'"),
        ({"dimension_separator": "/../../"}, "dimension separator"),
    ],
)
def test_hostile_metadata(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path, _ = small(tmp_path / "a.zarr")
    damage(path, "data/action/.zarray", **changes)
    with pytest.raises(UserError, match=message):
        import_demos(open_source(path), tmp_path / "b.zarr", skip_damaged=False)


def test_an_array_of_objects_is_left_out_and_named(tmp_path: Path) -> None:
    path, _ = small(tmp_path / "a.zarr")
    source = open_source(damage(path, "data/action/.zarray", dtype="|O"))
    assert "action" not in source.specs
    assert [f.array for f in source.findings] == ["action"]


class Marks:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    """Text columns may be of type object, whose codec may be pickle; newer numcodecs refuse it, older ones load it."""
    path, _ = small(tmp_path / "a.zarr")
    column = path / "meta" / "task"
    column.mkdir()
    text = {"zarr_format": 2, "shape": [3], "chunks": [3], "dtype": "|O", "order": "C", "fill_value": ""}
    (column / ".zarray").write_text(
        json.dumps({**text, "compressor": {"id": "pickle"}, "filters": [{"id": "vlen-utf8"}]})
    )
    (column / "0").write_bytes(pickle.dumps(Marks(tmp_path / "marker")))
    with pytest.raises(DataError, match="meta/task is encoded by 'pickle'"):
        open_source(path)
    assert not (tmp_path / "marker").exists()


BOMB = 1 << 26


@pytest.mark.parametrize("codec", ["zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "blosc"])
def test_chunks_that_unpack_to_more_than_a_chunk(tmp_path: Path, codec: str) -> None:
    encoder = numcodecs.get_codec({"id": codec})
    path, arrays = small(tmp_path / "a.zarr", action=encoder)
    np.testing.assert_array_equal(open_source(path).read(0).arrays["action"], arrays["action"][:6])
    bomb = bytes(encoder.encode(bytes(BOMB)))
    assert _unpacked(codec, bomb, 1 << 30) == BOMB
    (path / "data" / "action" / "0.0").write_bytes(bomb)
    with pytest.raises(DataError, match=r"data/action/0\.0 would unpack to"):
        open_source(path).read(0)


def test_zstandard_frames_that_do_not_say_their_size_are_refused() -> None:
    frame = b"\x28\xb5\x2f\xfd\x00\x58" + bytes(8)
    assert _unpacked("zstd", frame, 1000) > 1 << 40


@pytest.mark.parametrize("name", ["../data/x", "/etc/x", "data\\..\\x"])
def test_archives_whose_names_lead_out(tmp_path: Path, name: str) -> None:
    umi_like = tmp_path / "a.zarr.zip"
    with zipfile.ZipFile(umi_like, "w") as archive:
        archive.writestr("meta/episode_ends/.zarray", "{}")
        archive.writestr("data/.zgroup", "{}")
        archive.writestr(name, "x")
    with pytest.raises(DataError, match="leads out"):
        open_source(umi_like)


def test_zip_bombs_and_lies(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta/episode_ends/.zarray", "{}")
        archive.writestr("data/.zgroup", "{}")
        with archive.open("data/bomb", "w") as f:
            for _ in range(300):
                f.write(bytes(1 << 20))
    with pytest.raises(DataError, match="would unpack to 31457"):
        ZarrSource(tmp_path / "a.zarr.zip", {})
    raw = bytearray((tmp_path / "a.zarr.zip").read_bytes())
    at = raw.rindex(b"PK\x01\x02") + 24  # the size that the directory says of the last entry
    raw[at : at + 4] = struct.pack("<I", 10)
    (tmp_path / "b.zarr.zip").write_bytes(raw)
    with pytest.raises(DataError):
        ZarrSource(tmp_path / "b.zarr.zip", {})


def test_symlinked_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    path, arrays = small(tmp_path / "a.zarr")
    (path / "data" / "img").rename(tmp_path / "img")
    (path / "data" / "img").symlink_to(tmp_path / "img")
    np.testing.assert_array_equal(open_source(path).read(1).arrays["img"], arrays["img"][6:7])
