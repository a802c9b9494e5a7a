"""Light and colour, with a strength per sample. Images are ``[B, 3, H, W]`` in 0..1, RGB; results stay in 0..1."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["adjust_brightness", "adjust_contrast", "adjust_hue", "adjust_saturation", "hue_of", "luminance"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def luminance(images: Tensor) -> Tensor:
    """Brightness as seen, ``[B, 3, H, W] -> [B, 1, H, W]``."""
    r, g, b = images.unbind(1)
    return (_LUMA[0] * r + _LUMA[1] * g + _LUMA[2] * b)[:, None]


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Every value times ``factor [B]``; 1 changes nothing."""
    return (images * _per_sample(factor)).clamp(0.0, 1.0)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Distance from the mean luminance of the sample times ``factor [B]``; 1 changes nothing, 0 is plain grey."""
    mean = luminance(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, _per_sample(factor)).clamp(0.0, 1.0)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Distance from the pixel's own grey times ``factor [B]``; 1 changes nothing, 0 is black and white."""
    return torch.lerp(luminance(images), images, _per_sample(factor)).clamp(0.0, 1.0)


def adjust_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn every colour by ``turn [B]`` of the full circle of hues; 0 and 1 change nothing, 1/3 makes red green.

    Value and saturation (of HSV) stay: each channel is ``v - v s max(0, min(k, 4 - k, 1))``, ``k = (n + 6 h) mod 6``.
    """
    high, low = images.amax(1), images.amin(1)
    hue = hue_of(images) + turn.view(-1, 1, 1)
    chroma = high - low
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = (n + 6.0 * hue) % 6.0
        channels.append(high - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0))
    return torch.stack(channels, dim=1)


def hue_of(images: Tensor) -> Tensor:
    """Hue as a share of the full circle, ``[B, 3, H, W] -> [B, H, W]``: red 0, green 1/3, blue 2/3; grey 0."""
    r, g, b = images.unbind(1)
    high = images.amax(1)
    chroma = (high - images.amin(1)).clamp_min(1e-8)
    sector = torch.where(
        high == r, (g - b) / chroma % 6.0, torch.where(high == g, (b - r) / chroma + 2.0, (r - g) / chroma + 4.0)
    )
    return sector / 6.0


def _per_sample(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)
