"""Other pictures behind or over an image: chroma key and blending."""

from __future__ import annotations

from torch import Tensor

from visuomotor.data.transforms.colour import hue_of

__all__ = ["blend", "chroma_mask", "replace"]


def chroma_mask(images: Tensor, *, hue: float, tolerance: float, min_saturation: float, min_value: float) -> Tensor:
    """Which pixels show the screen: bool ``[B, 1, H, W]``.

    Args:
        images: ``[B, 3, H, W]`` in 0..1.
        hue: of the screen, as a share of the circle of hues; 1/3 is green.
        tolerance: largest distance from it on the circle.
        min_saturation, min_value: of HSV; greyer or darker pixels have no hue worth trusting.
    """
    high = images.amax(1)
    chroma = high - images.amin(1)
    distance = (hue_of(images) - hue).abs() % 1.0
    near = distance.minimum(1.0 - distance) <= tolerance
    return (near & (chroma >= min_saturation * high) & (high >= min_value))[:, None]


def replace(images: Tensor, mask: Tensor, textures: Tensor) -> Tensor:
    """``textures [B, C, H, W]`` where ``mask [B, 1, H, W]`` is true (GreenAug: Teoh et al. 2024, arXiv:2407.07868)."""
    return textures.where(mask, images)


def blend(images: Tensor, textures: Tensor, share: Tensor) -> Tensor:
    """``(1 - share) images + share textures``, ``share [B]`` (random overlay: Hansen and Wang 2021, SODA)."""
    return images.lerp(textures, share.view(-1, 1, 1, 1))
