"""Optimiser, learning-rate schedule and moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError

M = TypeVar("M", bound=nn.Module)

__all__ = ["EMA", "EMAConfig", "OptimConfig", "clip_gradients", "learning_rate", "make_optimizer", "set_learning_rate"]


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter 2019) with linear warm-up and cosine decay to 0.

    Attributes:
        lr: learning rate at its highest.
        betas: decay of the running mean and of the running square of the gradient.
        weight_decay: acts on matrices only; biases, gains, positions, learned queries and the tables of embeddings are
            left alone.
        warmup_steps: optimiser steps over which the rate rises.
        grad_clip: bound on the norm of the whole gradient; null for none.
        encoder_lr_scale: the observation encoders learn at this share of ``lr``; 0.1 is usual for pretrained networks.
    """

    lr: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.95, 0.999])
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    grad_clip: float | None = 1.0
    encoder_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.encoder_lr_scale > 0:
            raise ConfigError(f"optim: encoder_lr_scale={self.encoder_lr_scale}: expected more than 0")
        if not self.lr > 0 or self.weight_decay < 0 or self.warmup_steps < 0:
            raise ConfigError(
                f"optim: lr={self.lr} must be positive, weight_decay={self.weight_decay} and "
                f"warmup_steps={self.warmup_steps} not negative"
            )
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ConfigError(f"optim: betas={self.betas}: expected two numbers in [0, 1)")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ConfigError(f"optim: grad_clip={self.grad_clip}: expected a positive norm, or null for none")


def learning_rate(step: int, *, base: float, warmup_steps: int, total_steps: int) -> float:
    """Rate of optimiser step ``step`` (from 0): linear up over the warm-up, then half a cosine down to 0."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * base * (1.0 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(module: nn.Module, config: OptimConfig, *, graphed: bool = False) -> torch.optim.AdamW:
    """AdamW over two groups: matrices with weight decay, all else without. Fused: one kernel over all tensors.

    Each is divided once more, by learning rate, where the encoder has its own.

    The table of an embedding (words, positions) is a list of vectors, not a matrix that multiplies anything; nor is a
    parameter that is not called ``weight`` (queries, positions, standard deviations), whatever its shape.
    ``graphed``: its step can be recorded in a CUDA graph; the learning rate is then a tensor.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    params = [p for _, p in named]
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    sorted_by: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, p in named:
        decays = p.ndim >= 2 and name.endswith("weight") and id(p) not in tables
        scale = config.encoder_lr_scale if name.startswith("encoder.") else 1.0
        sorted_by.setdefault((decays, scale), []).append(p)
    groups = [
        {
            "params": members, "weight_decay": config.weight_decay if decays else 0.0, "lr_scale": scale,
            "lr": torch.tensor(config.lr * scale, device=members[0].device) if graphed else config.lr * scale,
        }
        for (decays, scale), members in sorted(sorted_by.items(), key=lambda item: item[0], reverse=True)
    ]  # fmt: skip
    betas = (config.betas[0], config.betas[1])
    optimizer = torch.optim.AdamW(groups, betas=betas, fused=True, capturable=graphed)
    # Fused kernels do not tell autograd that they changed the weights, and copies made for acting rely on that.
    optimizer.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(params))
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group to its share of ``lr``; a rate that is a tensor keeps its address."""
    for group in optimizer.param_groups:
        mine = lr * group["lr_scale"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(mine)
        else:
            group["lr"] = mine


def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
    """Scale gradients so that their joint norm is at most ``max_norm``; returns the norm before that, as a tensor."""
    params = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None], foreach=True)
    # On the CPU looking at the norm costs nothing, and multiplying every gradient by 1 does.
    if max_norm is not None and (norm.device.type != "cpu" or norm > max_norm):
        torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm, foreach=True)
    return norm


@dataclass(kw_only=True, slots=True)
class EMAConfig:
    """Moving average of the weights: ``decay_t = min(max_decay, 1 - (1 + t) ** -power)``, Diffusion Policy's.

    Attributes:
        max_decay: weight of the old average at most.
        power: how fast that is reached.
    """

    max_decay: float = 0.9999
    power: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.max_decay < 1 or not self.power > 0:
            raise ConfigError(f"ema: max_decay={self.max_decay} must lie in [0, 1) and power={self.power} be positive")


class EMA(Generic[M]):
    """A frozen copy of a module that follows the trained weights, updated after every optimiser step."""

    def __init__(self, source: M, config: EMAConfig) -> None:
        self._config = config
        self.module: M = copy.deepcopy(source).requires_grad_(False).eval()
        self._source: list[Tensor] = [p for p in source.parameters() if p.requires_grad]
        pairs = zip(self.module.parameters(), source.parameters(), strict=True)
        self._average: list[Tensor] = [a for a, p in pairs if p.requires_grad]

    def weight(self, step: int) -> float:
        """Weight of the trained weights in the average after optimiser step ``step`` (from 0)."""
        return 1.0 - min(self._config.max_decay, 1.0 - (1.0 + step) ** -self._config.power)

    @torch.no_grad()
    def update(self, weight: float | Tensor) -> None:
        """Fold in the weights with ``weight`` (see :meth:`weight`); a tensor is not looked at on the host."""
        if isinstance(weight, Tensor):
            change = torch._foreach_sub(self._source, self._average)
            torch._foreach_mul_(change, weight)
            torch._foreach_add_(self._average, change)
        else:
            torch._foreach_lerp_(self._average, self._source, weight)
