"""Memory is used again, and never while somebody still looks at it."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from visuomotor.data.recycling import Recycler


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_memory_is_free_when_the_last_view_is_gone() -> None:
    memory = Recycler(1e9)
    first = memory.empty((100, 64, 3), np.uint8)
    assert first.shape == (100, 64, 3)
    assert first.dtype == np.uint8
    assert first.flags.writeable
    place = address(first)
    view = first[3:7][..., 1].T
    view[:] = 5
    del first
    gc.collect()
    other = memory.empty((100, 64, 3), np.uint8)
    other[:] = 9
    assert address(other) != place
    assert (view == 5).all()
    del view
    assert address(memory.empty((50, 64), np.float32)) == place  # smaller, of another type


def test_blocks_that_are_too_small_or_too_many_are_let_go() -> None:
    memory = Recycler(20_000)
    arrays = [memory.empty((10_000,), np.uint8) for _ in range(4)]
    places = {address(a) for a in arrays}
    del arrays
    large = memory.empty((12_000,), np.uint8)
    large[:] = 1
    again = [memory.empty((10_000,), np.uint8) for _ in range(2)]
    assert {address(a) for a in again} <= places
    assert address(large) not in {address(a) for a in again}


@pytest.mark.parametrize("shape", [(), (0, 3), (7,)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    array = Recycler(0).empty(shape, np.int16)
    array[...] = 3
    assert array.shape == shape
    assert (array == 3).all()


def test_kernels_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmap.MADV_HUGEPAGE", 9999)  # an advice that no kernel knows: it answers EINVAL
    array = Recycler(0).empty((5,), np.uint8)
    array[:] = 1
    assert array.sum() == 5


def test_too_much_is_an_error_of_memory() -> None:
    with pytest.raises(MemoryError, match="1152921504606846976 bytes cannot be had"):
        Recycler(0).empty((1 << 60,), np.uint8)


def test_threads_never_share_a_block() -> None:
    memory = Recycler(1e6)

    def work(value: int) -> bool:
        for _ in range(200):
            array = memory.empty((64, 64), np.uint8)
            array[:] = value
            view = array[::2]
            del array
            if not (view == value).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(1, 9)))
