"""The contract every parallel environment keeps: ``VecEnv``, its ``Step`` and its ``ChunkStep``.

Shapes: ``N`` parallel worlds, ``Ta`` executed steps of a chunk, ``Da`` action size. All tensors are on ``env.device``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import UserError
from visuomotor.data.spec import ArraySpec

__all__ = ["ChunkStep", "Obs", "Step", "VecEnv", "merge_obs"]

Obs = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """Result of one step of all worlds.

    ``obs`` is what the policy sees next: in a world that ended it is the first observation of the next episode
    (same-step auto-reset). ``final_obs`` is the observation that the step itself produced, before any reset: bootstrap
    a time-out from it. ``terminated`` and ``truncated`` are never merged. ``info`` holds per-world tensors; two names
    are reserved: ``success`` (bool ``[N]``, the goal holds now) and ``score`` (float ``[N]`` in 0..1, how close it is).
    """

    obs: Obs  # {key: [N, ...]}
    reward: Tensor  # [N] float32
    terminated: Tensor  # [N] bool
    truncated: Tensor  # [N] bool
    final_obs: Obs  # {key: [N, ...]}
    info: dict[str, Tensor]  # {name: [N, ...]}


@dataclass(frozen=True)
class ChunkStep:
    """Result of executing a chunk. A world that ends in mid-chunk ignores the rest and resets at the boundary."""

    obs: Obs  # {key: [N, ...]} after the chunk (after reset where ended)
    reward: Tensor  # [N, Ta] float32, 0 where not executed
    terminated: Tensor  # [N] bool
    truncated: Tensor  # [N] bool
    final_obs: Obs  # {key: [N, ...]} observation of the last executed step
    n_executed: Tensor  # [N] int64, 1..Ta
    history: dict[str, Tensor]  # {key: [N, Ta, ...]} observation after each step; the last one where not executed
    info: dict[str, Tensor]  # {name: [N, Ta, ...]}, likewise


def merge_obs(fresh: Obs, old: Obs, mask: Tensor) -> Obs:
    """Take ``fresh`` where ``mask [N]`` is true and ``old`` elsewhere."""
    return {k: torch.where(mask.view(-1, *[1] * (old[k].ndim - 1)), fresh[k], old[k]) for k in old}


class VecEnv(ABC):
    """``N`` worlds side by side. Implementations write :meth:`reset`, :meth:`advance` and :meth:`render`."""

    num_envs: int
    device: torch.device
    obs_spec: Mapping[str, ArraySpec]
    action_spec: ArraySpec
    action_low: Tensor  # [Da], may be -inf
    action_high: Tensor  # [Da], may be +inf
    fps: float  # control steps per second
    max_episode_steps: int

    @abstractmethod
    def reset(self, *, seeds: Sequence[int] | None = None, mask: Tensor | None = None) -> Obs:
        """Start new episodes and return the observations of all worlds.

        Args:
            seeds: one seed a world (``len == num_envs``); the episode is then a function of its seed alone. Without
                seeds the worlds go on with their own generators. Seeds of worlds outside ``mask`` are ignored.
            mask: bool ``[N]``, the worlds to reset; None resets all. The others keep their state and return their
                current observation.
        """

    @abstractmethod
    def advance(self, action: Tensor, active: Tensor) -> Step:
        """One control step without auto-reset; worlds outside ``active`` (bool ``[N]``) stay exactly as they are.

        In the result ``obs`` is ``final_obs``; inactive worlds report reward 0, not ended, and the observation they
        have now.
        """

    def step(self, action: Tensor) -> Step:
        """One control step ``action [N, Da]`` with same-step auto-reset."""
        s = self.advance(action, torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        obs = self._reset_ended(s.final_obs, s.terminated | s.truncated)
        return Step(obs, s.reward, s.terminated, s.truncated, s.final_obs, s.info)

    def step_chunk(self, action: Tensor) -> ChunkStep:
        """Execute ``action [N, Ta, Da]`` open loop; see :class:`ChunkStep`."""
        if action.ndim != 3 or action.shape[0] != self.num_envs or not action.shape[1]:
            raise UserError(f"a chunk of shape {list(action.shape)}; expected [{self.num_envs}, steps, action size]")
        n, ta = action.shape[:2]
        active = torch.ones(n, dtype=torch.bool, device=self.device)
        terminated, truncated = torch.zeros_like(active), torch.zeros_like(active)
        n_executed = torch.zeros(n, dtype=torch.int64, device=self.device)
        steps: list[Step] = []
        for i in range(ta):
            n_executed += active
            s = self.advance(action[:, i], active)
            if steps:  # a world that has ended repeats what it last reported
                last = steps[-1]
                info = {
                    k: torch.where(active.view(-1, *[1] * (v.ndim - 1)), v, last.info[k]) for k, v in s.info.items()
                }
                s = Step(s.obs, s.reward, s.terminated, s.truncated, s.final_obs, info)
            steps.append(s)
            terminated, truncated = terminated | s.terminated, truncated | s.truncated
            active = active & ~(s.terminated | s.truncated)
        final_obs = steps[-1].final_obs
        return ChunkStep(
            obs=self._reset_ended(final_obs, ~active),
            reward=torch.stack([s.reward for s in steps], 1),
            terminated=terminated,
            truncated=truncated,
            final_obs=final_obs,
            n_executed=n_executed,
            history={k: torch.stack([s.final_obs[k] for s in steps], 1) for k in final_obs},
            info={k: torch.stack([s.info[k] for s in steps], 1) for k in steps[-1].info},
        )

    def _reset_ended(self, final_obs: Obs, ended: Tensor) -> Obs:
        if self.device.type == "cpu" and not bool(ended.any()):  # on a GPU asking would stall it
            return final_obs
        return merge_obs(self.reset(mask=ended), final_obs, ended)

    @abstractmethod
    def render(self, index: int) -> np.ndarray:
        """Picture of world ``index``: uint8 ``[H, W, 3]`` RGB."""

    def warnings(self) -> list[str]:
        """What went wrong in the worlds since the last call, for results to mention; may read from the device."""
        return []

    def close(self) -> None:  # noqa: B027  (most environments have nothing to release)
        """Release processes, windows and memory."""
