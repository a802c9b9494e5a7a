"""What states of recorded episodes are worth: their returns, and what a network expects of episodes it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import mix_seed

__all__ = ["ValueFitConfig", "discounted_returns", "held_out_values"]

Floats = NDArray[np.float64]


@dataclass(kw_only=True, slots=True)
class ValueFitConfig:
    """The network that predicts returns, and its training.

    Attributes:
        width: of the hidden layers.
        depth: hidden layers.
        steps: optimiser steps for each part.
        batch_size: steps of episodes in each of them.
        lr: learning rate.
        weight_decay: of AdamW.
        folds: parts of the episodes, each valued by a network that was trained on the others: one that had seen an
            episode would know how it ended, and no step of it would be better than expected.
    """

    width: int = 128
    depth: int = 2
    steps: int = 1000
    batch_size: int = 512
    lr: float = 1e-3
    weight_decay: float = 1e-3
    folds: int = 5

    def __post_init__(self) -> None:
        for name, low in (("width", 8), ("depth", 1), ("steps", 1), ("batch_size", 1), ("folds", 2)):
            if getattr(self, name) < low:
                raise ConfigError(f"value.{name}={getattr(self, name)}: expected at least {low}")
        if not self.lr > 0 or self.weight_decay < 0:
            raise ConfigError(
                f"value: lr={self.lr} and weight_decay={self.weight_decay}: expected above 0, and 0 or more"
            )


def discounted_returns(reward: Floats, ends: NDArray[np.int64], gamma: float) -> Floats:
    """``G_t = r_t + gamma G_{t+1}`` within each episode: ``reward [T]``, ``ends [E]`` to ``[T]``."""
    out, running, last = np.empty(len(reward)), 0.0, {int(e) - 1 for e in ends}
    for t in range(len(reward) - 1, -1, -1):
        running = reward[t] + (0.0 if t in last else gamma * running)
        out[t] = running
    return out


def held_out_values(
    x: Floats, returns: Floats, ends: NDArray[np.int64], config: ValueFitConfig, *, seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Floats:  # fmt: skip
    """The mean return after each state, by networks that have not seen its episode (cross-fitting).

    Args:
        x: states ``[T, n]`` in any units.
        returns: ``[T]``.
        ends: of the episodes ``[E]``; at least two.
        config: network and training.
        seed: of folds, weights and batches.
        on_progress: called with (folds done, folds in all).

    Returns:
        Values ``[T]`` in the unit of the returns.
    """
    episode = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    folds = min(config.folds, len(ends))
    fold = (np.random.default_rng(seed).permutation(len(ends)) % folds)[episode]
    inputs = torch.from_numpy((x - x.mean(0)) / np.maximum(x.std(0), 1e-6)).float()
    mean, scale = float(returns.mean()), max(float(returns.std()), 1e-6)
    target = torch.from_numpy((returns - mean) / scale).float()
    values = np.empty(len(returns))
    for k in range(folds):
        rows = np.flatnonzero(fold != k)
        net = _fit(inputs[rows], target[rows], config, mix_seed(seed, k))
        held = np.flatnonzero(fold == k)
        with torch.no_grad():
            values[held] = mean + scale * net(inputs[held])[:, 0].double().numpy()
        if on_progress is not None:
            on_progress(k + 1, folds)
    return values


def _fit(x: torch.Tensor, y: torch.Tensor, config: ValueFitConfig, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size, layers = x.shape[1], list[nn.Module]()
        for _ in range(config.depth):
            layers += [nn.Linear(size, config.width), nn.SiLU()]
            size = config.width
        net = nn.Sequential(*layers, nn.Linear(size, 1))
        optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        for _ in range(config.steps):
            rows = torch.randint(len(x), (config.batch_size,))
            loss = (net(x[rows])[:, 0] - y[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net
