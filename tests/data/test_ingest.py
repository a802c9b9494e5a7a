from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from visuomotor.data.errors import DataError
from visuomotor.data.ingest import plan_array, read_blocks
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore


class Blocks:
    """What ingest reads of a store: one array, ten rows a block."""

    def __init__(self, values, ends):
        self.values, self.episode_ends = values, np.array(ends)
        self.specs = {"x": ArraySpec(shape=values.shape[1:], dtype=values.dtype.name)}

    path = Path("blocks")

    def iter_blocks(self, key, max_bytes, first=0):
        for start in range(first, len(self.values), 10):
            yield start, self.values[start : start + 10]

    def ingest(self):
        plan = plan_array("x", self.specs["x"], len(self.values))
        blocks = list(read_blocks(cast(DemoStore, self), plan))
        assert [start for start, _ in blocks] == list(range(0, len(self.values), 10))
        flat = np.concatenate([b for _, b in blocks])
        assert flat.shape == plan.shape
        assert flat.dtype == plan.dtype
        assert flat.nbytes == plan.nbytes
        return flat


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "uint8", "bool"])
def test_numbers_become_float32(dtype):
    values = (np.arange(35 * 3).reshape(35, 3) % 2).astype(dtype)
    np.testing.assert_array_equal(Blocks(values, [35]).ingest(), values.astype("float32"))


def test_scalars_keep_their_rank():
    assert Blocks(np.arange(35.0), [35]).ingest().shape == (35,)


def test_the_place_of_a_bad_value_counts_over_blocks():
    values = np.zeros((35, 2, 3))
    values[27, 1, 2] = np.nan
    with pytest.raises(DataError, match=r"'x' holds nan at episode 2, step 7 \(row 27\), component \[1, 2\].*1 such"):
        Blocks(values, [12, 20, 35]).ingest()
    scalars = np.zeros(35)
    scalars[34] = -np.inf
    with pytest.raises(DataError, match=r"holds -inf at episode 0, step 34 \(row 34\): expected a finite"):
        Blocks(scalars, [35]).ingest()


@pytest.mark.parametrize("scale", [1, 255])
def test_black_frames_first_and_every_grey_level(scale):
    pixels = np.zeros((35, 8, 8, 3), np.uint8)
    pixels[15:].flat[:256] = np.arange(256)
    flat = Blocks((pixels / np.float64(scale)).astype("float32"), [35]).ingest()
    np.testing.assert_array_equal(flat, pixels)


def test_an_image_that_changes_its_convention_is_refused_where_it_does():
    pixels = np.full((35, 8, 8, 3), 0.5, "float32")
    pixels[20:] = 128
    with pytest.raises(DataError, match=r"holds 128\.0 at episode 1, step 0 \(row 20\).*0\.\.1, as in the rows before"):
        Blocks(pixels, [20, 35]).ingest()
    whole = np.full((35, 8, 8, 3), 128, "float32")
    for bad in (0.25, -1, 256, np.nan):
        spoiled = whole.copy()
        spoiled[30, 4, 5, 2] = bad
        with pytest.raises(DataError, match=r"step 10 \(row 30\), component \[4, 5, 2\]"):
            Blocks(spoiled, [20, 35]).ingest()


def test_what_is_no_number_is_refused():
    with pytest.raises(DataError, match="holds complex64: expected numbers"):
        plan_array("x", ArraySpec(shape=(2,), dtype="complex64"), 5)
