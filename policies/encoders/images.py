"""Camera and depth images: augmented, encoded by one network a camera or one for all, pooled or as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.normalize import Normalizer
from visuomotor.data.spec import ArraySpec
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.augment import AugmentConfig
from visuomotor.policies.encoders.part import EncoderPart, PartOutput, array_of
from visuomotor.policies.encoders.pretrained import PretrainedConfig, PretrainedTrunk
from visuomotor.policies.encoders.readout import PooledReadout, TokenReadout, with_time
from visuomotor.policies.encoders.resnet import ResNet18, ResNetConfig
from visuomotor.policies.encoders.trunk import Trunk
from visuomotor.policies.encoders.view import View
from visuomotor.policies.encoders.vit import ViT, ViTConfig

__all__ = ["ImageConfig", "ImageEncoder"]

NETS = ("resnet18", "vit", "pretrained")
POOLS = ("auto", "spatial_softmax", "attention", "mean")


@dataclass(kw_only=True, slots=True)
class ImageConfig:
    """How cameras are encoded; the defaults are Diffusion Policy's.

    Attributes:
        net: ``resnet18`` or ``vit`` (from scratch), or ``pretrained``.
        shared: one network for all cameras instead of one each.
        tokens: give every place of the feature map as a token, for backbones that attend, instead of pooling.
        feature_dim: pooled features of a camera and observed step.
        token_dim: size of a token.
        pool: ``spatial_softmax`` (where the features are), ``attention`` or ``mean`` (what they are); ``auto``: the
            first for a ResNet, the second for all else.
        resize: rows and columns that every image is scaled to first; empty leaves it as it is.
        crop: rows and columns that are kept, at random places in training and the centre otherwise; empty keeps all.
        resize_by_key, crop_by_key: likewise for one camera.
        depth_keys: images that hold distances ``[H, W]`` or ``[H, W, 1]``, in metres, or in millimetres if they are
            stored as uint16 or say so in their unit.
        depth_range: nearest and farthest distance [m] that are told apart; 0 and NaN (not measured) count as far.
        augment: how images are changed in training.
        resnet, vit, pretrained: settings of each network.
    """

    net: str = "resnet18"
    shared: bool = False
    tokens: bool = False
    feature_dim: int = 64
    token_dim: int = 256
    pool: str = "auto"
    resize: list[int] = field(default_factory=list)
    crop: list[int] = field(default_factory=list)
    resize_by_key: dict[str, list[int]] = field(default_factory=dict)
    crop_by_key: dict[str, list[int]] = field(default_factory=dict)
    depth_keys: list[str] = field(default_factory=list)
    depth_range: list[float] = field(default_factory=lambda: [0.1, 2.0])
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    resnet: ResNetConfig = field(default_factory=ResNetConfig)
    vit: ViTConfig = field(default_factory=ViTConfig)
    pretrained: PretrainedConfig = field(default_factory=PretrainedConfig)

    def __post_init__(self) -> None:
        if self.net not in NETS:
            raise ConfigError(f"unknown obs.image.net {self.net!r}. {nearest(self.net, NETS)}")
        if self.pool not in POOLS:
            raise ConfigError(f"unknown obs.image.pool {self.pool!r}. {nearest(self.pool, POOLS)}")
        for name, size in {
            "resize": self.resize, "crop": self.crop,
            **{f"resize_by_key.{k}": v for k, v in self.resize_by_key.items()},
            **{f"crop_by_key.{k}": v for k, v in self.crop_by_key.items()},
        }.items():  # fmt: skip
            if size and (len(size) != 2 or min(size) < 1):
                raise ConfigError(f"obs.image.{name}={size}: expected [rows, columns]")
        if len(self.depth_range) != 2 or not 0 <= self.depth_range[0] < self.depth_range[1]:
            raise ConfigError(f"obs.image.depth_range={self.depth_range}: expected [near, far] in metres, near < far")
        if self.feature_dim < 1 or self.token_dim < 4 or self.token_dim % 4:
            raise ConfigError(
                f"obs.image: feature_dim={self.feature_dim} must be at least 1 and token_dim={self.token_dim} a "
                "multiple of 4"
            )


class ImageEncoder(EncoderPart):
    """All cameras: pooled features side by side, or tokens one camera after the other.

    Args:
        keys: the images, in the order of the features.
        specs: shape of one step of each key, ``[H, W, C]``, or ``[H, W]`` for depth.
        config: settings.

    Raises:
        ConfigError: settings that do not fit the images; the message names the key.
    """

    def __init__(self, keys: Sequence[str], specs: Mapping[str, ArraySpec], config: ImageConfig) -> None:
        super().__init__()
        self.keys, self._tokens, self._shared = list(keys), config.tokens, config.shared
        views = [_make_view(k, specs[k], config) for k in self.keys]
        if config.shared:
            self._check_alike(views, needs_size=config.net == "vit")
        self.views = nn.ModuleList(views)
        trunks = [_make_trunk(config, v) for v in (views[:1] if config.shared else views)]
        self.trunks = nn.ModuleList(trunks)
        self.readouts = nn.ModuleList(_make_readout(config, t.out_channels) for t in trunks)
        for i, view in enumerate(views):
            trunk = trunks[0 if config.shared else i]
            view.set_normalization(trunk.mean, trunk.std)
            if isinstance(trunk, ResNet18) and not config.tokens and config.pool in ("auto", "spatial_softmax"):
                _check_has_places(self.keys[i], view.size, trunk.stride)
        if config.tokens:
            self.token_dim = config.token_dim
            self.camera = nn.Parameter(torch.randn(len(keys), config.token_dim) * 0.02)
        else:
            self.feature_dim = config.feature_dim * len(keys)

    def forward(self, obs: Mapping[str, Tensor], normalizer: Normalizer, draws: Draws | None = None) -> PartOutput:
        """``{key: [B, To, H, W, C]}``, uint8 (depth: any number), to features or tokens."""
        images = [view(array_of(obs, k), draws) for k, view in zip(self.keys, self.views, strict=True)]
        batch, steps = images[0].shape[:2]
        outs = [out.unflatten(0, (batch, steps)) for out in self._encode([x.flatten(0, 1) for x in images])]
        if not self._tokens:
            return PartOutput(torch.cat(outs, dim=-1).float())  # [B, To, cameras * feature_dim]
        tokens = [out + camera for out, camera in zip(outs, self.camera, strict=True)]  # each [B, To, L, E]
        return PartOutput(None, torch.cat([with_time(t).flatten(1, 2) for t in tokens], dim=1).float())

    def _encode(self, images: list[Tensor]) -> list[Tensor]:
        """Each camera's frames ``[B * To, C, h, w]`` to ``[B * To, F]`` or ``[B * To, L, E]``."""
        if self._shared and len({x.shape for x in images}) == 1:  # all cameras in one pass
            both: Tensor = self.readouts[0](self.trunks[0](torch.cat(images)))
            return list(both.chunk(len(images)))
        return [self._of(self.readouts, i)(self._of(self.trunks, i)(x)) for i, x in enumerate(images)]

    def _of(self, modules: nn.ModuleList, camera: int) -> nn.Module:
        return modules[0 if self._shared else camera]

    def _check_alike(self, views: list[View], *, needs_size: bool) -> None:
        first = views[0]
        for key, view in zip(self.keys, views, strict=True):
            if view.channels != first.channels or (needs_size and view.size != first.size):
                raise ConfigError(
                    f"obs.image.shared: {self.keys[0]!r} has {first.channels} channels of {first.size} pixels, {key!r} "
                    f"{view.channels} of {view.size}: one network cannot read both; set obs.image.shared=false"
                )


def _make_view(key: str, spec: ArraySpec, config: ImageConfig) -> View:
    return View(
        key, spec,
        resize=config.resize_by_key.get(key, config.resize),
        crop=config.crop_by_key.get(key, config.crop),
        depth_range=config.depth_range if key in config.depth_keys else None,
        augment=config.augment,
    )  # fmt: skip


def _make_trunk(config: ImageConfig, view: View) -> Trunk:
    if config.net == "resnet18":
        return ResNet18(config.resnet, view.channels)
    if config.net == "vit":
        return ViT(config.vit, view.channels, view.size)
    return PretrainedTrunk(config.pretrained, view.channels, view.size)


def _make_readout(config: ImageConfig, channels: int) -> nn.Module:
    if config.tokens:
        return TokenReadout(channels, config.token_dim)
    pool = config.pool
    if pool == "auto":
        pool = "spatial_softmax" if config.net == "resnet18" else "attention"
    return PooledReadout(pool, channels, config.feature_dim, keypoints=config.resnet.keypoints)


def _check_has_places(key: str, size: tuple[int, int], stride: int) -> None:
    if max(size) <= stride:
        raise ConfigError(
            f"observation {key!r} of {size[0]}x{size[1]} pixels (after resize and crop) leaves one place in the "
            f"feature map, of which a spatial softmax tells nothing: expected more than {stride} pixels; or set "
            "obs.image.resnet.stem=small (16 pixels a place) or obs.image.pool=mean"
        )
