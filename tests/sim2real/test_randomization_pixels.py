"""What cameras do to pictures: against arithmetic done by hand and libjpeg; in worlds and in training."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.transforms.camera import (
    expose,
    gaussian_blur,
    jpeg,
    kelvin_to_rgb,
    sensor_noise,
    white_balance,
)
from visuomotor.data.transforms.textures import cell_counts, noise_textures
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.augment import Augment, AugmentConfig, CameraFaultsConfig


def pictures(n: int = 3, side: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    cells = [torch.rand(n, 3, k, k, generator=generator) for k in cell_counts((side, side))]
    return noise_textures(cells, (side, side))


def test_exposure_and_white_balance_by_hand() -> None:
    grey = torch.full((2, 3, 1, 1), 0.25)
    out = expose(grey, torch.tensor([1.0, 0.0]))
    assert out[0].flatten().tolist() == pytest.approx([0.25 * 2 ** (1 / 2.2)] * 3)  # twice the light
    assert torch.equal(out[1], grey[1])
    assert float(expose(grey, torch.tensor([9.0, 9.0])).max()) == 1.0
    out = white_balance(grey, torch.tensor([[2.0, 1.0, 0.5], [1.0, 1.0, 1.0]]))
    assert out[0].flatten().tolist() == pytest.approx([0.25 * 2 ** (1 / 2.2), 0.25, 0.25 * 0.5 ** (1 / 2.2)])


def test_colours_of_black_bodies() -> None:
    rgb = kelvin_to_rgb(torch.tensor([2000.0, 4000.0, 6504.0, 15000.0]))
    luminance = rgb @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert luminance.tolist() == pytest.approx([1.0] * 4, abs=2e-3)
    assert rgb[2].tolist() == pytest.approx([1.0] * 3, abs=0.05)  # nearly the white of sRGB
    assert (rgb[:, 0] - rgb[:, 2]).diff().lt(0).all()  # the hotter, the bluer
    assert float(rgb[0, 2]) < 0.05 < 1.5 < float(rgb[0, 0])


def test_blur_is_that_of_opencv_and_nothing_at_zero() -> None:
    x = pictures()
    out = gaussian_blur(x, torch.tensor([0.0, 1.0, 2.0]), 2.0)
    torch.testing.assert_close(out[0], x[0], rtol=0, atol=1e-6)
    for i, sigma in ((1, 1.0), (2, 2.0)):
        theirs = cv2.GaussianBlur(x[i].permute(1, 2, 0).numpy(), (13, 13), sigma, borderType=cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(out[i].permute(1, 2, 0).numpy(), theirs, atol=2e-3)


def test_noise_is_three_times_as_strong_at_white() -> None:
    x = torch.cat([torch.full((1, 3, 100, 100), 0.5 + 1e-9), torch.zeros(1, 3, 100, 100)])
    out = sensor_noise(x, torch.tensor([0.03, 0.03]), torch.randn(2, 3, 100, 100).abs())
    assert float(out[1].mean()) == pytest.approx(0.01 * (2 / np.pi) ** 0.5, rel=0.05)
    assert float((out[0] - 0.5).mean()) == pytest.approx(0.01 * 5**0.5 * (2 / np.pi) ** 0.5, rel=0.05)


@pytest.mark.parametrize("quality", [15, 50, 90])
def test_jpeg_loses_what_libjpeg_loses(quality: int) -> None:
    x = (pictures(2, 64) * 255).round() / 255
    ours = jpeg(x, torch.tensor([float(quality)] * 2))
    for i in range(2):
        bgr = (x[i].permute(1, 2, 0).flip(-1) * 255).round().byte().numpy()
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        theirs = torch.from_numpy(cv2.imdecode(data, cv2.IMREAD_COLOR)).flip(-1).permute(2, 0, 1) / 255.0
        lost = float((theirs - x[i]).square().mean().sqrt())
        assert float((ours[i] - x[i]).square().mean().sqrt()) == pytest.approx(lost, rel=0.1)
        assert float((ours[i] - theirs).square().mean().sqrt()) < 0.3 * lost + 0.003
    odd = jpeg(x[..., :37, :21], torch.tensor([quality, quality]))
    assert odd.shape == (2, 3, 37, 21)


def test_training_sees_one_camera_a_sample_and_some_untouched() -> None:
    config = AugmentConfig(camera=CameraFaultsConfig(probability=0.5))
    augment = Augment(config, (48, 48), colour=True)
    assert augment.active
    x = pictures(20)[:, None].expand(-1, 2, -1, -1, -1)
    out = augment(x, Draws(0, 1))
    same = (out == x).flatten(1).all(1)
    assert 4 <= int(same.sum()) <= 16
    assert torch.equal(augment(x, Draws(0, 1)), out)
    no_noise = AugmentConfig(camera=CameraFaultsConfig(probability=1.0, noise=0.0))
    out = Augment(no_noise, (48, 48), colour=True)(x, Draws(0, 1))
    torch.testing.assert_close(out[:, 0], out[:, 1])
    assert not Augment(AugmentConfig(), (48, 48), colour=True).active


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 1.5}, r"camera\.probability=1\.5: expected 0 to 1"),
        ({"jpeg": 0.0}, r"camera\.jpeg=0\.0: expected 1 to 100"),
        ({"temperature": [9000.0, 4000.0]}, r"camera\.temperature"),
    ],
)
def test_mistakes_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CameraFaultsConfig(**settings)
