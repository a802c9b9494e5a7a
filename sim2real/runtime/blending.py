"""The mean of several chunks, as ``policies/execution/ensemble.py`` has it, without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.actions import ActionConfig
from visuomotor.data.angles import wrap
from visuomotor.data.rotations import matrix_to_rot6d, rot6d_to_matrix

__all__ = ["mean_chunk"]


def mean_chunk(chunks: Sequence[NDArray[np.float32]], decay: float, config: ActionConfig) -> NDArray[np.float32]:
    """Actions ``[H, Da]``, each the mean of what the chunks have for it, weighted exp(-decay i) from the oldest on.

    Args:
        chunks: ``[h, Da]`` each, all beginning at the same step, the oldest first; the last one is the longest.
        decay: ``m`` of Zhao et al. 2023, algorithm 2.
        config: which components are angles (averaged on the circle, on the branch of the oldest) and which rotations
            (the chordal mean: Hartley et al. 2013, "Rotation Averaging", section 5.3).
    """
    out = []
    for i in range(len(chunks[-1])):
        actions = np.stack([c[i] for c in chunks if i < len(c)]).astype(np.float64)
        weight = np.exp(-decay * np.arange(len(actions)))
        out.append(_mean(actions, weight / weight.sum(), config))
    return np.stack(out).astype(np.float32)


def _mean(actions: NDArray[np.float64], w: NDArray[np.float64], config: ActionConfig) -> NDArray[np.float64]:
    mean = w @ actions
    if config.angle_dims:
        angle = actions[:, config.angle_dims]
        on_circle = np.arctan2(w @ np.sin(angle), w @ np.cos(angle))
        mean[config.angle_dims] = angle[0] + wrap(on_circle - angle[0])
    for group in config.pose_groups:
        matrix = np.tensordot(w, rot6d_to_matrix(actions[:, group[3:]]), 1)
        U, _, Vh = np.linalg.svd(matrix)
        flip = np.array([1.0, 1.0, np.linalg.det(U @ Vh)])  # a rotation, not a reflection
        mean[group[3:]] = matrix_to_rot6d((U * flip) @ Vh)
    return mean
