"""Image augmentation: which pixel operations, how strong, and their random parameters, one set a sample.

The frames of one sample share their parameters. Diffusion Policy crops every frame on its own; but what moved between
two frames is what a policy has to see, and a crop that jumps looks like a moving camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.data.transforms.camera import (
    DAYLIGHT,
    expose,
    gaussian_blur,
    jpeg,
    kelvin_to_rgb,
    sensor_noise,
    white_balance,
)
from visuomotor.data.transforms.colour import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation
from visuomotor.data.transforms.crop import erase, shift
from visuomotor.data.transforms.overlay import blend, chroma_mask, replace
from visuomotor.data.transforms.textures import cell_counts, load_textures, noise_textures
from visuomotor.policies.draws import Draws

__all__ = ["Augment", "AugmentConfig", "CameraFaultsConfig", "GreenScreenConfig", "JitterConfig", "OverlayConfig"]


@dataclass(kw_only=True, slots=True)
class JitterConfig:
    """Colour jitter; 0 leaves a property as it is.

    Attributes:
        brightness: the factor is drawn from 1 - brightness to 1 + brightness.
        contrast: likewise.
        saturation: likewise.
        hue: the turn is drawn from -hue to hue, as a share of the circle of hues.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name, high in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0.0 <= getattr(self, name) <= high:
                raise ConfigError(f"obs.image.augment.jitter.{name}={getattr(self, name)}: expected 0 to {high:g}")


@dataclass(kw_only=True, slots=True)
class GreenScreenConfig:
    """Another background behind the scene where a screen of one colour was filmed (GreenAug, arXiv:2407.07868).

    Attributes:
        probability: share of the samples that get another background.
        hue: of the screen, as a share of the circle of hues: green 0.333, blue 0.667.
        tolerance: largest distance from that hue.
        min_saturation: greyer pixels are no screen.
        min_value: darker pixels are no screen.
    """

    probability: float = 0.0
    hue: float = 1 / 3
    tolerance: float = 0.1
    min_saturation: float = 0.3
    min_value: float = 0.15

    def __post_init__(self) -> None:
        _check_probability("greenscreen.probability", self.probability)
        for name in ("hue", "tolerance", "min_saturation", "min_value"):
            _check_probability(f"greenscreen.{name}", getattr(self, name))


@dataclass(kw_only=True, slots=True)
class OverlayConfig:
    """Another picture over the whole image, half transparent (SODA, arXiv:2011.13389).

    Attributes:
        probability: share of the samples.
        max_share: weight of the other picture, drawn from 0 to this.
    """

    probability: float = 0.0
    max_share: float = 0.5

    def __post_init__(self) -> None:
        _check_probability("overlay.probability", self.probability)
        _check_probability("overlay.max_share", self.max_share)


@dataclass(kw_only=True, slots=True)
class CameraFaultsConfig:
    """What a real camera does that a recorded or drawn one did not.

    Attributes:
        probability: share of the samples in which there is any of it.
        exposure: stops, drawn from -exposure to exposure.
        temperature: colour of the light that the camera is not balanced for, lowest and highest [K]; 6500 changes
            nothing; empty leaves colours.
        blur: standard deviation [px], drawn from 0 to this.
        noise: standard deviation at white, drawn from 0 to this.
        jpeg: quality, drawn from this to 100; 100 leaves pictures as they are.
    """

    probability: float = 0.0
    exposure: float = 0.5
    temperature: list[float] = field(default_factory=lambda: [4500.0, 9000.0])
    blur: float = 0.8
    noise: float = 0.03
    jpeg: float = 50.0

    def __post_init__(self) -> None:
        _check_probability("camera.probability", self.probability)
        for name, low, high in (("exposure", 0.0, 4.0), ("blur", 0.0, 16.0), ("noise", 0.0, 1.0), ("jpeg", 1.0, 100.0)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(
                    f"obs.image.augment.camera.{name}={getattr(self, name)}: expected {low:g} to {high:g}"
                )
        t = self.temperature
        if t and not (len(t) == 2 and 1667.0 <= t[0] <= t[1] <= 25000.0):
            raise ConfigError(f"obs.image.augment.camera.temperature={t}: expected two of 1667 to 25000 K, or none")


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """How images are changed in training, each sample in its own way; never in evaluation.

    Attributes:
        random_crop: cut ``obs.image.crop`` out at a random place instead of the centre.
        shift: move by up to this many pixels each way, repeating the border.
        jitter: colours, not of depth images.
        greenscreen: background behind a filmed screen, not of depth images.
        overlay: another picture on top, not on depth images.
        camera: exposure, white balance, blur, noise and JPEG, not of depth images.
        erase: share of the samples in which a rectangle of up to a quarter of the image is covered.
        textures: folder of pictures for greenscreen and overlay; null makes coloured noise.
    """

    random_crop: bool = True
    shift: int = 0
    jitter: JitterConfig = field(default_factory=JitterConfig)
    greenscreen: GreenScreenConfig = field(default_factory=GreenScreenConfig)
    overlay: OverlayConfig = field(default_factory=OverlayConfig)
    camera: CameraFaultsConfig = field(default_factory=CameraFaultsConfig)
    erase: float = 0.0
    textures: str | None = None

    def __post_init__(self) -> None:
        _check_probability("erase", self.erase)
        if self.shift < 0:
            raise ConfigError(f"obs.image.augment.shift={self.shift}: expected 0 or more pixels")

    @property
    def recolours(self) -> bool:
        """Whether any setting looks at colours."""
        j = self.jitter
        strength = (j.brightness, j.contrast, j.saturation, j.hue)
        parts = (self.greenscreen, self.overlay, self.camera)
        return any(strength) or any(p.probability > 0 for p in parts)


def _check_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"obs.image.augment.{name}={value}: expected 0 to 1")


class Augment(nn.Module):
    """Everything but the crop, for images of one size.

    Args:
        config: what to do, how strongly.
        size: rows and columns.
        colour: False for depth images: only shift and erase apply.
    """

    textures: Tensor | None

    def __init__(self, config: AugmentConfig, size: tuple[int, int], *, colour: bool) -> None:
        super().__init__()
        self._c, self._size, self._colour = config, size, colour and config.recolours
        pictures = self._colour and max(config.greenscreen.probability, config.overlay.probability) > 0
        self._folder = config.textures if pictures else None
        self.register_buffer("textures", None, persistent=False)

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return bool(self._colour or self._c.shift or self._c.erase)

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """``images [B, To, C, H, W]`` float in 0..1, changed; all frames of a sample alike."""
        batch, steps = images.shape[:2]
        if self._colour:
            images = self._recolour(images, draws)
        flat = images.flatten(1, 2)  # [B, To * C, H, W]
        if self._c.shift:
            reach = self._c.shift
            down, right = draws.integers(-reach, reach + 1, (batch, 2)).unbind(1)
            flat = shift(flat, down, right, reach)
        if self._c.erase:
            flat = self._erase(flat, steps, draws)
        return flat.unflatten(1, (steps, -1))

    def _recolour(self, images: Tensor, draws: Draws) -> Tensor:
        batch, steps = images.shape[:2]
        x = images.flatten(0, 1)  # [B * To, 3, H, W]
        green, over = self._c.greenscreen, self._c.overlay
        if green.probability:
            mask = chroma_mask(
                x, hue=green.hue, tolerance=green.tolerance, min_saturation=green.min_saturation,
                min_value=green.min_value,
            )  # fmt: skip
            chosen = draws.uniform((batch,)) < green.probability
            mask = mask & chosen.repeat_interleave(steps)[:, None, None, None]
            x = replace(x, mask, self._pictures(batch, draws).repeat_interleave(steps, 0))
        jitter = self._c.jitter
        kinds = (
            (adjust_brightness, jitter.brightness, 1.0), (adjust_contrast, jitter.contrast, 1.0),
            (adjust_saturation, jitter.saturation, 1.0), (adjust_hue, jitter.hue, 0.0),
        )  # fmt: skip
        for adjust, strength, neutral in kinds:
            if strength:
                factor = neutral + strength * (2.0 * draws.uniform((batch,)) - 1.0)
                x = adjust(x, factor.repeat_interleave(steps))
        if over.probability:
            chosen = draws.uniform((batch,)) < over.probability
            share = draws.uniform((batch,)) * over.max_share * chosen
            pictures = self._pictures(batch, draws).repeat_interleave(steps, 0)
            x = blend(x, pictures, share.repeat_interleave(steps))
        if self._c.camera.probability:
            x = self._filmed(x, batch, steps, draws)
        return x.unflatten(0, (batch, steps))

    def _filmed(self, x: Tensor, batch: int, steps: int, draws: Draws) -> Tensor:
        c = self._c.camera
        u = draws.uniform((batch, 6)).repeat_interleave(steps, 0)  # frames of a sample are of one camera
        noise = draws.normal((batch, steps * 3, *x.shape[2:])).view_as(x)  # but each has noise of its own
        y = expose(x, c.exposure * (2.0 * u[:, 1] - 1.0))
        if c.temperature:
            low, high = c.temperature
            white = kelvin_to_rgb(torch.full_like(u[:, 2], DAYLIGHT))
            y = white_balance(y, kelvin_to_rgb(low + (high - low) * u[:, 2]) / white)
        y = gaussian_blur(y, c.blur * u[:, 3], c.blur) if c.blur else y
        y = sensor_noise(y, c.noise * u[:, 4], noise)
        y = jpeg(y, c.jpeg + (100.0 - c.jpeg) * u[:, 5]) if c.jpeg < 100 else y
        return y.where((u[:, 0] < c.probability).view(-1, 1, 1, 1), x)

    def _pictures(self, batch: int, draws: Draws) -> Tensor:
        """One other picture a sample ``[B, 3, H, W]`` in 0..1."""
        if self._folder is None:
            cells = [draws.uniform((batch, 3, n, n)) for n in cell_counts(self._size)]
            return noise_textures(cells, self._size)
        if self.textures is None:  # read when it is first needed: a robot has no folder of textures
            self.textures = load_textures(self._folder, self._size).to(draws.device)
        which = draws.integers(0, len(self.textures), (batch,))
        return self.textures.to(draws.device)[which].float() / 255.0

    def _erase(self, x: Tensor, steps: int, draws: Draws) -> Tensor:
        """A rectangle of 2 to 25 % of the area, with sides from 1:3 to 3:1, in one colour."""
        batch, (rows, columns) = len(x), self._size
        u = draws.uniform((batch, 5))
        area = rows * columns * (0.02 + 0.23 * u[:, 0])
        aspect = torch.exp(math.log(3.0) * (2.0 * u[:, 1] - 1.0))
        height = (area * aspect).sqrt().clamp(1, rows).long() * (u[:, 4] < self._c.erase)
        width = (area / aspect).sqrt().clamp(1, columns).long()
        top, left = (u[:, 2] * (rows - height + 1)).long(), (u[:, 3] * (columns - width + 1)).long()
        fill = draws.uniform((batch, x.shape[1] // steps)).repeat(1, steps)
        return erase(x, top, left, height, width, fill)
