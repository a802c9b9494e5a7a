"""Temporal ensembling: the mean of all chunks that have an action for the present (Zhao et al. 2023, ACT)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from visuomotor.data.actions import ActionConfig
from visuomotor.data.angles import wrap
from visuomotor.data.rotations import matrix_to_rot6d, rot6d_to_matrix
from visuomotor.policies.execution.planner import Planner, Previous
from visuomotor.policies.execution.receding import check_timing
from visuomotor.policies.execution.seams import Seams

__all__ = ["TemporalEnsemble", "mean_action"]


def mean_action(actions: Tensor, weight: Tensor, config: ActionConfig) -> Tensor:
    """Weighted mean of ``actions [N, K, Da]`` in raw units, ``weight [N, K]`` with sums of 1: ``[N, Da]``.

    Angles are averaged on the circle, and come back on the branch of the first action; rotations by the mean of their
    matrices, projected back (the chordal mean: Hartley et al. 2013, "Rotation Averaging", section 5.3).
    """
    w = weight[..., None].to(actions.dtype)
    mean = (w * actions).sum(1)
    if config.angle_dims:
        angle = actions[..., config.angle_dims]
        on_circle = torch.atan2((w * angle.sin()).sum(1), (w * angle.cos()).sum(1))
        mean[:, config.angle_dims] = angle[:, 0] + wrap(on_circle - angle[:, 0])
    for group in config.pose_groups:
        matrix = (w[..., None] * rot6d_to_matrix(actions[..., group[3:]])).sum(1)  # [N, 3, 3]
        U, _, Vh = torch.linalg.svd(matrix)
        flip = torch.ones_like(matrix[:, 0])
        flip[:, 2] = torch.linalg.det(U @ Vh)  # a rotation, not a reflection
        mean[:, group[3:]] = matrix_to_rot6d(U * flip[:, None] @ Vh)
    return mean


class TemporalEnsemble:
    """Plan every ``n_exec`` steps; execute the mean of what all chunks say about the present, weighted exp(-decay i).

    ``i`` counts the chunks from the oldest that reaches the present, which has the highest weight (ACT, algorithm 2). A
    chunk takes part from ``delay`` steps after its observation on; the first of an episode is waited for.

    Args:
        planner: makes the chunks.
        n_exec: control steps from one chunk to the next; None plans as often as the delay allows.
        delay: control steps between an observation and its chunk.
        decay: ``m``.

    Attributes:
        n_exec: control steps from one chunk to the next.
        seams: how far commands jumped where a new chunk came in.

    Raises:
        ConfigError: see :func:`~visuomotor.policies.execution.receding.check_timing`.
    """

    def __init__(self, planner: Planner, *, n_exec: int | None = None, delay: int = 0, decay: float = 0.01) -> None:
        spec, n = planner.spec, planner.num_envs
        self._planner, self._delay, self._decay = planner, delay, decay
        self.n_exec = max(1, delay) if n_exec is None else n_exec
        check_timing(spec.window, self.n_exec, delay)
        self._present, self._config = spec.window.n_obs - 1, spec.action_config
        self._ahead = spec.window.horizon - self._present
        slots = math.ceil(self._ahead / self.n_exec)
        device = planner.device
        self._chunks = torch.zeros(n, slots, self._ahead, spec.action.size, device=device)  # a ring for each world
        self._age = torch.full((n, slots), self._ahead)  # control steps since the chunk was asked for
        self._from_age = torch.zeros(n, slots, dtype=torch.int64)  # age from which the chunk is there
        self._next_slot = torch.zeros(n, dtype=torch.int64)
        self._wait = torch.zeros(n, dtype=torch.int64)  # control steps until the next plan
        self._empty = torch.ones(n, dtype=torch.bool)
        self._none = torch.zeros(n, spec.window.horizon, spec.action.size, device=device)
        self.seams = Seams(spec, n, device)

    def reset(self, seeds: Sequence[int] | None = None, mask: Tensor | None = None) -> None:
        """Begin new episodes in the worlds of ``mask [N]`` (all without it), with one seed a world."""
        which = self._planner.reset(seeds, mask)
        self._age[which] = self._ahead
        self._wait[which] = 0
        self._empty[which] = True

    def act(self, obs: Mapping[str, Tensor], active: Tensor | None = None) -> Tensor:
        """The next action of every world, ``{key: [N, ...]} -> [N, Da]``. Nothing is planned outside ``active [N]``."""
        self._planner.observe(obs)
        first = self._empty.clone()
        due = self._wait <= 0
        if active is not None:
            due &= active.cpu()
        worlds = due.nonzero().flatten()
        if len(worlds):
            self._plan(worlds)
        action = self._mean()
        counts = ~first if active is None else ~first & active.cpu()
        arrived = (self._age == self._from_age).any(1)
        self.seams.add(action, arrived.to(action.device), counts.to(action.device))
        self._age += 1
        self._wait -= 1
        return action

    def _plan(self, worlds: Tensor) -> None:
        nothing = Previous(self._none[worlds], torch.zeros(len(worlds), dtype=torch.bool, device=self._none.device))
        chunk = self._planner.plan(worlds, nothing)
        slot = self._next_slot[worlds]
        self._chunks[worlds, slot] = chunk[:, self._present :]
        self._age[worlds, slot] = 0
        self._from_age[worlds, slot] = torch.where(self._empty[worlds], 0, self._delay)
        self._next_slot[worlds] = (slot + 1) % self._chunks.shape[1]
        self._wait[worlds] = self.n_exec
        self._empty[worlds] = False

    def _mean(self) -> Tensor:
        there = (self._age >= self._from_age) & (self._age < self._ahead)  # [N, K]
        order = torch.where(there, self._age, -1).argsort(dim=1, descending=True)  # oldest first, absent ones last
        age, there = self._age.gather(1, order), there.gather(1, order)
        rank = torch.arange(there.shape[1], dtype=torch.float32)
        weight = torch.exp(-self._decay * rank) * there
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
        rows = torch.arange(len(age))[:, None]
        actions = self._chunks[rows, order, age.clamp(max=self._ahead - 1)]  # [N, K, Da]
        return mean_action(actions, weight.to(actions.device), self._config)
