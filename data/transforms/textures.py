"""Pictures to lay behind or over an image: from a folder, or made up."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visuomotor.data.errors import DataError

__all__ = ["cell_counts", "load_textures", "noise_textures"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_OCTAVES = (2, 4, 8, 16, 32)  # cells a side


def load_textures(folder: str | Path, size: tuple[int, int], limit: int = 1024) -> Tensor:
    """The first ``limit`` pictures of ``folder`` by name, scaled and cut to ``size = (h, w)``: uint8 ``[n, 3, h, w]``.

    Raises:
        DataError: no such folder, no picture in it, or a file that is none.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder of textures {root}")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)[:limit]
    if not files:
        raise DataError(f"{root} holds no pictures: expected files that end in {', '.join(SUFFIXES)}")
    return torch.stack([_read(p, size) for p in files])


def _read(path: Path, size: tuple[int, int]) -> Tensor:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise DataError(f"{path} is no picture that can be read")
    scale = max(size[0] / picture.shape[0], size[1] / picture.shape[1])
    width, height = (max(n, round(side * scale)) for n, side in zip(size[::-1], picture.shape[1::-1], strict=True))
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    cut = picture[top : top + size[0], left : left + size[1], ::-1]  # BGR to RGB
    return torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1)))


def noise_textures(cells: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Coloured value noise ``[B, 3, *size]`` in 0..1: grids of random colours from coarse to fine, halved each time.

    Args:
        cells: one grid ``[B, 3, n, n]`` in 0..1 for each number of cells, coarse first (see :func:`cell_counts`).
        size: rows and columns.
    """
    total = torch.zeros((), device=cells[0].device)
    for i, grid in enumerate(cells):
        smooth = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        total = total + smooth * 0.5**i
    return total / sum(0.5**i for i in range(len(cells)))


def cell_counts(size: tuple[int, int]) -> tuple[int, ...]:
    """Cells a side of the grids of :func:`noise_textures` for pictures of ``size``; none finer than four pixels."""
    return tuple(n for n in _OCTAVES if 4 * n <= min(size)) or _OCTAVES[:1]
