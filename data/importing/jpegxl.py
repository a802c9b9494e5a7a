"""Images of a Zarr array whose chunks are JPEG XL files, as UMI stores them: one frame a chunk."""

from __future__ import annotations

from typing import Any

import numpy as np

from visuomotor.data.errors import DataError, MissingExtraError
from visuomotor.data.importing.zarr_guard import ArrayFiles, ZarrFiles

__all__ = ["CODEC", "JpegXlFrames"]

CODEC = "imagecodecs_jpegxl"


class JpegXlFrames:
    """Frames ``[T, H, W, C]`` uint8 of an array with the codec ``imagecodecs_jpegxl``.

    Decoded here and not through zarr: every frame goes into memory of the size that the array declares, so a picture
    of another size is refused before it is decoded, and no codec needs to be registered in the process.

    Args:
        files: the store.
        array: the array.

    Raises:
        DataError: its chunks are no single frames.
        MissingExtraError: imagecodecs is not installed.
    """

    def __init__(self, files: ZarrFiles, array: ArrayFiles) -> None:
        try:
            import imagecodecs
        except ImportError:
            raise MissingExtraError(
                f"{files.path}: {array.name} is JPEG XL, which imagecodecs decodes: pip install visuomotor[jpegxl]"
            ) from None
        self._decode: Any = imagecodecs.jpegxl_decode
        self.shape = array.shape
        dtype = np.dtype(array.raw["dtype"])
        if array.version != 2 or dtype != np.uint8 or array.chunks != (1, *array.shape[1:]) or len(array.shape) != 4:
            raise DataError(
                f"{files.path}: {array.name} is JPEG XL of {dtype} {list(array.shape)} in chunks {list(array.chunks)}: "
                "expected Zarr 2, uint8 [T, H, W, C] and one frame a chunk"
            )
        self._files, self._array = files, array

    def read(self, start: int, stop: int) -> np.ndarray:
        """Frames ``[start, stop)``: ``[n, H, W, C]`` uint8.

        Raises:
            DataError: a frame is missing, damaged, or of another size.
        """
        frames = np.empty((stop - start, *self.shape[1:]), np.uint8)
        for i, frame in enumerate(frames, start=start):
            name = self._array.chunk_name((i, 0, 0, 0))
            data = self._files.read(name)
            try:
                # one thread: episodes are decoded side by side
                self._decode(data, numthreads=1, out=frame if frame.shape[-1] > 1 else frame[..., 0])
            except Exception as error:  # the decoder has error types of its own
                raise DataError(f"{self._files.path}: frame {name} cannot be decoded: {error}") from None
        return frames
