"""features.json of TensorFlow Datasets, and the values of one feature over an episode."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.importing.image_bytes import decode_image
from visuomotor.data.importing.tfrecord import Feature

__all__ = ["Leaf", "flatten", "leaf_rows", "text"]

_MAX_DEPTH = 16
_MAX_VALUES = 1 << 28  # of one step
_DTYPES = {
    **{n: n for n in ("bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "int64", "float32", "float64")},
    "uint64": "uint64", "float16": "float32", "bfloat16": "float32",
}  # fmt: skip


@dataclass(frozen=True)
class Leaf:
    """One feature: ``kind`` is ``"tensor"``, ``"image"`` or ``"text"``; ``shape`` is None where pictures vary."""

    kind: str
    dtype: str = "uint8"
    shape: tuple[int, ...] | None = ()
    encoding: str = "none"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of one step in the store: pictures are RGB, depth pictures ``[H, W]``."""
        if self.kind == "image" and self.shape is not None:
            return (*self.shape[:2], 3) if self.dtype == "uint8" else self.shape[:2]
        return self.shape or ()

    def with_shape(self, shape: tuple[int, ...]) -> Leaf:
        """The same with a shape."""
        return replace(self, shape=shape)


def flatten(tree: dict[str, Any], file: str) -> tuple[dict[str, Leaf], dict[str, str]]:
    """``({path: feature}, {path: why it cannot be imported})``; paths as in the records (``steps/observation/image``).

    Raises:
        DataError: it is no features.json as written since 2022.
    """
    found: dict[str, Leaf] = {}
    left_out: dict[str, str] = {}

    def visit(node: Any, path: str, in_sequence: bool, depth: int) -> None:
        if not isinstance(node, dict) or depth > _MAX_DEPTH:
            raise DataError(f"{file}: {path or 'the root'} is no feature")
        if "featuresDict" in node:
            for name, inner in node["featuresDict"].get("features", {}).items():
                visit(inner, f"{path}/{name}" if path else str(name), in_sequence, depth + 1)
        elif "sequence" in node and not in_sequence and path == "steps":
            visit(node["sequence"].get("feature"), path, True, depth + 1)
        else:
            leaf = _leaf(node)
            if isinstance(leaf, str):
                left_out[path] = leaf
            else:
                found[path] = leaf

    try:
        visit(tree, "", False, 0)
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} cannot be understood: {error}") from None
    if not found:
        raise DataError(f"{file} names no features; files of before 2022 have another layout and are not read")
    return found, left_out


def _leaf(node: dict[str, Any]) -> Leaf | str:
    if "text" in node:
        return Leaf("text")
    if "classLabel" in node:
        return Leaf("tensor", "int64")
    if "image" in node:
        inner = node["image"]
        shape, dtype = _shape(inner), str(inner.get("dtype") or "uint8")
        if dtype not in ("uint8", "uint16"):
            return f"pictures of {dtype}"
        known = shape is not None and len(shape) == 3 and min(shape) > 0
        return Leaf("image", dtype, shape if known else None)
    if "tensor" in node:
        inner = node["tensor"]
        dtype, shape = str(inner.get("dtype")), _shape(inner)
        if dtype in ("string", "object", "str"):
            return Leaf("text") if shape == () else "several texts in one step"
        if dtype not in _DTYPES:
            return f"type {dtype}"
        if shape is None or (shape and min(shape) < 0):
            return "its shape varies"
        if np.prod([*shape, 1], dtype=np.float64) > _MAX_VALUES:
            return f"its declared shape {list(shape)}"
        encoding = str(inner.get("encoding") or "none").lower()
        return Leaf("tensor", _DTYPES[dtype], shape, encoding)
    return f"features of type {str(node.get('pythonClassName', '?')).rsplit('.', 1)[-1]}"


def _shape(inner: dict[str, Any]) -> tuple[int, ...] | None:
    shape = inner.get("shape")
    return None if shape is None else tuple(int(n) for n in shape.get("dimensions", []))


def text(raw: bytes) -> str:
    """A text feature; bytes that are no UTF-8 are replaced."""
    return raw.decode("utf-8", "replace")


def leaf_rows(leaf: Leaf, values: Feature, path: str) -> np.ndarray:
    """Values of all steps, ``[L, *stored shape]``.

    Raises:
        DataError: they do not fit what was declared.
    """
    if leaf.kind == "image":
        return _pictures(leaf, values, path)
    shape, dtype = leaf.shape or (), np.dtype(leaf.dtype)
    if leaf.encoding in ("bytes", "zlib"):
        values = _unpacked(leaf, values, path)
    elif isinstance(values, list):
        if values:
            raise DataError(f"{path} holds bytes: expected numbers")
        values = np.zeros(0, dtype)
    size = int(np.prod(shape, dtype=np.int64))
    if not size or len(values) % size:
        raise DataError(f"{path} holds {len(values)} numbers: no multiple of {list(shape)}")
    if dtype.kind in "iu" and len(values) and values.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = int(values.min()), int(values.max())
        if dtype != np.uint64 and (low < limits.min or high > limits.max):
            raise DataError(f"{path} holds values from {low} to {high}: {dtype.name} is declared")
    return values.astype(dtype).reshape(-1, *shape)


def _unpacked(leaf: Leaf, values: Feature, path: str) -> np.ndarray:
    """Tensors stored as bytes, one blob a step."""
    dtype = np.dtype(leaf.dtype)
    n = int(np.prod(leaf.shape or (), dtype=np.int64)) * dtype.itemsize
    if not isinstance(values, list):
        raise DataError(f"{path} holds numbers: expected bytes ({leaf.encoding})")
    out = []
    for blob in values:
        try:
            raw = zlib.decompressobj().decompress(blob, n + 1) if leaf.encoding == "zlib" else blob
        except zlib.error as error:
            raise DataError(f"{path} is damaged: {error}") from None
        if len(raw) != n:
            raise DataError(f"{path} holds {len(raw)} bytes a step: {leaf.dtype} {list(leaf.shape or ())} needs {n}")
        out.append(np.frombuffer(raw, dtype.newbyteorder("<")))
    return np.concatenate(out) if out else np.zeros(0, dtype)


def _pictures(leaf: Leaf, values: Feature, path: str) -> np.ndarray:
    if not isinstance(values, list):
        raise DataError(f"{path} holds numbers: expected pictures")
    pictures: list[np.ndarray] = []
    for blob in values:
        picture = decode_image(blob, depth=leaf.dtype != "uint8")
        expected = leaf.stored_shape if leaf.shape is not None else picture.shape if not pictures else pictures[0].shape
        if picture.shape != expected or picture.dtype != np.dtype(leaf.dtype):
            raise DataError(f"{path}: a picture is {picture.dtype} {list(picture.shape)}: expected {list(expected)}")
        pictures.append(picture)
    if not pictures:
        raise DataError(f"{path} holds no pictures")
    return np.stack(pictures)
