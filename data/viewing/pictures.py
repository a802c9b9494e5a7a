"""Camera arrays as colours that a person can look at: RGB, depth in metres, segmentation. Imports without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from visuomotor.data.errors import DataError
from visuomotor.data.ingest import image_gain
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

__all__ = ["Camera", "camera_keys", "colour_depth", "colour_segments", "metres_per_unit", "picture_kind"]

_BLOCK_BYTES = 32 << 20
_SAMPLE = 8  # frames that the range of a depth camera is taken from


def picture_kind(key: str, spec: ArraySpec) -> str | None:
    """``"image"``, ``"depth"``, ``"segmentation"``, or None for what is no picture.

    Whole numbers ``[H, W]`` are segmentation, except uint16 (depth in millimetres) and uint8 (a grey image), which are
    it only when their name says so (``seg``, ``mask``).
    """
    if spec.is_image:
        return "image"
    flat = len(spec.shape) == 2 and min(spec.shape) >= 8
    if flat and np.dtype(spec.dtype).kind in "iub":
        named = any(word in key.lower() for word in ("seg", "mask"))
        if named or spec.dtype not in ("uint8", "uint16"):
            return "segmentation"
        return "image" if spec.dtype == "uint8" else "depth"
    return "depth" if spec.is_depth else None


def camera_keys(store: DemoStore) -> tuple[str, ...]:
    """Arrays of the store that are pictures."""
    return tuple(k for k, spec in store.specs.items() if picture_kind(k, spec))


def metres_per_unit(spec: ArraySpec) -> float:
    """What one unit of a depth array is [m]: by its unit, else millimetres for whole numbers and metres for floats."""
    known = {"m": 1.0, "cm": 1e-2, "mm": 1e-3}
    return known.get(spec.unit or "", 1.0 if np.dtype(spec.dtype).kind == "f" else 1e-3)


def colour_depth(metres: NDArray[np.floating], near: float, far: float) -> NDArray[np.uint8]:
    """Depth ``[..., H, W]`` [m] as RGB, near bright and far dark; no measurement (0, NaN, infinity) is black."""
    measured = np.isfinite(metres) & (metres > 0)
    part = (far - np.where(measured, metres, far)) / max(far - near, 1e-9)
    grey = np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8)
    height, width = metres.shape[-2:]
    coloured = cv2.applyColorMap(grey.reshape(-1, width), cv2.COLORMAP_VIRIDIS)[..., ::-1]  # it gives BGR
    rgb = coloured.reshape(*metres.shape[:-2], height, width, 3)
    return np.where(measured[..., None], rgb, 0).astype(np.uint8)


def colour_segments(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """A colour for each identifier of ``[..., H, W]``; 0 is grey, negative (nothing) is black."""
    hue = (np.arange(256) * 0.6180339887 % 1 * 180).astype(np.uint8)  # multiples of the golden ratio lie far apart
    hsv = np.stack([hue, np.full(256, 170, np.uint8), np.full(256, 230, np.uint8)], axis=-1)[None]
    palette = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]
    palette[0] = 90
    rgb = palette[ids.astype(np.int64) % 256]
    rgb[ids < 0] = 0
    return rgb


class Camera:
    """One picture array of a store, read as uint8 RGB.

    Args:
        store: an open store.
        key: a picture array of it.

    Attributes:
        kind: ``"image"``, ``"depth"`` or ``"segmentation"``.

    Raises:
        DataError: no such array, or it is no picture.
    """

    def __init__(self, store: DemoStore, key: str) -> None:
        store.require([key])
        kind = picture_kind(key, store.specs[key])
        if kind is None:
            spec = store.specs[key]
            known = ", ".join(camera_keys(store)) or "(none)"
            raise DataError(
                f"{store.path}: {key!r} is no camera: its steps are {spec.dtype} {list(spec.shape)}. Cameras: {known}"
            )
        self._store, self.key, self.spec, self.kind = store, key, store.specs[key], kind
        self._gain: int | None = None
        self._range: tuple[float, float] | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored picture."""
        return self.spec.size * np.dtype(self.spec.dtype).itemsize

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.generic]]]:
        """(first row, stored pictures) of the global steps ``[start, stop)``, some megabytes at a time."""
        rows = max(1, _BLOCK_BYTES // self.row_bytes)
        for first in range(start, stop, rows):
            yield first, self._store.read(self.key, first, min(first + rows, stop))

    def rgb(self, frames: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Stored pictures ``[n, ...]`` as uint8 ``[n, H, W, 3]``."""
        if self.kind == "segmentation":
            return colour_segments(frames.astype(np.int64))
        if self.kind == "depth":
            return colour_depth(self.metres(frames), *self._depth_range())
        values = frames[..., None] if frames.ndim == 3 else frames
        if values.shape[-1] == 1:
            values = np.repeat(values, 3, axis=-1)
        return self._bytes(values[..., :3])

    def metres(self, frames: NDArray[np.generic]) -> NDArray[np.float32]:
        """Stored depth ``[n, H, W]`` or ``[n, H, W, 1]`` as ``[n, H, W]`` [m]."""
        flat = frames[..., 0] if frames.ndim == 4 else frames
        return flat.astype(np.float32) * np.float32(metres_per_unit(self.spec))

    def pick(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        """The pictures of single global steps as RGB ``[n, H, W, 3]``; each chunk that holds some is decoded once."""
        chunk = int(self._store.arrays[self.key].chunks[0])
        out: dict[int, NDArray[np.uint8]] = {}
        for group in _grouped(sorted(set(rows)), chunk, max(1, _BLOCK_BYTES // self.row_bytes)):
            frames = self._store.read(self.key, group[0], group[-1] + 1)
            chosen = self.rgb(frames[[row - group[0] for row in group]])
            out |= dict(zip(group, chosen, strict=True))
        return np.stack([out[row] for row in rows])

    def _bytes(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        if values.dtype == np.uint8:
            return np.ascontiguousarray(values)
        if values.dtype == np.uint16:
            return (values.astype(np.uint32) >> 8).astype(np.uint8)
        gain = self._float_gain() if values.dtype.kind == "f" else 1
        return np.rint(np.clip(np.nan_to_num(values.astype(np.float32)) * gain, 0, 255)).astype(np.uint8)

    def _float_gain(self) -> int:
        if self._gain is None:
            try:
                self._gain = image_gain(self._store, self.key)
            except DataError:  # only 0 and 1, or damage on the way: what can be seen is better than nothing
                self._gain = 255
        return self._gain

    def _depth_range(self) -> tuple[float, float]:
        """Nearest and farthest depth [m] of most pixels, in some frames spread over the store."""
        if self._range is None:
            rows = np.unique(np.linspace(0, self._store.n_steps - 1, _SAMPLE).astype(int))
            values = np.concatenate([self.metres(self._store.read(self.key, r, r + 1)).ravel() for r in rows.tolist()])
            values = values[np.isfinite(values) & (values > 0)]
            self._range = (
                (float(np.quantile(values, 0.01)), float(np.quantile(values, 0.99))) if values.size else (0, 1)
            )
        return self._range


def _grouped(rows: Iterable[int], chunk: int, limit: int) -> Iterator[list[int]]:
    """Split sorted rows so that a group lies within one chunk and spans at most ``limit`` rows."""
    group: list[int] = []
    for row in rows:
        if group and (row // chunk != group[0] // chunk or row - group[0] >= limit):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
