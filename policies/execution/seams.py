"""How far commanded actions jump where one chunk follows another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visuomotor.data.angles import wrap
from visuomotor.policies.spec import PolicySpec

__all__ = ["Seams"]


class Seams:
    """Mean distance between consecutive commanded actions, where a new chunk takes over and elsewhere."""

    def __init__(self, spec: PolicySpec, num_envs: int, device: torch.device) -> None:
        self._angles, self._unit = list(spec.action_config.angle_dims), spec.action.unit
        self._last = torch.zeros(num_envs, spec.action.size, device=device)
        self._sum = torch.zeros(2, dtype=torch.float64, device=device)  # elsewhere, at a seam
        self._count = torch.zeros(2, dtype=torch.int64, device=device)

    def add(self, action: Tensor, seam: Tensor, counts: Tensor) -> None:
        """Take the commands ``[N, Da]`` of one step; ``seam [N]``: of a new chunk; ``counts [N]``: had one before."""
        step = action - self._last
        if self._angles:
            step[:, self._angles] = wrap(step[:, self._angles])
        distance = step.norm(dim=1).double()
        for i, where in enumerate((counts & ~seam, counts & seam)):
            self._sum[i] += (distance * where).sum()
            self._count[i] += where.sum()
        self._last = action

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: mean distances in units of the action, None where there were none."""
        mean = [s / n if n else None for s, n in zip(self._sum.tolist(), self._count.tolist(), strict=True)]
        return {"at_seams": mean[1], "elsewhere": mean[0], "n_seams": int(self._count[1]), "unit": self._unit}
