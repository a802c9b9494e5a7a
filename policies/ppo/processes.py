"""What several processes that learn as one have to agree on. With one process everything is what it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

__all__ = ["Processes"]


class Processes:
    """Sums and collections over the processes of ``accelerator``. All of them must call alike."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.count, self.rank, self.device = (
            accelerator.num_processes, accelerator.process_index, accelerator.device
        )  # fmt: skip

    def sum(self, x: Tensor) -> Tensor:
        """``x`` of all processes added up."""
        return x if self.count == 1 else self._accelerator.reduce(x.to(self.device), reduction="sum")

    def largest(self, x: Tensor) -> Tensor:
        """The largest of the scalars ``x``."""
        return x if self.count == 1 else self.gather(x.reshape(1)).amax()

    def gather(self, x: Tensor) -> Tensor:
        """``x [n, ...]`` of all processes one after another; ``n`` is the same in all."""
        return x if self.count == 1 else self._accelerator.gather(x.contiguous())

    def sum_gradients(self, params: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of ``params`` in one message."""
        if self.count == 1:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        parts = self.sum(torch.cat([g.flatten() for g in grads])).split([g.numel() for g in grads])
        for p, part in zip(params, parts, strict=True):
            p.grad = part.view_as(p)
