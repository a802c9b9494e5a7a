"""What cameras do to pictures, with a strength per sample: exposure, white balance, blur, noise and JPEG.

Images are ``[B, 3, H, W]`` in 0..1, RGB with the transfer curve of sRGB; results stay in 0..1.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["DAYLIGHT", "expose", "gaussian_blur", "jpeg", "kelvin_to_rgb", "sensor_noise", "white_balance"]

DAYLIGHT = 6500.0  # colour temperature of the light that a camera is balanced for [K]
_GAMMA = 2.2  # of sRGB, nearly
# Quantisation tables of luminance and chrominance at quality 50 (ITU-T T.81, annex K.1).
_LUMA_TABLE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA_TABLE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99,
    99, 99, 99, *(99,) * 32,
)  # fmt: skip
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # JFIF (ITU-T T.871)
_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
_DCT = tuple(
    tuple((0.125**0.5 if k == 0 else 0.5) * math.cos((2 * i + 1) * k * math.pi / 16) for i in range(8))
    for k in range(8)
)
_XYZ_TO_RGB = ((3.2404542, -1.5371385, -0.4985314), (-0.9692660, 1.8760108, 0.0415560),
               (0.0556434, -0.2040259, 1.0572252))  # fmt: skip


@cache
def _constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers that are copied to a device once: a recorded CUDA graph cannot copy. Never write to it."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype)


def expose(images: Tensor, stops: Tensor) -> Tensor:
    """Light times ``2 ** stops``, ``stops [B]``; 0 changes nothing. What is too bright is white."""
    return (images * (2.0 ** (stops / _GAMMA)).view(-1, 1, 1, 1)).clamp(0.0, 1.0)


def white_balance(images: Tensor, gains: Tensor) -> Tensor:
    """Light of each channel times ``gains [B, 3]``, as a camera's balance for another colour of light."""
    return (images * gains.clamp_min(0.0).pow(1.0 / _GAMMA)[..., None, None]).clamp(0.0, 1.0)


def kelvin_to_rgb(kelvin: Tensor) -> Tensor:
    """Linear RGB ``[..., 3]`` of a black body ``[...]`` [K], 1 667 to 25 000 K, whose luminance is 1.

    Chromaticity by the cubic splines of Kim et al. 2002 (US patent 7 024 034); the primaries of sRGB (IEC 61966-2-1).
    6 500 K is nearly white.
    """
    t = 1e3 / kelvin.clamp(1667.0, 25000.0)
    low = ((-0.2661239 * t - 0.2343589) * t + 0.8776956) * t + 0.179910
    high = ((-3.0258469 * t + 2.1070379) * t + 0.2226347) * t + 0.240390
    x = torch.where(t > 0.25, low, high)
    y1 = ((-1.1063814 * x - 1.34811020) * x + 2.18555832) * x - 0.20219683
    y2 = ((-0.9549476 * x - 1.37418593) * x + 2.09137015) * x - 0.16748867
    y3 = ((3.0817580 * x - 5.87338670) * x + 3.75112997) * x - 0.37001483
    y = torch.where(t > 1e3 / 2222.0, y1, torch.where(t > 0.25, y2, y3))
    xyz = torch.stack([x / y, torch.ones_like(x), (1.0 - x - y) / y], -1)
    return (xyz @ _constant(_XYZ_TO_RGB, xyz.device, xyz.dtype).T).clamp_min(0.0)


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur by a Gaussian of ``sigma [B]`` pixels, none above ``largest``; 0 changes nothing. The border is repeated."""
    b, c = images.shape[:2]
    reach = max(1, math.ceil(3.0 * largest))
    offset = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weight = torch.exp(-0.5 * (offset / sigma.clamp_min(1e-3)[:, None].to(images.dtype)) ** 2)
    weight = (weight / weight.sum(1, keepdim=True)).repeat_interleave(c, 0)  # [B * C, k]
    x = images.reshape(1, b * c, *images.shape[2:])
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), weight[:, None, :, None], groups=b * c)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), weight[:, None, None], groups=b * c)
    return x.view(images.shape).clamp(0.0, 1.0)


def sensor_noise(images: Tensor, std: Tensor, normal: Tensor) -> Tensor:
    """Noise of light and of electronics: ``std [B]`` at white, a third of that at black.

    Args:
        normal: standard normal numbers, shape of ``images``.
    """
    scale = std.view(-1, 1, 1, 1) * (1.0 + 8.0 * images).sqrt() / 3.0  # the variance of light grows with light
    return (images + scale * normal).clamp(0.0, 1.0)


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """What JPEG leaves of pictures, at ``quality [B]`` 1..100 (the scale of libjpeg), colours at half resolution.

    Only the losses are computed (cosine transform of 8 x 8 blocks, rounded), not the file, so that it runs for all
    samples at once on any device.
    """
    h, w = images.shape[-2:]
    x = F.pad(images * 255.0, (0, -w % 16, 0, -h % 16), mode="replicate")
    matrix = _constant(_YCC, x.device, x.dtype)
    ycc = torch.einsum("ij,bjhw->bihw", matrix, x)
    q = quality.clamp(1.0, 100.0).to(x.dtype)
    scale = torch.where(q < 50.0, 50.0 / q, 2.0 - q / 50.0)
    luma = _quantised(ycc[:, :1] - 128.0, scale, _LUMA_TABLE) + 128.0
    chroma = _quantised(F.avg_pool2d(ycc[:, 1:], 2), scale, _CHROMA_TABLE)
    ycc = torch.cat([luma, F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)], 1)
    rgb = torch.einsum("ij,bjhw->bihw", _constant(_RGB, x.device, x.dtype), ycc)
    return (rgb[..., :h, :w].round() / 255.0).clamp(0.0, 1.0)


def _quantised(x: Tensor, scale: Tensor, table: tuple[int, ...]) -> Tensor:
    """``x [B, C, H, W]`` after the cosine transform of each block was rounded to the steps of ``table``."""
    dct = _constant(_DCT, x.device, x.dtype)
    steps = (_constant(table, x.device, x.dtype).view(8, 8) * scale.view(-1, 1, 1)).round().clamp(1.0, 255.0)
    b, c, h, w = x.shape
    blocks = x.view(b, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    steps = steps[:, None, None, None]
    coefficients = ((dct @ blocks @ dct.T) / steps).round() * steps
    return (dct.T @ coefficients @ dct).transpose(3, 4).reshape(b, c, h, w)
