"""ResNet-18, ViT and what reads their feature maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.encoders.readout import PooledReadout, TokenReadout
from visuomotor.policies.encoders.resnet import Conv2d, ResNet18, ResNetConfig, SpatialSoftmax, expected_position
from visuomotor.policies.encoders.vit import AttentionPool, ViT, ViTConfig

SMALL = ResNetConfig(width=0.25)


def test_one_hot_pixel_is_where_the_softmax_points():
    maps = torch.zeros(1, 2, 3, 5)
    maps[0, 0, 0, 4] = 100.0  # top right
    maps[0, 1, 1, 2] = 100.0  # middle
    assert expected_position(maps)[0].tolist() == [pytest.approx([1, -1]), pytest.approx([0, 0], abs=1e-6)]


def test_equal_pixels_share_the_softmax():
    maps = torch.full((1, 1, 2, 2), -50.0)
    maps[0, 0, 0] = 0.0  # both of the top row, so x = 0 and y = -1
    assert expected_position(maps).flatten().tolist() == pytest.approx([0, -1])
    layer = SpatialSoftmax(3, 7)
    assert layer(torch.randn(2, 3, 4, 4)).shape == (2, 7, 2)


def test_the_convolution_is_the_usual_one():
    conv = Conv2d(3, 8, 7, stride=2)
    x = torch.randn(2, 3, 9, 9)
    usual = nn.functional.conv2d(x, conv.weight.permute(0, 3, 1, 2).contiguous(), stride=2, padding=3)
    assert torch.allclose(conv(x), usual, atol=1e-5)
    assert conv.weight.is_contiguous()  # as saved, and as its moments
    assert float(Conv2d(64, 64, 3).weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_full_size_is_the_published_one():
    net = ResNet18(ResNetConfig(), 3)
    # torchvision's resnet18 without its classifier has 11,176,512 weights; group norm has as many as batch norm.
    assert sum(p.numel() for p in net.parameters()) == 11_176_512
    assert net.out_channels == 512
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    groups = {(m.num_channels, m.num_groups) for m in net.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {(64, 4), (128, 8), (256, 16), (512, 32)}


@pytest.mark.parametrize(("stem", "side"), [("large", 3), ("small", 6)])
def test_every_weight_gets_a_gradient(stem, side):
    net = ResNet18(ResNetConfig(width=0.25, stem=stem), 1)
    out = net(torch.randn(2, 1, 84, 84).contiguous(memory_format=torch.channels_last))
    assert out.shape == (2, 128, side, side)
    out.square().mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in net.parameters())


def test_samples_do_not_see_each_other():
    net = ResNet18(SMALL, 3).train()
    x = torch.randn(4, 3, 32, 32)
    alone = torch.cat([net(row[None]) for row in x])
    assert torch.allclose(net(x), alone, atol=1e-4)


def test_bfloat16_is_close_to_float32():
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(ResNet18(SMALL, 3), PooledReadout("spatial_softmax", 128, 64, keypoints=8)),
        torch.randn(2, 3, 84, 84),
    )
    exact = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x)
    assert float((rough.float() - exact).abs().max()) < 0.05


@pytest.mark.parametrize("pool", ["spatial_softmax", "attention", "mean"])
def test_pools(pool):
    out = PooledReadout(pool, 16, 5, keypoints=4)(torch.randn(3, 16, 4, 6))
    assert out.shape == (3, 5)


def test_attention_pool_is_a_mean_where_all_keys_are_equal():
    pool = AttentionPool(4)
    nn.init.zeros_(pool.key.weight)
    x = torch.randn(2, 4, 3, 3)
    assert torch.allclose(pool(x), pool.value(x.flatten(2).transpose(1, 2)).mean(1), atol=1e-5)


def test_tokens_know_their_place():
    readout = TokenReadout(8, 12)
    tokens = readout(torch.ones(2, 8, 2, 3))  # the same everywhere
    assert tokens.shape == (2, 6, 12)
    assert torch.pdist(tokens[0]).min() > 1e-3
    assert torch.equal(tokens[0], tokens[1])


def test_vit_lays_its_patches_out_as_they_are():
    vit = ViT(ViTConfig(patch=4, dim=12, depth=1, heads=2), 3, (8, 12))
    nn.init.zeros_(vit.get_parameter("layers.0.project.weight"))  # no patch hears of another
    nn.init.zeros_(vit.position)
    x = torch.zeros(1, 3, 8, 12)
    x[..., 4:, 8:] = 1.0  # the last patch
    out = vit(x)
    assert out.shape == (1, 12, 2, 3)
    first = out[..., :1, :1]
    differs = (out - first).abs().amax(1)[0] > 1e-4
    assert differs.tolist() == [[False, False, False], [False, False, True]]
    vit(torch.randn(2, 3, 8, 12)).sum().backward()
    assert all(p.grad is not None for p in vit.parameters())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ResNetConfig(width=0.3), r"width=0\.3 makes .*multiples of 16"),
        (lambda: ResNetConfig(stem="tiny"), r"unknown stem 'tiny'.*small"),
        (lambda: ResNetConfig(keypoints=0), r"keypoints=0"),
        (lambda: ViTConfig(dim=10, heads=3), r"dim=10 is not a multiple of heads=3"),
        (lambda: ViT(ViTConfig(patch=16), 3, (84, 84)), r"84x84 pixels .*whole patches of 16"),
    ],
)
def test_refusals(make, says):
    with pytest.raises(ConfigError, match=says):
        make()
