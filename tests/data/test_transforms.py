"""Pixel operations against arithmetic done by hand, each sample with parameters of its own."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.errors import DataError
from visuomotor.data.transforms.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    hue_of,
    luminance,
)
from visuomotor.data.transforms.crop import centre_crop, crop, erase, resize, shift
from visuomotor.data.transforms.overlay import blend, chroma_mask, replace
from visuomotor.data.transforms.textures import cell_counts, load_textures, noise_textures


def counting(batch: int, h: int, w: int) -> torch.Tensor:
    """``[batch, 1, h, w]``, value = 100 sample + 10 row + column."""
    b, y, x = torch.meshgrid(torch.arange(batch), torch.arange(h), torch.arange(w), indexing="ij")
    return (100 * b + 10 * y + x)[:, None]


def test_every_sample_is_cut_at_its_own_corner():
    out = crop(counting(3, 4, 5), torch.tensor([0, 1, 2]), torch.tensor([3, 0, 1]), (2, 2))
    assert out[:, 0].tolist() == [[[3, 4], [13, 14]], [[110, 111], [120, 121]], [[221, 222], [231, 232]]]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_crop_is_slicing(batch, h, w, seed):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, 2, 6, 7, 3), generator=g, dtype=torch.uint8).movedim(-1, -3)  # channels last
    top = torch.randint(0, 6 - h + 1, (batch,), generator=g)
    left = torch.randint(0, 7 - w + 1, (batch,), generator=g)
    out = crop(images, top, left, (h, w))
    for i in range(batch):
        assert torch.equal(out[i], images[i, :, :, top[i] : top[i] + h, left[i] : left[i] + w])


def test_centre_crop_and_shift():
    x = counting(1, 4, 6)
    assert centre_crop(x, (2, 2))[0, 0].tolist() == [[12, 13], [22, 23]]
    moved = shift(counting(2, 3, 3).float(), torch.tensor([1, 0]), torch.tensor([0, -1]), reach=1)
    assert moved[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [10, 11, 12]]  # down; the first row is repeated
    assert moved[1, 0].tolist() == [[101, 102, 102], [111, 112, 112], [121, 122, 122]]  # left


def test_resize():
    x = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]])
    assert resize(x, (1, 1)).item() == pytest.approx(3.0)
    assert resize(x, (2, 2)) is x
    assert resize(x, (4, 2), nearest=True)[0, 0].tolist() == [[0, 2], [0, 2], [4, 6], [4, 6]]


def test_erase_covers_one_rectangle_a_sample():
    top, left, height, width = (torch.tensor(v) for v in ([0, 1], [1, 0], [1, 0], [2, 3]))
    out = erase(torch.zeros(2, 1, 2, 4), top, left, height, width, torch.tensor([[7.0], [9.0]]))
    assert out[0, 0].tolist() == [[0, 7, 7, 0], [0, 0, 0, 0]]
    assert out[1, 0].sum() == 0


def test_jitter_by_hand():
    x = torch.tensor([[0.2, 0.4, 0.6]]).view(1, 3, 1, 1)
    two, half, none = torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([0.0])
    assert adjust_brightness(x, two).flatten().tolist() == pytest.approx([0.4, 0.8, 1.0])  # 1.2 is cut
    grey = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6
    assert luminance(x).item() == pytest.approx(grey)
    assert adjust_saturation(x, none).flatten().tolist() == pytest.approx([grey] * 3)
    assert adjust_saturation(x, half).flatten().tolist() == pytest.approx([(grey + v) / 2 for v in (0.2, 0.4, 0.6)])
    pair = torch.cat([torch.full((1, 3, 1, 1), 0.2), torch.full((1, 3, 1, 1), 0.6)], dim=3)  # mean luminance 0.4
    assert adjust_contrast(pair, half)[0, 0, 0].tolist() == pytest.approx([0.3, 0.5])
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert adjust_hue(red, torch.tensor([1 / 3])).flatten().tolist() == pytest.approx([0, 1, 0], abs=1e-5)


def test_no_strength_changes_nothing():
    x = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    one, zero = torch.ones(4), torch.zeros(4)
    for out in (adjust_brightness(x, one), adjust_contrast(x, one), adjust_saturation(x, one)):
        assert torch.allclose(out, x, atol=1e-6)
    assert torch.allclose(adjust_hue(x, zero), x, atol=1e-5)
    assert torch.allclose(adjust_hue(x, zero + 1), x, atol=1e-5)
    assert torch.equal(blend(x, 1 - x, zero), x)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 3), st.floats(-0.5, 0.5))
def test_hue_agrees_with_the_standard_library(rgb, turn):
    r, g, b = (v / 255 for v in rgb)
    h, s, v = colorsys.rgb_to_hsv(r, g, b)
    x = torch.tensor([r, g, b]).view(1, 3, 1, 1)
    assert hue_of(x).item() == pytest.approx(h, abs=1e-5)
    expected = colorsys.hsv_to_rgb((h + turn) % 1.0, s, v)
    assert adjust_hue(x, torch.tensor([turn])).flatten().tolist() == pytest.approx(expected, abs=1e-4)


def test_strengths_are_per_sample():
    x = torch.full((2, 3, 2, 2), 0.4)
    assert adjust_brightness(x, torch.tensor([1.0, 2.0]))[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.8])


def test_a_green_screen_is_replaced_and_nothing_else():
    colours = torch.tensor([[0, 1, 0], [0.1, 0.6, 0.2], [1, 0, 0], [0.5, 0.5, 0.5], [0, 0.05, 0]])  # 2 screen, 3 not
    x = colours.t()[None, :, None]  # [1, 3, 1, 5]
    mask = chroma_mask(x, hue=1 / 3, tolerance=0.1, min_saturation=0.3, min_value=0.15)
    assert mask[0, 0, 0].tolist() == [True, True, False, False, False]
    out = replace(x, mask, torch.full_like(x, 0.25))
    assert out[0, :, 0, 0].tolist() == [0.25] * 3
    assert torch.equal(out[..., 2:], x[..., 2:])
    red_screen = chroma_mask(x, hue=0.98, tolerance=0.05, min_saturation=0.3, min_value=0.15)  # the circle closes
    assert red_screen[0, 0, 0].tolist() == [False, False, True, False, False]


def test_blend():
    out = blend(torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1), torch.tensor([0.25, 1.0]))
    assert out.flatten().tolist() == [0.25, 1.0]


def test_noise_textures_mix_coarse_and_fine():
    coarse, fine = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 4, 4)
    out = noise_textures([coarse, fine], (8, 8))
    assert torch.allclose(out, torch.full((1, 3, 8, 8), 1 / 1.5))  # weights 1 and 1/2
    assert cell_counts((84, 84)) == (2, 4, 8, 16)


def test_textures_from_a_folder(tmp_path):
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 20:] = (255, 0, 0)  # OpenCV: blue
    cv2.imwrite(str(tmp_path / "a.png"), wide)
    out = load_textures(tmp_path, (10, 10))
    assert out.shape == (1, 3, 10, 10)
    assert out[0, :, 0, 9].tolist() == [0, 0, 255]  # RGB; the middle of the picture
    assert out[0, :, 0, 0].tolist() == [0, 0, 0]
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(DataError, match=r"b\.png is no picture"):
        load_textures(tmp_path, (8, 8))
    with pytest.raises(DataError, match="no folder of textures"):
        load_textures(tmp_path / "none", (8, 8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        load_textures(tmp_path / "empty", (8, 8))
