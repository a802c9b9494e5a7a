"""Where of an image one looks: crops, shifts, size, missing patches. Every sample of a batch has its own place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["centre_crop", "crop", "erase", "resize", "shift"]


def crop(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut ``size = (h, w)`` out of each sample, at its own corner; all in one gather.

    Args:
        images: ``[B, ..., H, W]`` of any type; what stands between (time, channels) shares the sample's corner.
        top: row of the corner ``[B]``, in ``0..H - h``.
        left: column of the corner ``[B]``, in ``0..W - w``.
        size: rows and columns that are kept.

    Returns:
        ``[B, ..., h, w]``.
    """
    windows = images.unfold(-2, size[0], 1).unfold(-2, size[1], 1)  # [B, ..., H - h + 1, W - w + 1, h, w], a view
    windows = windows.movedim((-4, -3), (1, 2))
    return windows[torch.arange(len(images), device=images.device), top.to(images.device), left.to(images.device)]


def centre_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of ``images [..., H, W]``, ``size = (h, w)``: a view ``[..., h, w]``."""
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def shift(images: Tensor, down: Tensor, right: Tensor, reach: int) -> Tensor:
    """Move each sample by whole pixels; the border is repeated (random shifts: Yarats et al. 2021, DrQ-v2).

    Args:
        images: ``[B, C, H, W]``, float.
        down: rows ``[B]``, from ``-reach`` to ``reach``.
        right: columns ``[B]``, likewise.
        reach: the largest shift.
    """
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    return crop(padded, reach - down, reach - right, (images.shape[-2], images.shape[-1]))


def resize(images: Tensor, size: tuple[int, int], *, nearest: bool = False) -> Tensor:
    """``[B, C, H, W]`` float to ``[B, C, *size]``: bilinear, each pixel the mean of what it covers when it shrinks.

    ``nearest`` mixes no pixels: for depth, where the mean over an edge is a distance at which nothing stands.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    if nearest:
        return F.interpolate(images, size=size, mode="nearest-exact")
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def erase(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, fill: Tensor) -> Tensor:
    """Cover a rectangle of each sample (random erasing: Zhong et al. 2020).

    Args:
        images: ``[B, C, H, W]``.
        top, left, height, width: the rectangle [pixel], ``[B]`` each; a height of 0 covers nothing.
        fill: its colour, ``[B, C]``.
    """
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])  # [B, H]
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])  # [B, W]
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return torch.where(inside, fill[:, :, None, None], images)
