"""What a head sees of a network: a function of a noisy chunk and a time, with everything else bound."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Backbone, Condition, Head, Known, NetFn, Observed

__all__ = ["BlendedNet", "ConditionedNet", "Prefix"]

_MIXED = (
    "this policy predicts a distribution over all components of the action at once, and some stores of data.mixture do "
    "not have all of them: choose a diffusion, flow, regression or MIP policy"
)


class Prefix(NamedTuple):
    """Steps of a chunk that are certain to be executed, so that a new chunk has to go on from them."""

    action: Tensor  # [B, H, Da]; read only where the mask is true
    mask: Tensor  # [B, H] bool


class ConditionedNet:
    """A backbone with the observations bound, and the known steps of the chunk where it was built for them.

    Known steps reach every backbone as further input channels (the actions and a mask). Where the input is a noisy
    chunk of actions they also stand in it, clean, and a backbone with a time per step is told so (training-time
    real-time chunking, arXiv:2512.05964).

    Args:
        backbone: the network.
        head: whose network it is.
        seen: the encoded observations.
        prefix_dim: ``Da`` if the backbone was built with channels for known steps, 0 if not.
        prefix: the known steps, normalised; None: nothing is known.
        learned: ``[B, Da]`` bool, components of the output that get a gradient; None: all.
    """

    def __init__(
        self, backbone: Backbone, head: Head, seen: Observed, *, prefix_dim: int = 0, prefix: Prefix | None = None,
        learned: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.seen = seen
        self._backbone, self._cond = backbone, backbone.condition(seen)
        self._prefix_dim, self._overwrite = prefix_dim, head.denoises
        self._prefix, self._known, self._learned = prefix, None, learned
        if prefix is not None and backbone.per_step_time:
            clean = seen.features.new_full((len(seen.features), head.n_times), head.clean_time, dtype=torch.float32)
            t = clean if head.n_times > 1 else clean[:, 0]
            self._known = Known(prefix.mask, backbone.modulation(t, self._cond.vector))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """``x [B, H, Di], t [B] -> [B, H, Do]``; through ``forward``, so that hooks and wrappers see the call."""
        out: Tensor = self._backbone(self._complete(x), t, self._cond, self._known)
        if self._learned is None:
            return out
        if out.shape[-1] != self._learned.shape[-1]:
            raise ConfigError(_MIXED)
        return torch.where(self._learned[:, None], out, out.detach())

    def at(self, times: Tensor) -> Sequence[Callable[[Tensor], Tensor]]:
        """All modulations ``[S, B, M]`` in one go: sampling at batch 1 is mostly overhead."""
        if self._learned is not None:
            raise ConfigError(_MIXED)
        vector = self._cond.vector
        steps, batch = len(times), len(vector)
        t = times.to(vector.device).repeat_interleave(batch, 0)
        modulation = self._backbone.modulation(t, vector.repeat(steps, 1)).view(steps, batch, -1)
        return [partial(self._denoise, m) for m in modulation.unbind(0)]

    def with_hidden(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the flattened output of the backbone's middle ``[B, D]``."""
        caught: list[Tensor] = []
        hook = self._backbone.middle.register_forward_hook(lambda _module, _inputs, out: caught.append(out))
        try:
            out = self(x, t)
        finally:
            hook.remove()
        return out, caught[-1].flatten(1)

    def rows(self, index: Tensor) -> ConditionedNet:
        """The same for the observations ``index [n]``, in float32."""
        net = copy.copy(self)
        net.seen, net._cond = Observed(*_pick(self.seen, index)), Condition(*_pick(self._cond, index))
        net._prefix = None if self._prefix is None else Prefix(*_pick(self._prefix, index))
        net._known = None if self._known is None else Known(*_pick(self._known, index))
        net._learned = None if self._learned is None else self._learned[index]
        return net

    def _denoise(self, modulation: Tensor, x: Tensor) -> Tensor:
        return self._backbone.denoise(self._complete(x), modulation, self._cond.memory, self._known)

    def _complete(self, x: Tensor) -> Tensor:
        """The input of the head with the channels of the known steps ``[B, H, Di + Da + 1]``, if there are any."""
        if not self._prefix_dim:
            return x
        if self._prefix is None:
            return torch.cat([x, x.new_zeros(*x.shape[:2], self._prefix_dim + 1)], dim=-1)
        mask = self._prefix.mask[..., None]
        known = torch.where(mask, self._prefix.action.to(x.dtype), 0.0)
        if self._overwrite:
            x = torch.where(mask, known, x)
        return torch.cat([x, known, mask.to(x.dtype)], dim=-1)


class BlendedNet:
    """A weighted sum of the outputs of several nets that see the same noisy chunk.

    With weights ``(w, 1 - w)`` for a net that sees the goal and one that does not: classifier-free guidance (Ho and
    Salimans 2022). Several policies: composition (Du et al. 2023; Cao et al., arXiv:2510.01068).
    """

    def __init__(self, nets: Sequence[NetFn], weights: Sequence[float]) -> None:
        self._nets, self._weights = list(nets), list(weights)
        self.seen = nets[0].seen

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._sum([net(x, t) for net in self._nets])

    def at(self, times: Tensor) -> Sequence[Callable[[Tensor], Tensor]]:
        return [partial(self._sum_of, step) for step in zip(*(net.at(times) for net in self._nets), strict=True)]

    def with_hidden(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        outs = [net.with_hidden(x, t) for net in self._nets]
        return self._sum([out for out, _ in outs]), outs[0][1]

    def rows(self, index: Tensor) -> BlendedNet:
        return BlendedNet([net.rows(index) for net in self._nets], self._weights)

    def _sum_of(self, functions: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        return self._sum([f(x) for f in functions])

    def _sum(self, outs: Sequence[Tensor]) -> Tensor:
        total = self._weights[0] * outs[0]
        for weight, out in zip(self._weights[1:], outs[1:], strict=True):
            total = total + weight * out
        return total


def _pick(parts: Iterable[Tensor | None], index: Tensor) -> list[Any]:
    """Rows ``index`` of every part; numbers of lower precision become float32."""
    return [None if p is None else p[index].float() if p.is_floating_point() else p[index] for p in parts]
