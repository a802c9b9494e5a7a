"""What cameras get wrong: exposure, white balance, blur, noise and JPEG, on the pictures that worlds show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from visuomotor.data.transforms.camera import (
    DAYLIGHT,
    expose,
    gaussian_blur,
    jpeg,
    kelvin_to_rgb,
    sensor_noise,
    white_balance,
)
from visuomotor.data.transforms.colour import adjust_contrast, adjust_hue, adjust_saturation
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.world import World
from visuomotor.sim2real.randomization.drawn import Drawing, Drawn, keys_of

__all__ = ["NEUTRAL", "CameraFault"]

Images = Tensor
_NOISES = 16  # pictures of noise made once; every step takes one of them for each world


def _balanced(images: Images, kelvin: Tensor) -> Images:
    white = kelvin_to_rgb(torch.full_like(kelvin, DAYLIGHT))
    return white_balance(images, kelvin_to_rgb(kelvin) / white)


_FAULTS: dict[str, Callable[[Images, Tensor], Images]] = {
    "exposure": expose,
    "temperature": _balanced,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
    "jpeg": jpeg,
}
# Name, operation of its numbers, the number that changes nothing (None: every one does), and the least one.
NEUTRAL: dict[str, tuple[str, float | None, float | None]] = {
    "exposure": ("+", 0.0, None),
    "temperature": ("=", DAYLIGHT, 1667.0),
    "contrast": ("*", 1.0, 0.0),
    "saturation": ("*", 1.0, 0.0),
    "hue": ("+", 0.0, None),
    "blur": ("+", 0.0, 0.0),
    "noise": ("+", 0.0, 0.0),
    "jpeg": ("=", None, 1.0),
}


class CameraFault(Drawn):
    """One fault of cameras, as strong as the number of the episode.

    ``exposure`` [stops]; ``temperature`` of the light that the camera is not balanced for [K]; ``contrast`` and
    ``saturation`` (factors); ``hue`` (share of the circle); ``blur`` (standard deviation [px]); ``noise`` (standard
    deviation at white, which is 1); ``jpeg`` (quality, 1..100).

    Args:
        kind: one of :data:`NEUTRAL`.
        names: patterns of the colour cameras that are observed.
        how: the numbers are drawn; one a camera.

    Raises:
        ConfigError: no such camera among those that are observed and give colours.
    """

    senses = True

    def __init__(self, kind: str, names: Sequence[str], how: Drawing) -> None:
        operation, _, least = NEUTRAL[kind]
        super().__init__(f"camera_{kind}", names, how, operation=operation, least=least)
        self.kind = kind

    def sense(self, obs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        which = draws.integers(_NOISES, (len(self._keys),)) if self.kind == "noise" and self._keys else None
        for i, key in enumerate(self._keys):
            if key not in obs:  # pictures may be drawn apart from the rest
                continue
            number = self._number[:, min(i, self._number.shape[1] - 1)]
            images = obs[key].permute(0, 3, 1, 2).float() / 255.0
            if self.kind == "blur":
                new = gaussian_blur(images, number, self.spread.largest)
            elif which is None:
                new = _FAULTS[self.kind](images, number)
            else:
                new = sensor_noise(images, number, self._noises[key][which[:, i]])
            new = (new * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            neutral = NEUTRAL[self.kind][1]
            out[key] = new if neutral is None else torch.where((number == neutral).view(-1, 1, 1, 1), obs[key], new)
        return out

    def _find(self, world: World) -> int:
        specs = world.obs_spec
        cameras = {k: s for k, s in specs.items() if s.dtype == "uint8" and len(s.shape) == 3 and s.shape[-1] == 3}
        self._keys = keys_of(self.term, self.names, cameras, optional=self.optional)
        self._noises: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(0)
        for k in self._keys if self.kind == "noise" else ():
            shape = (_NOISES, 3, *specs[k].shape[:2])
            self._noises[k] = torch.randn(shape, generator=generator).to(world.sim.device)
        return len(self._keys)
