"""ResNet-18 with group norm, and spatial softmax: the image encoder of Diffusion Policy, trained from scratch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.encoders.trunk import Trunk

__all__ = ["Conv2d", "ResNet18", "ResNetConfig", "SpatialSoftmax", "expected_position"]

STEMS = ("large", "small")
_CHANNELS = (64, 128, 256, 512)
_GROUP = 16  # channels a group


@dataclass(kw_only=True, slots=True)
class ResNetConfig:
    """Sizes of :class:`ResNet18`.

    Attributes:
        width: channels as a multiple of the published 64, 128, 256, 512; a quarter of them learns Push-T on a CPU.
        stem: ``large``: a 7x7 convolution and a max pool, each with stride 2, as published; ``small``: a 3x3
            convolution with stride 2, so that a small picture keeps twice the resolution.
        keypoints: points that the spatial softmax finds in the last feature map.
    """

    width: float = 1.0
    stem: str = "large"
    keypoints: int = 32

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise ConfigError(f"obs.image.resnet: unknown stem {self.stem!r}. {nearest(self.stem, STEMS)}")
        if self.keypoints < 1:
            raise ConfigError(f"obs.image.resnet: keypoints={self.keypoints}: expected at least 1")
        if not self.width > 0 or any(c * self.width % _GROUP for c in _CHANNELS):
            raise ConfigError(
                f"obs.image.resnet: width={self.width:g} makes {[c * self.width for c in _CHANNELS]} channels: "
                f"expected multiples of {_GROUP}, as with 0.25, 0.5 or 1"
            )


class Conv2d(nn.Module):
    """Convolution without bias whose weight is kept as ``[Co, kh, kw, Ci]``.

    Seen as ``[Co, Ci, kh, kw]`` that is the channels-last order, which is the fast one; a weight that were only
    strided like that would not survive being saved, and fused optimisers need moments of the same strides.
    """

    def __init__(self, inp: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        std = math.sqrt(2.0 / (out * kernel * kernel))  # He et al. 2015, fan-out, as torchvision's
        self.weight = nn.Parameter(torch.randn(out, kernel, kernel, inp) * std)
        self.stride, self.padding = stride, kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        """``[B, Ci, H, W] -> [B, Co, H', W']``."""
        return F.conv2d(x, self.weight.permute(0, 3, 1, 2), stride=self.stride, padding=self.padding)


class _Block(nn.Module):
    """Two 3x3 convolutions with group norm, and a skip (He et al. 2016)."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = Conv2d(inp, out, 3, stride), _norm(out)
        self.conv2, self.norm2 = Conv2d(out, out, 3), _norm(out)
        project = stride != 1 or inp != out
        self.skip = nn.Sequential(Conv2d(inp, out, 1, stride), _norm(out)) if project else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)), inplace=True)
        h = self.norm2(self.conv2(h))
        return F.relu(h.add_(x if self.skip is None else self.skip(x)), inplace=True)


def _norm(channels: int) -> nn.GroupNorm:
    # Batch norm would mix the samples of a batch, and its running statistics do not follow averaged weights.
    return nn.GroupNorm(channels // _GROUP, channels)


class ResNet18(Trunk):
    """``[B, C, H, W]`` to a feature map ``[B, out_channels, h, w]``; He et al. 2016 with groups of 16 channels.

    Args:
        config: sizes.
        channels: of the image.
    """

    def __init__(self, config: ResNetConfig, channels: int) -> None:
        super().__init__()
        widths = [int(c * config.width) for c in _CHANNELS]
        self.out_channels = widths[-1]
        self.pools = config.stem == "large"
        self.stride = 32 if self.pools else 16  # pixels a place of the map, each way
        self.stem = Conv2d(channels, widths[0], 7 if self.pools else 3, stride=2)
        self.norm = _norm(widths[0])
        blocks = []
        for i, (inp, out) in enumerate(zip([widths[0], *widths[:-1]], widths, strict=True)):
            blocks += [_Block(inp, out, stride=1 if i == 0 else 2), _Block(out, out, stride=1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        h = F.relu(self.norm(self.stem(images)), inplace=True)
        if self.pools:
            h = F.max_pool2d(h, 3, stride=2, padding=1)
        out: Tensor = self.blocks(h)
        return out


class SpatialSoftmax(nn.Module):
    """Expected position of every keypoint: feature map ``[B, C, h, w] -> [B, K, 2]`` of (x, y) in [-1, 1].

    Finn et al. 2016, "Deep spatial autoencoders". The softmax runs in float32.
    """

    def __init__(self, channels: int, keypoints: int) -> None:
        super().__init__()
        self.to_maps = nn.Conv2d(channels, keypoints, 1)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Positions ``[B, K, 2]``."""
        return expected_position(self.to_maps(feature_map))


def expected_position(maps: Tensor) -> Tensor:
    """Mean position under the softmax of each map: ``[B, K, h, w] -> [B, K, 2]``, (x, y) from -1 to 1."""
    h, w = maps.shape[-2:]
    share = maps.flatten(2).float().softmax(dim=-1).unflatten(2, (h, w))  # [B, K, h, w]
    x = torch.linspace(-1.0, 1.0, w, device=maps.device)
    y = torch.linspace(-1.0, 1.0, h, device=maps.device)
    return torch.stack([(share.sum(2) * x).sum(-1), (share.sum(3) * y).sum(-1)], dim=-1)
