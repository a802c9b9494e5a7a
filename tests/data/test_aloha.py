"""ALOHA HDF5: raw and JPEG pictures as the recording scripts write them, holes, and what is refused.

The files are made here in the layout of ACT's record_sim_episodes.py and Mobile ALOHA's record_episodes.py and
compress_data.py (quality 50, rows filled up with zeros, ``compress_len [cameras, T]``).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.importing.jpeg import jpeg_shape
from visuomotor.data.importing.registry import detect, open_source
from visuomotor.data.importing.run import import_demos
from visuomotor.data.store import DemoStore

h5py = pytest.importorskip("h5py", reason="needs the extra hdf5")
H, W, T = 48, 64, 7


def picture(t: int) -> np.ndarray:
    """RGB: a reddish ramp, which JPEG keeps well, and red and blue cannot be mistaken for each other."""
    y, x = np.mgrid[0:H, 0:W]
    return np.stack([200 + 0 * x, 40 + x, 10 + y + 4 * t], -1).astype(np.uint8)


def write_episode(path: Path, *, jpeg: str = "", mobile: bool = False, n: int = T, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    pictures = np.stack([picture(t) for t in range(n)])
    with h5py.File(path, "w") as f:
        f.attrs["sim"] = False
        f.attrs["compress"] = bool(jpeg)
        for name in ("qpos", "qvel", "effort"):
            f[f"observations/{name}"] = rng.normal(size=(n, 14))
        f["action"] = rng.normal(size=(n, 14))
        if mobile:
            f["base_action"] = rng.normal(size=(n, 2))
        images = f.create_group("observations/images")
        lengths = []
        for camera in ("cam_high", "cam_left_wrist"):
            if not jpeg:
                images.create_dataset(camera, data=pictures, chunks=(1, H, W, 3))
                continue
            given = pictures if jpeg == "opencv" else pictures[..., ::-1]  # OpenCV takes what it is given for BGR
            codes = [cv2.imencode(".jpg", np.ascontiguousarray(p), [cv2.IMWRITE_JPEG_QUALITY, 50])[1] for p in given]
            lengths.append([len(c) for c in codes])
            rows = np.zeros((n, max(map(len, codes))), np.uint8)
            for row, code in zip(rows, codes, strict=True):
                row[: len(code)] = code.ravel()
            images[camera] = rows
        if jpeg:
            f.create_dataset("compress_len", data=np.array(lengths, np.float32))
    return path


def test_raw_pictures_and_joints_are_bit_equal(tmp_path: Path) -> None:
    for i in (0, 1, 2, 10):
        write_episode(tmp_path / f"episode_{i}.hdf5", seed=i, n=T + i)
    assert detect(tmp_path) == "aloha"
    source = open_source(tmp_path, options={"task": "transfer the cube"})
    assert [e.id for e in source.episodes] == ["episode_0", "episode_1", "episode_2", "episode_10"]
    assert source.findings[0].message == "7 episodes are missing between others: 3, 4, 5, 6, 7, 8, 9"
    assert source.fps == 50
    assert source.specs["action"].names is not None
    assert source.specs["action"].names[5:8] == ("left_wrist_rotate", "left_gripper", "right_waist")
    assert source.specs["cam_high"].is_image
    report = import_demos(source, tmp_path / "s.zarr")
    source.close()
    assert (report.episodes, report.steps) == (4, 4 * T + 13)
    with DemoStore.open(tmp_path / "s.zarr") as store, h5py.File(tmp_path / "episode_10.hdf5") as f:
        got = store.episode(3)
        for key, name in (
            ("qpos", "observations/qpos"),
            ("action", "action"),
            ("cam_high", "observations/images/cam_high"),
        ):
            assert got[key].tobytes() == f[name][()].tobytes()
        assert store.specs["effort"].role == "observation"
        assert store.specs["effort"].source == "/observations/effort"
        assert store.episode_columns["task"].tolist() == ["transfer the cube"] * 4
        assert store.episode_columns["sim"].tolist() == [False] * 4


@pytest.mark.parametrize("jpeg", ["opencv", "standard"])
def test_colours_of_jpegs_are_those_of_the_camera(jpeg: str, tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", jpeg=jpeg, mobile=True)
    source = open_source(path, options={"jpeg": jpeg})
    assert source.specs["cam_high"].shape == (H, W, 3)
    assert source.specs["base_action"].role == "action"
    assert "compress_len" not in source.specs
    got = source.read(0).arrays["cam_high"].astype(int)
    expected = np.stack([picture(t) for t in range(T)]).astype(int)
    assert np.abs(got - expected).mean() < 3  # of 255: quality 50
    other = open_source(path, options={"jpeg": "standard" if jpeg == "opencv" else "opencv"}).read(0).arrays["cam_high"]
    assert np.abs(other[..., ::-1].astype(int) - expected).mean() < 3


def test_rows_of_their_own_lengths(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", jpeg="opencv")
    with h5py.File(path, "a") as f:
        rows = f["observations/images/cam_high"][()]
        del f["observations/images/cam_high"]
        d = f.create_dataset("observations/images/cam_high", (T,), dtype=h5py.vlen_dtype(np.uint8))
        for i, row in enumerate(rows):
            d[i] = np.trim_zeros(row, "b")
    arrays = open_source(path).read(0).arrays
    np.testing.assert_array_equal(arrays["cam_high"], arrays["cam_left_wrist"])


def spoil(path: Path, name: str, change: object) -> None:
    with h5py.File(path, "a") as f:
        value = f[name][()]
        del f[name]
        f[name] = change(value)  # type: ignore[operator]


def cut_row(rows: np.ndarray) -> np.ndarray:
    rows[3, len(np.trim_zeros(rows[3], "b")) // 2 :] = 0
    return rows


def other_size(rows: np.ndarray) -> np.ndarray:
    small = cv2.imencode(".jpg", picture(0)[:24, :32])[1].ravel()
    rows[3] = 0
    rows[3, : len(small)] = small
    return rows


def forged_size(rows: np.ndarray) -> np.ndarray:
    at = bytes(rows[3]).index(b"\xff\xc0")
    rows[3, at + 5 : at + 9] = 255  # 65535 x 65535 pixels in a header of some hundred bytes
    return rows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut_row, "cam_high, row 3, is no whole JPEG"),
        (other_size, r"cam_high, row 3, is a picture of \[24, 32, 3\]: expected \[48, 64, 3\]"),
        (forged_size, "cam_high, row 3, declares 65535 x 65535 pixels"),
        (lambda rows: rows[:-1], r"cam_high has shape \[6, .*expected \[7, 48, 64, 3\]"),
    ],
)
def test_damaged_pictures_are_refused(change: object, words: str, tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", jpeg="opencv")
    spoil(path, "observations/images/cam_high", change)
    with pytest.raises(DataError, match=words):
        open_source(path).read(0)


def test_a_first_picture_of_absurd_size_is_refused_when_opened(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", jpeg="opencv")

    def forge(rows: np.ndarray) -> np.ndarray:
        at = bytes(rows[0]).index(b"\xff\xc0")
        rows[:, at + 5 : at + 9] = 255
        return rows

    spoil(path, "observations/images/cam_high", forge)
    with pytest.raises(DataError, match="declares 65535 x 65535 pixels"):
        open_source(path)


def test_more_pixels_than_the_file_can_hold(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", jpeg="opencv", n=200)

    def forge(rows: np.ndarray) -> np.ndarray:
        at = bytes(rows[0]).index(b"\xff\xc0")
        rows[:, at + 5 : at + 9] = np.frombuffer(b"\x1f\xff\x1f\xff", np.uint8)  # 8191 x 8191 each: 40 GB in all
        return rows

    spoil(path, "observations/images/cam_high", forge)
    with pytest.raises(DataError, match=r"declares 200 pictures of \[8191, 8191, 3\]"):
        open_source(path).read(0)


def test_episodes_that_differ(tmp_path: Path) -> None:
    write_episode(tmp_path / "episode_0.hdf5")
    write_episode(tmp_path / "episode_1.hdf5", mobile=True)
    write_episode(tmp_path / "episode_2.hdf5")
    spoil(tmp_path / "episode_2.hdf5", "action", lambda a: a[:-2])
    (tmp_path / "episode_3.hdf5").write_bytes((tmp_path / "episode_0.hdf5").read_bytes()[:5000])
    source = open_source(tmp_path)
    report = import_demos(source, tmp_path / "s.zarr")
    assert sorted(report.skipped) == ["episode_2", "episode_3"]
    assert "episode_3.hdf5" in report.skipped["episode_3"]
    assert any("has base_action, which episode_0.hdf5 has not: left out" in f.message for f in report.findings)
    assert report.episodes == 2


def test_options_and_folders_of_something_else(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5")
    assert open_source(path, options={"fps": 30}).fps == 30
    for options in ({"jpeg": "bgr"}, {"fps": 0}, {"fps": "fast"}, {"speed": 1}):
        with pytest.raises(ConfigError, match="aloha"):
            open_source(path, options=options)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no episode_<number>\.hdf5"):
        open_source(empty, "aloha")
    with h5py.File(empty / "episode_0.hdf5", "w") as f:
        f["x"] = 1
    with pytest.raises(DataError, match=r"no ALOHA episode\. It has x"):
        open_source(empty, "aloha")


def test_sizes_are_read_from_headers() -> None:
    for shape in ((17, 33), (17, 33, 3)):
        code = cv2.imencode(".jpg", np.full(shape, 90, np.uint8))[1].ravel()
        assert jpeg_shape(code, "it") == (17, 33, 1 if len(shape) == 2 else 3)
        for n in range(0, len(code) - 1, 7):
            with pytest.raises(DataError, match="it is no whole JPEG"):
                jpeg_shape(code[:n], "it")
