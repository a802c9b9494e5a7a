"""Geometry of point clouds: from depth images, cropped, thinned. Batched torch on any device, no loops over samples.

Camera frames are optical: x to the right, y down, z forward. A cloud is ``points [B, N, 3 + c]`` (position [m], then
further values) with ``valid [B, N]`` beside it, so that clouds of different size share one tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["crop_box", "depth_to_points", "farthest_points", "spread_evenly", "take_points", "transform_points"]


def depth_to_points(depth: Tensor, intrinsics: Tensor, *, stride: int = 1) -> tuple[Tensor, Tensor]:
    """Points of a depth image in the frame of its camera, by the pinhole model without distortion.

    Args:
        depth: distance along the optical axis [m], ``[..., H, W]``; 0, NaN and infinity mean "no measurement".
        intrinsics: ``(fx, fy, cx, cy)`` [px] of the full image, ``[..., 4]`` or ``[4]``; pixel centres are at whole
            numbers.
        stride: take every ``stride``-th row and column.

    Returns:
        Points ``[..., N, 3]`` [m] row by row with ``N = ceil(H / stride) * ceil(W / stride)``, and which of them were
        measured, bool ``[..., N]``; the others are at the origin.
    """
    height, width = depth.shape[-2:]
    z = depth[..., ::stride, ::stride].float()
    v, u = torch.meshgrid(
        torch.arange(0, height, stride, device=depth.device, dtype=torch.float32),
        torch.arange(0, width, stride, device=depth.device, dtype=torch.float32),
        indexing="ij",
    )
    fx, fy, cx, cy = (x[..., None, None] for x in intrinsics.float().unbind(-1))
    measured = torch.isfinite(z) & (z > 0)
    z = torch.where(measured, z, 0.0)
    points = torch.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], dim=-1)  # [..., h, w, 3]
    return points.flatten(-3, -2), measured.flatten(-2)


def transform_points(points: Tensor, transform: Tensor) -> Tensor:
    """``points [..., N, 3 + c]`` moved by ``transform [..., 4, 4]`` (``T_base_cam``: camera to base frame)."""
    rotation, translation = transform[..., :3, :3], transform[..., :3, 3]
    # Not as a matrix product, which autocast and TF32 would round to 8 or 11 bits: millimetres.
    moved = (points[..., None, :3] * rotation[..., None, :, :]).sum(-1) + translation[..., None, :]
    return torch.cat([moved, points[..., 3:]], dim=-1)


def crop_box(points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Which of ``points [..., N, 3 + c]`` lie in the box from ``low [3]`` to ``high [3]`` [m], faces included."""
    xyz = points[..., :3]
    return ((xyz >= low) & (xyz <= high)).all(-1)


def spread_evenly(valid: Tensor, n: int) -> Tensor:
    """Places of ``n`` valid points, evenly spread over their order: int64 ``[B, n]`` from ``valid [B, N]``.

    With fewer than ``n`` valid points some come more than once, with none all places are 0.
    """
    rank = valid.long().cumsum(-1)  # the k-th valid point has rank k, from 1
    count = rank[:, -1:]
    wanted = torch.arange(n, device=valid.device) * count // n + 1  # [B, n]
    return torch.searchsorted(rank, wanted).clamp(max=valid.shape[-1] - 1) * (count > 0)


def farthest_points(points: Tensor, n: int, valid: Tensor | None = None) -> Tensor:
    """Places of ``n`` points that cover the cloud: int64 ``[B, n]`` (farthest point sampling, Eldar et al. 1997).

    The first is the point farthest from the centroid, so that the choice does not depend on the order of the points;
    each further one is the farthest from all before.

    Args:
        points: ``[B, N, 3 + c]``; only positions count.
        n: at least 1. With fewer valid points some come more than once.
        valid: bool ``[B, N]``; None: all. Without a single valid point the places mean nothing.
    """
    xyz = points[..., :3]
    batch = torch.arange(len(xyz), device=xyz.device)
    valid = torch.ones(xyz.shape[:2], dtype=torch.bool, device=xyz.device) if valid is None else valid
    xyz = torch.where(valid[..., None], xyz, 0.0)  # what is not valid may be NaN, which would spread to the centroid
    centroid = xyz.sum(1, keepdim=True) / valid.sum(1)[:, None, None].clamp_min(1)
    # A point that is not valid is nearer to everything than any valid one, so it is never the farthest.
    ineligible = torch.where(valid, torch.inf, -1.0).to(xyz.dtype)
    distance = (xyz - centroid).square().sum(-1).minimum(ineligible)  # [B, N]
    nearest = ineligible
    places = []
    for _ in range(n):
        place = distance.argmax(-1)  # [B]
        places.append(place)
        nearest = nearest.minimum((xyz - xyz[batch, place][:, None]).square().sum(-1))
        distance = nearest
    return torch.stack(places, dim=-1)


def take_points(points: Tensor, places: Tensor) -> Tensor:
    """``points [B, N, D]`` at ``places [B, n]``: ``[B, n, D]``."""
    return points.gather(1, places[..., None].expand(-1, -1, points.shape[-1]))
