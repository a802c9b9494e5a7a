"""From a stored array to the verified, flat form that training reads: uint8 images, float32 for all else.

Imports without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.errors import DataError
from visuomotor.data.remote import is_url
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

__all__ = ["FORMAT_VERSION", "ArrayPlan", "image_gain", "plan_array", "read_blocks", "read_rows", "read_steps"]

FORMAT_VERSION = 1  # of the flat arrays; count up when the same store would be written differently
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class ArrayPlan:
    """What one array becomes. ``kind``: ``number`` -> float32; ``image`` -> uint8; ``float_image`` -> uint8, scaled."""

    key: str
    spec: ArraySpec
    kind: str
    shape: tuple[int, ...]  # [T, ...]

    @property
    def dtype(self) -> str:
        """Type of the flat array."""
        return "float32" if self.kind == "number" else "uint8"

    @property
    def nbytes(self) -> int:
        """Size of the flat array."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def describe(self) -> dict[str, Any]:
        """JSON-ready description of the result, part of the cache key."""
        return {"key": self.key, "kind": self.kind, "shape": list(self.shape), "dtype": self.dtype}


def plan_array(key: str, spec: ArraySpec, n_steps: int) -> ArrayPlan:
    """Decide from its type and shape what an array becomes.

    Raises:
        DataError: text, complex numbers, images that are neither uint8 nor float, or images with channels first.
    """
    kind = np.dtype(spec.dtype).kind
    if kind not in "fiub":
        raise DataError(f"array {key!r} holds {spec.dtype}: expected numbers")
    if spec.is_image and spec.dtype != "uint8" and kind != "f":
        raise DataError(f"image array {key!r} holds {spec.dtype}: expected uint8, or float in 0..1 or 0..255")
    channels_first = len(spec.shape) == 3 and spec.shape[0] in (1, 3, 4) and min(spec.shape[1:]) >= 8
    if channels_first and not spec.is_image:
        raise DataError(
            f"array {key!r} of shape {spec.shape} looks like an image with channels first: expected [H, W, C]"
        )
    name = "number" if not spec.is_image else "image" if spec.dtype == "uint8" else "float_image"
    return ArrayPlan(key, spec, name, (n_steps, *spec.shape))


def read_blocks(store: DemoStore, plan: ArrayPlan, first: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield ``(first row, block [n, ...])`` of the flat array from row ``first`` on, contiguous and verified.

    From a remote store the next block is fetched while this one is used.

    Raises:
        DataError: NaN, infinity, or pixels outside the convention of the array; the message names the array, episode,
            step and component.
    """
    gain = image_gain(store, plan.key) if plan.kind == "float_image" else 1
    blocks = store.iter_blocks(plan.key, _BLOCK_BYTES, first)
    for start, block in _ahead(blocks) if is_url(store.path) else blocks:
        yield start, _convert(store, plan, start, block, gain)


def _ahead(blocks: Iterator[tuple[int, NDArray[Any]]]) -> Iterator[tuple[int, NDArray[Any]]]:
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = thread.submit(next, blocks, None)
            yield block


def _convert(store: DemoStore, plan: ArrayPlan, start: int, block: NDArray[Any], gain: int) -> NDArray[Any]:
    """Verified rows of the flat array from the stored rows ``block [n, ...]`` that begin at row ``start``."""
    if plan.kind == "image":
        return np.ascontiguousarray(block)
    with np.errstate(over="ignore"):  # what overflows float32 is reported as infinite
        values = np.ascontiguousarray(block, np.float32)
    flat, good = (values, _is_finite(values)) if plan.kind == "number" else _to_uint8(values, gain)
    if not good:
        _refuse(store, plan, start, values, ~np.isfinite(values), "expected a finite float32")
        wrong = (values < 0) | (values * gain > 255) | ((gain == 1) & (values != np.rint(values)))
        convention = "whole numbers 0..255" if gain == 1 else "0..1"
        _refuse(store, plan, start, values, wrong, f"expected pixels in {convention}, as in the rows before")
    return flat


def read_steps(store: DemoStore, plan: ArrayPlan, rows: Iterable[int]) -> NDArray[Any]:
    """Single rows in the form that :func:`read_blocks` gives, ``[n, ...]``. Meant for few: each is a chunk to decode.

    Raises:
        DataError: as :func:`read_blocks`.
    """
    gain = image_gain(store, plan.key) if plan.kind == "float_image" else 1
    return np.concatenate([_convert(store, plan, row, store.read(plan.key, row, row + 1), gain) for row in rows])


def read_rows(store: DemoStore, plan: ArrayPlan, start: int, stop: int, gain: int = 1) -> NDArray[Any]:
    """Rows ``[start, stop)`` in the form that :func:`read_blocks` gives.

    Args:
        store: where they are.
        plan: of the array.
        start: first row.
        stop: the row after the last.
        gain: of float images, by :func:`image_gain`, which need be asked only once.

    Raises:
        DataError: as :func:`read_blocks`.
    """
    return _convert(store, plan, start, store.read(plan.key, start, stop), gain)


def _is_finite(values: NDArray[np.float32]) -> bool:
    return values.size == 0 or bool(np.isfinite(values.min()) and np.isfinite(values.max()))  # NaN is passed on by both


def _to_uint8(values: NDArray[np.float32], gain: int) -> tuple[NDArray[np.uint8], bool]:
    """Pixels as uint8, and whether all of them follow the convention; NaN makes either comparison false."""
    with np.errstate(invalid="ignore"):
        if gain == 1:
            flat = values.astype(np.uint8)
            return flat, bool((flat == values).all())
        return np.rint(values * gain).astype(np.uint8), bool(values.min() >= 0 and values.max() <= 1)


def image_gain(store: DemoStore, key: str) -> int:
    """1 for float pixels in 0..255, 255 for pixels in 0..1: the first pixel that can only be one of them decides.

    Raises:
        DataError: every pixel is 0 or 1.
    """
    for _, block in store.iter_blocks(key, _BLOCK_BYTES):
        telling = block[(block > 1) | (block != np.rint(block))]
        if len(telling):
            return 1 if (telling > 1).any() else 255
    raise DataError(
        f"float image array {key!r} holds only 0 and 1: whether pixels are in 0..1 or in 0..255 cannot be told."
        " Store it as uint8."
    )


def _refuse(
    store: DemoStore, plan: ArrayPlan, start: int, values: NDArray[Any], wrong: NDArray[np.bool_], expected: str
) -> None:
    """Raise for the first value that is ``wrong``, saying where it is."""
    if not wrong.any():
        return
    where = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    row = start + int(where[0])
    episode = int(np.searchsorted(store.episode_ends, row, side="right"))
    step = row - (int(store.episode_ends[episode - 1]) if episode else 0)
    component = ""
    if len(where) > 1:
        index = [int(i) for i in where[1:]]
        name = f" ({plan.spec.names[index[0]]})" if plan.spec.names is not None else ""
        component = f", component {index[0] if len(index) == 1 else index}{name}"
    raise DataError(
        f"array {plan.key!r} holds {values[where]} at episode {episode}, step {step} (row {row}){component}: {expected}"
        f" ({int(wrong.sum())} such values in this block)"
    )
