"""One camera as a network sees it: scaled, cut, augmented, normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.transforms.crop import centre_crop, crop, resize
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.augment import Augment, AugmentConfig

__all__ = ["View", "depth_to_unit"]


class View(nn.Module):
    """Raw frames ``[B, To, H, W, C]`` to normalised ones ``[B, To, C, h, w]``, float32, stored channels last.

    Images stay uint8 until they are cut. The frames of one sample are cut at the same place, see ``augment``.

    Args:
        key: name of the array, for messages.
        spec: shape of one step.
        resize: rows and columns to scale to; empty leaves the size.
        crop: rows and columns to keep; empty keeps all.
        depth_range: nearest and farthest distance [m] of a depth image; None for a picture.
        augment: what is changed in training.

    Raises:
        ConfigError: an array that is no image, or smaller than the crop.
    """

    gain: Tensor
    offset: Tensor

    def __init__(
        self, key: str, spec: ArraySpec, *, resize: Sequence[int], crop: Sequence[int],
        depth_range: Sequence[float] | None, augment: AugmentConfig,
    ) -> None:  # fmt: skip
        super().__init__()
        self._depth = None if depth_range is None else (float(depth_range[0]), float(depth_range[1]))
        self._flat = self._depth is not None and len(spec.shape) == 2  # no axis of channels
        shape = (*spec.shape, 1) if self._flat else spec.shape
        if len(shape) != 3 or (self._depth is not None and shape[2] != 1):
            expected = "[H, W, C]" if self._depth is None else "[H, W] or [H, W, 1]"
            raise ConfigError(f"observation {key!r} has shape {spec.shape}: expected {expected}")
        self.channels = shape[2]
        self._to_metres = 1e-3 if spec.unit == "mm" else 1.0
        full = _pair(resize) or (shape[0], shape[1])
        self.size = _pair(crop) or full
        if self.size[0] > full[0] or self.size[1] > full[1]:
            raise ConfigError(
                f"observation {key!r} is {full[0]}x{full[1]} pixels{' after resizing' if resize else ''}: too small "
                f"for obs.image.crop={list(self.size)}"
            )
        if augment.recolours and self._depth is None and self.channels != 3:
            raise ConfigError(
                f"observation {key!r} has {self.channels} channels: colour jitter, green screen and overlay need 3"
            )
        self._resize, self._full = bool(resize), full
        self._random_crop = augment.random_crop and self.size != full
        self.augment = Augment(augment, self.size, colour=self._depth is None)
        self.set_normalization((0.5,), (0.5,))

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Give images as ``(x - mean) / std`` with ``x`` in 0..1; depth always as -1..1."""
        if self._depth is not None:
            mean, std = (0.5,), (0.5,)
        std_t = torch.as_tensor(std, dtype=torch.float32).reshape(-1, 1, 1)
        mean_t = torch.as_tensor(mean, dtype=torch.float32).reshape(-1, 1, 1)
        self.register_buffer("gain", 1.0 / std_t, persistent=False)  # [C or 1, 1, 1]
        self.register_buffer("offset", -mean_t / std_t, persistent=False)

    def forward(self, raw: Tensor, draws: Draws | None) -> Tensor:
        """``raw [B, To, H, W, C]`` (depth also ``[B, To, H, W]``), changed at random if there are ``draws``."""
        x = raw[..., None, :, :] if self._flat else raw.movedim(-1, -3)  # [B, To, C, H, W]
        if self._resize:
            x = self._unit(x)
            x = resize(x.flatten(0, 1), self._full, nearest=self._depth is not None).unflatten(0, x.shape[:2])
        x = self._cut(x, draws)
        augmented = draws is not None and self.augment.active
        if augmented or self._resize or self._depth is not None:
            x = x if self._resize else self._unit(x)
            if draws is not None and augmented:
                x = self.augment(x, draws)
            gain = self.gain
        else:
            gain = self.gain / 255.0
        frames = x.flatten(0, 1).to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self.offset, frames, gain).unflatten(0, x.shape[:2])

    def _cut(self, x: Tensor, draws: Draws | None) -> Tensor:
        if draws is None or not self._random_crop:
            return centre_crop(x, self.size)
        top = draws.integers(0, self._full[0] - self.size[0] + 1, (len(x),))
        left = draws.integers(0, self._full[1] - self.size[1] + 1, (len(x),))
        return crop(x, top, left, self.size)

    def _unit(self, x: Tensor) -> Tensor:
        """Pixels or distances to 0..1."""
        return x.float() / 255.0 if self._depth is None else depth_to_unit(x.float() * self._to_metres, *self._depth)


def depth_to_unit(metres: Tensor, near: float, far: float) -> Tensor:
    """Distances [m] to 0 (near or nearer) .. 1 (far or farther); what is 0, negative or not finite was not measured: 1.

    Most sensors measure nothing where the scene is too far away, and what is farther than all else is in no way.
    """
    measured = torch.isfinite(metres) & (metres > 0)
    return torch.where(measured, ((metres - near) / (far - near)).clamp(0.0, 1.0), 1.0)


def _pair(size: Sequence[int]) -> tuple[int, int] | None:
    return (int(size[0]), int(size[1])) if size else None
