"""The last ``To`` observations of every world, across chunks and episode ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from visuomotor.envs.base import ChunkStep, Obs, Step

__all__ = ["Windows", "as_chunk", "moved"]


class Windows:
    """Rolls observations ``{key: [N, ...]}`` into ``{key: [N, To, ...]}``, as the windows of training do.

    A new episode knows only its first observation: it is repeated.

    Args:
        lengths: ``To`` of every key that is kept (1 for what stays the same over an episode).
    """

    def __init__(self, lengths: Mapping[str, int]) -> None:
        self._lengths = dict(lengths)
        self.now: Obs = {}  # {key: [N, To, ...]}

    def start(self, obs: Obs) -> None:
        """All worlds begin an episode with ``obs``."""
        self.now = {k: _repeat(obs[k], n) for k, n in self._lengths.items()}

    def push(self, step: ChunkStep) -> Obs:
        """Take in a chunk; returns the windows at its end **before** any reset, ``{key: [N, To, ...]}``."""
        ended = step.terminated | step.truncated
        final = {k: self._advance(k, n, step) for k, n in self._lengths.items()}
        if ended.device.type == "cpu" and not bool(ended.any()):
            self.now = final
            return final
        self.now = {
            k: torch.where(_like(ended, v), _repeat(step.obs[k], self._lengths[k]), v) for k, v in final.items()
        }
        return final

    def _advance(self, key: str, n: int, step: ChunkStep) -> Tensor:
        if n == 1:
            return step.final_obs[key][:, None]
        seen = torch.cat([self.now[key], step.history[key]], 1)  # [N, To + Ta, ...]
        last = n + step.n_executed - 1
        at = last[:, None] + torch.arange(1 - n, 1, device=last.device)  # [N, To]
        rows = torch.arange(len(seen), device=last.device)[:, None]
        return seen[rows, at]


def as_chunk(step: Step) -> ChunkStep:
    """A single control step in the form of a chunk of one."""
    return ChunkStep(
        obs=step.obs,
        reward=step.reward[:, None],
        terminated=step.terminated,
        truncated=step.truncated,
        final_obs=step.final_obs,
        n_executed=torch.ones_like(step.reward, dtype=torch.int64),
        history={k: v[:, None] for k, v in step.final_obs.items()},
        info={k: v[:, None] for k, v in step.info.items()},
    )


def moved(step: ChunkStep, device: torch.device) -> ChunkStep:
    """The same on ``device``, for a policy that does not live where the worlds do."""
    parts: dict[str, Any] = {f.name: getattr(step, f.name) for f in fields(step)}
    for name, value in parts.items():
        parts[name] = (
            {k: v.to(device) for k, v in value.items()} if isinstance(value, Mapping) else value.to(device)
        )  # fmt: skip
    return ChunkStep(**parts)


def _repeat(x: Tensor, n: int) -> Tensor:
    return x[:, None].expand(-1, n, *x.shape[1:]).contiguous()


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (x.ndim - 1))
