"""One training step as a CUDA graph: recorded once, then replayed without Python, kernel launches or allocations.

A small policy on a fast GPU spends most of a step on launching kernels. Everything in the step must then happen on the
device and at fixed addresses: the batch and every random number are copied into buffers before the replay, the
learning rate and the weight of the moving average are tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from visuomotor.data.batches import Batch
from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import Draws

__all__ = ["GraphedStep", "StaticDraws"]

_WARMUP = 3  # eager steps before the capture: lazy initialisation must not be recorded


class StaticDraws(Draws):
    """:class:`Draws` whose tensors stay at their addresses: what was asked for once is drawn again by ``reseed``.

    The requests of a step must always be the same ones, in the same order; then the numbers equal those of
    :class:`Draws`.
    """

    def __init__(self, *key: int, device: torch.device | str = "cpu", rank: int = 0, world_size: int = 1) -> None:
        self._tape: list[tuple[Callable[[], Tensor], Tensor]] = []
        self._next = 0
        super().__init__(*key, device=device, rank=rank, world_size=world_size)

    def reseed(self, *key: int) -> None:
        super().reseed(*key)
        self._next = 0
        for draw, buffer in self._tape:
            buffer.copy_(draw())

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return self._buffer(shape, super().normal)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return self._buffer(shape, super().uniform)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        parent = super().integers
        return self._buffer(shape, lambda s: parent(low, high, s))

    def _buffer(self, shape: tuple[int, ...], draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        if self._next == len(self._tape):
            self._tape.append((lambda: draw(shape), draw(shape).clone()))
        buffer = self._tape[self._next][1]
        if tuple(buffer.shape) != tuple(shape):
            raise RuntimeError(
                f"a training step asked for random numbers of shape {tuple(shape)} where it asked for "
                f"{tuple(buffer.shape)} before: a recorded step must be the same each time (train.cuda_graph=false)"
            )
        self._next += 1
        return buffer


class GraphedStep:
    """Calls ``step(batch) -> (loss, gradient norm)``, after a few calls by replaying its recording.

    Args:
        step: does everything of a training step that depends on the batch, on one CUDA device, without looking at a
            value. Random numbers come from :class:`StaticDraws`, which is seeded before each call.

    Raises:
        ConfigError: on recording, a step that looks at a value, or copies one to the device.
    """

    def __init__(self, step: Callable[[Batch], tuple[Tensor, Tensor]]) -> None:
        self._step, self._calls = step, 0
        self._stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch
        self._out: tuple[Tensor, Tensor]

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step; the returned tensors are overwritten by the next one."""
        if self._graph is None:
            self._calls += 1
            if self._calls <= _WARMUP:
                return self._eager(batch)
            self._capture(batch)
        assert self._graph is not None
        _copy(batch, self._batch)
        self._graph.replay()
        return self._out

    def _eager(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            out = self._step(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return out

    def _capture(self, batch: Batch) -> None:
        """Record, without running, a step on buffers of the shape of ``batch``."""
        self._batch = Batch(
            {k: torch.empty_like(v) for k, v in batch.obs.items()},
            torch.empty_like(batch.action),
            torch.empty_like(batch.is_pad),
            None if batch.action_mask is None else torch.empty_like(batch.action_mask),
        )
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._out = self._step(self._batch)
        except RuntimeError as e:
            raise ConfigError(
                "this policy's training step cannot be recorded as a CUDA graph; use train.cuda_graph=false: "
                f"{(str(e).splitlines() or [''])[0]}"
            ) from e
        self._graph = graph


def _copy(source: Batch, target: Batch) -> None:
    for key, buffer in target.obs.items():
        buffer.copy_(source.obs[key], non_blocking=True)
    target.action.copy_(source.action, non_blocking=True)
    target.is_pad.copy_(source.is_pad, non_blocking=True)
    if target.action_mask is not None and source.action_mask is not None:
        target.action_mask.copy_(source.action_mask, non_blocking=True)
