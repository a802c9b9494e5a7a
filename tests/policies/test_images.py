"""Cameras: what is cut, augmented and normalised, one network or several, depth, tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.data.normalize import Normalizer
from visuomotor.data.spec import ArraySpec
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.augment import (
    Augment,
    AugmentConfig,
    GreenScreenConfig,
    JitterConfig,
    OverlayConfig,
)
from visuomotor.policies.encoders.images import ImageConfig, ImageEncoder
from visuomotor.policies.encoders.resnet import ResNetConfig
from visuomotor.policies.encoders.view import View, depth_to_unit
from visuomotor.policies.encoders.vit import ViTConfig

RGB = ArraySpec(shape=(24, 24, 3), dtype="uint8")
DEPTH = ArraySpec(shape=(24, 24, 1), unit="m")
NONE = Normalizer({}, {})
SMALL: dict[str, Any] = {"resnet": ResNetConfig(width=0.25, stem="small", keypoints=4), "feature_dim": 8}
EVERYTHING = AugmentConfig(
    shift=2, erase=0.5, jitter=JitterConfig(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
    greenscreen=GreenScreenConfig(probability=0.7), overlay=OverlayConfig(probability=0.7),
)  # fmt: skip


def view(spec: ArraySpec = RGB, crop: tuple[int, ...] = (), resize: tuple[int, ...] = (), **kw) -> View:
    depth = kw.pop("depth_range", None)
    return View("img", spec, resize=resize, crop=crop, depth_range=depth, augment=kw.pop("augment", AugmentConfig()))


def frames(batch: int = 4, steps: int = 2) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, steps, 24, 24, 3), generator=g, dtype=torch.uint8)


def test_pixels_become_minus_one_to_one():
    x = torch.zeros(1, 1, 24, 24, 3, dtype=torch.uint8)
    x[..., 0], x[..., 1] = 255, 51
    out = view()(x, None)
    assert out.shape == (1, 1, 3, 24, 24)
    assert out[0, 0, :, 0, 0].tolist() == pytest.approx([1.0, -0.6, -1.0])
    assert out[0].is_contiguous(memory_format=torch.channels_last)


def test_evaluation_takes_the_centre_and_training_a_place_of_each_sample():
    rows = torch.arange(24, dtype=torch.uint8).view(1, 1, 24, 1, 1).expand(16, 2, 24, 24, 3)
    v = view(crop=(16, 16))
    centre = (v(rows, None)[:, :, 0, 0, 0] + 1) * 127.5  # the row number of the first row
    assert centre.round().unique().tolist() == [4.0]
    cut = ((v(rows, Draws(0))[:, :, 0, 0, 0] + 1) * 127.5).round()
    assert len(cut[:, 0].unique()) > 4  # of 9 possible places
    assert torch.equal(cut[:, 0], cut[:, 1])  # the frames of a sample move together
    assert cut.min() >= 0
    assert cut.max() <= 8


def test_every_place_of_the_crop_occurs():
    columns = torch.arange(24, dtype=torch.uint8).view(1, 1, 1, 24, 1).expand(400, 1, 24, 24, 3)
    cut = ((view(crop=(21, 21))(columns, Draws(3))[:, 0, 0, 0, 0] + 1) * 127.5).round()
    assert cut.unique().tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("augment", [AugmentConfig(), EVERYTHING], ids=["crop", "everything"])
def test_augmentation_is_a_function_of_the_draws(augment):
    v = view(crop=(20, 20), augment=augment)
    x = frames()
    assert torch.equal(v(x, Draws(5)), v(x, Draws(5)))
    assert not torch.equal(v(x, Draws(5)), v(x, Draws(6)))
    assert torch.equal(v(x, None), v(x, None))
    state = torch.get_rng_state()
    v(x, Draws(5))
    assert torch.equal(state, torch.get_rng_state())  # torch's own generator is not touched


def test_ranks_together_augment_as_one_process():
    v = view(crop=(20, 20), augment=EVERYTHING)
    x = frames(6)
    parts = [v(x[2 * r : 2 * r + 2], Draws(5, rank=r, world_size=3)) for r in range(3)]
    assert torch.allclose(torch.cat(parts), v(x, Draws(5)), atol=1e-6)


def test_augmented_images_stay_in_range_and_frames_alike():
    still = frames(8, 1).expand(8, 2, 24, 24, 3)
    out = view(augment=EVERYTHING)(still, Draws(2))
    assert float(out.abs().max()) <= 1.0 + 1e-5
    assert torch.equal(out[:, 0], out[:, 1])
    changed = (out[:, 0] - view()(still, None)[:, 0]).abs().amax(dim=(1, 2, 3))
    assert int((changed > 0.01).sum()) >= 7


def test_strength_zero_and_probability_zero_leave_images_alone():
    assert not Augment(AugmentConfig(), (24, 24), colour=True).active
    x = torch.rand(4, 2, 3, 24, 24)
    rarely = AugmentConfig(overlay=OverlayConfig(probability=1.0, max_share=0.0))
    assert torch.equal(Augment(rarely, (24, 24), colour=True)(x, Draws(0)), x)


def test_only_the_screen_is_replaced():
    x = torch.zeros(1, 1, 3, 24, 24)
    x[:, :, 1, :, :12] = 1.0  # left half green
    x[:, :, 0, :, 12:] = 1.0  # right half red
    augment = Augment(AugmentConfig(greenscreen=GreenScreenConfig(probability=1.0)), (24, 24), colour=True)
    out = augment(x, Draws(0))
    assert torch.equal(out[..., 12:], x[..., 12:])
    assert float((out[..., :12] - x[..., :12]).abs().mean()) > 0.1


def test_depth_by_hand():
    metres = torch.tensor([0.5, 1.0, 1.5, 0.1, 9.0, 0.0, float("nan"), float("inf"), -1.0])
    assert depth_to_unit(metres, 0.5, 1.5).tolist() == pytest.approx([0, 0.5, 1, 0, 1, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (DEPTH, 1.0),
        (ArraySpec(shape=(24, 24)), 1.0),
        (ArraySpec(shape=(24, 24), unit="mm"), 1000.0),
        (ArraySpec(shape=(24, 24, 1), dtype="uint16", unit="mm"), 1000.0),
    ],
)
def test_depth_images_have_one_channel_in_any_form(spec, value):
    raw = torch.full((2, 1, *spec.shape), value)
    out = view(spec, depth_range=(0.5, 1.5), crop=(16, 16))(raw, None)
    assert out.shape == (2, 1, 1, 16, 16)
    assert float(out.abs().max()) == pytest.approx(0.0, abs=1e-6)  # the middle of the range


def test_resizing_depth_invents_no_distance():
    raw = torch.full((1, 1, 24, 24, 1), 0.5)
    raw[:, :, :, 13:] = 1.5  # an edge that falls between no two pixels of the small image
    out = view(DEPTH, depth_range=(0.5, 1.5), resize=(12, 12))(raw, None)
    assert out.unique().tolist() == [-1.0, 1.0]


def test_images_are_resized_before_they_are_cut():
    out = view(resize=(12, 16), crop=(10, 10))(frames(), None)
    assert out.shape == (4, 2, 3, 10, 10)
    plain = torch.full((1, 1, 24, 24, 3), 51, dtype=torch.uint8)
    assert torch.allclose(view(resize=(12, 12))(plain, None), torch.tensor(-0.6))


def test_features_of_several_cameras_stand_side_by_side():
    specs = {"front": RGB, "wrist": ArraySpec(shape=(16, 20, 3), dtype="uint8"), "depth": DEPTH}
    config = ImageConfig(**SMALL, crop_by_key={"front": [20, 20]}, depth_keys=["depth"])
    encoder = ImageEncoder(list(specs), specs, config).eval()
    obs = {"front": frames(3), "wrist": frames(3)[:, :, :16, :20], "depth": torch.rand(3, 2, 24, 24, 1)}
    out = encoder(obs, NONE)
    assert encoder.feature_dim == 24
    assert out.tokens is None
    assert out.features.shape == (3, 2, 24)
    other = encoder({**obs, "wrist": 255 - obs["wrist"]}, NONE).features
    same = [bool(torch.equal(a, b)) for a, b in zip(out.features.split(8, -1), other.split(8, -1), strict=True)]
    assert same == [True, False, True]
    alone = encoder({k: v[1:2] for k, v in obs.items()}, NONE).features
    assert torch.allclose(alone, out.features[1:2], atol=1e-4)


def test_one_network_for_all_cameras_or_one_each():
    specs = {"left": RGB, "right": RGB}
    obs = {"left": frames(2), "right": frames(2)}
    torch.manual_seed(0)
    shared = ImageEncoder(["left", "right"], specs, ImageConfig(**SMALL, shared=True)).eval()
    separate = ImageEncoder(["left", "right"], specs, ImageConfig(**SMALL)).eval()
    left, right = shared(obs, NONE).features.split(8, -1)
    assert torch.allclose(left, right, atol=1e-5)
    left, right = separate(obs, NONE).features.split(8, -1)
    assert not torch.allclose(left, right, atol=1e-3)
    count = [sum(p.numel() for p in e.parameters()) for e in (shared, separate)]
    assert count[1] == 2 * count[0]
    unequal = {**specs, "right": ArraySpec(shape=(16, 20, 3), dtype="uint8")}
    shared = ImageEncoder(["left", "right"], unequal, ImageConfig(**SMALL, shared=True))
    out = shared({**obs, "right": frames(2)[:, :, :16, :20]}, NONE)
    assert out.features.shape == (2, 2, 16)  # a ResNet reads any size


@pytest.mark.parametrize("net", ["resnet18", "vit"])
def test_tokens_of_every_place_step_and_camera(net):
    specs = {"a": RGB, "b": RGB}
    config = ImageConfig(net=net, tokens=True, token_dim=16, resnet=ResNetConfig(width=0.25),
                         vit=ViTConfig(patch=8, dim=24, depth=1, heads=2))  # fmt: skip
    encoder = ImageEncoder(["a", "b"], specs, config).eval()
    same = frames(3, 1).expand(3, 2, 24, 24, 3)
    out = encoder({"a": same, "b": same}, NONE)
    assert out.features is None
    assert (encoder.feature_dim, encoder.token_dim) == (0, 16)
    places = {"resnet18": 1, "vit": 9}[net]
    assert out.tokens.shape == (3, 2 * 2 * places, 16)
    assert torch.pdist(out.tokens[0]).min() > 1e-4  # equal frames, but each token says whose and when it is


def test_gradients_reach_everything_under_bfloat16():
    encoder = ImageEncoder(["img"], {"img": RGB}, ImageConfig(**SMALL, crop=[20, 20])).train()
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder({"img": frames()}, NONE, Draws(0)).features
    assert features.dtype == torch.float32
    features.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("settings", "spec", "says"),
    [
        ({"crop": [84, 84]}, RGB, r"'img' is 24x24 pixels: too small for obs\.image\.crop=\[84, 84\]"),
        ({"resize": [12, 12], "crop": [20, 20]}, RGB, r"12x12 pixels after resizing"),
        ({"crop": [84]}, RGB, r"obs\.image\.crop=\[84\]: expected \[rows, columns\]"),
        ({"net": "resnet50"}, RGB, r"unknown obs\.image\.net 'resnet50'.*resnet18"),
        ({"pool": "max"}, RGB, r"unknown obs\.image\.pool 'max'"),
        ({"depth_keys": ["img"]}, RGB, r"'img' has shape \(24, 24, 3\): expected \[H, W\] or \[H, W, 1\]"),
        ({"depth_range": [2.0, 1.0]}, RGB, r"depth_range=\[2\.0, 1\.0\]"),
        ({"augment": EVERYTHING}, ArraySpec(shape=(24, 24, 4), dtype="uint8"), r"'img' has 4 channels: colour jitter"),
        ({"net": "vit"}, ArraySpec(shape=(25, 24, 3), dtype="uint8"), r"25x24 pixels .*whole patches of 12"),
        ({}, RGB, r"'img' of 24x24 pixels .*one place.*more than 32 pixels.*stem=small"),
        ({"token_dim": 30}, RGB, r"token_dim=30 a multiple of 4"),
    ],
)
def test_refusals(settings, spec, says):
    with pytest.raises(ConfigError, match=says):
        ImageEncoder(["img"], {"img": spec}, ImageConfig(**settings))


def test_one_network_cannot_read_colour_and_depth():
    with pytest.raises(ConfigError, match=r"'img' has 3 channels.*'depth' 1 .*obs\.image\.shared=false"):
        ImageEncoder(
            ["img", "depth"], {"img": RGB, "depth": DEPTH}, ImageConfig(**SMALL, shared=True, depth_keys=["depth"])
        )


def test_augmentation_settings_are_checked():
    for make, says in (
        (lambda: JitterConfig(hue=0.6), r"jitter\.hue=0\.6: expected 0 to 0\.5"),
        (lambda: GreenScreenConfig(probability=2.0), r"greenscreen\.probability=2"),
        (lambda: AugmentConfig(shift=-1), r"shift=-1"),
        (lambda: AugmentConfig(erase=1.5), r"erase=1\.5"),
    ):
        with pytest.raises(ConfigError, match=says):
            make()
