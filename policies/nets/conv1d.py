"""Convolutions over the few steps of a chunk, fast on a CPU where the general ones are slow.

A chunk is short and its batch is either large (training) or one (a robot), which is not what convolution libraries are
tuned for. Measured on two cores for 256 -> 256 channels, kernel 5, 4 steps: with a batch of 256 a matrix product a tap
is about twice as fast as the convolution, forward and backward, in float32 and bfloat16; with a batch of one, unfolding
and one product is about four times as fast. Elsewhere (GPU, longer inputs, tracing) PyTorch's convolution is used.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Conv1d", "Downsample1d", "Upsample1d"]

_SHORT = 4  # steps up to which a product a tap wins in training
_SMALL = 64  # batch * steps up to which unfolding wins


class _PerTap(torch.autograd.Function):
    """Convolution of the same length of ``x [B, Ci, T]`` with ``w [K, Co, Ci]`` and ``b [Co]``: ``[B, Co, T]``.

    Computed time-major: the steps that one tap reads are then adjacent, and each tap is one matrix product of a slice.
    """

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        xt = x.permute(2, 0, 1).contiguous()
        y = b.expand(*xt.shape[:2], len(b)).contiguous()  # [T, B, Co]
        for tap, (src, dst) in _spans(len(w), len(xt)):
            _rows(y[dst]).addmm_(_rows(xt[src]), w[tap].t())
        return y.permute(1, 2, 0).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        x, w, _ = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, w = ctx.saved_tensors
        xt, gt = x.permute(2, 0, 1).contiguous(), g.permute(2, 0, 1).contiguous()
        gx, gw = torch.zeros_like(xt), torch.zeros_like(w)
        for tap, (src, dst) in _spans(len(w), len(xt)):
            _rows(gx[src]).addmm_(_rows(gt[dst]), w[tap])
            torch.mm(_rows(gt[dst]).t(), _rows(xt[src]), out=gw[tap])
        # What comes before and after works along time; strided gradients would be several times slower there.
        return gx.permute(1, 2, 0).contiguous(), gw, gt.sum((0, 1))


def _spans(taps: int, steps: int) -> list[tuple[int, tuple[slice, slice]]]:
    """For each tap that reaches the input: the steps it reads and the steps it adds to."""
    out = []
    for tap in range(taps):
        d = tap - taps // 2
        first, stop = max(0, -d), min(steps, steps - d)
        if stop > first:
            out.append((tap, (slice(first + d, stop + d), slice(first, stop))))
    return out


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])


@cache
def _neighbours(steps: int, taps: int) -> Tensor:
    """Which input step each tap of each output step reads, ``[steps * taps]``; ``steps`` stands for the padding."""
    index = torch.arange(steps)[:, None] + torch.arange(taps) - taps // 2
    return torch.where((index < 0) | (index >= steps), steps, index).flatten()


def _seen(x: Tensor, taps: int) -> Tensor:
    """``[B, Ci, T] -> [B, T, taps * Ci]``: what each step of a convolution of the same length sees."""
    batch, channels, steps = x.shape
    rows = x.transpose(1, 2)
    if taps > 1:
        rows = torch.cat([rows, rows.new_zeros(batch, 1, channels)], dim=1)
        rows = rows.index_select(1, _neighbours(steps, taps))
    return rows.reshape(batch, steps, taps * channels)


def _product(w: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    """``w [Co, n], seen [B, T, n], bias [Co] -> [B, Co, T]``. The wide matrix goes first: that is the fast order."""
    batch, steps, n = seen.shape
    y = torch.addmm(bias[:, None], w, seen.reshape(-1, n).t())
    return y.view(len(w), batch, steps).transpose(0, 1)


def _is_plain_cpu(x: Tensor) -> bool:
    """Whether the shortcuts apply: not on a GPU, and not while a graph is being captured."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class _Weights(nn.Module):
    """Weight ``[K, Co, Ci]`` and bias, initialised as PyTorch initialises a convolution."""

    def __init__(self, inp: int, out: int, taps: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inp * taps)
        self.taps = taps
        self.weight = nn.Parameter(torch.empty(taps, out, inp).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out).uniform_(-bound, bound))
        self._packed: tuple[tuple[int, int], Tensor] | None = None

    @property
    def as_torch(self) -> Tensor:
        """The weight in the order of :func:`torch.nn.functional.conv1d`, ``[Co, Ci, K]``."""
        return self.weight.permute(1, 2, 0).contiguous()

    def pack(self) -> Tensor:
        """The weight as one matrix for :func:`_product`."""
        return self.weight.transpose(0, 1).flatten(1)  # [Co, K * Ci]

    def packed(self) -> Tensor:
        """:meth:`pack`, computed again only when the weight has changed.

        A change in place is seen by the tensor's version, which PyTorch's fused optimisers do not raise;
        ``make_optimizer`` does it for them, and :meth:`train` forgets the copy in any case.
        """
        if self.weight.is_inference():  # keeps no version
            return self.pack()
        version = (self.weight.data_ptr(), self.weight._version)
        if self._packed is None or self._packed[0] != version:
            self._packed = (version, self.pack().contiguous())
        return self._packed[1]

    def train(self, mode: bool = True) -> Self:
        """As :meth:`torch.nn.Module.train`."""
        self._packed = None
        return super().train(mode)

    def is_small(self, x: Tensor) -> bool:
        """Acting on a robot or on few worlds: no gradients, and hardly more numbers than weights."""
        return _is_plain_cpu(x) and not torch.is_grad_enabled() and x.shape[0] * x.shape[2] <= _SMALL


class Conv1d(_Weights):
    """Convolution that keeps the length: ``[B, Ci, T] -> [B, Co, T]``; odd kernel, zero padding."""

    def forward(self, x: Tensor) -> Tensor:
        if self.is_small(x):
            return _product(self.packed(), _seen(x, self.taps), self.bias)
        if _is_plain_cpu(x) and x.shape[2] <= _SHORT and _records_plain_gradients():
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
            y: Tensor = _PerTap.apply(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
            return y
        return F.conv1d(x, self.as_torch, self.bias, padding=self.taps // 2)


class Downsample1d(_Weights):
    """Half the length: convolution with kernel 3 and stride 2, ``[B, C, T] -> [B, C, T / 2]``."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_small(x):
            return _product(self.packed(), _seen(x, self.taps)[:, ::2], self.bias)
        return F.conv1d(x, self.as_torch, self.bias, stride=2, padding=1)


class Upsample1d(_Weights):
    """Twice the length: transposed convolution with kernel 4 and stride 2, ``[B, C, T] -> [B, C, 2 T]``."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 4)

    def pack(self) -> Tensor:
        """``[2 Co, 3 Ci]``: an even step sees the previous and this one, an odd step this and the next."""
        w, none = self.weight, torch.zeros_like(self.weight[0])
        return torch.cat([torch.cat([w[3], w[1], none], dim=1), torch.cat([none, w[2], w[0]], dim=1)])

    def forward(self, x: Tensor) -> Tensor:
        if self.is_small(x):
            both = _product(self.packed(), _seen(x, 3), self.bias.repeat(2))
            return both.unflatten(1, (2, -1)).permute(0, 2, 3, 1).flatten(2)  # even and odd steps interleaved
        return F.conv_transpose1d(x, self.weight.permute(2, 1, 0).contiguous(), self.bias, stride=2, padding=1)


def _records_plain_gradients() -> bool:
    """Training as usual: gradients are recorded, and no function transform (jvp, vmap) is at work."""
    return torch.is_grad_enabled() and not torch._C._functorch.peek_interpreter_stack()
