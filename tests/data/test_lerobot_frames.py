"""Which frame a row has, frames read in one pass, and what a dataset's description may say."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visuomotor.data.errors import DataError
from visuomotor.data.importing.image_bytes import decode_image, image_size
from visuomotor.data.importing.lerobot_frames import pair_frames
from visuomotor.data.importing.lerobot_meta import expand, ranges
from visuomotor.data.video import VideoIndex, VideoWriter, read_frames


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])


def test_rows_take_the_nearest_frame() -> None:
    frames = np.arange(5) / 10
    assert pair_frames(frames, frames, 10)[0].tolist() == [0, 1, 2, 3, 4]
    pairs, notes = pair_frames(np.array([0.0, 0.12, 0.19, 0.33]), frames, 10)
    assert pairs.tolist() == [0, 1, 2, 3]
    assert "up to 0.0300 s off" in notes[0]


def test_a_constant_difference_of_clocks_keeps_the_order() -> None:
    frames = np.arange(4) / 10
    pairs, notes = pair_frames(frames + 0.1, frames, 10)
    assert pairs.tolist() == [0, 1, 2, 3]
    assert "+0.1000 s" in notes[0]


def test_a_lost_frame_is_an_error_unless_in_order() -> None:
    frames = np.array([0, 1, 2, 5, 6]) / 10
    with pytest.raises(DataError, match=r"row 3 at 0.3000 s has no frame within half a period .*nearest is at 0.2000"):
        pair_frames(np.arange(7) / 10, frames, 10)
    with pytest.raises(DataError, match="5 frames for 7 rows"):
        pair_frames(np.arange(7) / 10, frames, 10, in_order=True)
    assert pair_frames(np.arange(5) * 7.0, frames, 10, in_order=True)[0].tolist() == [0, 1, 2, 3, 4]


def test_rows_that_share_a_frame_are_told() -> None:
    pairs, notes = pair_frames(np.array([0.0, 0.1, 0.14, 0.2]), np.arange(3) / 10, 10)
    assert pairs.tolist() == [0, 1, 1, 2]
    assert "1 rows have the frame of the row before" in notes[0]


@given(
    st.integers(1, 40), st.integers(0, 20), st.floats(5, 60),
    st.lists(st.floats(-0.4, 0.4), min_size=40, max_size=40),
)  # fmt: skip
def test_jitter_below_half_a_period_never_shifts_a_row(n: int, extra: int, fps: float, jitter: list[float]) -> None:
    frames = np.arange(n + extra + 1) / fps
    rows = (np.arange(n) + np.array(jitter[:n])) / fps
    if (np.diff(rows) > 0).all():
        assert pair_frames(rows, frames, fps)[0].tolist() == list(range(n))


def test_frames_are_exact_from_any_key_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "v.mp4", 30, key_interval=7) as video:  # with B frames between
        for _ in range(40):
            video.add(np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8))
    index, whole = VideoIndex.read(tmp_path / "v.mp4"), decode(tmp_path / "v.mp4")
    assert index.codec == "h264"
    assert np.allclose(index.times, np.arange(40) / 30)
    for wanted in ([0], [39], [13, 14, 15], [20, 20, 27], list(range(40))):
        assert np.array_equal(read_frames(index, np.array(wanted)), whole[wanted])


def test_paths_stay_inside() -> None:
    assert expand("a-{episode_index:03d}/{video_key}.mp4", {"episode_index": 7, "video_key": "x"}) == "a-007/x.mp4"
    with pytest.raises(DataError, match="none inside"):
        expand("{video_key}/x.mp4", {"video_key": "../.."})


def test_ranges_are_told_in_short() -> None:
    assert ranges([3, 0, 60, 61, 62]) == "0, 3, 60-62"


def test_sizes_are_known_before_decoding() -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    for suffix in (".png", ".jpg"):
        data = bytes(cv2.imencode(suffix, picture)[1])
        assert image_size(data) == (20, 30)
        assert decode_image(data).shape == (20, 30, 3)
        with pytest.raises(DataError, match=r"cut off|damaged"):
            image_size(data[:20])
    with pytest.raises(DataError, match="neither PNG nor JPEG"):
        image_size(b"nothing")
