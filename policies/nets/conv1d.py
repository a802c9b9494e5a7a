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
_FEW = 64  # steps of a single chunk up to which unfolding wins


class _PerTap(torch.autograd.Function):
    """Convolution of the same length of ``x [B, Ci, T]`` with ``w [K, Co, Ci]`` and ``b [Co]``: ``[B, Co, T]``.

    Computed time-major: the steps that one tap reads are then adjacent, and each tap is one matrix product of a slice.
    A gradient that is to be differentiated again is PyTorch's own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        xt = x.permute(2, 0, 1).contiguous()
        y = b.expand(*xt.shape[:2], len(b)).contiguous()  # [T, B, Co]
        for tap, (src, dst) in _spans(len(w), len(xt)):
            _rows(y[dst]).addmm_(_rows(xt[src]), w[tap].t())
        ctx.save_for_backward(x, w)
        return y.permute(1, 2, 0).contiguous()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, w = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: an energy head trains on a gradient
            return _differentiable_backward(g, x, w)
        xt, gt, middle = x.permute(2, 0, 1).contiguous(), g.permute(2, 0, 1).contiguous(), len(w) // 2
        gw = torch.zeros_like(w)
        gx = torch.mm(_rows(gt), w[middle]).view_as(xt)  # the middle tap reaches every step: nothing to add to yet
        for tap, (src, dst) in _spans(len(w), len(xt)):
            if tap != middle:
                _rows(gx[src]).addmm_(_rows(gt[dst]), w[tap])
            torch.mm(_rows(gt[dst]).t(), _rows(xt[src]), out=gw[tap])
        # What comes before and after works along time; strided gradients would be several times slower there.
        return gx.permute(1, 2, 0).contiguous(), gw, gt.sum((0, 1))


def _differentiable_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a convolution with respect to ``x``, ``w [K, Co, Ci]`` and the bias, in one recorded operation."""
    taps, out, _ = w.shape
    weight = w.permute(1, 2, 0)
    gx, gw, gb = torch.ops.aten.convolution_backward(
        g, x, weight, [out], [1], [taps // 2], [1], False, [0], 1, [True, True, True]
    )
    return gx, gw.permute(2, 0, 1), gb


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
    with torch.inference_mode(False):
        index = torch.arange(steps)[:, None] + torch.arange(taps) - taps // 2
        return torch.where((index < 0) | (index >= steps), steps, index).flatten()


@cache
def _padding(channels: int, dtype: torch.dtype) -> Tensor:
    """One step of zeros, ``[1, channels]``; never written to."""
    with torch.inference_mode(False):
        return torch.zeros(1, channels, dtype=dtype)


def _seen(x: Tensor, taps: int) -> Tensor:
    """``[1, Ci, T] -> [T, taps * Ci]``: what each step of a convolution of the same length sees."""
    rows = x[0].t()
    if taps == 1:
        return rows
    steps, channels = rows.shape
    padded = torch.cat([rows, _padding(channels, x.dtype)])
    return padded.index_select(0, _neighbours(steps, taps)).view(steps, taps * channels)


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
        self._packed: tuple[tuple[int, ...], Tensor, Tensor] | None = None

    @property
    def as_torch(self) -> Tensor:
        """The weight in the order of :func:`torch.nn.functional.conv1d`, ``[Co, Ci, K]``."""
        return self.weight.permute(1, 2, 0).contiguous()

    def pack(self) -> tuple[Tensor, Tensor]:
        """Weight ``[Co, K * Ci]`` and bias ``[Co, 1]`` for :meth:`act`."""
        return self.weight.transpose(0, 1).flatten(1), self.bias[:, None]

    def packed(self) -> tuple[Tensor, Tensor]:
        """:meth:`pack`, computed again only when weight or bias has changed.

        A change in place is seen by the tensor's version, which PyTorch's fused optimisers do not raise;
        ``make_optimizer`` does it for them, and :meth:`train` forgets the copy in any case.
        """
        w, b = self.weight, self.bias
        if w.is_inference():  # keeps no version
            return self.pack()
        version = (w.data_ptr(), w._version, b.data_ptr(), b._version)
        if self._packed is None or self._packed[0] != version:
            weight, bias = self.pack()
            self._packed = (version, weight.contiguous(), bias.clone())
        return self._packed[1:]

    def train(self, mode: bool = True) -> Self:
        """As :meth:`torch.nn.Module.train`."""
        self._packed = None
        return super().train(mode)

    def acts(self, x: Tensor) -> bool:
        """Whether ``x`` is the chunk of one robot: no gradients, a batch of one, few steps."""
        return not torch.is_grad_enabled() and len(x) == 1 and x.shape[2] <= _FEW and _is_plain_cpu(x)

    def act(self, seen: Tensor) -> Tensor:
        """``[T, K * Ci] -> [Co, T]`` in one product. The wide matrix goes first: that is the fast order."""
        weight, bias = self.packed()
        return torch.addmm(bias, weight, seen.t())


class Conv1d(_Weights):
    """Convolution that keeps the length: ``[B, Ci, T] -> [B, Co, T]``; odd kernel, zero padding."""

    def forward(self, x: Tensor) -> Tensor:
        if self.acts(x):
            return self.act(_seen(x, self.taps))[None]
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
        if self.acts(x):
            return self.act(_seen(x, self.taps)[::2])[None]
        return F.conv1d(x, self.as_torch, self.bias, stride=2, padding=1)


class Upsample1d(_Weights):
    """Twice the length: transposed convolution with kernel 4 and stride 2, ``[B, C, T] -> [B, C, 2 T]``."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 4)

    def pack(self) -> tuple[Tensor, Tensor]:
        """``[2 Co, 3 Ci]``: an even step sees the previous and this one, an odd step this and the next."""
        w, none = self.weight, torch.zeros_like(self.weight[0])
        both = torch.cat([torch.cat([w[3], w[1], none], dim=1), torch.cat([none, w[2], w[0]], dim=1)])
        return both, self.bias.repeat(2)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        if self.acts(x):
            both = self.act(_seen(x, 3)).unflatten(0, (2, -1))  # [2, Co, T]
            return both.permute(1, 2, 0).flatten(1)[None]  # even and odd steps interleaved
        return F.conv_transpose1d(x, self.weight.permute(2, 1, 0).contiguous(), self.bias, stride=2, padding=1)


def _records_plain_gradients() -> bool:
    """Training as usual: gradients are recorded, and no function transform (jvp, vmap) is at work."""
    return torch.is_grad_enabled() and not torch._C._functorch.peek_interpreter_stack()
