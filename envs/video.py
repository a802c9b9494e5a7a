"""H.264 video that every browser plays, written frame by frame."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from visuomotor.data.errors import UserError

__all__ = ["VideoWriter"]


class VideoWriter:
    """Context manager that writes uint8 RGB frames ``[H, W, 3]`` to an mp4 (H.264, yuv420p, index at the front).

    An odd side is widened by one repeated row or column, since 4:2:0 needs even sides. The file appears under its name
    only when complete; after an exception nothing is left.

    Args:
        path: the file to write; its folder is created.
        fps: pictures per second.

    Raises:
        UserError: frames of another shape or type than the first, or none at all.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._part = path.with_name(f".{path.name}.part")
        self._shape: tuple[int, ...] = ()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = av.open(str(self._part), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "20", "preset": "veryfast"}

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
