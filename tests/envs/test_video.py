from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from visuomotor.data.errors import UserError
from visuomotor.envs.video import VideoWriter

ORANGE, BLUE = (230, 120, 30), (30, 60, 200)


def decode(path: Path) -> tuple[list[np.ndarray], av.VideoStream]:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return [f.to_ndarray(format="rgb24") for f in file.decode(stream)], stream


def test_frames_and_colours_survive(tmp_path: Path) -> None:
    path = tmp_path / "made" / "clip.mp4"
    frames = [np.full((64, 48, 3), ORANGE if i < 5 else BLUE, np.uint8) for i in range(12)]
    with VideoWriter(path, 10) as video:
        for f in frames:
            video.add(f)
    decoded, stream = decode(path)
    assert len(decoded) == 12
    assert float(stream.average_rate or 0) == 10
    assert stream.codec_context.name == "h264"
    assert stream.codec_context.pix_fmt == "yuv420p"
    for want, got in zip(frames, decoded, strict=True):
        assert np.abs(got.astype(int) - want).max() <= 6
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")  # playable while it loads
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]


def test_odd_sides_are_widened(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    with VideoWriter(path, 30) as video:
        video.add(np.full((33, 51, 3), ORANGE, np.uint8))
    frame = decode(path)[0][0]
    assert frame.shape == (34, 52, 3)
    assert np.abs(frame[-1, -1].astype(int) - ORANGE).max() <= 6


def test_bad_frames_leave_no_file(tmp_path: Path) -> None:
    def write(*frames: np.ndarray) -> None:
        with VideoWriter(tmp_path / "x.mp4", 10) as video:
            for f in frames:
                video.add(f)

    good = np.zeros((16, 16, 3), np.uint8)
    for frames, message in (
        ((), "no frame"),
        ((good.astype(np.float32),), "float32; expected uint8"),
        ((good[..., 0],), r"\(16, 16\)"),
        ((good, good[:8]), r"\(8, 16, 3\).*after"),
    ):
        with pytest.raises(UserError, match=message):
            write(*frames)
    assert list(tmp_path.iterdir()) == []
