"""Memory that the policy and the bridge share, without locks: neither ever waits for the other, nor for its corpse.

A segment is an anonymous file in memory (``memfd_create(2)``), which has no name that could be left behind: the kernel
frees it when the last process that has it is gone, whichever way it ended. A child inherits its descriptor.

Every record has one writer and is guarded by a sequence lock: odd while it is being written. A checksum makes that hold
on processors that reorder stores, and for a writer that died in the midst of one.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Sequence

import numpy as np

__all__ = ["Block", "Counters", "Ring", "Segment"]

_HEADER = 32  # sequence u64, checksum u64, size u64, index i64
_TRIES = 50

Bytes = bytes | bytearray | memoryview


class Segment:
    """Shared memory of ``size`` bytes, zero at first; ``fd`` takes up one that another process has made.

    Attributes:
        fd: its descriptor; give it to a child by ``pass_fds``.
        size: in bytes.
    """

    def __init__(self, size: int, fd: int | None = None) -> None:
        if fd is None:
            fd = os.memfd_create("visuomotor", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
        self.fd, self.size = fd, size
        self._map = mmap.mmap(fd, size)
        self._used = 0

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes, rounded up to whole cache lines: both sides take the same pieces in the same order.

        Raises:
            ValueError: there are not so many left.
        """
        start, self._used = self._used, self._used + -(-size // 64) * 64
        if self._used > self.size:
            raise ValueError(f"{size} bytes asked for at {start} of {self.size}")
        return memoryview(self._map)[start : start + size]

    def close(self) -> None:
        """Give the descriptor back; the memory goes with the last view of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Block:
    """One record of up to ``capacity`` bytes, with one writer and any number of readers."""

    def __init__(self, segment: Segment, capacity: int) -> None:
        memory = segment.take(self.needed(capacity))
        self._head = np.frombuffer(memory[:_HEADER], np.uint64)
        self._index = np.frombuffer(memory[24:_HEADER], np.int64)
        self._body = memory[_HEADER:]
        self.capacity = capacity

    @staticmethod
    def needed(capacity: int) -> int:
        """Bytes of a segment that a block takes."""
        return -(-(_HEADER + capacity) // 64) * 64

    @property
    def version(self) -> int:
        """Changes with every write; 0 before the first."""
        return int(self._head[0])

    def write(self, parts: Sequence[Bytes], index: int = 0) -> None:
        """Replace the record by ``parts``, end to end.

        Raises:
            ValueError: more than the capacity.
        """
        size = sum(len(p) for p in parts)
        if size > self.capacity:
            raise ValueError(f"{size} bytes for a block of {self.capacity}")
        sequence = int(self._head[0]) | 1
        self._head[0] = sequence
        at, check = 0, index & 0xFFFFFFFF
        for part in parts:
            self._body[at : at + len(part)] = part
            at, check = at + len(part), zlib.crc32(part, check)
        self._head[1], self._head[2], self._index[0] = check, size, index
        self._head[0] = sequence + 1

    def read(self) -> tuple[bytes, int] | None:
        """The record and its index; None before the first write, and when the writer died in the midst of one."""
        for _ in range(_TRIES):
            before = int(self._head[0])
            if before == 0:
                return None
            check, size, index = int(self._head[1]), int(self._head[2]), int(self._index[0])
            if before & 1 or size > self.capacity:
                continue
            data = bytes(self._body[:size])
            if int(self._head[0]) == before and zlib.crc32(data, index & 0xFFFFFFFF) == check:
                return data, index
        return None


class Ring:
    """Records by number, the newest ``slots`` of them: who reads too slowly goes on with those that are still there."""

    def __init__(self, segment: Segment, slots: int, capacity: int) -> None:
        self._blocks = [Block(segment, capacity) for _ in range(slots)]
        self._count = np.frombuffer(segment.take(8), np.int64)
        self._next = int(self._count[0])

    @staticmethod
    def needed(slots: int, capacity: int) -> int:
        """Bytes of a segment that a ring takes."""
        return slots * Block.needed(capacity) + 64

    def put(self, parts: Sequence[Bytes]) -> None:
        """Append a record."""
        n = int(self._count[0])
        self._blocks[n % len(self._blocks)].write(parts, n)
        self._count[0] = n + 1

    def take(self) -> bytes | None:
        """The oldest record that this reader has not had and that is still there; None: there is nothing new."""
        count = int(self._count[0])
        while self._next < count:
            wanted = max(self._next, count - len(self._blocks))
            self._next = wanted + 1
            found = self._blocks[wanted % len(self._blocks)].read()
            if found is not None and found[1] == wanted:
                return found[0]
        return None


class Counters:
    """Whole numbers of 64 bits, each written by one side; a write of one is atomic."""

    def __init__(self, segment: Segment, count: int) -> None:
        self._values = [np.frombuffer(segment.take(8), np.int64) for _ in range(count)]

    @staticmethod
    def needed(count: int) -> int:
        """Bytes of a segment that they take."""
        return 64 * count

    def __getitem__(self, i: int) -> int:
        return int(self._values[i][0])

    def __setitem__(self, i: int, value: int) -> None:
        self._values[i][0] = value
