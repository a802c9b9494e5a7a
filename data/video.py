"""Video files: written frame by frame, and read back in one pass. The one place where PyAV is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from visuomotor.data.errors import DataError, UserError
from visuomotor.data.recycling import Recycler

__all__ = ["VideoIndex", "VideoWriter", "read_frames"]


class VideoWriter:
    """Context manager that writes uint8 RGB frames ``[H, W, 3]`` to an mp4 (H.264, yuv420p, index at the front).

    An odd side is widened by one repeated row or column, since 4:2:0 needs even sides. The file appears under its name
    only when complete; after an exception nothing is left.

    Args:
        path: the file to write; its folder is created.
        fps: pictures per second.
        crf: constant rate factor of x264, 0 (lossless but for the colour space) to 51.
        preset: speed of x264 against size.
        key_interval: a key frame at least every so many frames; None leaves it to x264 (250).

    Raises:
        UserError: frames of another shape or type than the first, or none at all.
    """

    def __init__(
        self, path: Path, fps: float, *, crf: int = 20, preset: str = "veryfast", key_interval: int | None = None
    ) -> None:
        self.path = path
        self.n_frames = 0
        self._part = path.with_name(f".{path.name}.part")
        self._shape: tuple[int, ...] = ()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = av.open(str(self._part), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": str(crf), "preset": preset}
        if key_interval is not None:
            self._stream.options = {**self._stream.options, "g": str(key_interval)}

    @property
    def n_bytes(self) -> int:
        """Bytes on disk so far; the encoder holds back some frames."""
        return self._part.stat().st_size

    def add(self, frame: np.ndarray) -> None:
        """Append one picture."""
        if not self._shape:
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
                raise UserError(f"video frame of shape {frame.shape} and type {frame.dtype}; expected uint8 [H, W, 3]")
            self._shape = frame.shape
            self._stream.height, self._stream.width = (n + n % 2 for n in frame.shape[:2])
            context = self._stream.codec_context  # stated, or players guess and colours shift
            context.colorspace, context.color_range = Colorspace.SMPTE170M, ColorRange.MPEG
        elif frame.shape != self._shape or frame.dtype != np.uint8:
            raise UserError(f"video frame of shape {frame.shape} after frames of shape {self._shape}")
        odd = [(0, n % 2) for n in frame.shape[:2]]
        even = np.pad(frame, [*odd, (0, 0)], mode="edge") if any(n for _, n in odd) else np.ascontiguousarray(frame)
        picture = av.VideoFrame.from_ndarray(even, format="rgb24")
        self._file.mux(self._stream.encode(picture.reformat(format="yuv420p", dst_colorspace=Colorspace.SMPTE170M)))
        self.n_frames += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None and self._shape:
            self._file.mux(self._stream.encode())
            self._file.close()
            os.replace(self._part, self.path)
            return
        self._file.close()
        self._part.unlink(missing_ok=True)
        if kind is None:
            raise UserError(f"no frame was given for the video {self.path}")


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """When each frame of an mp4 is shown, by its container; no frame is decoded for it.

    Attributes:
        path: the file.
        codec: name of the codec (``"h264"``, ``"av1"``).
        height: of a frame [px].
        width: of a frame [px].
        pts: int64 ``[N]``, increasing, in units of ``time_base``.
        keys: int64, those of ``pts`` from which decoding can begin.
        time_base: seconds per unit.
    """

    path: Path
    codec: str
    height: int
    width: int
    pts: np.ndarray
    keys: np.ndarray
    time_base: float

    @property
    def times(self) -> np.ndarray:
        """float64 ``[N]``: when each frame is shown [s]."""
        return self.pts * self.time_base

    @classmethod
    def read(cls, path: Path) -> VideoIndex:
        """Read the index of the first video stream.

        Raises:
            DataError: it cannot be read as an mp4 with video.
        """
        with _open(path) as (file, stream):
            packets = [(p.pts, p.is_keyframe) for p in file.demux(stream) if p.pts is not None]
            context = stream.codec_context
            pts = np.array(sorted(t for t, _ in packets), np.int64)
            keys = np.array(sorted(t for t, key in packets if key), np.int64)
            # PyAV names the decoder that it found (libdav1d), the file the codec
            codec = str(context.codec.canonical_name)
            found = cls(path, codec, context.height, context.width, pts, keys, float(stream.time_base))
        if not len(pts) or not len(keys):
            raise DataError(f"{path} holds no video frame")
        return found


def read_frames(index: VideoIndex, wanted: np.ndarray, memory: Recycler | None = None, threads: int = 0) -> np.ndarray:
    """Decode frames in one pass, from the last key frame before the first of them.

    Args:
        index: of the file.
        wanted: int64 ``[L]``, which frames, by their place in ``index.pts``; not decreasing.
        memory: where to put them.
        threads: of the decoder; 0: as many as there are cores.

    Returns:
        uint8 RGB ``[L, H, W, 3]``, each as PyAV's ``frame.to_ndarray(format="rgb24")`` gives it.

    Raises:
        DataError: the file is damaged or shorter than its index.
    """
    shape = (len(wanted), index.height, index.width, 3)
    out = np.empty(shape, np.uint8) if memory is None else memory.empty(shape, np.uint8)
    pts, row = index.pts[wanted], 0
    converter = VideoReformatter()  # one for all: frame.to_ndarray makes one for each, which takes longer than decoding
    with _open(index.path) as (file, stream):
        stream.codec_context.thread_count = threads
        key = int(index.keys[max(np.searchsorted(index.keys, pts[0], side="right") - 1, 0)])
        if key > index.keys[0]:
            file.seek(key, stream=stream, backward=True)
        for frame in file.decode(stream):
            if frame.pts is None or frame.pts < pts[row]:
                continue
            if frame.pts > pts[row]:
                break
            if (frame.height, frame.width) != out.shape[1:3]:
                raise DataError(
                    f"{index.path}: the frame at {frame.pts * index.time_base:.3f} s is "
                    f"{frame.width} x {frame.height} px; expected {index.width} x {index.height}"
                )
            plane = converter.reformat(frame, format="rgb24").planes[0]
            lines = np.frombuffer(memoryview(plane), np.uint8)
            lines = lines.reshape(index.height, plane.line_size)  # padded on the right
            picture = lines[:, : 3 * index.width].reshape(out.shape[1:])
            while row < len(pts) and pts[row] == frame.pts:  # rows may share a frame
                out[row] = picture
                row += 1
            if row == len(pts):
                return out
    raise DataError(f"{index.path}: the frame at {pts[row] * index.time_base:.3f} s cannot be decoded: file damaged")


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream. The format is given: some that FFmpeg would guess open other files."""
    try:
        with av.open(str(path), format="mp4", options={"protocol_whitelist": "file"}) as file:
            if not file.streams.video or file.streams.video[0].codec_context is None:
                raise DataError(f"{path} holds no video, or of an unknown codec")
            stream = file.streams.video[0]
            stream.thread_type = "AUTO"
            yield file, stream
    except DataError:
        raise
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:  # PyAV also fails on text that is not UTF-8
        raise DataError(f"{path} cannot be read as mp4 video: {getattr(error, 'strerror', None) or error}") from None
