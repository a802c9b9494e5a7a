"""How far predicted chunks are from recorded ones, without acting: the error of a policy on demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visuomotor.data.angles import wrap
from visuomotor.data.batches import BatchSource
from visuomotor.data.errors import DataError
from visuomotor.policies.policy import Policy

__all__ = ["OpenLoopError", "open_loop_error"]


@dataclass(frozen=True)
class OpenLoopError:
    """Errors over the executed steps of all windows, in the unit of the actions."""

    n_windows: int
    mae: Tensor  # [Da] mean absolute error
    rmse: Tensor  # [Da] root of the mean squared error
    mae_by_step: Tensor  # [Ta] mean absolute error of the first, second, ... executed step, over all components

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {k: getattr(self, k).tolist() for k in ("mae", "rmse", "mae_by_step")}
        return {"n_windows": self.n_windows, **values}


@torch.no_grad()
def open_loop_error(
    policy: Policy, source: BatchSource, *, max_windows: int = 4096, batch_size: int = 256, seed: int = 0
) -> OpenLoopError:
    """Sample a chunk for up to ``max_windows`` evenly spaced windows and compare what would be executed.

    Steps past the end of an episode do not count, nor do whole turns of an angle.

    Raises:
        DataError: no window has an executed step inside its episode.
    """
    window = policy.spec.window
    angles = list(policy.spec.action_config.angle_dims)
    windows = torch.linspace(0, len(source) - 1, min(len(source), max_windows)).long()
    generator = torch.Generator().manual_seed(seed)
    executed = slice(window.n_obs - 1, window.n_obs - 1 + window.n_exec)
    absolute = torch.zeros(window.n_exec, policy.spec.action.size, dtype=torch.float64)
    squared, count = torch.zeros_like(absolute), torch.zeros(window.n_exec, 1, dtype=torch.float64)
    for part in windows.split(batch_size):
        batch = source.gather(part).to(policy.device)
        chunk = policy.sample(batch.obs, policy.draw_noise(len(part), generator))
        error = (chunk - batch.action)[:, executed].double().cpu()  # [B, Ta, Da]
        error[..., angles] = wrap(error[..., angles])
        valid = (~batch.is_pad[:, executed]).double().cpu()[..., None]  # [B, Ta, 1]
        absolute += (error.abs() * valid).sum(0)
        squared += (error.square() * valid).sum(0)
        count += valid.sum(0)
    if not float(count.sum()):
        raise DataError("no window has an executed step inside its episode: nothing to compare")
    return OpenLoopError(
        n_windows=len(windows),
        mae=absolute.sum(0) / count.sum(),
        rmse=(squared.sum(0) / count.sum()).sqrt(),
        mae_by_step=(absolute / count.clamp_min(1)).mean(-1),
    )
