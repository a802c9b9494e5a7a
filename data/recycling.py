"""Memory of arrays that is used again. Imports without torch."""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
import weakref
from collections import deque

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["Recycler"]


class Recycler:
    """Makes large arrays in memory that earlier ones, which nobody holds any more, have left.

    The kernel clears every page of a new block before the program gets it, which for decoded pictures takes up to half
    of the time that decoding does. Several threads may use one recycler; its blocks go with it.

    Args:
        spare_bytes: free blocks that are kept at most.
    """

    def __init__(self, spare_bytes: float) -> None:
        self._spare_bytes = spare_bytes
        self._spare: deque[mmap.mmap] = deque()
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array of arbitrary content; its memory is free when it and all views of it are gone.

        Raises:
            MemoryError: there is not so much.
        """
        block = self._take(max(1, math.prod(shape) * np.dtype(dtype).itemsize))
        lease = _Lease(block, shape, np.dtype(dtype))
        # without the lock: what frees an array may be garbage collection, within _take
        weakref.finalize(lease, self._spare.append, block).atexit = False
        return np.asarray(lease)

    def _take(self, size: int) -> mmap.mmap:
        with self._lock:
            spare = [self._spare.popleft() for _ in range(len(self._spare))]
            fitting = [b for b in spare if len(b) >= size]
            taken = min(fitting, key=len, default=None)
            kept = 0
            for block in reversed(spare):
                if block is not taken and kept + len(block) <= self._spare_bytes:
                    kept += len(block)
                    self._spare.appendleft(block)
        if taken is not None:
            return taken
        try:
            block = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:  # it would be taken for an error of a file
            raise MemoryError(f"{size} bytes cannot be had: {error.strerror}") from None
        with contextlib.suppress(OSError):  # a kernel without huge pages
            block.madvise(mmap.MADV_HUGEPAGE)
        return block


class _Lease:
    """What arrays hold on to: views of views refer to it, not to an array between."""

    def __init__(self, block: mmap.mmap, shape: tuple[int, ...], dtype: np.dtype) -> None:
        address = np.frombuffer(block, np.uint8).ctypes.data
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": dtype.str, "version": 3}
