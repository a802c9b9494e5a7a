"""Memory between the steps of a recording and the disk: whoever records waits for neither checksums nor disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np

from visuomotor.data.journal import StagedEpisode
from visuomotor.data.spec import ArraySpec

__all__ = ["BlockPool", "BufferedEpisode", "RecorderLoad"]

_BLOCKS = 8  # parts of the buffer: one is being filled, one is being written, the rest bridges a slow disk
_BLOCK_ROWS = 1024

Block = dict[str, np.ndarray]  # {key: [rows, *shape]}


@dataclass
class RecorderLoad:
    """How a recorder keeps up.

    Attributes:
        waits: steps that found the buffer full and waited for room.
        longest_wait_s: the longest of those waits [s].
        refused: steps that were refused because there was no room in time.
    """

    waits: int = 0
    longest_wait_s: float = 0.0
    refused: int = 0


class BlockPool:
    """Blocks of steps, made when they are first needed and used again and again.

    Args:
        specs: what a step is.
        buffer_bytes: the most memory that all blocks together take, but at least two blocks of one step.
    """

    def __init__(self, specs: Mapping[str, ArraySpec], buffer_bytes: int) -> None:
        row = sum(spec.size * np.dtype(spec.dtype).itemsize for spec in specs.values())
        self.rows = max(1, min(_BLOCK_ROWS, buffer_bytes // _BLOCKS // row))
        self._specs = dict(specs)
        self._unmade = max(2, min(_BLOCKS, buffer_bytes // (self.rows * row)))
        self._free: SimpleQueue[Block] = SimpleQueue()

    def take(self) -> Block | None:
        """A block that is free now."""
        try:
            return self._free.get_nowait()
        except Empty:
            if not self._unmade:
                return None
        self._unmade -= 1
        return {key: np.empty((self.rows, *spec.shape), spec.dtype) for key, spec in self._specs.items()}

    def wait(self, seconds: float) -> Block | None:
        """A block that becomes free within ``seconds``."""
        try:
            return self._free.get(timeout=seconds)
        except Empty:
            return None

    def give(self, block: Block) -> None:
        """Give a block back, from whatever thread."""
        self._free.put(block)


class BufferedEpisode:
    """The steps of one episode on their way into its staging files, which a thread of its own writes.

    Args:
        staged: the files; the thread alone uses them until :meth:`finish` or :meth:`abandon`.
        pool: memory, of one episode at a time.
        load: counted in here.
        max_wait_s: how long :meth:`add` may wait for a free block [s].
    """

    def __init__(self, staged: StagedEpisode, pool: BlockPool, load: RecorderLoad, max_wait_s: float) -> None:
        self.staged = staged
        self.length = 0
        self.error: Exception | None = None  # why something was not written
        self._pool, self._load, self._max_wait_s = pool, load, max_wait_s
        self._block: Block | None = None
        self._filled = 0
        self._stalled = False
        self._full: SimpleQueue[tuple[Block, int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._thread.start()

    def add(self, rows: Mapping[str, np.ndarray]) -> bool:
        """Copy one checked step ``{key: [*shape]}``; False if there is no room for it, now and ever after.

        After a step that was refused the episode takes no more: it would have a hole.

        Raises:
            OSError: the disk did not take an earlier step.
        """
        if self.error is not None:
            raise self.error
        if self._block is None and not self._stalled:
            self._block, self._filled = self._next_block(), 0
            self._stalled = self._block is None
        if self._block is None:
            self._load.refused += 1
            return False
        for key, row in rows.items():
            self._block[key][self._filled] = row
        self.length += 1
        self._filled += 1
        if self._filled == self._pool.rows:
            self._hand_over()
        return True

    def finish(self) -> None:
        """Return when all steps are in the files, though not all of them flushed.

        Raises:
            OSError: the disk did not take some.
        """
        self._hand_over()
        self._end_thread()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """Stop writing; what is in memory is dropped. Safe to call twice."""
        self.error = self.error or OSError("the episode was discarded")
        self._hand_over()
        self._end_thread()

    def _next_block(self) -> Block | None:
        block = self._pool.take()
        if block is not None:
            return block
        begun = time.monotonic()
        block = self._pool.wait(self._max_wait_s)
        self._load.waits += 1
        self._load.longest_wait_s = max(self._load.longest_wait_s, time.monotonic() - begun)
        return block

    def _hand_over(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            self._full.put((block, self._filled))

    def _end_thread(self) -> None:
        self._full.put(None)
        self._thread.join()
        while not self._full.empty():  # Ctrl-C ended an earlier wait, and the thread by then; more steps followed
            self._write()

    def _write(self) -> None:
        while (item := self._full.get()) is not None:
            block, n = item
            if self.error is None:
                try:
                    self.staged.write({key: rows[:n] for key, rows in block.items()}, n)
                except Exception as error:  # raised again in the thread that records
                    self.error = error
            self._pool.give(block)
